"""What both lowerings of the vocabulary share: the graph, the weights and the state they read and write.

``native.py`` runs on the CPU with the package's kernels, ``portable.py`` on any device with ggml's own
operations. Each lays a signal out in its own way; here is all that does not depend on which.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..runtime.ggml import Device, Library, Tensor
from ..runtime.graph import Graph, TensorBuffer
from .ops import Elu, Feed, Ops
from .plan import Plan
from .signal import Region, Signal, Window
from .weights import DepthwiseSpec, Find, SnakeSpec, Spec, TableSpec, VectorSpec

F32 = 4  # bytes
Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Tensors to allocate: ggml type and ne by name."""


@dataclass
class GraphOps(Ops):
    """Builds a graph.

    ``state_in`` and ``state_out`` are [floats, batch] tensors: a graph reads the one and writes the other, so no
    node can overwrite what a later one still reads.
    """

    graph: Graph = None  # type: ignore[assignment]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    plan: Plan = None  # type: ignore[assignment]
    state_in: Tensor = None
    state_out: Tensor = None

    time_axis = 0  # the dimension of ggml's that rows lie along

    def __post_init__(self) -> None:
        self.g, self.lib, self.c, self.w = self.graph, self.graph.lib, self.graph.c, self.weights
        self._feeds: dict[str, Tensor] = {}

    def _emit(self, operation: str, y: Signal, *specs: Spec | Elu | None, **arguments: Any) -> Signal:
        # in a last chunk without frames early layers give nothing, and ggml would abort on tensors that are not there
        tensor = getattr(self, f"_{operation}")(y, **arguments) if y.length else None
        return Signal(tensor, y.channels, y.length, y.rate, y.delay)

    # How a lowering lays signals out

    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        raise NotImplementedError

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        raise NotImplementedError

    def _turned(self, x: Tensor) -> Tensor:
        """From the lowering's layout to channels first, [C, T, B], or back."""
        raise NotImplementedError

    def _tap(self, weight: Tensor, j: int, channels: int) -> Tensor:
        """A depthwise convolution's weights of one tap, a value a channel."""
        raise NotImplementedError

    def _flat(self, x: Signal | Window) -> Tensor:
        """[C, T * B] in one piece."""
        whole = self._gapless(self._turned(x.tensor))
        return self.lib.ggml_reshape_2d(self.c, whole, x.channels, x.length * self.batch)

    def _gapless(self, x: Tensor) -> Tensor:
        """The tensor itself, or a copy of a view that has gaps between its rows or streams."""
        ne, nb = x.contents.ne, x.contents.nb
        gapless = nb[1] == ne[0] * F32 and (ne[2] == 1 or nb[2] == ne[1] * nb[1])
        return x if gapless else self.lib.ggml_cont(self.c, x)

    # Inputs and outputs

    def _input(self, kind: str, *ne: int) -> Tensor:
        return self.g.input(kind, *ne) if ne[0] else None

    def _rows_input(self, channels: int, rows: int, rate: int) -> Signal:
        tensor = self.g.input("F32", channels, rows, self.batch) if rows else None
        return Signal(self._turned(tensor) if rows else None, channels, rows, rate)

    def _feed(self, name: str, feed: Feed, kind: str, *ne: int) -> Tensor:
        if name not in self._feeds:
            self._feeds[name] = self.g.input(kind, *ne, feed=feed)
        return self._feeds[name]

    def _samples_out(self, x: Signal) -> Tensor:
        self.g.output(self._gapless(x.tensor), "F32", self.batch, x.length)
        return x.tensor

    def _rows_out(self, x: Signal) -> Tensor:
        self.g.output(self._gapless(self._turned(x.tensor)), "F32", self.batch, x.length, x.channels)
        return x.tensor

    def _codes_out(self, x: Signal, codes: Tensor) -> Tensor:
        self.g.output(codes, "I32", self.batch * x.length)
        return codes

    # State

    def _kept(self, name: str, floats: int) -> int:
        return self.plan.kept[name][0]

    def _history(self, x: Signal, name: str, rows: int) -> Tensor:
        region = self.plan.regions[name]
        assert (region.rows, region.channels) == (rows, x.channels), (name, region)
        return self._state_view(self.state_in, region, 0, rows) if rows else None

    def _remember(self, window: Window, name: str, rows: int) -> None:
        """Leave the window's last rows for the next chunk. A first chunk finds ``state_out`` zeroed."""
        if rows == 0:
            return
        region = self.plan.regions[name]
        chunk, n = window.tensor, window.length
        if n >= rows:
            self._copy(self._rows_view(chunk, n - rows, rows), self._state_view(self.state_out, region, 0, rows))
        else:
            if window.history_rows:
                older = self._rows_view(window.history, window.history_rows - (rows - n), rows - n)
                self._copy(older, self._state_view(self.state_out, region, 0, rows - n))
            self._copy(chunk, self._state_view(self.state_out, region, rows - n, n))

    def _copy(self, source: Tensor, target: Tensor) -> None:
        self.g.expand(self.lib.ggml_cpy(self.c, source, target))

    # Operations that are the same in any layout

    def _tanh(self, y: Signal, x: Signal) -> Tensor:
        return self.lib.ggml_tanh(self.c, x.tensor) if x.tensor else None

    def _add(self, y: Signal, x: Signal, other: Signal) -> Tensor:
        return self.lib.ggml_add(self.c, x.tensor, other.tensor)

    def _subtract(self, y: Signal, x: Signal, other: Signal) -> Tensor:
        return self.lib.ggml_sub(self.c, x.tensor, other.tensor)

    def _scaled(self, y: Signal, x: Signal, gain: Tensor) -> Tensor:
        ne = x.tensor.contents.ne
        flat = self.lib.ggml_reshape_2d(self.c, self._gapless(x.tensor), x.length, self.batch)
        return self.lib.ggml_reshape_3d(self.c, self.lib.ggml_mul(self.c, flat, gain), *ne[:3])

    def _embed(self, y: Signal, ids: Tensor, table: TableSpec) -> Tensor:
        if y.length == 0:
            return None
        rows = self.lib.ggml_get_rows(self.c, self.w[table.name], ids)  # [dim, ids]
        return self._turned(self.lib.ggml_reshape_3d(self.c, rows, y.channels, y.length, self.batch))

    def _nearest(self, y: Signal, z: Signal, table: TableSpec) -> Tensor:
        return self.lib.ggml_argmax(self.c, self.lib.ggml_mul_mat(self.c, self.w[table.name], self._flat(z)))

    def _argmax(self, y: Signal, x: Signal) -> Tensor:
        return self.lib.ggml_argmax(self.c, self._flat(x))

    def _rows(self, y: Signal, x: Signal, first: int) -> Tensor:
        return self.lib.ggml_cont(self.c, self._rows_view(x.tensor, first, y.length))

    def _depthwise(self, y: Signal, window: Window, spec: DepthwiseSpec) -> Tensor:
        """The sum over taps of a shifted view times a weight a channel."""
        lib, c, joined, total = self.lib, self.c, self._joined(window), None
        for j in range(spec.kernel):
            rows = lib.ggml_cont(c, self._rows_view(joined, j, y.length))
            part = lib.ggml_mul(c, rows, self._tap(self.w[spec.name + ".weight"], j, spec.channels))
            total = lib.ggml_add(c, total, part) if total else part
        return lib.ggml_add(c, total, self.w[spec.name + ".bias"])

    def _upsampled(self, x: Signal, before: Tensor, name: str, stride: int) -> list[Tensor]:
        """Every ``stride``-th output, for each of them. A first chunk finds its history zeroed."""
        lib, c = self.lib, self.c
        if x.length > 1:
            before = lib.ggml_concat(c, before, self._rows_view(x.tensor, 0, x.length - 1), self.time_axis)
        else:
            before = lib.ggml_cont(c, before)
        self._copy(
            self._rows_view(x.tensor, x.length - 1, 1), self._state_view(self.state_out, self.plan.regions[name], 0, 1)
        )
        taps = [self.w[f"{name}.tap{j}"] for j in range(2 * stride)]
        return [
            lib.ggml_add(c, lib.ggml_mul(c, x.tensor, taps[p]), lib.ggml_mul(c, before, taps[p + stride]))
            for p in range(stride)
        ]

    def _joined(self, window: Window) -> Tensor:
        """The window's rows in one tensor, made once however many nodes read it."""
        if window.joined is None:
            before, after = (
                self._zeros(rows, window.channels) if rows else None for rows in (window.zeros, window.zeros_after)
            )
            joined = None
            for part in (before, window.history, window.tensor, after):
                if part:
                    joined = self.lib.ggml_concat(self.c, joined, part, self.time_axis) if joined else part
            window.joined = self._gapless(joined)
        return window.joined

    def _zeros(self, rows: int, channels: int) -> Tensor:
        """Rows of zeros of every stream."""
        raise NotImplementedError


