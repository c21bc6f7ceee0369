"""The Descript Audio Codec: residual vector quantisation between convolutional en- and decoder.

Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv:2306.06546).
Reference implementation: descript-audio-codec 1.0.0, dac/model/dac.py. Tensor names are those of
codec.cpp's GGUF files, of which two layouts of convolution weights are in circulation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..gguf_file import GGUFFile
from ..net.ops import Ops, Snake
from ..net.signal import Signal
from ..runtime.ggml import Tensor
from ..streams.format import Format
from .model import (
    MOST_CHANNELS,
    SAMPLE_RATES,
    Converter,
    Model,
    ModelFile,
    Option,
    joined,
    mapped,
    stored,
    total,
    unit_rows,
)

DILATIONS = (1, 3, 9)
MOST_HOP = 1 << 16
MOST_CODEBOOKS = 64  # twice the published 32


class Dac(Model):
    """DAC. Rates multiply to the hop length, in samples a frame; without rates there is no such side."""

    architectures = ("dac",)
    converter = Converter(
        "vocoder_plugin.converters.dac:convert",
        "SOURCE is a descript-audio-codec .pth file (OuteTTS 1.0 uses weights_24khz_1.5kbps_v1.0.pth of "
        "ibm-research/DAC.speech.v1.0), or a Hugging Face DacModel folder or safetensors file.",
        {"sample_rate": Option(int, "Sample rate in Hz, if the checkpoint does not say it.")},
    )

    @classmethod
    def read(cls, file: GGUFFile, **_options: Any) -> Dac:
        return cls(ModelFile(file))

    def __init__(self, file: ModelFile) -> None:
        super().__init__(file)
        self.has_encoder, self.has_decoder = file.sides(encoder="enc.block.0.weight", decoder="dec.model.0.weight")
        file.reversed = file.is_reversed("dec.model.0" if self.has_decoder else "enc.block.0")
        encoder, decoder = "enc.block.{}.block.conv1.weight", "dec.model.{}.block.conv_t1.weight"
        self.encoder_rates = file.rates(file.present(encoder, 1) or [encoder.format(1)]) if self.has_encoder else ()
        self.decoder_rates = file.rates(file.present(decoder, 1) or [decoder.format(1)]) if self.has_decoder else ()
        self.encoder_dim = file.conv_shape("enc.block.0.weight")[0] if self.has_encoder else 0
        self.decoder_dim = file.conv_shape("dec.model.0.weight")[0] if self.has_decoder else 0
        latent_dim, codebook_dim, _ = file.conv_shape("vq.q0.out_proj.weight")
        self.latent_dim = file.get("codec.latent_dim", int, latent_dim)
        self.codebook_dim = file.get("codec.codebook_dim", int, codebook_dim)
        self.n_codebooks = file.get("codec.n_q", int)
        file.expect("key 'codec.n_q'", self.n_codebooks, range(1, MOST_CODEBOOKS + 1))
        codebook_size = file.get("codec.codebook_size", int)
        self.format = Format(
            name=file.get("general.name", str, "DAC") or "DAC",
            sample_rate=file.get("codec.sample_rate", int),
            hop_length=math.prod(self.decoder_rates or self.encoder_rates),
            rows=tuple(range(self.n_codebooks)),
            codebook_size=codebook_size,
            least_rows=self.n_codebooks,
        )
        self._check()
        file.recipes.update(self._recipes())

    def _check(self) -> None:
        """The keys against the tensors, and sizes against sense."""
        file, f = self.file, self.format
        codebook = file.shape("vq.q0.codebook.weight")
        in_proj = file.conv_shape("vq.q0.in_proj.weight")[1] if self.has_encoder else self.latent_dim
        file.expect("key 'codec.sample_rate'", f.sample_rate, SAMPLE_RATES)
        if file.has(beyond := f"vq.q{self.n_codebooks}.codebook.weight"):
            message = f"key 'codec.n_q' is {self.n_codebooks}, but there is a tensor {beyond!r}"
            raise file.fail(message, key="codec.n_q", tensor=beyond)
        file.expect("key 'codec.codebook_size'", f.codebook_size, codebook[0])
        file.expect("key 'codec.codebook_dim'", self.codebook_dim, codebook[-1])
        file.expect("key 'codec.latent_dim'", self.latent_dim, in_proj)
        file.expect("key 'codec.hop_size'", file.get("codec.hop_size", int, f.hop_length), f.hop_length)
        if self.has_encoder and self.has_decoder and math.prod(self.encoder_rates) != math.prod(self.decoder_rates):
            rates = f"encoder rates {self.encoder_rates} and decoder rates {self.decoder_rates}"
            raise file.fail(f"{rates} differ in product")
        if f.hop_length > MOST_HOP:
            raise file.fail(f"a frame has {f.hop_length} samples, more than {MOST_HOP}")
        for what, dim in (("encoder", self.encoder_dim << len(self.encoder_rates)), ("decoder", self.decoder_dim)):
            if dim > MOST_CHANNELS:
                raise file.fail(f"the {what} has {dim} channels, more than {MOST_CHANNELS}")
        if self.decoder_dim % (1 << len(self.decoder_rates)):
            times = len(self.decoder_rates)
            raise file.fail(f"{self.decoder_dim} decoder channels cannot be halved {times} times")

    def _recipes(self) -> dict[str, Any]:
        layers = [f"vq.q{q}" for q in range(self.n_codebooks)]
        recipes = {
            "vq.codebooks": joined(0, [stored(f"{q}.codebook.weight") for q in layers]),
            "vq.out_proj.weight": joined(1, [stored(f"{q}.out_proj.weight") for q in layers]),
            "vq.out_proj.bias": total([stored(f"{q}.out_proj.bias") for q in layers]),
        }
        for q in layers:
            recipes[f"{q}.codebook"] = stored(f"{q}.codebook.weight")
            recipes[f"{q}.codebook.unit"] = mapped(unit_rows, stored(f"{q}.codebook.weight"))
            for part in ("weight", "bias"):
                recipes[f"{q}.out_proj.negated.{part}"] = mapped(np.negative, stored(f"{q}.out_proj.{part}"))
        return recipes

    def describe(self) -> dict[str, str]:
        return {
            "encoder": f"rates {' '.join(map(str, self.encoder_rates))}" if self.has_encoder else "none",
            "decoder": f"rates {' '.join(map(str, self.decoder_rates))}" if self.has_decoder else "none",
        }

    def decode(self, net: Ops, codes: Tensor) -> Signal:
        n, size, channels = self.n_codebooks, self.format.codebook_size, self.decoder_dim
        x = net.embed(codes, "vq.codebooks", size=n * size, dim=self.codebook_dim, per_frame=n)  # [n * dim, T]
        x = net.conv1d(x, "vq.out_proj", out=self.latent_dim, kernel=1)  # [latent, T]: every codebook's projection
        x = net.conv1d(x, "dec.model.0", out=channels, kernel=7)  # [channels, T]
        for i, rate in enumerate(self.decoder_rates, 1):
            block, channels = f"dec.model.{i}.block", channels // 2
            x = net.conv_transpose1d(
                x, f"{block}.conv_t1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2),
                activation=Snake(f"{block}.snake1"),
            )  # [channels / 2, T * rate]  # fmt: skip
            for k, dilation in enumerate(DILATIONS, 1):
                x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
        last = len(self.decoder_rates) + 2
        x = net.conv1d(
            x, f"dec.model.{last}", out=1, kernel=7, activation=Snake(f"dec.model.{last - 1}")
        )  # [1, T * hop]
        return net.tanh(x)

    def latents(self, net: Ops, samples: Signal) -> Signal:
        channels = self.encoder_dim
        x = net.conv1d(samples, "enc.block.0", out=channels, kernel=7)  # [channels, T * hop]
        for i, rate in enumerate(self.encoder_rates, 1):
            block, channels = f"enc.block.{i}.block", channels * 2
            for k, dilation in enumerate(DILATIONS, 1):
                x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
            x = net.conv1d(
                x, f"{block}.conv1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2),
                activation=Snake(f"{block}.snake1"),
            )  # [2 channels, T / rate]  # fmt: skip
        last = len(self.encoder_rates) + 2
        return net.conv1d(
            x, f"enc.block.{last}", out=self.latent_dim, kernel=3, activation=Snake(f"enc.block.{last - 1}")
        )

    def quantise(self, net: Ops, latents: Signal) -> list[Tensor]:
        size, dim = self.format.codebook_size, self.codebook_dim
        residual, codes = latents, []  # [latent, T]
        for q in range(self.n_codebooks):
            z = net.conv1d(residual, f"vq.q{q}.in_proj", out=dim, kernel=1)  # [dim, T]
            # nearest of unit vectors = largest inner product; the length of z does not matter
            codes.append(net.nearest(z, f"vq.q{q}.codebook.unit", size=size))
            if q + 1 < self.n_codebooks:
                e = net.embed_nearest(codes[-1], z, f"vq.q{q}.codebook", size=size, dim=dim)  # [dim, T]
                residual = net.conv1d(e, f"vq.q{q}.out_proj.negated", out=self.latent_dim, kernel=1, add=residual)
        return codes


def residual_unit(net: Ops, x: Signal, name: str, *, dilation: int) -> Signal:
    h = net.conv1d(x, f"{name}.conv1", out=x.channels, kernel=7, dilation=dilation, activation=Snake(f"{name}.snake1"))
    return net.conv1d(h, f"{name}.conv2", out=x.channels, kernel=1, activation=Snake(f"{name}.snake2"), add=x)
