"""DAC model files: their keys and tensors, in the names and layouts of the forward passes, checked."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ModelFileError
from ..gguf_file import GGUFFile
from ..net.weights import Stored, concatenated, expect_shape
from .dac import Config

MOST_CHANNELS = 1 << 14
MOST_HOP = 1 << 16
MOST_CODEBOOKS = 64  # twice the published 32; with the blocks below, what a graph's 4096 nodes hold


def unit_rows(table: np.ndarray) -> np.ndarray:
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.float32(1e-12))


class Tensors:
    """A DAC file's tensors under the names that the forward passes use, in torch's layout, checked.

    Two layouts of convolution weights are in circulation: torch's own [out, in, kernel] and its
    reverse. ``find`` gives the first for both.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.config = self._config()

    def find(self, name: str) -> Stored:
        """Shape and reader of a tensor by its name in the forward passes; raises if the file lacks it."""
        c, every = self.config, range(self.config.n_codebooks)
        if name == "vq.codebooks":
            return concatenated([self._codebook(q) for q in every], axis=0)
        if name == "vq.out_proj.weight":
            shape = (c.latent_dim, c.codebook_dim, 1)
            return concatenated([self._part(f"vq.q{q}.out_proj.weight", shape) for q in every], axis=1)
        if name == "vq.out_proj.bias":
            biases = [self._part(f"vq.q{q}.out_proj.bias", (c.latent_dim,)) for q in every]
            return Stored(biases[0].shape, lambda: np.asarray(sum(b.read() for b in biases), np.float32))
        if name.endswith((".codebook", ".codebook.unit")):
            stored = self._codebook(int(name.split(".")[1][1:]))
            return stored.mapped(unit_rows) if name.endswith(".unit") else stored
        if ".negated." in name:
            return self.find(name.replace(".negated.", ".")).mapped(np.negative)
        return self._conv(name) if name.endswith(".weight") else self._vector(name)

    def _part(self, name: str, shape: tuple[int, ...]) -> Stored:
        return expect_shape(name, self.find(name), shape, path=self.file.path)

    def _codebook(self, q: int) -> Stored:
        name = f"vq.q{q}.codebook.weight"
        stored = Stored(self.file.info(name).shape, lambda: self.file.read(name))
        return expect_shape(name, stored, (self.config.codebook_size, self.config.codebook_dim), path=self.file.path)

    def _vector(self, name: str) -> Stored:
        shape = (math.prod(self.file.info(name).shape),)  # alphas are stored [1, C, 1]
        return Stored(shape, lambda: self.file.read(name).reshape(-1))

    def _conv(self, name: str) -> Stored:
        shape = self._conv_shape(name)
        if self._reversed:
            return Stored(shape, lambda: self.file.read(name).reshape(shape[::-1]).transpose(2, 1, 0))
        return Stored(shape, lambda: self.file.read(name).reshape(shape))

    def _conv_shape(self, name: str) -> tuple[int, int, int]:
        shape = self.file.info(name).shape
        if len(shape) > 3:
            raise self._fail(f"tensor {name!r} has shape {shape}, expected 3 dimensions")
        a, b, c = (1,) * (3 - len(shape)) + shape  # ggml's own tools drop trailing ones of ne when they rewrite a file
        return (c, b, a) if self._reversed else (a, b, c)

    def _config(self) -> Config:
        file = self.file
        has_decoder = file.get("codec.has_decoder", bool, True)
        has_encoder = file.get("codec.has_encoder", bool, "enc.block.0.weight" in file.tensors)
        if not has_decoder and not has_encoder:
            raise self._fail("holds neither an encoder nor a decoder")
        self._reversed = self._is_reversed("dec.model.0" if has_decoder else "enc.block.0")
        encoder_rates = self._rates("enc.block.{}.block.conv1.weight") if has_encoder else ()
        decoder_rates = self._rates("dec.model.{}.block.conv_t1.weight") if has_decoder else ()
        latent_dim, codebook_dim, _ = self._conv_shape("vq.q0.out_proj.weight")
        config = Config(
            name=file.get("general.name", str, "DAC") or "DAC",
            sample_rate=file.get("codec.sample_rate", int),
            n_codebooks=file.get("codec.n_q", int),
            codebook_size=file.get("codec.codebook_size", int),
            codebook_dim=file.get("codec.codebook_dim", int, codebook_dim),
            latent_dim=file.get("codec.latent_dim", int, latent_dim),
            encoder_dim=self._conv_shape("enc.block.0.weight")[0] if has_encoder else 0,
            encoder_rates=encoder_rates,
            decoder_dim=self._conv_shape("dec.model.0.weight")[0] if has_decoder else 0,
            decoder_rates=decoder_rates,
        )
        self._check(config)
        return config

    def _check(self, c: Config) -> None:
        """The keys against the tensors, and sizes against sense."""
        codebook = self.file.info("vq.q0.codebook.weight").shape
        in_proj = self._conv_shape("vq.q0.in_proj.weight") if c.encoder_rates else None
        self._expect("codec.sample_rate", c.sample_rate, range(1000, 400_001))
        self._expect("codec.n_q", c.n_codebooks, range(1, MOST_CODEBOOKS + 1))
        beyond = f"vq.q{c.n_codebooks}.codebook.weight"
        if beyond in self.file.tensors:
            raise self._fail(f"key 'codec.n_q' is {c.n_codebooks}, but there is a tensor {beyond!r}")
        self._expect("codec.codebook_size", c.codebook_size, (codebook[0],))
        self._expect("codec.codebook_dim", c.codebook_dim, (codebook[-1],))
        self._expect("codec.latent_dim", c.latent_dim, (in_proj[1] if in_proj else c.latent_dim,))
        self._expect("codec.hop_size", self.file.get("codec.hop_size", int, c.hop_length), (c.hop_length,))
        if c.encoder_rates and c.decoder_rates and math.prod(c.encoder_rates) != math.prod(c.decoder_rates):
            raise self._fail(f"encoder rates {c.encoder_rates} and decoder rates {c.decoder_rates} differ in product")
        if c.hop_length > MOST_HOP:
            raise self._fail(f"a frame has {c.hop_length} samples, more than {MOST_HOP}")
        for what, dim in (("encoder", c.encoder_dim << len(c.encoder_rates)), ("decoder", c.decoder_dim)):
            if dim > MOST_CHANNELS:
                raise self._fail(f"the {what} has {dim} channels, more than {MOST_CHANNELS}")
        if c.decoder_dim % (1 << len(c.decoder_rates)):
            raise self._fail(f"{c.decoder_dim} decoder channels cannot be halved {len(c.decoder_rates)} times")

    def _expect(self, key: str, value: int, allowed: range | tuple[int, ...]) -> None:
        if value not in allowed:
            span = isinstance(allowed, range)
            wanted = f"{allowed[0]} to {allowed[-1]}" if span else f"{allowed[0]}, as the tensors say"
            raise self._fail(f"key {key!r} is {value}, expected {wanted}")

    def _fail(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.file.path}: {message}")

    def _is_reversed(self, first: str) -> bool:
        shape = self.file.info(f"{first}.weight").shape
        channels = self.file.info(f"{first}.bias").shape[-1]
        if len(shape) == 3 and (shape[0], shape[2]) == (channels, 7):
            return False
        if len(shape) == 3 and (shape[2], shape[0]) == (channels, 7):
            return True
        raise self._fail(f"tensor '{first}.weight' has shape {shape}, expected ({channels}, in, 7) or its reverse")

    def _rates(self, pattern: str) -> tuple[int, ...]:
        """Strides, from kernels of twice their length; from 2, as stride 1 with DAC's padding loses samples."""
        rates: list[int] = []
        while (name := pattern.format(len(rates) + 1)) in self.file.tensors:
            kernel = self._conv_shape(name)[2]
            if kernel % 2 or not 4 <= kernel <= 64:
                raise self._fail(f"tensor {name!r} has kernel {kernel}, expected twice a stride of 2 to 32")
            rates.append(kernel // 2)
        if not rates:
            raise self._fail(f"tensor {name!r} is missing")
        if len(rates) > 8:
            raise self._fail(f"{len(rates)} blocks like {pattern.format('N')!r}, expected at most 8")
        return tuple(rates)
