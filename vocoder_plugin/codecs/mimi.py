"""Mimi: a causal SEANet with transformers around a split residual vector quantiser at 12.5 frames/s.

Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue" (arXiv:2410.00037).
Reference implementation: transformers 5.23, models/mimi/modeling_mimi.py. Tensor names are those of
codec.cpp's GGUF files.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..errors import ArgumentError, refusal
from ..gguf_file import GGUFFile
from ..net.ops import ELU, Causal, Ops, Rotary
from ..net.signal import Signal
from ..net.weights import Shape, Stored
from ..runtime.ggml import Tensor
from ..streams.format import Format
from .model import (
    MOST_CHANNELS,
    SAMPLE_RATES,
    ZEROS,
    Converter,
    Model,
    ModelFile,
    Option,
    Recipe,
    joined,
    linear,
    or_zeros,
    rows_scaled,
    search_recipes,
    stored,
)

STEPS = 2  # positions of the transformers in a frame: 25 Hz to 12.5
WINDOW = 250  # positions that attention sees in Kyutai's model; codec.cpp's files do not say
THETA, EPSILON = 10000.0, 1e-5
N_CODEBOOKS = 8  # that are used where the caller does not say
USAGE_FLOOR = 1e-5  # of a codebook's entries, as the reference divides by it
MOST_LAYERS, MOST_CODEBOOKS, MOST_KERNEL = 64, 64, 64
CHUNK_FRAMES = 8  # of long input: weights are read rarely enough, and activations stay in cache


class Mimi(Model):
    """Mimi, with the first ``n_codebooks`` of those that the file has."""

    architectures = ("mimi",)
    options: ClassVar = {
        "n_codebooks": Option(int, "Use the first N codebooks: more cost more and sound better.", N_CODEBOOKS),
        "sliding_window": Option(int, "Positions that attention sees, for a file that does not say.", WINDOW),
    }
    converter = Converter(
        "vocoder_plugin.converters.mimi:convert",
        "SOURCE is a Hugging Face folder (kyutai/mimi), or a safetensors file of transformers or of moshi.",
    )
    chunk_frames = CHUNK_FRAMES

    @classmethod
    def read(cls, file: GGUFFile, **options: Any) -> Mimi:
        return cls(ModelFile(file, rename=short_name), **options)

    def __init__(self, file: ModelFile, *, n_codebooks: int | None = None, sliding_window: int | None = None) -> None:
        super().__init__(file)
        self.has_encoder, self.has_decoder = file.sides(encoder="enc.l0.conv.w", decoder="dec.l0.conv.w")
        side = "enc" if self.has_encoder else "dec"
        self.n_semantic = file.get("codec.num_semantic_quantizers", int, 1)
        self.n_stored = self._count("s") + self._count("a")
        file.expect("key 'codec.num_semantic_quantizers'", self.n_semantic, range(1, MOST_CODEBOOKS + 1))
        file.expect("the number of semantic codebooks", self._count("s"), self.n_semantic)
        file.expect("the number of codebooks", self.n_stored, range(1, MOST_CODEBOOKS + 1))
        self.n_codebooks = min(N_CODEBOOKS, self.n_stored) if n_codebooks is None else n_codebooks
        if not self.n_semantic <= self.n_codebooks <= self.n_stored:
            raise ArgumentError(refusal("n_codebooks", self.n_codebooks, f"{self.n_semantic} to {self.n_stored}"))
        self.rates = self._rates(side)  # of the encoder's strides; the decoder's are the reverse
        first, last = (file.conv_shape(f"{side}.l{i}.conv.w") for i in (0, 2 + 3 * len(self.rates)))
        inner = file.conv_shape(f"{side}.l{1 if self.has_encoder else 3}.block.1.conv.w")
        self.first_kernel, self.inner_kernel, self.last_kernel = first[2], inner[2], last[2]
        self.compress = max(1, inner[1] // max(1, inner[0]))
        self.filters = first[0] if self.has_encoder else file.conv_shape(f"dec.l{2 + 3 * len(self.rates)}.conv.w")[1]
        self.latent_dim = file.get("codec.latent_dim", int)
        self.codebook_dim = file.get("codec.codebook_dim", int)
        self.heads = file.get("codec.num_attention_heads", int)
        self.layers = file.get("codec.num_hidden_layers", int)
        self.hidden_dim = file.get("codec.intermediate_size", int)  # inside a transformer's feed-forward layer
        self.window = sliding_window or file.get("codec.sliding_window", int, WINDOW)
        self.theta = file.get("codec.rope_theta", float, THETA)
        self.epsilon = file.get("codec.norm_eps", float, EPSILON)
        self.format = Format(
            name=file.get("general.name", str, "Mimi") or "Mimi",
            sample_rate=file.get("codec.sample_rate", int),
            hop_length=math.prod(self.rates) * STEPS,
            rows=tuple(range(self.n_codebooks)),
            codebook_size=file.get("codec.codebook_size", int),
            least_rows=self.n_semantic,
        )
        self._check()
        file.recipes.update(self._recipes())

    def _count(self, kind: str) -> int:
        """Codebooks of a kind, of either way to keep one."""
        return max(len(self.file.present(f"q.{kind}.layers.{{}}.{end}")) for end in ("codebook.embed", "cb.es"))

    def _rates(self, side: str) -> tuple[int, ...]:
        """Strides in the encoder's order: of the convolutions that have a residual unit beside them."""
        unit, conv = (1, 3) if side == "enc" else (3, 2)
        units = len(self.file.present(f"{side}.l{{}}.block.1.conv.w", unit, 3))
        rates = self.file.rates([f"{side}.l{conv + 3 * i}.conv.w" for i in range(units)])
        return rates if side == "enc" else rates[::-1]

    def _check(self) -> None:
        """The keys against the tensors, and sizes against sense."""
        file, f = self.file, self.format
        for what, value, allowed in (
            ("key 'codec.sample_rate'", f.sample_rate, SAMPLE_RATES),
            ("key 'codec.codebook_size'", f.codebook_size, range(1, (1 << 20) + 1)),
            ("key 'codec.codebook_dim'", self.codebook_dim, range(1, MOST_CHANNELS + 1)),
            ("key 'codec.latent_dim'", self.latent_dim, range(2, MOST_CHANNELS + 1)),
            ("key 'codec.num_attention_heads'", self.heads, range(1, 257)),
            ("key 'codec.num_hidden_layers'", self.layers, range(1, MOST_LAYERS + 1)),
            ("key 'codec.intermediate_size'", self.hidden_dim, range(1, 4 * MOST_CHANNELS + 1)),
            ("key 'codec.hop_size'", file.get("codec.hop_size", int, f.hop_length), f.hop_length),
            (
                "the largest kernel",
                max(self.first_kernel, self.inner_kernel, self.last_kernel),
                range(1, MOST_KERNEL + 1),
            ),
            ("the sliding window", self.window, range(2, (1 << 16) + 1)),
            ("the width of the network", self.filters << len(self.rates), range(1, MOST_CHANNELS + 1)),
        ):
            file.expect(what, value, allowed)
        if self.latent_dim % (2 * self.heads):
            raise file.fail(f"{self.latent_dim} channels cannot be shared by {self.heads} heads of even size")
        size = self.latent_dim // self.heads
        file.expect("key 'codec.head_dim'", file.get("codec.head_dim", int, size), size)
        if not (self.theta > 1 and 0 < self.epsilon < 1):
            raise file.fail(f"rotary base {self.theta:g} or norm epsilon {self.epsilon:g} is out of range")
        for side, present in (("enc", self.has_encoder), ("dec", self.has_decoder)):
            if present and (rates := self._rates(side)) != self.rates:
                raise file.fail(f"the decoder's rates are {rates}, expected the encoder's {self.rates}")

    def _recipes(self) -> dict[str, Recipe]:
        """The file's ``.w`` and ``.b`` under the names of the forward passes, and what is made of several."""
        used = [("s", q) if q < self.n_semantic else ("a", q - self.n_semantic) for q in range(self.n_codebooks)]
        tables = {(kind, q): codebook(f"q.{kind}.layers.{q}") for kind, q in used}
        recipes = {
            "vq.codebooks": with_zero_row(joined(0, list(tables.values()))),
            "vq.out_proj.weight": joined(1, [linear(f"q.{kind}.op.w") for kind, _ in used]),
            "vq.out_proj.bias": ZEROS,
            "dn.cv.bias": or_zeros("dn.cv.b"),
            **{f"q.{kind}.ip.bias": or_zeros(f"q.{kind}.ip.b") for kind in "sa"},
            **{f"q.{kind}.ip.weight": linear(f"q.{kind}.ip.w") for kind in "sa"},
        }
        for j in range(2 * STEPS):
            recipes[f"up.tap{j}"] = partial(upsampling_tap, j=j)
        for (kind, q), table in tables.items():
            layer = f"q.{kind}.layers.{q}"
            recipes[f"{layer}.codebook"] = table
            recipes |= search_recipes(f"{layer}.scores", table, self.format.codebook_size, self.codebook_dim)
        for layer in (f"{side}.l{i}" for side in ("etr", "dtr") for i in range(self.layers)):
            attention, mlp = f"{layer}.attn", f"{layer}.mlp"
            recipes[f"{attention}.qkv.weight"] = joined(0, [linear(f"{attention}.{part}_proj.w") for part in "qkv"])
            recipes[f"{attention}.qkv.bias"] = ZEROS
            recipes[f"{mlp}.fc1.weight"] = linear(f"{mlp}.fc1.w")
            recipes[f"{mlp}.fc1.bias"] = or_zeros(f"{mlp}.fc1.b")
            for name, scale in ((f"{attention}.o_proj", f"{layer}.sa_ls"), (f"{mlp}.fc2", f"{layer}.mlp_ls")):
                factors = stored(f"{scale}.scale")
                recipes[f"{name}.weight"] = rows_scaled(linear(f"{name}.w"), factors)
                recipes[f"{name}.bias"] = (
                    rows_scaled(stored(f"{name}.b"), factors) if self.file.has(f"{name}.b") else ZEROS
                )
        return recipes

    def describe(self) -> dict[str, str]:
        rates = " ".join(map(str, self.rates))
        return {
            "encoder": f"rates {rates}" if self.has_encoder else "none",
            "decoder": f"rates {' '.join(map(str, self.rates[::-1]))}" if self.has_decoder else "none",
        }

    def decode(self, net: Ops, codes: Tensor) -> Signal:
        """The row of ``codes`` after the last is of zeros, for codebooks that are left out."""
        n, size = self.n_codebooks, self.format.codebook_size
        x = net.embed(codes, "vq.codebooks", size=n * size + 1, dim=self.codebook_dim, per_frame=n)  # [n * dim, T]
        x = net.conv1d(x, "vq.out_proj", out=self.latent_dim, kernel=1)  # [latent, T]: every codebook's projection
        x = net.upsample(x, "up", stride=STEPS)  # [latent, T * STEPS]
        x = self.transformer(net, x, "dtr")
        channels = self.filters << len(self.rates)
        x = net.conv1d(x, "dec.l0.conv", out=channels, kernel=self.first_kernel, padding=Causal())
        for i, rate in enumerate(reversed(self.rates)):
            name, channels = f"dec.l{2 + 3 * i}.conv", channels // 2
            x = net.conv_transpose1d(
                x, name, out=channels, kernel=2 * rate, stride=rate, padding=Causal(), activation=ELU
            )  # [channels / 2, T * rate]
            x = self.residual_unit(net, x, f"dec.l{3 + 3 * i}")
        last = f"dec.l{2 + 3 * len(self.rates)}.conv"
        return net.conv1d(x, last, out=1, kernel=self.last_kernel, padding=Causal(), activation=ELU)  # [1, T * hop]

    def latents(self, net: Ops, samples: Signal) -> Signal:
        channels = self.filters
        x = net.conv1d(samples, "enc.l0.conv", out=channels, kernel=self.first_kernel, padding=Causal())
        for i, rate in enumerate(self.rates):
            x = self.residual_unit(net, x, f"enc.l{1 + 3 * i}")
            name, channels = f"enc.l{3 + 3 * i}.conv", channels * 2
            x = net.conv1d(
                x, name, out=channels, kernel=2 * rate, stride=rate, padding=Causal(), activation=ELU
            )  # [2 channels, T / rate]
        last = f"enc.l{2 + 3 * len(self.rates)}.conv"
        x = net.conv1d(x, last, out=self.latent_dim, kernel=self.last_kernel, padding=Causal(), activation=ELU)
        x = self.transformer(net, x, "etr")  # [latent, T * STEPS]
        return net.conv1d(
            x, "dn.cv", out=self.latent_dim, kernel=2 * STEPS, stride=STEPS, padding=Causal(replicate=True)
        )  # [latent, T]

    def quantise(self, net: Ops, latents: Signal) -> list[Tensor]:
        """The semantic codebooks first; each kind quantises what its own entries leave over."""
        size, dim, codes = self.format.codebook_size, self.codebook_dim, []
        for kind, count in (("s", self.n_semantic), ("a", self.n_codebooks - self.n_semantic)):
            if not count:
                continue
            residual = net.conv1d(latents, f"q.{kind}.ip", out=dim, kernel=1, search=True)  # [dim, T]
            for q in range(count):
                layer = f"q.{kind}.layers.{q}"
                codes.append(net.argmax(net.conv1d(residual, f"{layer}.scores", out=size, kernel=1, search=True)))
                if q + 1 < count:
                    e = net.embed_nearest(codes[-1], residual, f"{layer}.codebook", size=size, dim=dim)  # [dim, T]
                    residual = net.subtract(residual, e)
        return codes

    def residual_unit(self, net: Ops, x: Signal, name: str) -> Signal:
        inner = x.channels // self.compress
        h = net.conv1d(x, f"{name}.block.1.conv", out=inner, kernel=self.inner_kernel, padding=Causal(), activation=ELU)
        return net.conv1d(h, f"{name}.block.3.conv", out=x.channels, kernel=1, activation=ELU, add=x)

    def transformer(self, net: Ops, x: Signal, name: str) -> Signal:
        """Layer scales are part of o_proj and fc2."""
        for i in range(self.layers):
            layer = f"{name}.l{i}"
            h = net.layer_norm(x, f"{layer}.inln", epsilon=self.epsilon)
            q, k, v = net.split(net.conv1d(h, f"{layer}.attn.qkv", out=3 * x.channels, kernel=1), 3)
            h = net.attention(
                q, k, v, f"{layer}.attn", heads=self.heads, rotary=Rotary(self.theta), window=self.window, causal=True
            )
            x = net.conv1d(h, f"{layer}.attn.o_proj", out=x.channels, kernel=1, add=x)
            h = net.layer_norm(x, f"{layer}.paln", epsilon=self.epsilon)
            h = net.gelu(net.conv1d(h, f"{layer}.mlp.fc1", out=self.hidden_dim, kernel=1))
            x = net.conv1d(h, f"{layer}.mlp.fc2", out=x.channels, kernel=1, add=x)
        return x


