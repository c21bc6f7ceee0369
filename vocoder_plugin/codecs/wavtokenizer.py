"""WavTokenizer: one codebook, a Vocos decoder with a clip-wide attention, an EnCodec encoder.

Ji et al. 2024, "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling"
(arXiv:2408.16532); Siuzdak 2023, "Vocos" (arXiv:2306.00814); Défossez et al. 2022, "High Fidelity Neural
Audio Compression" (arXiv:2210.13438). Reference implementation: outetts 0.4.4, outetts/wav_tokenizer.
Tensor names are those of codec.cpp's GGUF files.

The group norms and the attention of the decoder look at the whole clip; the encoder looks at a few
frames around each frame and, through its LSTM, at all before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..net.clip_ops import ClipOps
from ..net.plan import Signal, Tensor

EDGE_KERNEL = 7  # of the first and the last convolution of the encoder, and of the decoder's first
TAIL_REACH = EDGE_KERNEL // 2  # frames that the encoder's last convolution sees on either side


@dataclass(frozen=True)
class Config:
    """The sizes of one published model."""

    name: str
    sample_rate: int
    codebook_size: int
    codebook_dim: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]  # empty: the file has no encoder
    decoder_dim: int  # 0: the file has no decoder
    hidden_dim: int  # inside a ConvNeXt block
    n_blocks: int  # of ConvNeXt
    n_fft: int
    hop_length: int
    groups: int = 32
    group_epsilon: float = 1e-6
    layer_epsilon: float = 1e-6
    tanh_gelu: bool = False  # as libllama computes it; the reference uses erf

    n_codebooks = 1

    @property
    def has_encoder(self) -> bool:
        return bool(self.encoder_rates)

    @property
    def has_decoder(self) -> bool:
        return bool(self.decoder_dim)

    @property
    def decoder_rates(self) -> tuple[int, ...]:
        return (self.hop_length,) if self.decoder_dim else ()

    @property
    def encoder_reach(self) -> int:
        """Frames that the convolutions before the LSTM see on either side of a frame."""
        step, samples = 1, EDGE_KERNEL // 2
        for rate in self.encoder_rates:
            samples += step * (1 + -(-rate // 2))
            step *= rate
        return -(-samples // step)


# -- decoder


def resnet(net: ClipOps, c: Config, x: Signal, name: str) -> Signal:
    h = net.group_norm(x, f"{name}.norm1", groups=c.groups, epsilon=c.group_epsilon, swish=True)
    h = net.conv1d(h, f"{name}.conv1", out=x.channels, kernel=3)
    h = net.group_norm(h, f"{name}.norm2", groups=c.groups, epsilon=c.group_epsilon, swish=True)
    return net.conv1d(h, f"{name}.conv2", out=x.channels, kernel=3, add=x)


def attention(net: ClipOps, c: Config, x: Signal, name: str) -> Signal:
    h = net.group_norm(x, f"{name}.norm", groups=c.groups, epsilon=c.group_epsilon)
    q, k, v = (net.conv1d(h, f"{name}.{part}", out=x.channels, kernel=1) for part in "qkv")
    return net.conv1d(net.attention(q, k, v), f"{name}.proj_out", out=x.channels, kernel=1, add=x)


def convnext(net: ClipOps, c: Config, x: Signal, name: str) -> Signal:
    """The layer scale gamma is part of pwconv2."""
    h = net.layer_norm(x, f"{name}.norm", epsilon=c.layer_epsilon, depthwise=f"{name}.dwconv")
    h = net.conv1d(h, f"{name}.pwconv1", out=c.hidden_dim, kernel=1)
    h = net.gelu(h, tanh=c.tanh_gelu)
    return net.conv1d(h, f"{name}.pwconv2", out=x.channels, kernel=1, add=x)


def decode_head(net: ClipOps, c: Config, codes: Tensor) -> Signal:
    """Codes [T] -> log magnitudes and phases [n_fft + 2, T]."""
    x = net.embed(codes, "vq.codebook", size=c.codebook_size, dim=c.codebook_dim)  # [512, T]
    x = net.conv1d(x, "dec.bb.embed", out=c.decoder_dim, kernel=EDGE_KERNEL)  # [768, T]
    for i in (0, 1):
        x = resnet(net, c, x, f"dec.bb.pos_net.{i}")
    x = attention(net, c, x, "dec.bb.pos_net.2")
    for i in (3, 4):
        x = resnet(net, c, x, f"dec.bb.pos_net.{i}")
    x = net.group_norm(x, "dec.bb.pos_net.5", groups=c.groups, epsilon=c.group_epsilon)
    x = net.layer_norm(x, "dec.bb.norm", epsilon=c.layer_epsilon)
    for i in range(c.n_blocks):
        x = convnext(net, c, x, f"dec.bb.cnx.{i}")
    x = net.layer_norm(x, "dec.bb.fln", epsilon=c.layer_epsilon)
    return net.conv1d(x, "dec.head.out", out=c.n_fft + 2, kernel=1)


def decode(net: ClipOps, c: Config, codes: Tensor) -> Signal:
    """Codes [T] -> samples [1, T * hop_length], not yet divided by the window's envelope.

    The inverse DFT and the overlap-add of windowed frames are one transposed convolution.
    """
    x = net.polar(decode_head(net, c, codes))  # [n_fft + 2, T]
    padding = (c.n_fft - c.hop_length) // 2
    return net.conv_transpose1d(x, "dec.head.istft", out=1, kernel=c.n_fft, stride=c.hop_length, padding=padding)


def hann(n: int) -> np.ndarray:
    """The periodic Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def istft_weight(n_fft: int) -> np.ndarray:
    """Real and imaginary parts -> windowed samples, float32 [n_fft + 2, 1, n_fft].

    x[n] = w[n] / N sum over k of s_k (re[k] cos(2 pi k n / N) - im[k] sin(2 pi k n / N)), with s_k = 2 but for the
    first and the last frequency, whose imaginary parts do not count.
    """
    bins = n_fft // 2 + 1
    angle = 2 * np.pi / n_fft * (np.arange(bins)[:, np.newaxis] * np.arange(n_fft) % n_fft)
    scale = np.full((bins, 1), 2.0 / n_fft)
    scale[[0, -1]] = 1.0 / n_fft
    real = scale * np.cos(angle)
    imaginary = -scale * np.sin(angle)
    imaginary[[0, -1]] = 0
    return (np.concatenate([real, imaginary]) * hann(n_fft))[:, np.newaxis].astype(np.float32)


