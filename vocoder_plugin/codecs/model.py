"""What a codec declares, and the reading of model files that all codecs share.

A codec is a subclass of ``Model``: sizes from a file, the names of its tensors, a forward pass for each head. See
docs/new-codec.md. Entry points of the group ``vocoder_plugin.codecs`` name such classes (registry.py).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import ArgumentError, ModelFileError, refusal
from ..gguf_file import GGUFFile
from ..net.ops import Ops
from ..net.plan import Head, Plan
from ..net.signal import Signal
from ..net.weights import Shape, Stored, check_shapes
from ..runtime.ggml import Tensor
from ..streams.format import Format
from ..streams.whole_clip import Stages

SAMPLE_RATES = range(1000, 400_001)
MOST_CHANNELS = 1 << 14
CHUNK_SECONDS = 0.32  # of a chunk in long input: activations stay in cache, weights are read rarely enough
EDGE_KERNEL = 7  # of the first and the last convolution in all codecs of this family of networks


@dataclass(frozen=True)
class Option:
    """An option of ``Codec.load`` or of a converter.

    Attributes
    ----------
    kind : type or tuple of str
        int, float, str, or the choices there are.
    help : str
        A sentence for help texts.
    default : object
    """

    kind: type | tuple[str, ...]
    help: str
    default: Any = None


@dataclass(frozen=True)
class Converter:
    """How checkpoints of a codec become GGUF files.

    Attributes
    ----------
    function : str
        ``module:name`` of ``convert(source, target, *, type, progress, force, **options)``; imported when needed.
    help : str
        What the source is, for ``vocoder-plugin convert NAME --help``.
    options : mapping
    """

    function: str
    help: str
    options: Mapping[str, Option] = field(default_factory=dict)


class ModelFile:
    """A GGUF file's tensors as float32 in torch's layout, by the names of a codec's forward passes.

    Parameters
    ----------
    file : GGUFFile
    rename : callable, optional
        From the vocabulary's name of a tensor to the file's.

    Attributes
    ----------
    reversed : bool
        Whether convolution weights lie in the reverse of torch's [out, in, kernel].
    recipes : dict
        How tensors are made that the file does not hold as they are wanted.
    """

    def __init__(self, file: GGUFFile, rename: Callable[[str], str] = str) -> None:
        self.file, self._rename = file, rename
        self.reversed = False
        self.recipes: dict[str, Recipe] = {}

    def find(self, name: str, shape: Shape) -> Stored:
        """The tensor of that name in the forward passes; ModelFileError if it is missing or of another shape."""
        recipe = self.recipes.get(name)
        return recipe(self, shape) if recipe else self.tensor(name, shape)

    def tensor(self, name: str, shape: Shape) -> Stored:
        """A tensor that the file holds. Vectors may have other dimensions of 1; for convolutions see conv_shape."""
        rank = len(shape)
        found = (self.size(name),) if rank == 1 else self.conv_shape(name) if rank == 3 else self.shape(name)
        if found != shape:
            raise self.fail(f"tensor {name!r} has shape {found}, expected {shape}", tensor=name)
        if rank == 3 and self.reversed:
            return Stored(shape, lambda: self.read(name).reshape(shape[::-1]).transpose(2, 1, 0))
        return Stored(shape, lambda: self.read(name).reshape(shape))

    def has(self, name: str) -> bool:
        return self._rename(name) in self.file.tensors

    def shape(self, name: str) -> Shape:
        return self.file.info(self._rename(name)).shape

    def read(self, name: str) -> np.ndarray:
        """A tensor's values; ModelFileError where they are not finite, which integers would turn into sound."""
        values = self.file.read(self._rename(name))
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum())  # far cheaper than to look at each
        if suspicious and not np.isfinite(values).all():
            raise self.fail(f"tensor {name!r} has values that are not finite", tensor=name)
        return values

    def size(self, name: str) -> int:
        """Values of a vector."""
        return math.prod(self.shape(name))

    def conv_shape(self, name: str) -> tuple[int, int, int]:
        """[out, in, kernel] of a convolution's weights; ggml's own tools drop leading ones when they rewrite a file."""
        shape = self.shape(name)
        if len(shape) > 3:
            raise self.fail(f"tensor {name!r} has shape {shape}, expected 3 dimensions", tensor=name)
        a, b, c = (1,) * (3 - len(shape)) + shape
        return (c, b, a) if self.reversed else (a, b, c)

    def is_reversed(self, first: str) -> bool:
        """Which of the two layouts in circulation the file has, told by its first convolution, of EDGE_KERNEL."""
        shape, channels = self.shape(f"{first}.weight"), self.size(f"{first}.bias")
        a, _, c = (1,) * (3 - len(shape)) + shape if len(shape) < 3 else (*shape, 0)[:3]
        if len(shape) <= 3 and (a, c) == (channels, EDGE_KERNEL):
            return False
        if len(shape) <= 3 and (c, a) == (channels, EDGE_KERNEL):
            return True
        name = f"{first}.weight"
        raise self.fail(
            f"tensor {name!r} has shape {shape}, expected ({channels}, in, {EDGE_KERNEL}) or its reverse", tensor=name
        )

    def rates(self, names: Sequence[str]) -> tuple[int, ...]:
        """Strides, from kernels of twice their length; from 2, as stride 1 with DAC's padding loses samples."""
        rates: list[int] = []
        for name in names:
            kernel = self.conv_shape(name)[2]
            if kernel % 2 or not 4 <= kernel <= 64:
                raise self.fail(f"tensor {name!r} has kernel {kernel}, expected twice a stride of 2 to 32", tensor=name)
            rates.append(kernel // 2)
        if not 1 <= len(rates) <= 8:
            raise self.fail(f"{len(rates)} strided convolutions, expected 1 to 8")
        return tuple(rates)

    def present(self, pattern: str, first: int = 0, step: int = 1) -> list[str]:
        """The tensors ``pattern`` with first, first + step, … in it, up to the first that is missing."""
        names: list[str] = []
        while self.has(name := pattern.format(first + step * len(names))):
            names.append(name)
        return names

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        return self.file.get(key, kind, default)

    def sides(self, *, encoder: str, decoder: str) -> tuple[bool, bool]:
        """Whether there is an encoder and a decoder, by the keys or else by a tensor of each."""
        has_encoder = self.get("codec.has_encoder", bool, self.has(encoder))
        has_decoder = self.get("codec.has_decoder", bool, self.has(decoder))
        if not has_decoder and not has_encoder:
            raise self.fail("holds neither an encoder nor a decoder")
        return has_encoder, has_decoder

    def expect(self, what: str, value: int, allowed: range | int) -> None:
        """Refuse a size that is not allowed; ``allowed`` is a range, or what the tensors say."""
        if value in (allowed if isinstance(allowed, range) else (allowed,)):
            return
        span = isinstance(allowed, range) and len(allowed) > 1
        wanted = f"{allowed[0]} to {allowed[-1]}" if span else f"{allowed}, as the tensors say"  # type: ignore[index]
        key = what.split("'")[1] if what.startswith("key ") else None
        raise self.fail(refusal(what, value, wanted), key=key)

    def fail(self, message: str, *, key: str | None = None, tensor: str | None = None) -> ModelFileError:
        return ModelFileError(message, path=self.file.path, key=key, tensor=tensor)


Recipe = Callable[[ModelFile, Shape], Stored]
"""Makes a tensor of that shape from what a file holds."""


def stored(name: str) -> Recipe:
    """The file's tensor of that name."""
    return lambda file, shape: file.tensor(name, shape)


def linear(name: str) -> Recipe:
    """A linear layer's weights [out, in], whatever the layout of convolutions, as those of one with kernel 1."""

    def make(file: ModelFile, shape: Shape) -> Stored:
        if file.shape(name) not in (shape[:2], shape):
            raise file.fail(f"tensor {name!r} has shape {file.shape(name)}, expected {shape[:2]}", tensor=name)
        return Stored(shape, lambda: file.read(name).reshape(shape))

    return make


def joined(axis: int, parts: Sequence[Recipe]) -> Recipe:
    """Equal parts end to end."""

    def make(file: ModelFile, shape: Shape) -> Stored:
        each = (*shape[:axis], shape[axis] // len(parts), *shape[axis + 1 :])
        found = [part(file, each) for part in parts]
        return Stored(shape, lambda: np.concatenate([part.read() for part in found], axis=axis))

    return make


def total(parts: Sequence[Recipe]) -> Recipe:
    """The sum of the parts."""

    def make(file: ModelFile, shape: Shape) -> Stored:
        found = [part(file, shape) for part in parts]
        return Stored(shape, lambda: np.asarray(sum(part.read() for part in found), np.float32))

    return make


def mapped(function: Callable[[np.ndarray], np.ndarray], part: Recipe, shape: Shape | None = None) -> Recipe:
    """A function of a part, which has ``shape`` if that is another than the result's."""
    return lambda file, wanted: part(file, wanted if shape is None else shape).mapped(function, wanted)


def rows_scaled(part: Recipe, factors: Recipe) -> Recipe:
    """Each row of a part times its factor: a layer scale folded into the layer before it."""

    def make(file: ModelFile, shape: Shape) -> Stored:
        found, scale = part(file, shape), factors(file, shape[:1])
        return found.mapped(lambda rows: rows * scale.read().reshape(-1, *[1] * (len(shape) - 1)))

    return make


def constant(values: Callable[[Shape], np.ndarray]) -> Recipe:
    """What no file holds: a function of the shape."""
    return lambda _file, shape: Stored(shape, lambda: np.asarray(values(shape), np.float32))


ZEROS = constant(np.zeros)


def or_zeros(name: str) -> Recipe:
    """The file's tensor of that name, or zeros where it has none."""
    return lambda file, shape: (stored(name) if file.has(name) else ZEROS)(file, shape)


def unit_rows(table: np.ndarray) -> np.ndarray:
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.float32(1e-12))


def half_squares(table: np.ndarray) -> np.ndarray:
    """-|e|² / 2 of each row e: the nearest to x is that with the largest e x - |e|² / 2."""
    return (-0.5 * (table.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)


def search_recipes(name: str, codebook: Recipe, size: int, dim: int) -> dict[str, Recipe]:
    """The convolution ``name`` whose outputs are largest for the codebook entry nearest to its input."""
    return {
        f"{name}.weight": mapped(lambda table: table[:, :, np.newaxis], codebook, (size, dim)),
        f"{name}.bias": mapped(half_squares, codebook, (size, dim)),
    }


class Model(abc.ABC):
    """A codec: what a file of it holds, and its forward passes.

    Attributes
    ----------
    architectures : tuple of str
        Values of ``general.architecture`` that this class reads.
    options : mapping
        What ``Codec.load`` takes beyond what it takes of all codecs.
    converter : Converter or None
    format : Format
    latent_dim : int
        Values of a frame's latents before quantisation.
    has_encoder, has_decoder : bool
    stages : Stages or None
        Set where the encoder is no single pass; ``passes`` then gives those that Stages names.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Option]] = {}
    converter: ClassVar[Converter | None] = None

    format: Format
    latent_dim: int
    has_encoder: bool
    has_decoder: bool
    stages: Stages | None = None

    def __init__(self, file: ModelFile) -> None:
        self.file = file

    @classmethod
    @abc.abstractmethod
    def read(cls, file: GGUFFile, **options: Any) -> Model:
        """The model in a file whose architecture is one of these; ModelFileError if it is not what it says."""

    @abc.abstractmethod
    def decode(self, net: Ops, codes: Tensor) -> Signal:
        """Rows of tables (Format.table_rows) -> samples [1, ...]."""

    def latents(self, net: Ops, samples: Signal) -> Signal:
        """Samples [1, T * hop_length] -> latents before quantisation [latent_dim, T]."""
        raise NotImplementedError

    def quantise(self, net: Ops, latents: Signal) -> list[Tensor]:
        """Latents [latent_dim, T] -> a code tensor [T] a row of a frame."""
        raise NotImplementedError

    def check(self) -> None:
        """Look every tensor up that a pass needs; ModelFileError if one is missing or of another shape."""
        for heads in self.passes().values():
            check_shapes(Plan.of(heads.values(), rings=False, most_frames=1).specs, self.file.find)

    def describe(self) -> dict[str, str]:
        """What ``vocoder-plugin info`` tells beyond the format, by label."""
        return {}

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk in long input."""
        return round(CHUNK_SECONDS * self.format.frame_rate)

    def passes(self) -> dict[str, dict[str, Head]]:
        """Passes by name, each with its heads, which share weights and state."""
        passes: dict[str, dict[str, Head]] = {}
        if self.has_decoder:
            passes["decoder"] = {"decode": self._decode_head}
        if self.has_encoder:
            passes["encoder"] = {"encode": self._encode_head, "latents": self._latents_head}
        return passes

    def _decode_head(self, net: Ops) -> None:
        net.samples_out(self.decode(net, net.codes_in(len(self.format.rows))))

    def _encode_head(self, net: Ops) -> None:
        latents = self.latents(net, net.samples_in(self.format.hop_length))
        for codes in self.quantise(net, latents):
            net.codes_out(codes, latents)

    def _latents_head(self, net: Ops) -> None:
        net.rows_out(self.latents(net, net.samples_in(self.format.hop_length)))


def checked_options(model: type[Model], options: Mapping[str, Any], *, path: object) -> None:
    """Refuse what this codec's ``load`` does not take."""
    for name in options:
        if name not in model.options:
            known = ", ".join(map(repr, model.options)) or "none of its own"
            raise ArgumentError(f"{path}: unknown option {name!r}; this codec has {known}")
