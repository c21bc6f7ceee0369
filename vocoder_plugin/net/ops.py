"""The operations of a forward pass as ggml graphs: two lowerings of one meaning.

``Native`` runs on the CPU with the package's kernels: channels-last activations ([C, T] in ggml's
order), packed weights, padding, history, Snake and residual folded into one node a convolution.
``Portable`` runs on any device with ggml's own operations: [T, C] activations, im2col and col2im,
Snake as the five nodes that the GPU backends fuse.

A lowering knows how weights are stored for it (``load``) and makes the ``Ops`` that build a graph.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..kernels import SOURCES, Conv1dParams, Kernels
from ..kernels import Activation as KernelActivation
from ..runtime.ggml import Device, Library
from ..runtime.graph import Graph, TensorBuffer
from .packing import Packing, Shapes, pad_kernel
from .plan import ELU, Activation, ConvSpec, Ops, Region, Signal, SnakeSpec, Spec, TableSpec, Tensor, Window
from .weights import Find

F32 = 4  # bytes


@dataclass
class GraphOps(Ops):
    """What both lowerings share: the graph, the weights and the state they read and write.

    ``state_in`` and ``state_out`` are [floats, batch] tensors: a graph reads the one and writes
    the other, so no node can overwrite what a later one still reads. ``position`` [batch] holds the
    frames that each stream had before this chunk.
    """

    graph: Graph | None = None
    weights: Mapping[str, Tensor] | None = None
    regions: Mapping[str, Region] | None = None
    state_in: Tensor = None
    state_out: Tensor = None
    position: Tensor = None
    batch: int = 1

    def __post_init__(self) -> None:
        assert self.graph is not None
        assert self.weights is not None
        self.g = self.graph
        self.lib = self.graph.lib
        self.c = self.graph.c
        self.w = self.weights

    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        raise NotImplementedError

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        raise NotImplementedError

    def _emit_history(self, x: Signal, name: str, rows: int) -> Tensor:
        region = self.regions[name]  # type: ignore[index]
        assert (region.rows, region.channels) == (rows, x.channels), (name, region)
        return self._state_view(self.state_in, region, 0, rows) if rows else None

    def _emit_remember(self, window: Window, name: str, rows: int) -> None:
        """Leave the window's last rows for the next chunk. A first chunk finds ``state_out`` zeroed."""
        if rows == 0:
            return
        region = self.regions[name]  # type: ignore[index]
        chunk, n = window.signal.tensor, window.signal.length
        if n >= rows:
            self._copy(self._rows_view(chunk, n - rows, rows), self._state_view(self.state_out, region, 0, rows))
        else:
            if window.history_rows:
                older = self._rows_view(window.history, window.history_rows - (rows - n), rows - n)
                self._copy(older, self._state_view(self.state_out, region, 0, rows - n))
            self._copy(chunk, self._state_view(self.state_out, region, rows - n, n))

    def _copy(self, source: Tensor, target: Tensor) -> None:
        self.g.expand(self.lib.ggml_cpy(self.c, source, target))

    def _emit_tanh(self, x: Signal) -> Signal:
        return replace(x, tensor=self.lib.ggml_tanh(self.c, x.tensor)) if x.tensor else x

    def _search(self, z: Tensor, spec: TableSpec) -> Tensor:
        """z [dim, n] -> indices [n]."""
        return self.lib.ggml_argmax(self.c, self.lib.ggml_mul_mat(self.c, self.w[spec.name], z))


# -- native: channels-last, one kernel call a convolution


