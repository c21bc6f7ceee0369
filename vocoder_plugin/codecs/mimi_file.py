"""Mimi model files: codec.cpp's keys and tensors, in the names and layouts of the forward passes, checked."""

from __future__ import annotations

import numpy as np

from ..errors import ModelFileError
from ..gguf_file import GGUFFile
from ..net.weights import Stored, concatenated, expect_shape
from .mimi import STEPS, Config

WINDOW = 250  # of Kyutai's model; codec.cpp's files do not say
THETA = 10000.0
EPSILON = 1e-5
N_CODEBOOKS = 8  # that are used where the caller does not say
USAGE_FLOOR = 1e-5  # of a codebook's entries, as the reference divides by it
MOST_CHANNELS = 1 << 14
MOST_LAYERS = 16  # twice the published model's; as are the codebooks, both together what a graph's 4096 nodes hold
MOST_CODEBOOKS = 64
MOST_KERNEL = 64


class Tensors:
    """A Mimi file's tensors under the names that the forward passes use, in torch's layout, checked."""

    def __init__(self, file: GGUFFile, *, n_codebooks: int | None = None, sliding_window: int | None = None) -> None:
        self.file = file
        self.config = self._config(n_codebooks, sliding_window)

    def find(self, name: str) -> Stored:
        """Shape and reader of a tensor by its name in the forward passes; raises if the file lacks it."""
        c = self.config
        if name == "vq.codebooks":
            parts = [self._codebook(q) for q in range(c.n_codebooks)]
            none = Stored((1, c.codebook_dim), lambda: np.zeros((1, c.codebook_dim), np.float32))
            return concatenated([*parts, none], axis=0)
        if name == "vq.out_proj.weight":
            kinds = ["s"] * c.n_semantic + ["a"] * (c.n_codebooks - c.n_semantic)
            return concatenated([self._matrix(f"q.{kind}.op") for kind in kinds], axis=1)
        if name.endswith((".scores.weight", ".scores.bias", ".codebook")):
            return self._search(name)
        if name.startswith("up.tap"):
            return self._tap(int(name.removeprefix("up.tap")))
        stem, _, suffix = name.rpartition(".")
        if suffix == "bias":
            return self._bias(stem)
        if stem.endswith(".attn.qkv"):
            layer = stem.removesuffix("qkv")
            return concatenated([self._matrix(f"{layer}{part}_proj") for part in "qkv"], axis=0)
        if stem.endswith((".o_proj", ".fc2")):
            path = stem.split(".")
            scale = ".".join([*path[:2], "sa_ls" if path[2] == "attn" else "mlp_ls", "scale"])
            return self._scaled(self._matrix(stem), scale)
        if suffix == "weight" and stem.endswith("ln"):
            return self._plain(f"{stem}.w")
        return self._matrix(stem)

    # -- parts

    def _plain(self, name: str) -> Stored:
        return Stored(self.file.info(name).shape, lambda: self.file.read(name))

    def _matrix(self, stem: str) -> Stored:
        """Weights as [out, in, kernel]; of a linear layer, and where trailing ones were dropped, with kernel 1."""
        name = f"{stem}.w"
        shape = self.file.info(name).shape
        if len(shape) == 2:
            linear = stem.startswith("q.") or ".attn." in stem or ".mlp." in stem
            shape = (*shape, 1) if linear else (1, *shape)
        return Stored(shape, lambda: self.file.read(name).reshape(shape))

    def _bias(self, stem: str) -> Stored:
        name = f"{stem}.b"
        if name in self.file.tensors:
            return self._plain(name)
        outputs = {"vq.out_proj": self.config.latent_dim, "dn.cv": self.config.latent_dim}.get(stem)
        if outputs is None:
            outputs = self.find(f"{stem}.weight").shape[0]
        if stem.startswith(("enc.", "dec.")) or stem.endswith("ln"):
            self.file.info(name)  # raises: those have one
        return Stored((outputs,), lambda: np.zeros(outputs, np.float32))

    def _scaled(self, weight: Stored, scale: str) -> Stored:
        factors = expect_shape(scale, self._plain(scale), weight.shape[:1], path=self.file.path)
        return weight.mapped(lambda w: w * factors.read()[:, np.newaxis, np.newaxis])

    def _codebook(self, index: int) -> Stored:
        kind, q = ("s", index) if index < self.config.n_semantic else ("a", index - self.config.n_semantic)
        return self._codebook_of(f"q.{kind}.layers.{q}")

    def _codebook_of(self, layer: str) -> Stored:
        name, shape = f"{layer}.codebook.embed", (self.config.codebook_size, self.config.codebook_dim)
        if name in self.file.tensors:
            return expect_shape(name, self._plain(name), shape, path=self.file.path)
        sums = expect_shape(f"{layer}.cb.es", self._plain(f"{layer}.cb.es"), shape, path=self.file.path)
        usage = expect_shape(f"{layer}.cb.cu", self._plain(f"{layer}.cb.cu"), shape[:1], path=self.file.path)
        return sums.mapped(lambda s: s / np.maximum(usage.read(), np.float32(USAGE_FLOOR))[:, np.newaxis])

    def _search(self, name: str) -> Stored:
        layer, _, what = name.partition(".scores.") if ".scores." in name else (name.removesuffix(".codebook"), "", "")
        codebook = self._codebook_of(layer)
        size, dim = codebook.shape
        if what == "weight":
            return Stored((size, dim, 1), lambda: codebook.read()[:, :, np.newaxis])
        if what == "bias":
            return Stored((size,), lambda: (-0.5 * (codebook.read().astype(np.float64) ** 2).sum(1)).astype(np.float32))
        return codebook

    def _tap(self, j: int) -> Stored:
        """A tap of the depthwise upsampling; files may hold it as a dense matrix with zeros off its diagonal."""
        shape = self.file.info("up.cv.w").shape
        channels = self.config.latent_dim
        if shape not in ((channels, 1, 2 * STEPS), (channels, channels, 2 * STEPS)):
            raise self._fail(f"tensor 'up.cv.w' has shape {shape}, expected ({channels}, 1, {2 * STEPS})")

        def read() -> np.ndarray:
            weight = self.file.read("up.cv.w")
            if shape[1] == 1:
                return weight[:, 0, j]
            if np.count_nonzero(weight[:, :, j]) > np.count_nonzero(np.diagonal(weight[:, :, j])):
                raise self._fail("tensor 'up.cv.w' mixes channels, expected a depthwise convolution")
            return np.diagonal(weight[:, :, j])

        return Stored((channels,), read)

    # -- sizes

    def _config(self, n_codebooks: int | None, sliding_window: int | None) -> Config:
        file = self.file
        has_encoder = file.get("codec.has_encoder", bool, "enc.l0.conv.w" in file.tensors)
        has_decoder = file.get("codec.has_decoder", bool, "dec.l0.conv.w" in file.tensors)
        if not has_decoder and not has_encoder:
            raise self._fail("holds neither an encoder nor a decoder")
        side = "enc" if has_encoder else "dec"
        n_semantic = file.get("codec.num_semantic_quantizers", int, 1)
        stored = self._count("q.s.layers.{}", n_semantic) + self._count("q.a.layers.{}", None)
        rates = self._rates(side)
        filters_name = "enc.l0.conv.w" if has_encoder else f"dec.l{2 + 3 * len(rates)}.conv.w"
        first = self._conv_shape(f"{side}.l0.conv.w")
        last = self._conv_shape(f"{side}.l{2 + 3 * len(rates)}.conv.w")
        unit = f"{side}.l{1 if has_encoder else 3}.block.1.conv.w"
        inner = self._conv_shape(unit)
        config = Config(
            name=file.get("general.name", str, "Mimi") or "Mimi",
            sample_rate=file.get("codec.sample_rate", int),
            n_codebooks=min(N_CODEBOOKS, stored) if n_codebooks is None else n_codebooks,
            n_stored=stored,
            n_semantic=n_semantic,
            codebook_size=file.get("codec.codebook_size", int),
            codebook_dim=file.get("codec.codebook_dim", int),
            latent_dim=file.get("codec.latent_dim", int),
            heads=file.get("codec.num_attention_heads", int),
            layers=file.get("codec.num_hidden_layers", int),
            hidden_dim=file.get("codec.intermediate_size", int),
            window=sliding_window or file.get("codec.sliding_window", int, WINDOW),
            theta=file.get("codec.rope_theta", float, THETA),
            epsilon=file.get("codec.norm_eps", float, EPSILON),
            filters=self._conv_shape(filters_name)[0 if has_encoder else 1],
            rates=rates,
            kernels=(first[2], inner[2], last[2]),
            compress=max(1, inner[1] // max(1, inner[0])),
            has_encoder=has_encoder,
            has_decoder=has_decoder,
        )
        self._check(config)
        return config

    def _check(self, c: Config) -> None:
        """The keys against the tensors, and sizes against sense."""
        for what, value, allowed in (
            ("key 'codec.sample_rate'", c.sample_rate, range(1000, 400_001)),
            ("key 'codec.num_semantic_quantizers'", c.n_semantic, range(1, MOST_CODEBOOKS + 1)),
            ("the number of codebooks", c.n_stored, range(1, MOST_CODEBOOKS + 1)),
            ("key 'codec.codebook_size'", c.codebook_size, range(1, (1 << 20) + 1)),
            ("key 'codec.codebook_dim'", c.codebook_dim, range(1, MOST_CHANNELS + 1)),
            ("key 'codec.latent_dim'", c.latent_dim, range(2, MOST_CHANNELS + 1)),
            ("key 'codec.num_attention_heads'", c.heads, range(1, 257)),
            ("key 'codec.num_hidden_layers'", c.layers, range(1, MOST_LAYERS + 1)),
            ("key 'codec.intermediate_size'", c.hidden_dim, range(1, 4 * MOST_CHANNELS + 1)),
            (
                "key 'codec.hop_size'",
                self.file.get("codec.hop_size", int, c.hop_length),
                range(c.hop_length, c.hop_length + 1),
            ),
            ("the largest kernel", max(c.kernels), range(1, MOST_KERNEL + 1)),
            ("the sliding window", c.window, range(2, (1 << 16) + 1)),
            ("the width of the network", c.filters << len(c.rates), range(1, MOST_CHANNELS + 1)),
        ):
            if value not in allowed:
                wanted = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else f"{allowed[0]}, as the tensors say"
                raise self._fail(f"{what} is {value}, expected {wanted}")
        if c.latent_dim % (2 * c.heads):
            raise self._fail(f"{c.latent_dim} channels cannot be shared by {c.heads} heads of even size")
        size = self.file.get("codec.head_dim", int, c.latent_dim // c.heads)
        if size != c.latent_dim // c.heads:
            raise self._fail(f"key 'codec.head_dim' is {size}, expected {c.latent_dim // c.heads}")
        if not (c.theta > 1 and 0 < c.epsilon < 1):
            raise self._fail(f"rotary base {c.theta:g} or norm epsilon {c.epsilon:g} is out of range")
        if not c.n_semantic <= c.n_codebooks <= c.n_stored:
            raise ValueError(f"n_codebooks is {c.n_codebooks}, expected {c.n_semantic} to {c.n_stored}")
        for side in ("enc", "dec"):
            if (c.has_encoder if side == "enc" else c.has_decoder) and self._rates(side) != c.rates:
                raise self._fail(f"the decoder's rates are {self._rates(side)}, expected the encoder's {c.rates}")

    def _count(self, pattern: str, expected: int | None) -> int:
        count = 0
        while any(f"{pattern.format(count)}.{end}" in self.file.tensors for end in ("codebook.embed", "cb.es")):
            count += 1
        if expected is not None and count != expected:
            raise self._fail(f"{count} codebooks like {pattern.format('N')!r}, expected {expected}")
        return count

    def _conv_shape(self, name: str) -> tuple[int, int, int]:
        shape = self.file.info(name).shape
        if len(shape) > 3:
            raise self._fail(f"tensor {name!r} has shape {shape}, expected 3 dimensions")
        a, b, c = (1,) * (3 - len(shape)) + shape
        return a, b, c

    def _rates(self, side: str) -> tuple[int, ...]:
        """Strides in the encoder's order, from kernels of twice their length."""
        rates: list[int] = []
        first = 3 if side == "enc" else 2
        while (name := f"{side}.l{first + 3 * len(rates)}.conv.w") in self.file.tensors:
            kernel = self._conv_shape(name)[2]
            if f"{side}.l{1 + 3 * len(rates) + (side == 'dec') * 2}.block.1.conv.w" not in self.file.tensors:
                break
            if kernel % 2 or not 4 <= kernel <= 64:
                raise self._fail(f"tensor {name!r} has kernel {kernel}, expected twice a stride of 2 to 32")
            rates.append(kernel // 2)
        if not 1 <= len(rates) <= 8:
            raise self._fail(f"{len(rates)} strided convolutions like '{side}.lN.conv.w', expected 1 to 8")
        return tuple(rates) if side == "enc" else tuple(reversed(rates))

    def _fail(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.file.path}: {message}")
