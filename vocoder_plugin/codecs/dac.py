"""The Descript Audio Codec: residual vector quantisation between convolutional en- and decoder.

Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv:2306.06546).
Reference implementation: descript-audio-codec 1.0.0, dac/model/dac.py. Tensor names are those of
codec.cpp's GGUF files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..net.plan import Ops, Signal, Tensor

DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class Config:
    """The sizes of one published model. Rates multiply to the hop length, in samples a frame."""

    name: str
    sample_rate: int
    n_codebooks: int
    codebook_size: int
    codebook_dim: int
    latent_dim: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]  # empty: the file has no encoder
    decoder_dim: int
    decoder_rates: tuple[int, ...]  # empty: the file has no decoder

    @property
    def hop_length(self) -> int:
        return math.prod(self.decoder_rates or self.encoder_rates)

    @property
    def has_encoder(self) -> bool:
        return bool(self.encoder_rates)

    @property
    def has_decoder(self) -> bool:
        return bool(self.decoder_rates)


def residual_unit(net: Ops, x: Signal, name: str, *, dilation: int) -> Signal:
    h = net.conv1d(x, f"{name}.conv1", out=x.channels, kernel=7, dilation=dilation, snake=f"{name}.snake1")
    return net.conv1d(h, f"{name}.conv2", out=x.channels, kernel=1, snake=f"{name}.snake2", add=x)


def decode(net: Ops, config: Config, codes: Tensor) -> Signal:
    """Codes, as rows of all codebooks laid end to end -> samples [1, T * hop_length]."""
    c, channels = config, config.decoder_dim
    rows = c.n_codebooks * c.codebook_size
    x = net.embed(codes, "vq.codebooks", size=rows, dim=c.codebook_dim, per_frame=c.n_codebooks)
    x = net.conv1d(x, "vq.out_proj", out=c.latent_dim, kernel=1)  # sum of every codebook's projection
    x = net.conv1d(x, "dec.model.0", out=channels, kernel=7)
    for i, rate in enumerate(c.decoder_rates, 1):
        block = f"dec.model.{i}.block"
        channels //= 2
        x = net.conv_transpose1d(
            x, f"{block}.conv_t1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2),
            snake=f"{block}.snake1",
        )  # fmt: skip
        for k, dilation in enumerate(DILATIONS, 1):
            x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
    x = net.conv1d(x, f"dec.model.{i + 2}", out=1, kernel=7, snake=f"dec.model.{i + 1}")
    return net.tanh(x)


def encode(net: Ops, config: Config, samples: Signal) -> tuple[Signal, list[Tensor]]:
    """Samples [1, T * hop_length] -> latents before quantisation [latent_dim, T], and a code tensor a codebook."""
    c, channels = config, config.encoder_dim
    x = net.conv1d(samples, "enc.block.0", out=channels, kernel=7)
    for i, rate in enumerate(c.encoder_rates, 1):
        block = f"enc.block.{i}.block"
        for k, dilation in enumerate(DILATIONS, 1):
            x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
        channels *= 2
        x = net.conv1d(
            x, f"{block}.conv1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2),
            snake=f"{block}.snake1",
        )  # fmt: skip
    latents = net.conv1d(x, f"enc.block.{i + 2}", out=c.latent_dim, kernel=3, snake=f"enc.block.{i + 1}")
    residual, codes = latents, []
    for q in range(c.n_codebooks):
        z = net.conv1d(residual, f"vq.q{q}.in_proj", out=c.codebook_dim, kernel=1)
        # nearest of unit vectors = largest inner product; the length of z does not matter
        codes.append(net.nearest(z, f"vq.q{q}.codebook.unit", size=c.codebook_size))
        if q + 1 < c.n_codebooks:
            e = net.embed_nearest(codes[-1], z, f"vq.q{q}.codebook", size=c.codebook_size, dim=c.codebook_dim)
            residual = net.conv1d(e, f"vq.q{q}.out_proj.negated", out=c.latent_dim, kernel=1, add=residual)
    return latents, codes