@dataclass
class NativeOps(GraphOps):
    kernels: Kernels = None  # type: ignore[assignment]
    precision: str = "float32"

    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        step = region.channels * F32
        floats = state.contents.ne[0]
        offset = region.offset * F32 + first * step
        return self.lib.ggml_view_3d(
            self.c, state, region.channels, rows, self.batch, step, floats * F32, offset
        )  # [C, rows, B]

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        ne, nb = x.contents.ne, x.contents.nb
        return self.lib.ggml_view_3d(self.c, x, ne[0], rows, ne[2], nb[1], nb[2], first * nb[1])

    def _emit_repeated(self, x: Signal, rows: int) -> Tensor:
        ne, nb = x.tensor.contents.ne, x.tensor.contents.nb
        return self.lib.ggml_view_3d(self.c, x.tensor, ne[0], rows, ne[2], 0, nb[2], 0)  # every row is the first

    def _call_conv1d(
        self,
        window: Window,
        spec: ConvSpec,
        *,
        outputs: int,
        rows: int,
        dilation: int,
        stride: int,
        delay: int,
        snake: Activation | None,
        skip: tuple[Window, int] | None = None,
    ) -> Tensor:
        """One node: [outputs, rows, B]."""
        packing = Packing(spec, self.kernels, self.precision)
        sources: dict[str, Tensor] = {
            "weight": self.w[spec.name + ".weight"],
            "scale": self.w.get(spec.name + ".scale"),
            "bias": self.w[spec.name + ".bias"],
            "chunk": window.signal.tensor,
            "history": window.history,
        }
        activation = KernelActivation.ELU if snake is ELU else KernelActivation.NONE
        if isinstance(snake, SnakeSpec):
            activation = KernelActivation.SNAKE
            sources.update(alpha=self.w[snake.name + ".alpha"], inverse=self.w[snake.name + ".inverse"])
        if skip:
            sources.update(skip_chunk=skip[0].signal.tensor, skip_history=skip[0].history)
        if packing.winograd:
            sources.update(position=self.position)
        sources = {name: tensor for name, tensor in sources.items() if tensor}
        params = Conv1dParams(
            taps=spec.taps,
            dilation=dilation,
            stride=stride,
            vectors=packing.vectors,
            block=packing.block,
            together=packing.together,
            weight_bytes=packing.weight_bytes,
            activation=activation,
            zeros=window.zeros,
            skip_zeros=skip[0].zeros if skip else 0,
            skip_first=skip[1] if skip else 0,
            rate=window.signal.rate // stride,
            delay=0 if self.phase.first else delay,
            **{name: list(sources).index(name) if name in sources else -1 for name in SOURCES},
        )
        arguments = _pointers(self.lib, list(sources.values()))
        self.g.keep += [params, arguments]
        kernel = packing.kernel
        return self.lib.ggml_custom_4d(
            self.c, self.lib.bindings["GGML_TYPE_F32"], outputs, rows, self.batch, 1,
            arguments, len(sources), kernel, -1, ctypes.addressof(params),
        )  # fmt: skip

    def _emit_conv1d(
        self,
        window: Window,
        spec: ConvSpec,
        timed: Signal,
        dilation: int,
        snake: Activation | None,
        skip: tuple[Window, int] | None,
    ) -> Signal:
        if timed.length == 0:
            return timed
        y = self._call_conv1d(
            window, spec, outputs=spec.out_channels, rows=timed.length,
            dilation=dilation, stride=spec.stride, delay=timed.delay, snake=snake, skip=skip,
        )  # fmt: skip
        return replace(timed, tensor=y)  # [C, T, B]

    def _emit_conv_transpose1d(
        self, window: Window, spec: ConvSpec, timed: Signal, blocks: int, crop: int, snake: Activation | None
    ) -> Signal:
        outputs = spec.out_channels * spec.stride
        y = self._call_conv1d(window, spec, outputs=outputs, rows=blocks, dilation=1, stride=1, delay=0, snake=snake)
        y = self.lib.ggml_reshape_3d(self.c, y, spec.out_channels, blocks * spec.stride, self.batch)
        if timed.length != blocks * spec.stride:
            y = self._rows_view(y, crop, timed.length)
        return replace(timed, tensor=y)  # [C, T, B]

    def _emit_embed(self, ids: Tensor, spec: TableSpec, timed: Signal) -> Signal:
        if timed.length == 0:
            return timed
        rows = self.lib.ggml_get_rows(self.c, self.w[spec.name], ids)  # [dim, ids]
        return replace(timed, tensor=self.lib.ggml_reshape_3d(self.c, rows, timed.channels, timed.length, self.batch))

    def _emit_nearest(self, z: Signal, spec: TableSpec) -> Tensor:
        return self._search(self.lib.ggml_reshape_2d(self.c, z.tensor, z.channels, z.length * self.batch), spec)


