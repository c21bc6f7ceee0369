"""Weights between a file and a lowering: what each layer needs, and how it is read.

Shapes are torch's. They are compared with what the forward pass needs before anything is read or allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

Shape = tuple[int, ...]


class Spec(Protocol):
    """What a layer needs of a file."""

    @property
    def name(self) -> str: ...

    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of its tensors."""
        ...


@dataclass(frozen=True)
class ConvSpec:
    """A convolution: weights [out, in, kernel], or [in, out, kernel] for a transposed one, and biases.

    ``search`` says that its outputs choose codes, one of which, if wrong, spoils those after it.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    transposed: bool = False
    search: bool = False

    @property
    def taps(self) -> int:
        """Kernel of the equivalent plain convolution: a transposed one looks at ceil(kernel/stride) inputs."""
        return -(-self.kernel // self.stride) if self.transposed else self.kernel

    def shapes(self) -> dict[str, Shape]:
        channels = (self.in_channels, self.out_channels) if self.transposed else (self.out_channels, self.in_channels)
        return {f"{self.name}.weight": (*channels, self.kernel), f"{self.name}.bias": (self.out_channels,)}


@dataclass(frozen=True)
class SnakeSpec:
    """Snake's alpha of every channel."""

    name: str
    channels: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.alpha": (self.channels,)}


@dataclass(frozen=True)
class TableSpec:
    """Rows of an embedding, or of a codebook to search; ``size`` rows of ``dim`` values."""

    name: str
    size: int
    dim: int

    def shapes(self) -> dict[str, Shape]:
        return {self.name: (self.size, self.dim)}


@dataclass(frozen=True)
class VectorSpec:
    """Vectors with a value a channel, by their suffixes: a norm's weight and bias, the taps of an upsampling."""

    name: str
    channels: int
    suffixes: tuple[str, ...] = ("weight", "bias")

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.{suffix}": (self.channels,) for suffix in self.suffixes}


@dataclass(frozen=True)
class DepthwiseSpec:
    """A convolution of each channel by itself."""

    name: str
    channels: int
    kernel: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": (self.channels, 1, self.kernel), f"{self.name}.bias": (self.channels,)}


@dataclass(frozen=True)
class LstmSpec:
    """The recurrent weights of an LSTM layer, gates in torch's order i, f, g, o."""

    name: str
    units: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": (4 * self.units, self.units)}


class Stored(NamedTuple):
    """A tensor not yet read: its shape, and a function that gives it as float32."""

    shape: Shape
    read: Callable[[], np.ndarray]

    def mapped(self, function: Callable[[np.ndarray], np.ndarray], shape: Shape | None = None) -> Stored:
        return Stored(self.shape if shape is None else shape, lambda: function(self.read()))


Find = Callable[[str, Shape], Stored]
"""The tensor of that name, which must have that shape."""


def count_values(specs: Iterable[Spec]) -> int:
    """Values of all tensors that the specs need."""
    return sum(math.prod(shape) for spec in specs for shape in spec.shapes().values())


def check_shapes(specs: Mapping[str, Spec], find: Find) -> None:
    """Look every tensor up, so that what is missing or has another shape is refused before anything is read."""
    for spec in specs.values():
        for name, shape in spec.shapes().items():
            find(name, shape)