def envelope_gain(n_frames: int, n_fft: int, hop: int) -> np.ndarray:
    """1 / (sum of the squared windows over every sample), float32 [n_frames * hop]."""
    padding, pieces = (n_fft - hop) // 2, -(-n_fft // hop)
    square = np.zeros(pieces * hop)
    square[:n_fft] = hann(n_fft) ** 2
    rows = square.reshape(pieces, hop)
    few = min(n_frames, 2 * pieces)  # the middle of a long clip is the same row again and again
    total = np.zeros((few + pieces - 1, hop))
    for j in range(pieces):
        total[j : j + few] += rows[j]
    with np.errstate(divide="ignore"):  # the window begins with 0, in what is cut off
        gain = (1.0 / total).astype(np.float32)
    gain = np.concatenate([gain[:pieces], np.repeat(gain[pieces : pieces + 1], n_frames - few, axis=0), gain[pieces:]])
    return np.ascontiguousarray(gain.reshape(-1)[padding : padding + n_frames * hop])


# -- encoder


def encode_front(net: ClipOps, c: Config, samples: Signal) -> Signal:
    """Samples [1, N] -> [encoder_dim * 2^n, ceil(N / hop_length)], before the LSTM."""
    x = net.conv1d_reflect(samples, "enc.model.0.conv.conv", out=c.encoder_dim, kernel=EDGE_KERNEL, elu=False)
    for i, rate in enumerate(c.encoder_rates):
        x = seanet_block(net, x, f"enc.model.{3 * i + 1}")
        x = net.conv1d_reflect(x, f"enc.model.{3 * i + 3}.conv.conv", out=2 * x.channels, kernel=2 * rate, stride=rate)
    return x


def seanet_block(net: ClipOps, x: Signal, name: str) -> Signal:
    shortcut = net.conv1d(x, f"{name}.shortcut.conv.conv", out=x.channels, kernel=1)
    h = net.conv1d_reflect(x, f"{name}.block.1.conv.conv", out=x.channels // 2, kernel=3)
    h = net.pad_reflect(h, elu=True)
    return net.conv1d(h, f"{name}.block.3.conv.conv", out=x.channels, kernel=1, add=shortcut)


def encode_lstm(net: ClipOps, c: Config, x: Signal, states: tuple[Tensor, Tensor]) -> tuple[Signal, list[Tensor]]:
    """The front's frames [C, T] and the states before -> two LSTM layers' outputs [C, T], and the states after."""
    name, after = f"enc.model.{3 * len(c.encoder_rates) + 1}.lstm", []
    for layer, state in enumerate(states):
        x, state = net.lstm(x, name, layer, state)
        after.append(state)
    return x, after


def encode_tail(net: ClipOps, c: Config, x: Signal) -> Tensor:
    """Sums of front and LSTM [C, T] -> codes [T].

    The nearest entry e of the codebook to z is that with the largest e z - |e|^2 / 2.
    """
    name = f"enc.model.{3 * len(c.encoder_rates) + 3}.conv.conv"
    x = net.conv1d_reflect(x, name, out=c.codebook_dim, kernel=EDGE_KERNEL)
    return net.argmax(net.conv1d(x, "vq.nearest", out=c.codebook_size, kernel=1, search=True))
