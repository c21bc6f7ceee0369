"""The Descript Audio Codec: residual vector quantisation between convolutional en- and decoder.

Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv:2306.06546).
Reference implementation: descript-audio-codec 1.0.0, dac/model/dac.py. Tensor names are those of
codec.cpp's GGUF files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import ModelFileError
from ..gguf_file import GGUFFile
from ..plan import Ops, Signal, Tensor
from ..weights import Stored, concatenated, expect_shape

DILATIONS = (1, 3, 9)
MOST_CHANNELS = 1 << 14
MOST_HOP = 1 << 16


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


# -- forward passes


def residual_unit(net: Ops, x: Signal, name: str, *, dilation: int) -> Signal:
    h = net.conv1d(x, f"{name}.conv1", out=x.channels, kernel=7, dilation=dilation, snake=f"{name}.snake1")
    return net.conv1d(h, f"{name}.conv2", out=x.channels, kernel=1, snake=f"{name}.snake2", add=x)


def decode(net: Ops, config: Config, codes: Tensor) -> Signal:
    """Codes, as rows of all codebooks laid end to end -> samples [1, T * hop_length]."""
    c, channels = config, config.decoder_dim
    x = net.embed(codes, "vq.codebooks", size=c.n_codebooks * c.codebook_size, dim=c.codebook_dim, per_frame=c.n_codebooks)
    x = net.conv1d(x, "vq.out_proj", out=c.latent_dim, kernel=1)  # sum of every codebook's projection
    x = net.conv1d(x, "dec.model.0", out=channels, kernel=7)
    for i, rate in enumerate(c.decoder_rates, 1):
        block = f"dec.model.{i}.block"
        channels //= 2
        x = net.conv_transpose1d(
            x, f"{block}.conv_t1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2), snake=f"{block}.snake1"
        )
        for k, dilation in enumerate(DILATIONS, 1):
            x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
    x = net.conv1d(x, f"dec.model.{i + 2}", out=1, kernel=7, snake=f"dec.model.{i + 1}")
    return net.tanh(x)


def encode(net: Ops, config: Config, samples: Signal) -> tuple[Signal, list[Tensor]]:
    """Samples [1, T * hop_length] -> the latents before quantisation [latent_dim, T] and a code tensor a codebook."""
    c, channels = config, config.encoder_dim
    x = net.conv1d(samples, "enc.block.0", out=channels, kernel=7)
    for i, rate in enumerate(c.encoder_rates, 1):
        block = f"enc.block.{i}.block"
        for k, dilation in enumerate(DILATIONS, 1):
            x = residual_unit(net, x, f"{block}.res_unit{k}", dilation=dilation)
        channels *= 2
        x = net.conv1d(
            x, f"{block}.conv1", out=channels, kernel=2 * rate, stride=rate, padding=-(-rate // 2), snake=f"{block}.snake1"
        )
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


# -- files


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
            return Stored(biases[0].shape, lambda: np.sum([b.read() for b in biases], axis=0, dtype=np.float32))
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
            return Stored(shape, lambda: self.file.read(name).transpose(2, 1, 0))
        return Stored(shape, lambda: self.file.read(name))

    def _conv_shape(self, name: str) -> tuple[int, int, int]:
        shape = self.file.info(name).shape
        if len(shape) != 3:
            raise ModelFileError(f"{self.file.path}: tensor {name!r} has shape {shape}, expected 3 dimensions")
        a, b, c = shape
        return (c, b, a) if self._reversed else (a, b, c)

    def _config(self) -> Config:
        file = self.file
        has_decoder = file.get("codec.has_decoder", bool, True)
        has_encoder = file.get("codec.has_encoder", bool, "enc.block.0.weight" in file.tensors)
        if not has_decoder and not has_encoder:
            raise ModelFileError(f"{file.path}: holds neither an encoder nor a decoder")
        first = "dec.model.0" if has_decoder else "enc.block.0"
        self._reversed = self._is_reversed(first)
        encoder_rates = self._rates("enc.block.{}.block.conv1.weight") if has_encoder else ()
        decoder_rates = self._rates("dec.model.{}.block.conv_t1.weight") if has_decoder else ()
        in_proj = self._conv_shape("vq.q0.in_proj.weight") if has_encoder else None
        out_proj = self._conv_shape("vq.q0.out_proj.weight")
        codebook = file.info("vq.q0.codebook.weight").shape
        config = Config(
            name=file.get("general.name", str, "DAC") or "DAC",
            sample_rate=file.get("codec.sample_rate", int),
            n_codebooks=file.get("codec.n_q", int),
            codebook_size=file.get("codec.codebook_size", int),
            codebook_dim=file.get("codec.codebook_dim", int, out_proj[1]),
            latent_dim=file.get("codec.latent_dim", int, out_proj[0]),
            encoder_dim=self._conv_shape("enc.block.0.weight")[0] if has_encoder else 0,
            encoder_rates=encoder_rates,
            decoder_dim=self._conv_shape("dec.model.0.weight")[0] if has_decoder else 0,
            decoder_rates=decoder_rates,
        )
        self._expect("codec.sample_rate", config.sample_rate, range(1000, 400_001))
        self._expect("codec.n_q", config.n_codebooks, range(1, 129))
        beyond = f"vq.q{config.n_codebooks}.codebook.weight"
        if beyond in file.tensors:
            message = f"key 'codec.n_q' is {config.n_codebooks}, but there is a tensor {beyond!r}"
            raise ModelFileError(f"{file.path}: {message}")
        self._expect("codec.codebook_size", config.codebook_size, (codebook[0],))
        self._expect("codec.codebook_dim", config.codebook_dim, (codebook[-1],))
        self._expect("codec.latent_dim", config.latent_dim, (in_proj[1] if in_proj else out_proj[0],))
        self._expect("codec.hop_size", file.get("codec.hop_size", int, config.hop_length), (config.hop_length,))
        if has_encoder and has_decoder and math.prod(encoder_rates) != math.prod(decoder_rates):
            raise ModelFileError(f"{file.path}: encoder rates {encoder_rates} and decoder rates {decoder_rates} differ in product")
        if config.hop_length > MOST_HOP:
            raise ModelFileError(f"{file.path}: a frame has {config.hop_length} samples, more than {MOST_HOP}")
        for what, dim in (("encoder", config.encoder_dim << len(encoder_rates)), ("decoder", config.decoder_dim)):
            if dim > MOST_CHANNELS:
                raise ModelFileError(f"{file.path}: the {what} has {dim} channels, more than {MOST_CHANNELS}")
        if config.decoder_dim % (1 << len(decoder_rates)):
            raise ModelFileError(f"{file.path}: {config.decoder_dim} decoder channels cannot be halved {len(decoder_rates)} times")
        return config

    def _expect(self, key: str, value: int, allowed: range | tuple[int, ...]) -> None:
        if value not in allowed:
            wanted = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else f"{allowed[0]}, as the tensors say"
            raise ModelFileError(f"{self.file.path}: key {key!r} is {value}, expected {wanted}")

    def _is_reversed(self, first: str) -> bool:
        shape = self.file.info(f"{first}.weight").shape
        channels = self.file.info(f"{first}.bias").shape[-1]
        if len(shape) == 3 and (shape[0], shape[2]) == (channels, 7):
            return False
        if len(shape) == 3 and (shape[2], shape[0]) == (channels, 7):
            return True
        raise ModelFileError(
            f"{self.file.path}: tensor '{first}.weight' has shape {shape}, "
            f"expected ({channels}, in, 7) or its reverse"
        )

    def _rates(self, pattern: str) -> tuple[int, ...]:
        """Strides, from kernels of twice their length; from 2, as stride 1 with DAC's padding loses samples."""
        rates = []
        while pattern.format(len(rates) + 1) in self.file.tensors:
            name = pattern.format(len(rates) + 1)
            kernel = self._conv_shape(name)[2]
            if kernel % 2 or not 4 <= kernel <= 64:
                raise ModelFileError(
                    f"{self.file.path}: tensor {name!r} has kernel {kernel}, expected twice a stride of 2 to 32"
                )
            rates.append(kernel // 2)
        if not rates:
            raise ModelFileError(f"{self.file.path}: tensor {pattern.format(1)!r} is missing")
        if len(rates) > 8:
            raise ModelFileError(f"{self.file.path}: {len(rates)} blocks like {pattern.format('N')!r}, expected at most 8")
        return tuple(rates)
