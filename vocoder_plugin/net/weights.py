"""Weights between a file and a lowering: what shape they have, and how to read them.

Shapes are compared with what the forward pass needs before anything is read or allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import ModelFileError
from .plan import ArraysSpec, ConvSpec, SnakeSpec, Spec


class Stored(NamedTuple):
    """A tensor not yet read: its shape, and a function that gives it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> Stored:
        return Stored(self.shape, lambda: function(self.read()))


Find = Callable[[str], Stored]


def concatenated(parts: list[Stored], *, axis: int) -> Stored:
    """The parts end to end; their shapes must agree along the other axes."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Stored(tuple(shape), lambda: np.concatenate([part.read() for part in parts], axis=axis))


def expected_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Names and shapes, in torch's layout, of the tensors that a spec needs."""
    if isinstance(spec, ConvSpec):
        channels = (spec.in_channels, spec.out_channels) if spec.transposed else (spec.out_channels, spec.in_channels)
        return {f"{spec.name}.weight": (*channels, spec.kernel), f"{spec.name}.bias": (spec.out_channels,)}
    if isinstance(spec, SnakeSpec):
        return {f"{spec.name}.alpha": (spec.channels,)}
    if isinstance(spec, ArraysSpec):
        return {f"{spec.name}.{suffix}": shape for suffix, shape in spec.arrays}
    return {spec.name: (spec.size, spec.dim)}


def expect_shape(name: str, stored: Stored, shape: tuple[int, ...], *, path: object) -> Stored:
    """The same tensor; ModelFileError if its shape is another."""
    if stored.shape != shape:
        raise ModelFileError(f"{path}: tensor {name!r} has shape {stored.shape}, expected {shape}")
    return stored


def check_shapes(specs: Mapping[str, Spec], find: Find, *, path: object) -> int:
    """Compare every tensor's shape with its spec; the number of values, or ModelFileError."""
    values = 0
    for spec in specs.values():
        for name, shape in expected_shapes(spec).items():
            expect_shape(name, find(name), shape, path=path)
            values += math.prod(shape)
    return values
