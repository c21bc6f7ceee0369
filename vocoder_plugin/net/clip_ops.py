"""Operations that see a whole clip at once, and others that only whole-clip codecs need.

A codec whose normalisation or attention looks at every frame has no exact stream: its pass runs over a
clip that is first and last chunk in one, so nothing here keeps history. ``ClipOps`` adds to ``Ops``;
``ClipPlan`` collects the weights; ``ClipNative`` and ``ClipPortable`` are the two lowerings.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..kernels import AttentionParams, Kernels, LstmParams, NormParams
from ..runtime.ggml import Device, Library
from ..runtime.graph import TensorBuffer
from .ops import F32, Native, NativeOps, Portable, PortableOps, Shapes, _pointers
from .plan import WHOLE, ArraysSpec, Ops, Phase, Plan, Signal, Spec, Tensor
from .weights import Find

QUERY_TILE = 256  # queries of one portable attention step: memory is QUERY_TILE * frames
MOST_TILES = 200  # steps; beyond, at 11 minutes of sound, they become larger, as a graph holds 4096 nodes


class ClipOps(Ops):
    """What a whole-clip forward pass calls beside convolutions. Signals have one batch entry."""

    def layer_norm(
        self, x: Signal, name: str, *, epsilon: float, depthwise: str | None = None, kernel: int = 7
    ) -> Signal:
        """Normalise over channels, with weight and bias; of a depthwise "same" convolution of x where one is named."""
        norm = self._arrays(name, "vector", weight=(x.channels,), bias=(x.channels,))
        conv = None
        if depthwise:
            conv = self._arrays(depthwise, "depthwise", weight=(x.channels, 1, kernel), bias=(x.channels,))
        return self._emit_layer_norm(x, norm, conv, epsilon)

    def group_norm(self, x: Signal, name: str, *, groups: int, epsilon: float, swish: bool = False) -> Signal:
        """Normalise over all frames and the channels of each group; then x * sigmoid(x) if asked."""
        norm = self._arrays(name, "vector", weight=(x.channels,), bias=(x.channels,))
        return self._emit_group_norm(x, norm, groups, epsilon, swish)

    def gelu(self, x: Signal, *, tanh: bool = False) -> Signal:
        """GELU by erf, or by tanh. It may take x's place: the largest signal of a block. Do not use x again."""
        return self._emit_gelu(x, tanh)

    def attention(self, q: Signal, k: Signal, v: Signal) -> Signal:
        """softmax(q k / sqrt(channels)) v over all frames, one head."""
        return self._emit_attention(q, k, v)

    def polar(self, x: Signal) -> Signal:
        """Log magnitudes and phases [2 bins, T] -> real and imaginary parts; magnitudes are at most 100."""
        return self._emit_polar(x)

    def pad_reflect(self, x: Signal, *, left: int = 0, right: int = 0, elu: bool = False) -> Signal:
        """ELU(x) where asked, with rows reflected about the first and the last sample."""
        return self._emit_pad(x, left, right, elu)

    def conv1d_reflect(
        self, x: Signal, name: str, *, out: int, kernel: int, stride: int = 1, elu: bool = True
    ) -> Signal:
        """EnCodec's convolution of ELU(x): ceil(T / stride) outputs, reflected at both ends, more so at the right."""
        total = kernel - stride
        extra = -x.length % stride
        padded = self.pad_reflect(x, left=total - total // 2, right=total // 2 + extra, elu=elu)
        return self.conv1d(padded, name, out=out, kernel=kernel, stride=stride, padding=0)

    def lstm(self, x: Signal, name: str, layer: int, state: Tensor) -> tuple[Signal, Tensor]:
        """One layer with as many units as channels; ``state`` [H, 2] is h, c before -> outputs, state after."""
        gates = self.conv1d(x, f"{name}.ih_l{layer}", out=4 * x.channels, kernel=1)
        weights = self._arrays(f"{name}.hh_l{layer}", "lstm", weight=(4 * x.channels, x.channels))
        return self._emit_lstm(gates, weights, state)

    def argmax(self, x: Signal) -> Tensor:
        """The channel with the largest value, for every frame."""
        return self._emit_argmax(x)

    def _arrays(self, name: str, kind: str, **arrays: tuple[int, ...]) -> ArraysSpec:
        return ArraysSpec(name, kind, tuple(arrays.items()))

    # -- what a lowering builds; a plan only records

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, conv: ArraysSpec | None, epsilon: float) -> Signal:
        raise NotImplementedError

    def _emit_group_norm(self, x: Signal, norm: ArraysSpec, groups: int, epsilon: float, swish: bool) -> Signal:
        raise NotImplementedError

    def _emit_gelu(self, x: Signal, tanh: bool) -> Signal:
        raise NotImplementedError

    def _emit_attention(self, q: Signal, k: Signal, v: Signal) -> Signal:
        raise NotImplementedError

    def _emit_polar(self, x: Signal) -> Signal:
        raise NotImplementedError

    def _emit_pad(self, x: Signal, left: int, right: int, elu: bool) -> Signal:
        raise NotImplementedError

    def _emit_lstm(self, gates: Signal, weights: ArraysSpec, state: Tensor) -> tuple[Signal, Tensor]:
        raise NotImplementedError

    def _emit_argmax(self, x: Signal) -> Tensor:
        raise NotImplementedError


