"""Mimi: a causal SEANet with transformers around a split residual vector quantiser at 12.5 frames/s.

Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue" (arXiv:2410.00037).
Reference implementation: transformers 5.23, models/mimi/modeling_mimi.py. Tensor names are those of
codec.cpp's GGUF files, with ``qkv``, ``scores``, ``tapN`` and ``vq.…`` made of several of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..net.plan import Signal, Tensor
from ..net.window_ops import Attention, WindowOps

STEPS = 2  # positions of the transformers in a frame: 25 Hz to 12.5


@dataclass(frozen=True)
class Config:
    """The sizes of one published model."""

    name: str
    sample_rate: int
    n_codebooks: int  # that are used
    n_stored: int  # that the file has
    n_semantic: int
    codebook_size: int
    codebook_dim: int
    latent_dim: int
    heads: int
    layers: int
    hidden_dim: int  # inside a transformer's feed-forward layer
    window: int  # positions that attention sees
    theta: float
    epsilon: float
    filters: int
    rates: tuple[int, ...]  # of the encoder's strides; the decoder's are the reverse
    kernels: tuple[int, int, int]  # first, inside residual units, last
    compress: int
    has_encoder: bool
    has_decoder: bool

    @property
    def encoder_rates(self) -> tuple[int, ...]:
        return self.rates if self.has_encoder else ()

    @property
    def decoder_rates(self) -> tuple[int, ...]:
        return self.rates[::-1] if self.has_decoder else ()

    @property
    def hop_length(self) -> int:
        return math.prod(self.rates) * STEPS

    def attention(self, chunk_frames: int) -> Attention:
        return Attention(
            self.heads, self.latent_dim // self.heads, self.layers, self.window, self.theta, chunk_frames * STEPS
        )


def residual_unit(net: WindowOps, c: Config, x: Signal, name: str) -> Signal:
    h = net.conv1d(x, f"{name}.block.1.conv", out=x.channels // c.compress, kernel=c.kernels[1], causal=True, elu=True)
    return net.conv1d(h, f"{name}.block.3.conv", out=x.channels, kernel=1, elu=True, add=x)


def transformer(net: WindowOps, c: Config, x: Signal, name: str, sizes: Attention) -> Signal:
    """Layer scales are part of o_proj and fc2."""
    for i in range(c.layers):
        layer = f"{name}.l{i}"
        h = net.layer_norm(x, f"{layer}.inln", epsilon=c.epsilon)
        h = net.conv1d(h, f"{layer}.attn.qkv", out=3 * x.channels, kernel=1)
        h = net.attention(h, f"{layer}.attn", sizes=sizes, layer=i)
        x = net.conv1d(h, f"{layer}.attn.o_proj", out=x.channels, kernel=1, add=x)
        h = net.layer_norm(x, f"{layer}.paln", epsilon=c.epsilon)
        h = net.gelu(net.conv1d(h, f"{layer}.mlp.fc1", out=c.hidden_dim, kernel=1))
        x = net.conv1d(h, f"{layer}.mlp.fc2", out=x.channels, kernel=1, add=x)
    return x


def decode(net: WindowOps, c: Config, codes: Tensor, sizes: Attention) -> Signal:
    """Rows of all codebooks laid end to end, the row after the last being zeros -> samples [1, T * hop_length]."""
    rows = c.n_codebooks * c.codebook_size + 1
    x = net.embed(codes, "vq.codebooks", size=rows, dim=c.codebook_dim, per_frame=c.n_codebooks)
    x = net.conv1d(x, "vq.out_proj", out=c.latent_dim, kernel=1)  # sum of every codebook's projection
    x = net.upsample(x, "up", stride=STEPS)
    x = transformer(net, c, x, "dtr", sizes)
    channels = c.filters << len(c.rates)
    x = net.conv1d(x, "dec.l0.conv", out=channels, kernel=c.kernels[0], causal=True)
    for i, rate in enumerate(reversed(c.rates)):
        channels //= 2
        x = net.conv_transpose1d(
            x, f"dec.l{2 + 3 * i}.conv", out=channels, kernel=2 * rate, stride=rate, causal=True, elu=True
        )
        x = residual_unit(net, c, x, f"dec.l{3 + 3 * i}")
    return net.conv1d(x, f"dec.l{5 + 3 * i}.conv", out=1, kernel=c.kernels[2], causal=True, elu=True)


def encode(net: WindowOps, c: Config, samples: Signal, sizes: Attention) -> Signal:
    """Samples [1, T * hop_length] -> latents before quantisation [latent_dim, T]."""
    channels = c.filters
    x = net.conv1d(samples, "enc.l0.conv", out=channels, kernel=c.kernels[0], causal=True)
    for i, rate in enumerate(c.rates):
        x = residual_unit(net, c, x, f"enc.l{1 + 3 * i}")
        channels *= 2
        x = net.conv1d(x, f"enc.l{3 + 3 * i}.conv", out=channels, kernel=2 * rate, stride=rate, causal=True, elu=True)
    x = net.conv1d(x, f"enc.l{5 + 3 * i}.conv", out=c.latent_dim, kernel=c.kernels[2], causal=True, elu=True)
    x = transformer(net, c, x, "etr", sizes)
    return net.conv1d(x, "dn.cv", out=c.latent_dim, kernel=2 * STEPS, stride=STEPS, causal=True, replicate=True)


def quantise(net: WindowOps, c: Config, latents: Signal) -> list[Tensor]:
    """Latents [latent_dim, T] -> a code tensor [T] a codebook, the semantic ones first."""
    codes = []
    for kind, count in (("s", c.n_semantic), ("a", c.n_codebooks - c.n_semantic)):
        if not count:
            continue
        residual = net.conv1d(latents, f"q.{kind}.ip", out=c.codebook_dim, kernel=1, search=True)
        for q in range(count):
            layer = f"q.{kind}.layers.{q}"
            # nearest entry = largest x e - |e|^2 / 2, for the distance's |x|^2 is the same for all
            scores = net.conv1d(residual, f"{layer}.scores", out=c.codebook_size, kernel=1, search=True)
            codes.append(net.argmax(scores))
            if q + 1 < count:
                e = net.embed_nearest(
                    codes[-1], residual, f"{layer}.codebook", size=c.codebook_size, dim=c.codebook_dim
                )
                residual = net.subtract(residual, e)
    return codes