def _pointers(lib: Library, tensors: list[Tensor]) -> ctypes.Array:
    return _pointer_array(lib.bindings["ggml_tensor"], len(tensors))(*tensors)


@functools.cache
def _pointer_array(kind: Any, count: int) -> Any:
    """The ctypes array of pointers; kept, as each type made anew would be a reference cycle."""
    return ctypes.POINTER(kind) * count


class Native:
    """The lowering for the CPU with kernels."""

    name = "native"

    def __init__(
        self, lib: Library, device: Device, kernels: Kernels, *, precision: str = "float32", n_threads: int = 1
    ) -> None:
        self.lib, self.device, self.kernels, self.precision, self.n_threads = lib, device, kernels, precision, n_threads
        self.ops: Callable[..., NativeOps] = functools.partial(NativeOps, kernels=kernels, precision=precision)

    def input_shape(self, channels: int, rows: int) -> tuple[int, ...]:
        return (channels, rows)

    def load(self, specs: Mapping[str, Spec], find: Find) -> TensorBuffer:
        """Read and pack the weights of a pass."""
        packings = {s.name: Packing(s, self.kernels, self.precision) for s in specs.values() if isinstance(s, ConvSpec)}
        shapes: Shapes = {}
        for spec in specs.values():
            shapes.update(packings[spec.name].shapes() if spec.name in packings else _plain_shapes(spec, column=False))
        buffer = TensorBuffer(self.lib, self.device, shapes, zeroed=False)

        def fill(spec: Spec) -> None:
            if spec.name in packings:
                packings[spec.name].store(buffer, find(spec.name + ".weight").read(), find(spec.name + ".bias").read())
            else:
                _upload_plain(buffer, spec, find)

        # largest first: packing them takes most memory, while the buffer is not yet in use
        ordered = sorted(specs.values(), key=lambda s: -math.prod(shapes.get(s.name + ".weight", ("", (1,)))[1]))
        with ThreadPoolExecutor(self.n_threads) as pool:
            list(pool.map(fill, ordered))
        return buffer


def _plain_shapes(spec: Spec, *, column: bool) -> Shapes:
    if isinstance(spec, SnakeSpec):
        ne = (1, spec.channels) if column else (spec.channels,)
        return {spec.name + ".alpha": ("F32", ne), spec.name + ".inverse": ("F32", ne)}
    assert isinstance(spec, TableSpec)
    return {spec.name: ("F32", (spec.dim, spec.size))}


def _upload_plain(buffer: TensorBuffer, spec: Spec, find: Find) -> None:
    if isinstance(spec, SnakeSpec):
        alpha = find(spec.name + ".alpha").read()
        buffer.upload(spec.name + ".alpha", alpha)
        buffer.upload(spec.name + ".inverse", 1.0 / (alpha + np.float32(1e-9)))
    else:
        buffer.upload(spec.name, find(spec.name).read())


# -- portable: ggml's own operations, any device