@dataclass
class ClipPlan(ClipOps, Plan):
    """Collects the weights of a whole-clip pass."""

    phase: Phase = WHOLE
    frames: int = 1

    def _recorded(self, x: Signal, *specs: ArraysSpec | None) -> Signal:
        for spec in specs:
            if spec is not None:
                self.specs[spec.name] = spec
        return x

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, conv: ArraysSpec | None, epsilon: float) -> Signal:
        return self._recorded(x, norm, conv)

    def _emit_group_norm(self, x: Signal, norm: ArraysSpec, groups: int, epsilon: float, swish: bool) -> Signal:
        return self._recorded(x, norm)

    def _emit_gelu(self, x: Signal, tanh: bool) -> Signal:
        return x

    def _emit_attention(self, q: Signal, k: Signal, v: Signal) -> Signal:
        return q

    def _emit_polar(self, x: Signal) -> Signal:
        return x

    def _emit_pad(self, x: Signal, left: int, right: int, elu: bool) -> Signal:
        return replace(x, length=x.length + left + right)

    def _emit_lstm(self, gates: Signal, weights: ArraysSpec, state: Tensor) -> tuple[Signal, Tensor]:
        return self._recorded(replace(gates, channels=gates.channels // 4), weights), None

    def _emit_argmax(self, x: Signal) -> Tensor:
        return None


class Weights:
    """Buffers of weights that serve as one."""

    def __init__(self, *buffers: TensorBuffer) -> None:
        self._buffers = buffers
        self.tensors = {name: tensor for buffer in buffers for name, tensor in buffer.tensors.items()}

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.close()


def _split(specs: Mapping[str, Spec]) -> tuple[dict[str, Spec], list[ArraysSpec]]:
    """The specs that every lowering knows, and those of this module."""
    arrays = [spec for spec in specs.values() if isinstance(spec, ArraysSpec)]
    return {name: spec for name, spec in specs.items() if not isinstance(spec, ArraysSpec)}, arrays


# -- native: channels-last, one kernel call an operation


@dataclass
class ClipNativeOps(ClipOps, NativeOps):
    def _custom(self, function: Any, params: ctypes.Structure, ne: tuple[int, int], *sources: Tensor) -> Tensor:
        arguments = _pointers(self.lib, list(sources))
        self.g.keep += [params, arguments]
        return self.lib.ggml_custom_4d(
            self.c, self.lib.bindings["GGML_TYPE_F32"], *ne, 1, 1,
            arguments, len(sources), function, -1, ctypes.addressof(params),
        )  # fmt: skip

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, conv: ArraysSpec | None, epsilon: float) -> Signal:
        sources = [x.tensor, self.w[norm.name + ".weight"], self.w[norm.name + ".bias"]]
        taps = 0
        if conv:
            sources += [self.w[conv.name + ".weight"], self.w[conv.name + ".bias"]]
            taps = dict(conv.arrays)["weight"][2]
        params = NormParams(epsilon=epsilon, taps=taps)
        return replace(x, tensor=self._custom(self.kernels.layer_norm, params, (x.channels, x.length), *sources))

    def _emit_group_norm(self, x: Signal, norm: ArraysSpec, groups: int, epsilon: float, swish: bool) -> Signal:
        params = NormParams(epsilon=epsilon, groups=groups, mode=int(swish))
        sources = (x.tensor, self.w[norm.name + ".weight"], self.w[norm.name + ".bias"])
        return replace(x, tensor=self._custom(self.kernels.group_norm, params, (x.channels, x.length), *sources))

    def _emit_gelu(self, x: Signal, tanh: bool) -> Signal:
        params = NormParams(mode=int(tanh))
        self.g.keep.append(params)
        y = self.lib.ggml_custom_inplace(self.c, x.tensor, None, 0, self.kernels.gelu, -1, ctypes.addressof(params))
        return replace(x, tensor=y)

    def _emit_attention(self, q: Signal, k: Signal, v: Signal) -> Signal:
        panel = self.kernels.panel
        scale = q.channels**-0.5
        keys = self._custom(
            self.kernels.pack_attention,
            AttentionParams(keys=1, heads=1),
            (q.channels, -(-k.length // panel) * panel),
            k.tensor,
        )
        values = self._custom(
            self.kernels.pack_attention,
            AttentionParams(keys=0, heads=1),
            (-(-v.channels // panel) * panel, v.length),
            v.tensor,
        )
        params = AttentionParams(scale=scale, heads=1)
        y = self._custom(self.kernels.attention, params, (q.channels, q.length), q.tensor, keys, values)
        return replace(q, tensor=y)  # [C, T]

    def _emit_polar(self, x: Signal) -> Signal:
        return replace(x, tensor=self._custom(self.kernels.polar, NormParams(), (x.channels, x.length), x.tensor))

    def _emit_pad(self, x: Signal, left: int, right: int, elu: bool) -> Signal:
        if not (left or right or elu):
            return x
        length = x.length + left + right
        params = NormParams(left=left, right=right, mode=int(elu))
        return replace(x, tensor=self._custom(self.kernels.pad, params, (x.channels, length), x.tensor), length=length)

    def _emit_lstm(self, gates: Signal, weights: ArraysSpec, state: Tensor) -> tuple[Signal, Tensor]:
        units, steps = gates.channels // 4, gates.length
        sources = (gates.tensor, self.w[weights.name + ".weight"], state)
        y = self._custom(self.kernels.lstm, LstmParams(), (units, steps + 1), *sources)
        out = self.lib.ggml_view_2d(self.c, y, units, steps, units * F32, 0)
        after = self.lib.ggml_view_2d(self.c, y, units, 2, units * F32, (steps - 1) * units * F32)
        return replace(gates, channels=units, tensor=self.lib.ggml_cont(self.c, out)), self.lib.ggml_cont(self.c, after)

    def _emit_argmax(self, x: Signal) -> Tensor:
        return self.lib.ggml_argmax(self.c, self.lib.ggml_reshape_2d(self.c, x.tensor, x.channels, x.length))


class ClipNative(Native):
    """The lowering for the CPU with kernels."""

    def __init__(
        self, lib: Library, device: Device, kernels: Kernels, *, precision: str = "float32", n_threads: int = 1
    ) -> None:
        super().__init__(lib, device, kernels, precision=precision, n_threads=n_threads)
        self.ops = functools.partial(ClipNativeOps, kernels=kernels, precision=precision)

    def load(self, specs: Mapping[str, Spec], find: Find) -> Any:
        """Read and pack the weights of a pass."""
        plain, arrays = _split(specs)
        shapes: Shapes = {"position": ("I32", (1,))}  # a clip starts at frame 0
        for spec in arrays:
            for suffix, shape in spec.arrays:
                ne = shape[::-1]
                if spec.kind == "depthwise" and len(shape) == 3:
                    ne = (shape[0], shape[2])
                elif spec.kind == "lstm":
                    ne = (self.kernels.lstm_floats(shape[1]),)
                shapes[f"{spec.name}.{suffix}"] = ("F32", ne)
        extra = TensorBuffer(self.lib, self.device, shapes)
        for spec in arrays:
            for suffix, shape in spec.arrays:
                name = f"{spec.name}.{suffix}"
                values = find(name).read()
                if spec.kind == "lstm":
                    self.kernels.pack_lstm(extra.tensors[name].contents.data, values)
                elif spec.kind == "depthwise" and len(shape) == 3:
                    extra.upload(name, values[:, 0].T)  # [taps][C]
                else:
                    extra.upload(name, values)
        return Weights(*([super().load(plain, find)] if plain else []), extra)


# -- portable: ggml's own operations, any device


class ClipPortableOps(ClipOps, PortableOps):
    """Signals are [T, C]."""

    lstm_steps = 48  # most steps of one graph, which has about 25 nodes a step

    def _transposed(self, x: Tensor) -> Tensor:
        return self.lib.ggml_cont(self.c, self.lib.ggml_transpose(self.c, x))

    def _scaled(self, x: Tensor, name: str) -> Tensor:
        """x * weight + bias, both [1, C]."""
        return self.lib.ggml_add(self.c, self.lib.ggml_mul(self.c, x, self.w[name + ".weight"]), self.w[name + ".bias"])

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, conv: ArraysSpec | None, epsilon: float) -> Signal:
        lib, c = self.lib, self.c
        y = self._depthwise(x, conv) if conv else x.tensor
        y = self._transposed(lib.ggml_norm(c, self._transposed(y), epsilon))
        return replace(x, tensor=self._scaled(y, norm.name))

    def _depthwise(self, x: Signal, conv: ArraysSpec) -> Tensor:
        """The sum over taps of a shifted view times a column of weights."""
        lib, c, taps = self.lib, self.c, dict(conv.arrays)["weight"][2]
        zeros = self._zeros(taps // 2, x.channels)
        padded = lib.ggml_concat(c, lib.ggml_concat(c, zeros, x.tensor, 0), zeros, 0)
        weight = self.w[conv.name + ".weight"]  # [1, C, taps]
        y = None
        for j in range(taps):
            column = lib.ggml_view_2d(c, weight, 1, x.channels, F32, j * x.channels * F32)
            part = lib.ggml_mul(c, lib.ggml_cont(c, self._rows_view(padded, j, x.length)), column)
            y = lib.ggml_add(c, y, part) if y else part
        return lib.ggml_add(c, y, self.w[conv.name + ".bias"])

    def _emit_group_norm(self, x: Signal, norm: ArraysSpec, groups: int, epsilon: float, swish: bool) -> Signal:
        lib, c = self.lib, self.c
        y = lib.ggml_reshape_3d(c, x.tensor, x.length, 1, x.channels)
        y = lib.ggml_group_norm(c, y, groups, epsilon)
        y = self._scaled(lib.ggml_reshape_2d(c, y, x.length, x.channels), norm.name)
        return replace(x, tensor=lib.ggml_silu(c, y) if swish else y)

    def _emit_gelu(self, x: Signal, tanh: bool) -> Signal:
        lib, c = self.lib, self.c
        return replace(x, tensor=lib.ggml_gelu(c, x.tensor) if tanh else lib.ggml_gelu_erf(c, x.tensor))

    def _emit_attention(self, q: Signal, k: Signal, v: Signal) -> Signal:
        lib, c = self.lib, self.c
        queries, keys = self._transposed(q.tensor), self._transposed(k.tensor)  # [C, T]
        y, most = None, max(QUERY_TILE, -(-q.length // MOST_TILES))
        for first in range(0, q.length, most):
            n = min(most, q.length - first)
            tile = lib.ggml_view_2d(c, queries, q.channels, n, q.channels * F32, first * q.channels * F32)
            scores = lib.ggml_soft_max_ext(c, lib.ggml_mul_mat(c, keys, tile), None, q.channels**-0.5, 0.0)  # [T, n]
            part = lib.ggml_mul_mat(c, v.tensor, scores)  # [C, n]
            if n == q.length:
                y = part
                break
            y = y or lib.ggml_cont(c, queries)
            target = lib.ggml_view_2d(c, y, q.channels, n, q.channels * F32, first * q.channels * F32)
            self._copy(part, target)
        return replace(q, tensor=self._transposed(y))

    def _emit_polar(self, x: Signal) -> Signal:
        lib, c = self.lib, self.c
        bins, step = x.channels // 2, x.length * F32
        size = lib.ggml_cont(c, lib.ggml_view_2d(c, x.tensor, x.length, bins, step, 0))
        phase = lib.ggml_cont(c, lib.ggml_view_2d(c, x.tensor, x.length, bins, step, bins * step))
        size = lib.ggml_clamp(c, lib.ggml_exp(c, size), 0.0, 100.0)
        real = lib.ggml_mul(c, size, lib.ggml_cos(c, phase))
        imaginary = lib.ggml_mul(c, size, lib.ggml_sin(c, phase))
        return replace(x, tensor=lib.ggml_concat(c, real, imaginary, 1))

    def _emit_pad(self, x: Signal, left: int, right: int, elu: bool) -> Signal:
        lib, c = self.lib, self.c
        y = lib.ggml_elu(c, x.tensor) if elu else x.tensor
        last = max(x.length, max(left, right) + 1) - 1
        edges: list[Tensor] = []
        for rows in (range(left, 0, -1), range(x.length, x.length + right)):
            joined = None
            for r in rows:
                r = 2 * last - r if r > last else r
                row = self._rows_view(y, r, 1) if r < x.length else self._zeros(1, x.channels)
                row = lib.ggml_cont(c, row)
                joined = lib.ggml_concat(c, joined, row, 0) if joined else row
            edges.append(joined)
        y = lib.ggml_concat(c, edges[0], y, 0) if edges[0] else y
        y = lib.ggml_concat(c, y, edges[1], 0) if edges[1] else y
        return replace(x, tensor=y, length=x.length + left + right)

    def _emit_lstm(self, gates: Signal, weights: ArraysSpec, state: Tensor) -> tuple[Signal, Tensor]:
        lib, c = self.lib, self.c
        units, steps = gates.channels // 4, gates.length
        inputs = self._transposed(gates.tensor)  # [4 H, T]
        hidden = lib.ggml_view_1d(c, state, units, 0)
        cell = lib.ggml_view_1d(c, state, units, units * F32)
        outputs = lib.ggml_cont(c, lib.ggml_view_2d(c, inputs, units, steps, 4 * units * F32, 0))  # room for [H, T]
        for t in range(steps):
            x = lib.ggml_view_1d(c, inputs, 4 * units, t * 4 * units * F32)
            x = lib.ggml_add(c, lib.ggml_mul_mat(c, self.w[weights.name + ".weight"], hidden), x)
            i, f, g, o = (lib.ggml_view_1d(c, x, units, gate * units * F32) for gate in range(4))
            i, f, o = (lib.ggml_sigmoid(c, gate) for gate in (i, f, o))
            cell = lib.ggml_add(c, lib.ggml_mul(c, f, cell), lib.ggml_mul(c, i, lib.ggml_tanh(c, g)))
            hidden = lib.ggml_mul(c, o, lib.ggml_tanh(c, cell))
            self._copy(hidden, lib.ggml_view_1d(c, outputs, units, t * units * F32))
        after = lib.ggml_concat(c, lib.ggml_reshape_2d(c, hidden, units, 1), lib.ggml_reshape_2d(c, cell, units, 1), 1)
        return replace(gates, channels=units, tensor=self._transposed(outputs)), after

    def _emit_argmax(self, x: Signal) -> Tensor:
        return self.lib.ggml_argmax(self.c, self._transposed(x.tensor))


class ClipPortable(Portable):
    """The lowering for any device of ggml."""

    ops = ClipPortableOps

    def shapes_of(self, spec: Spec) -> Shapes:
        if not isinstance(spec, ArraysSpec):
            return super().shapes_of(spec)
        shapes: Shapes = {}
        for suffix, shape in spec.arrays:
            ne = (1, shape[0]) if len(shape) == 1 else shape[::-1]
            if spec.kind == "depthwise" and len(shape) == 3:
                ne = (1, shape[0], shape[2])
            shapes[f"{spec.name}.{suffix}"] = ("F32", ne)
        return shapes

    def store(self, buffer: TensorBuffer, spec: Spec, find: Find) -> None:
        """Read one layer's weights."""
        if not isinstance(spec, ArraysSpec):
            super().store(buffer, spec, find)
            return
        for suffix, shape in spec.arrays:
            values = find(f"{spec.name}.{suffix}").read()
            if spec.kind == "depthwise" and len(shape) == 3:
                values = np.ascontiguousarray(values[:, 0].T)  # [taps][C]
            buffer.upload(f"{spec.name}.{suffix}", values)
