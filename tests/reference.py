"""Plain NumPy implementations of the operations and of DAC: the oracle that needs no torch.

Written from the definitions, one output at a time where that is affordable, in whatever precision
the arrays have; tests use float64.
"""

from __future__ import annotations

import numpy as np

DILATIONS = (1, 3, 9)


def conv1d(x, weight, bias, *, stride=1, dilation=1, padding=0):
    """x [in, T], weight [out, in, kernel] -> [out, T']."""
    kernel = weight.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding)))
    length = (x.shape[1] - (kernel - 1) * dilation - 1) // stride + 1
    y = np.zeros((weight.shape[0], length), x.dtype)
    for j in range(kernel):
        first = j * dilation
        y += weight[:, :, j] @ x[:, first : first + (length - 1) * stride + 1 : stride]
    return y + bias[:, np.newaxis]


def conv_transpose1d(x, weight, bias, *, stride, padding):
    """x [in, T], weight [in, out, kernel] -> [out, (T - 1) * stride + kernel - 2 * padding]."""
    _, n_out, kernel = weight.shape
    y = np.zeros((n_out, (x.shape[1] - 1) * stride + kernel), x.dtype)
    for j in range(kernel):
        y[:, j : j + (x.shape[1] - 1) * stride + 1 : stride] += weight[:, :, j].T @ x
    return y[:, padding : y.shape[1] - padding] + bias[:, np.newaxis]


def snake(x, alpha):
    alpha = alpha[:, np.newaxis]
    return x + np.sin(alpha * x) ** 2 / (alpha + 1e-9)


class Dac:
    """DAC's passes over the tensors of a model (vocoder_plugin.codecs.dac.Dac), in their stored names."""

    def __init__(self, model, dtype=np.float64):
        self.model = model
        self.w = lambda name: self._read(name).astype(dtype)

    def _read(self, name):
        file = self.model.file
        if name.endswith(".weight") and not name.endswith("codebook.weight"):
            return file.tensor(name, file.conv_shape(name)).read()
        return file.read(name) if name.endswith("codebook.weight") else file.read(name).reshape(-1)

    def codebook(self, q, *, unit=False):
        table = self.w(f"vq.q{q}.codebook.weight")
        return table / np.linalg.norm(table, axis=1, keepdims=True) if unit else table

    def residual_unit(self, x, name, dilation):
        h = snake(x, self.w(f"{name}.snake1.alpha"))
        h = conv1d(
            h, self.w(f"{name}.conv1.weight"), self.w(f"{name}.conv1.bias"), dilation=dilation, padding=3 * dilation
        )
        h = snake(h, self.w(f"{name}.snake2.alpha"))
        return x + conv1d(h, self.w(f"{name}.conv2.weight"), self.w(f"{name}.conv2.bias"))

    def decode(self, codes):
        z = sum(
            conv1d(
                self.codebook(q)[codes[q]].T,
                self.w(f"vq.q{q}.out_proj.weight"),
                self.w(f"vq.q{q}.out_proj.bias"),
            )
            for q in range(len(codes))
        )
        x = conv1d(z, self.w("dec.model.0.weight"), self.w("dec.model.0.bias"), padding=3)
        rates = self.model.decoder_rates
        for i, rate in enumerate(rates, 1):
            block = f"dec.model.{i}.block"
            x = snake(x, self.w(f"{block}.snake1.alpha"))
            x = conv_transpose1d(
                x,
                self.w(f"{block}.conv_t1.weight"),
                self.w(f"{block}.conv_t1.bias"),
                stride=rate,
                padding=-(-rate // 2),
            )
            for k, dilation in enumerate(DILATIONS, 1):
                x = self.residual_unit(x, f"{block}.res_unit{k}", dilation)
        last = len(rates) + 1
        x = snake(x, self.w(f"dec.model.{last}.alpha"))
        x = conv1d(x, self.w(f"dec.model.{last + 1}.weight"), self.w(f"dec.model.{last + 1}.bias"), padding=3)
        return np.tanh(x[0])

    def latents(self, samples):
        x = conv1d(samples[np.newaxis], self.w("enc.block.0.weight"), self.w("enc.block.0.bias"), padding=3)
        rates = self.model.encoder_rates
        for i, rate in enumerate(rates, 1):
            block = f"enc.block.{i}.block"
            for k, dilation in enumerate(DILATIONS, 1):
                x = self.residual_unit(x, f"{block}.res_unit{k}", dilation)
            x = snake(x, self.w(f"{block}.snake1.alpha"))
            x = conv1d(
                x, self.w(f"{block}.conv1.weight"), self.w(f"{block}.conv1.bias"), stride=rate, padding=-(-rate // 2)
            )
        last = len(rates) + 1
        x = snake(x, self.w(f"enc.block.{last}.alpha"))
        return conv1d(x, self.w(f"enc.block.{last + 1}.weight"), self.w(f"enc.block.{last + 1}.bias"), padding=1)

    def encode(self, samples):
        residual, codes = self.latents(samples), []
        for q in range(self.model.n_codebooks):
            z = conv1d(residual, self.w(f"vq.q{q}.in_proj.weight"), self.w(f"vq.q{q}.in_proj.bias"))
            codes.append(np.argmax(self.codebook(q, unit=True) @ z, axis=0))
            e = self.codebook(q)[codes[-1]].T
            residual = residual - conv1d(e, self.w(f"vq.q{q}.out_proj.weight"), self.w(f"vq.q{q}.out_proj.bias"))
        return np.array(codes)