def short_name(name: str) -> str:
    """codec.cpp's endings."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{ending[0]}" if ending in ("weight", "bias") else name


def codebook(layer: str) -> Recipe:
    """A codebook, or the sums and usage counts of its training, whose ratio it is."""

    def make(file: ModelFile, shape: Shape) -> Stored:
        if file.has(f"{layer}.codebook.embed"):
            return file.tensor(f"{layer}.codebook.embed", shape)
        usage = file.tensor(f"{layer}.cb.cu", shape[:1])
        return file.tensor(f"{layer}.cb.es", shape).mapped(
            lambda sums: sums / np.maximum(usage.read(), np.float32(USAGE_FLOOR))[:, np.newaxis]
        )

    return make


def with_zero_row(table: Recipe) -> Recipe:
    def make(file: ModelFile, shape: Shape) -> Stored:
        rows = table(file, (shape[0] - 1, shape[1]))
        return rows.mapped(lambda values: np.concatenate([values, np.zeros((1, shape[1]), np.float32)]), shape)

    return make


def upsampling_tap(file: ModelFile, shape: Shape, *, j: int) -> Stored:
    """A tap of the depthwise upsampling; files may hold it as a dense matrix with zeros off its diagonal."""
    channels, stored_shape = shape[0], file.shape("up.cv.w")
    if stored_shape not in ((channels, 1, 2 * STEPS), (channels, channels, 2 * STEPS)):
        expected = f"({channels}, 1, {2 * STEPS})"
        raise file.fail(f"tensor 'up.cv.w' has shape {stored_shape}, expected {expected}", tensor="up.cv.w")

    def read() -> np.ndarray:
        tap = file.read("up.cv.w")[:, :, j]
        if stored_shape[1] > 1 and np.count_nonzero(tap) > np.count_nonzero(np.diagonal(tap)):
            raise file.fail("tensor 'up.cv.w' mixes channels, expected a depthwise convolution", tensor="up.cv.w")
        return tap[:, 0] if stored_shape[1] == 1 else np.diagonal(tap)

    return Stored(shape, read)