class PortableOps(GraphOps):
    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        floats = state.contents.ne[0]
        offset = (region.offset + first) * F32
        return self.lib.ggml_view_3d(
            self.c, state, rows, region.channels, self.batch, region.rows * F32, floats * F32, offset
        )  # [rows, C, B]

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        ne, nb = x.contents.ne, x.contents.nb
        return self.lib.ggml_view_3d(self.c, x, rows, ne[1], ne[2], nb[1], nb[2], first * F32)

    def _emit_repeated(self, x: Signal, rows: int) -> Tensor:
        first = self.lib.ggml_cont(self.c, self._rows_view(x.tensor, 0, 1))
        joined = first
        for _ in range(rows - 1):
            joined = self.lib.ggml_concat(self.c, joined, first, 0)
        return joined

    def _zeros(self, rows: int, channels: int, batch: int = 0) -> Tensor:
        """[rows, channels, batch], of the graph's batch by default; of two halves where that is more than there are."""
        batch = batch or self.batch
        step = rows * F32
        if rows * channels * batch <= ZERO_FLOATS:
            zeros = self.w["zeros"]
            return self.lib.ggml_view_3d(self.c, zeros, rows, channels, batch, step, step * channels, 0)
        if batch > 1:
            halves, axis = [(rows, batch // 2), (rows, batch - batch // 2)], 2
        else:
            halves, axis = [(rows // 2, 1), (rows - rows // 2, 1)], 0
        first, second = (self._zeros(n, channels, streams) for n, streams in halves)
        return self.lib.ggml_concat(self.c, first, second, axis)

    def _joined(self, window: Window) -> Tensor:
        """The window's rows in one tensor, made once however many nodes read it."""
        made = self.__dict__.setdefault("_made", {})
        if id(window) not in made:
            channels = window.signal.channels
            parts = [
                self._zeros(window.zeros, channels) if window.zeros else None,
                window.history,
                window.signal.tensor,
                self._zeros(window.zeros_after, channels) if window.zeros_after else None,
            ]
            joined = None
            for part in parts:
                if part:
                    joined = self.lib.ggml_concat(self.c, joined, part, 0) if joined else part
            if not self._contiguous(joined):
                joined = self.lib.ggml_cont(self.c, joined)
            made[id(window)] = (joined, window)
        return made[id(window)][0]

    @staticmethod
    def _contiguous(x: Tensor) -> bool:
        ne, nb = x.contents.ne, x.contents.nb
        return nb[1] == ne[0] * F32 and (ne[2] == 1 or nb[2] == ne[0] * ne[1] * F32)

    def _snake_of(self, x: Tensor, spec: Activation | None) -> Tensor:
        """MUL, SIN, SQR, MUL, ADD: the chain that CUDA, Vulkan and Metal run as one kernel."""
        if not isinstance(spec, SnakeSpec):
            return self.lib.ggml_elu(self.c, x) if spec is ELU else x
        lib, c = self.lib, self.c
        s = lib.ggml_sqr(c, lib.ggml_sin(c, lib.ggml_mul(c, x, self.w[spec.name + ".alpha"])))
        return lib.ggml_add(c, x, lib.ggml_mul(c, s, self.w[spec.name + ".inverse"]))

    def _emit_conv1d(
        self,
        window: Window,
        spec: ConvSpec,
        timed: Signal,
        dilation: int,
        snake: Activation | None,
        skip: tuple[Window, int] | None,
    ) -> Signal:
        if timed.length == 0:
            return timed
        lib, c = self.lib, self.c
        x = self._snake_of(self._joined(window), snake)  # [R, in, B]
        kernel = self.w[spec.name + ".weight"]  # [K, in, out]
        columns = lib.ggml_im2col(
            c, kernel, x, spec.stride, 0, 0, 0, dilation, 0, False, lib.bindings["GGML_TYPE_F32"]
        )  # [K in, T, B]
        depth = spec.kernel * spec.in_channels
        columns = lib.ggml_reshape_2d(c, columns, depth, timed.length * self.batch)
        y = lib.ggml_mul_mat(c, columns, lib.ggml_reshape_2d(c, kernel, depth, spec.out_channels))  # [T B, out]
        if self.batch > 1:
            y = lib.ggml_reshape_3d(c, y, timed.length, self.batch, spec.out_channels)
            y = lib.ggml_cont(c, lib.ggml_permute(c, y, 0, 2, 1, 3))  # [T, out, B]
        y = lib.ggml_add(c, y, self.w[spec.name + ".bias"])
        if skip:
            y = lib.ggml_add(c, y, self._rows_view(self._joined(skip[0]), skip[1], timed.length))
        return replace(timed, tensor=y)  # [T, out, B]

    def _emit_conv_transpose1d(
        self, window: Window, spec: ConvSpec, timed: Signal, blocks: int, crop: int, snake: Activation | None
    ) -> Signal:
        lib, c = self.lib, self.c
        x = self._snake_of(self._joined(window), snake)  # [R, in, B]
        x = lib.ggml_cont(c, lib.ggml_transpose(c, x))  # [in, R, B]
        columns = lib.ggml_mul_mat(c, self.w[spec.name + ".weight"], x)  # [K out, R, B]
        y = None
        for b in range(self.batch):  # col2im_1d takes one sequence
            ne, nb = columns.contents.ne, columns.contents.nb
            one = lib.ggml_view_2d(c, columns, ne[0], ne[1], nb[1], b * nb[2])
            part = lib.ggml_col2im_1d(c, one, spec.stride, spec.out_channels, (spec.taps - 1) * spec.stride)
            y = lib.ggml_concat(c, y, part, 2) if y else part  # [blocks * stride, out, B]
        y = lib.ggml_add(c, y, self.w[spec.name + ".bias"])
        if timed.length != blocks * spec.stride:
            y = lib.ggml_cont(c, self._rows_view(y, crop, timed.length))
        return replace(timed, tensor=y)  # [T, out, B]

    def _emit_embed(self, ids: Tensor, spec: TableSpec, timed: Signal) -> Signal:
        if timed.length == 0:
            return timed
        lib, c = self.lib, self.c
        rows = lib.ggml_get_rows(c, self.w[spec.name], ids)  # [dim, ids]
        rows = lib.ggml_reshape_3d(c, rows, timed.channels, timed.length, self.batch)
        return replace(timed, tensor=lib.ggml_cont(c, lib.ggml_transpose(c, rows)))  # [T, C, B]

    def _emit_nearest(self, z: Signal, spec: TableSpec) -> Tensor:
        lib, c = self.lib, self.c
        z_ = lib.ggml_cont(c, lib.ggml_transpose(c, z.tensor))  # [dim, T, B]
        return self._search(lib.ggml_reshape_2d(c, z_, z.channels, z.length * self.batch), spec)


class Portable:
    """The lowering for any device of ggml."""

    name = "portable"
    ops = PortableOps
    blank = False  # weights get memory, which nothing reads or touches: see rehearsal.py

    def __init__(self, lib: Library, device: Device) -> None:
        self.lib, self.device = lib, device

    def input_shape(self, channels: int, rows: int) -> tuple[int, ...]:
        return (rows, channels)

    def load(self, specs: Mapping[str, Spec], find: Find) -> TensorBuffer:
        """Read the weights of a pass."""
        buffer = TensorBuffer(self.lib, self.device, self.shapes(specs), zeroed=not self.blank, weights=True)
        for spec in () if self.blank else specs.values():
            self.store(buffer, spec, find)
        return buffer

    def shapes(self, specs: Mapping[str, Spec]) -> Shapes:
        """The weights of a pass in ggml's convolution layouts, and zeros to pad with."""
        shapes: Shapes = {"zeros": ("F32", (ZERO_FLOATS,))}
        for spec in specs.values():
            shapes.update(self.shapes_of(spec))
        return shapes

    def shapes_of(self, spec: Spec) -> Shapes:
        if not isinstance(spec, ConvSpec):
            return _plain_shapes(spec, column=True)
        kernel, n_in, n_out = spec.kernel, spec.in_channels, spec.out_channels
        ne = (n_in, spec.taps * spec.stride * n_out) if spec.transposed else (kernel, n_in, n_out)
        return {spec.name + ".weight": ("F32", ne), spec.name + ".bias": ("F32", (1, n_out))}

    def store(self, buffer: TensorBuffer, spec: Spec, find: Find) -> None:
        """Read one layer's weights."""
        if not isinstance(spec, ConvSpec):
            _upload_plain(buffer, spec, find)
            return
        weight = find(spec.name + ".weight").read()
        if spec.transposed:  # col2im wants row out * kernel + k of [in] values
            weight = pad_kernel(weight, spec).transpose(1, 2, 0)
        buffer.upload(spec.name + ".weight", weight)
        buffer.upload(spec.name + ".bias", find(spec.name + ".bias").read())


ZERO_FLOATS = 1 << 18  # to pad with: rows * channels * streams

Lowering = Native | Portable
