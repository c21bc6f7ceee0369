"""The lowering for any device, with ggml's own operations.

Signals are [T, C, B] in ggml's order: im2col and col2im for convolutions, Snake as the five nodes that the GPU
backends fuse, attention over what the stream's state carries from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..runtime.ggml import Tensor
from ..runtime.graph import TensorBuffer
from .lowering import F32, GraphOps, Lowering, Shapes
from .ops import ELU, Elu, Rotary
from .packing import pad_kernel
from .plan import QUERY_TILE
from .signal import Moment, Region, Signal, Window
from .weights import ConvSpec, Find, LstmSpec, SnakeSpec, Spec

ZERO_FLOATS = 1 << 18  # to pad with: rows * channels * streams


@dataclass
class PortableOps(GraphOps):
    time_axis = 0

    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        floats, offset = state.contents.ne[0], (region.offset + first) * F32
        return self.lib.ggml_view_3d(
            self.c, state, rows, region.channels, self.batch, region.rows * F32, floats * F32, offset
        )  # [rows, C, B]

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        ne, nb = x.contents.ne, x.contents.nb
        return self.lib.ggml_view_3d(self.c, x, rows, ne[1], ne[2], nb[1], nb[2], first * F32)

    def _turned(self, x: Tensor) -> Tensor:
        return self.lib.ggml_cont(self.c, self.lib.ggml_transpose(self.c, x))

    def _tap(self, weight: Tensor, j: int, channels: int) -> Tensor:
        return self.lib.ggml_view_2d(self.c, weight, 1, channels, F32, j * channels * F32)

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

    def _repeated(self, y: Signal, x: Signal) -> Tensor:
        first = self.lib.ggml_cont(self.c, self._rows_view(x.tensor, 0, 1))
        joined = first
        for _ in range(y.length - 1):
            joined = self.lib.ggml_concat(self.c, joined, first, 0)
        return joined

    def _channels(self, y: Signal, x: Signal, first: int) -> Tensor:
        nb = x.tensor.contents.nb
        return self.lib.ggml_view_3d(self.c, x.tensor, y.length, y.channels, self.batch, nb[1], nb[2], first * nb[1])

    # Convolutions

    def _activated(self, x: Tensor, spec: SnakeSpec | Elu | None) -> Tensor:
        """Snake as MUL, SIN, SQR, MUL, ADD: the chain that CUDA, Vulkan and Metal run as one kernel."""
        lib, c = self.lib, self.c
        if not isinstance(spec, SnakeSpec):
            return lib.ggml_elu(c, x) if spec is ELU else x
        s = lib.ggml_sqr(c, lib.ggml_sin(c, lib.ggml_mul(c, x, self.w[spec.name + ".alpha"])))
        return lib.ggml_add(c, x, lib.ggml_mul(c, s, self.w[spec.name + ".inverse"]))

    def _conv1d(
        self,
        y: Signal,
        window: Window,
        conv: ConvSpec,
        dilation: int,
        activation: SnakeSpec | Elu | None,
        skip: tuple[Window, int] | None,
    ) -> Tensor:
        if y.length == 0:
            return None
        lib, c = self.lib, self.c
        x = self._activated(self._joined(window), activation)  # [R, in, B]
        kernel = self.w[conv.name + ".weight"]  # [K, in, out]
        columns = lib.ggml_im2col(
            c, kernel, x, conv.stride, 0, 0, 0, dilation, 0, False, lib.bindings["GGML_TYPE_F32"]
        )  # [K in, T, B]
        depth = conv.kernel * conv.in_channels
        columns = lib.ggml_reshape_2d(c, columns, depth, y.length * self.batch)
        z = lib.ggml_mul_mat(c, columns, lib.ggml_reshape_2d(c, kernel, depth, conv.out_channels))  # [T B, out]
        if self.batch > 1:
            z = lib.ggml_reshape_3d(c, z, y.length, self.batch, conv.out_channels)
            z = lib.ggml_cont(c, lib.ggml_permute(c, z, 0, 2, 1, 3))  # [T, out, B]
        z = lib.ggml_add(c, z, self.w[conv.name + ".bias"])
        return (
            lib.ggml_add(c, z, self._rows_view(self._joined(skip[0]), skip[1], y.length)) if skip else z
        )  # [T, out, B]

    def _conv_transpose1d(
        self, y: Signal, window: Window, conv: ConvSpec, blocks: int, crop: int, activation: SnakeSpec | Elu | None
    ) -> Tensor:
        lib, c = self.lib, self.c
        x = self._turned(self._activated(self._joined(window), activation))  # [in, R, B]
        columns = lib.ggml_mul_mat(c, self.w[conv.name + ".weight"], x)  # [K out, R, B]
        z = None
        for b in range(self.batch):  # col2im_1d takes one sequence
            ne, nb = columns.contents.ne, columns.contents.nb
            one = lib.ggml_view_2d(c, columns, ne[0], ne[1], nb[1], b * nb[2])
            part = lib.ggml_col2im_1d(c, one, conv.stride, conv.out_channels, (conv.taps - 1) * conv.stride)
            z = lib.ggml_concat(c, z, part, 2) if z else part  # [blocks * stride, out, B]
        z = lib.ggml_add(c, z, self.w[conv.name + ".bias"])
        return z if y.length == blocks * conv.stride else lib.ggml_cont(c, self._rows_view(z, crop, y.length))

    def _upsample(self, y: Signal, x: Signal, before: Tensor, name: str, stride: int) -> Tensor:
        lib, c, joined = self.lib, self.c, None
        for phase in self._upsampled(x, before, name, stride):
            part = lib.ggml_reshape_4d(c, phase, 1, x.length, x.channels, self.batch)
            joined = lib.ggml_concat(c, joined, part, 0) if joined else part  # [stride, T, C, B]
        return lib.ggml_reshape_3d(c, joined, y.length, x.channels, self.batch)

    # Samples by themselves

    def _pad(self, y: Signal, x: Signal, left: int, right: int, elu: bool) -> Tensor:
        lib, c = self.lib, self.c
        z = lib.ggml_elu(c, x.tensor) if elu else x.tensor
        last = max(x.length, max(left, right) + 1) - 1
        edges: list[Tensor] = []
        for rows in (range(left, 0, -1), range(x.length, x.length + right)):
            joined = None
            for r in rows:
                r = 2 * last - r if r > last else r
                row = self._rows_view(z, r, 1) if r < x.length else self._zeros(1, x.channels)
                row = lib.ggml_cont(c, row)
                joined = lib.ggml_concat(c, joined, row, 0) if joined else row
            edges.append(joined)
        z = lib.ggml_concat(c, edges[0], z, 0) if edges[0] else z
        return lib.ggml_concat(c, z, edges[1], 0) if edges[1] else z

    def _gelu(self, y: Signal, x: Signal, by_tanh: bool) -> Tensor:
        return self.lib.ggml_gelu(self.c, x.tensor) if by_tanh else self.lib.ggml_gelu_erf(self.c, x.tensor)

    def _swish(self, y: Signal, x: Signal) -> Tensor:
        return self.lib.ggml_silu(self.c, x.tensor)

    def _polar(self, y: Signal, x: Signal) -> Tensor:
        lib, c = self.lib, self.c
        half = replace(y, channels=x.channels // 2)
        size, phase = (lib.ggml_cont(c, self._channels(half, x, first)) for first in (0, half.channels))
        size = lib.ggml_clamp(c, lib.ggml_exp(c, size), 0.0, 100.0)
        real = lib.ggml_mul(c, size, lib.ggml_cos(c, phase))
        return lib.ggml_concat(c, real, lib.ggml_mul(c, size, lib.ggml_sin(c, phase)), 1)

    # Norms

    def _weighted(self, x: Tensor, name: str) -> Tensor:
        """x * weight + bias, both [1, C]."""
        return self.lib.ggml_add(self.c, self.lib.ggml_mul(self.c, x, self.w[name + ".weight"]), self.w[name + ".bias"])

    def _layer_norm(self, y: Signal, x: Signal, name: str, epsilon: float) -> Tensor:
        normal = self.lib.ggml_norm(self.c, self._turned(x.tensor), epsilon)
        return self._weighted(self._turned(normal), name)

    def _group_norm(self, y: Signal, x: Signal, name: str, groups: int, epsilon: float) -> Tensor:
        lib, c = self.lib, self.c
        normal = lib.ggml_group_norm(c, lib.ggml_reshape_3d(c, x.tensor, x.length, 1, x.channels), groups, epsilon)
        return self._weighted(lib.ggml_reshape_2d(c, normal, x.length, x.channels), name)

    # Attention and recurrence

    def _heads(self, x: Signal, heads: int) -> Tensor:
        """[T, C, B] -> [T, size of a head, heads, B] in one piece."""
        return self.lib.ggml_reshape_4d(
            self.c, self._gapless(x.tensor), x.length, x.channels // heads, heads, self.batch
        )

    def _full_attention(self, y: Signal, q: Signal, k: Signal, v: Signal, heads: int) -> Tensor:
        lib, c, n, size = self.lib, self.c, q.length, q.channels // heads
        queries, keys, values = (
            self._turned(self._heads(q, heads)),
            self._turned(self._heads(k, heads)),
            self._heads(v, heads),
        )
        out = None  # [D, T, H]
        for first in range(0, n, QUERY_TILE):
            count, nb = min(QUERY_TILE, n - first), queries.contents.nb
            tile = lib.ggml_view_3d(c, queries, size, count, heads, nb[1], nb[2], first * nb[1])
            scores = lib.ggml_soft_max_ext(c, lib.ggml_mul_mat(c, keys, tile), None, size**-0.5, 0.0)  # [T, n, H]
            part = lib.ggml_mul_mat(c, values, scores)  # [D, n, H]
            if count == n:
                out = part
                break
            out = out or lib.ggml_cont(c, queries)
            self._copy(part, lib.ggml_view_3d(c, out, size, count, heads, nb[1], nb[2], first * nb[1]))
        return lib.ggml_reshape_3d(c, self._turned(out), n, y.channels, 1)

    def _rotated(self, y: Signal, x: Signal, heads: int, rotary: Rotary) -> Tensor:
        lib, c, half, rate = self.lib, self.c, x.channels // heads // 2, x.rate

        ne = x.length, half, 1, self.batch

        def turns(moment: Moment, part: slice) -> np.ndarray:
            each = [rotary.turns(int(p) * rate, moment.frames * rate, 2 * half)[:, part].T for p in moment.positions]
            return np.ascontiguousarray(np.stack(each))  # [B, D / 2, T]

        cosine, sine = (
            self._feed(f"{what} {rotary} {rate} {half}", partial(turns, part=part), "F32", *ne)
            for what, part in (("cosines", slice(half)), ("sines", slice(half, None)))
        )
        whole = self._heads(x, heads)
        nb = whole.contents.nb
        a, b = (
            lib.ggml_cont(
                c, lib.ggml_view_4d(c, whole, x.length, half, heads, self.batch, nb[1], nb[2], nb[3], first * nb[1])
            )
            for first in (0, half)
        )
        first = lib.ggml_sub(c, lib.ggml_mul(c, a, cosine), lib.ggml_mul(c, b, sine))
        second = lib.ggml_add(c, lib.ggml_mul(c, b, cosine), lib.ggml_mul(c, a, sine))
        return lib.ggml_reshape_3d(c, lib.ggml_concat(c, first, second, 1), x.length, x.channels, self.batch)

    def _masked_attention(self, y: Signal, q: Signal, keys: Window, values: Window, heads: int, window: int) -> Tensor:
        lib, c, size = self.lib, self.c, q.channels // heads
        rate, rows, positions = q.rate, keys.rows, q.length

        def mask(moment: Moment) -> np.ndarray:
            """0 where a position sees a key, -inf elsewhere, float32 [B, T, keys]."""
            history = rows - positions
            query, key = np.arange(positions)[:, np.newaxis] + history, np.arange(rows)[np.newaxis]
            near = (key <= query) & (key > query - window)
            past = [min(p * rate, window - 1) for p in moment.positions.tolist()]
            return np.stack([np.where(near & (key >= history - p), np.float32(0), np.float32(-np.inf)) for p in past])

        k, v = (
            lib.ggml_reshape_4d(c, self._joined(part), rows, size, heads, self.batch) for part in (keys, values)
        )  # [S, D, H, B]
        scores = lib.ggml_mul_mat(c, self._turned(k), self._turned(self._heads(q, heads)))  # [S, T, H, B]
        seen = self._feed(f"mask {rate} {window}", mask, "F32", rows, q.length, 1, self.batch)
        shares = lib.ggml_soft_max_ext(c, scores, seen, size**-0.5, 0.0)
        out = self._turned(lib.ggml_mul_mat(c, v, shares))  # [T, D, H, B]
        return lib.ggml_reshape_3d(c, out, q.length, y.channels, self.batch)

    def _lstm(self, y: Signal, gates: Signal, spec: LstmSpec, state: Tensor) -> Tensor:
        lib, c, units = self.lib, self.c, y.channels
        inputs = self._turned(gates.tensor)  # [4 H, T]
        hidden = lib.ggml_view_1d(c, state, units, 0)
        cell = lib.ggml_view_1d(c, state, units, units * F32)
        outputs = lib.ggml_cont(
            c, lib.ggml_view_2d(c, inputs, units, gates.length, 4 * units * F32, 0)
        )  # room for [H, T]
        for t in range(gates.length):
            x = lib.ggml_view_1d(c, inputs, 4 * units, t * 4 * units * F32)
            x = lib.ggml_add(c, lib.ggml_mul_mat(c, self.w[spec.name + ".weight"], hidden), x)
            i, f, g, o = (lib.ggml_view_1d(c, x, units, gate * units * F32) for gate in range(4))
            i, f, o = (lib.ggml_sigmoid(c, gate) for gate in (i, f, o))
            cell = lib.ggml_add(c, lib.ggml_mul(c, f, cell), lib.ggml_mul(c, i, lib.ggml_tanh(c, g)))
            hidden = lib.ggml_mul(c, o, lib.ggml_tanh(c, cell))
            self._copy(hidden, lib.ggml_view_1d(c, outputs, units, t * units * F32))
        return self._turned(lib.ggml_concat(c, outputs, lib.ggml_reshape_2d(c, cell, units, 1), 1))


class Portable(Lowering):
    """The lowering for any device of ggml."""

    name = "portable"
    ops = PortableOps
    column = True

    def load(self, specs: Mapping[str, Spec], find: Find) -> TensorBuffer:
        shapes: Shapes = {"zeros": ("F32", (ZERO_FLOATS,))}
        for spec in specs.values():
            shapes.update(self.shapes_of(spec))
        buffer = TensorBuffer(self.lib, self.device, shapes, zeroed=not self.blank, weights=True)
        for spec in () if self.blank else specs.values():
            self.store(buffer, spec, find)
        return buffer

    def shapes_of(self, spec: Spec) -> Shapes:
        if isinstance(spec, LstmSpec):
            return {f"{spec.name}.weight": ("F32", (spec.units, 4 * spec.units))}
        if not isinstance(spec, ConvSpec):
            return super().shapes_of(spec)
        ne: tuple[int, ...] = (spec.kernel, spec.in_channels, spec.out_channels)
        if spec.transposed:
            ne = (spec.in_channels, spec.taps * spec.stride * spec.out_channels)
        return {spec.name + ".weight": ("F32", ne), spec.name + ".bias": ("F32", (1, spec.out_channels))}

    def store(self, buffer: TensorBuffer, spec: Spec, find: Find) -> None:
        if not isinstance(spec, ConvSpec) or not spec.transposed:
            super().store(buffer, spec, find)
            return
        weight, bias = (find(name, shape).read() for name, shape in spec.shapes().items())
        buffer.upload(
            spec.name + ".weight", pad_kernel(weight, spec).transpose(1, 2, 0)
        )  # row out * kernel + k of [in]
        buffer.upload(spec.name + ".bias", bias)