class Lowering:
    """How one lowering stores weights, and the ``Ops`` that build its graphs.

    Parameters
    ----------
    blank : bool
        Weights get memory, which nothing writes or reads: see rehearsal.py.
    """

    name: str
    ops: Any  # makes GraphOps
    rings = False  # see Ops
    column = False  # whether a vector with a value a channel is a column, [1, C]

    def __init__(self, lib: Library, device: Device, *, blank: bool = False) -> None:
        self.lib, self.device, self.blank = lib, device, blank

    def load(self, specs: Mapping[str, Spec], find: Find) -> TensorBuffer:
        """Read the weights of a pass."""
        raise NotImplementedError

    def shapes_of(self, spec: Spec) -> Shapes:
        """The tensors of one layer."""
        vector = (lambda n: (1, n)) if self.column else (lambda n: (n,))
        if isinstance(spec, SnakeSpec):
            return {f"{spec.name}.{part}": ("F32", vector(spec.channels)) for part in ("alpha", "inverse")}
        if isinstance(spec, VectorSpec):
            return {name: ("F32", vector(spec.channels)) for name in spec.shapes()}
        if isinstance(spec, DepthwiseSpec):
            taps = {f"{spec.name}.weight": ("F32", (*vector(spec.channels), spec.kernel))}
            return {**taps, f"{spec.name}.bias": ("F32", vector(spec.channels))}
        assert isinstance(spec, TableSpec), spec
        return {spec.name: ("F32", (spec.dim, spec.size))}

    def store(self, buffer: TensorBuffer, spec: Spec, find: Find) -> None:
        """Read one layer's weights."""
        values = {name: find(name, shape).read() for name, shape in spec.shapes().items()}
        if isinstance(spec, SnakeSpec):
            alpha = values[f"{spec.name}.alpha"]
            values[f"{spec.name}.inverse"] = 1.0 / (alpha + np.float32(1e-9))
        if isinstance(spec, DepthwiseSpec):
            values[f"{spec.name}.weight"] = np.ascontiguousarray(values[f"{spec.name}.weight"][:, 0].T)  # [taps][C]
        for name, array in values.items():
            buffer.upload(name, array)


def pointers(lib: Library, tensors: list[Tensor]) -> ctypes.Array:
    return _pointer_array(lib.bindings["ggml_tensor"], len(tensors))(*tensors)


@functools.cache
def _pointer_array(kind: Any, count: int) -> Any:
    """The ctypes array of pointers; kept, as each type made anew would be a reference cycle."""
    return ctypes.POINTER(kind) * count
