"""The lowering for the CPU, with the package's kernels: a custom node an operation.

Signals are channels first, [C, T, B] in ggml's order. Weights are packed; padding, history, activation and
residual are part of a convolution's node. Where two operations of the vocabulary are one kernel (a norm behind a
depthwise convolution, swish behind a norm), the second is built from what the first was made of, whose own node
nothing then asks for.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels import (
    SOURCES,
    Activation,
    AttentionParams,
    Conv1dParams,
    Kernels,
    LstmParams,
    NormParams,
    SlidingAttentionParams,
)
from ..runtime.ggml import Device, Library, Tensor
from ..runtime.graph import TensorBuffer
from ..runtime.threads import in_threads
from .lowering import F32, GraphOps, Lowering, Shapes, pointers
from .ops import ELU, Elu, Feed, Rotary
from .packing import Packing
from .signal import Moment, Region, Signal, Window
from .weights import ConvSpec, DepthwiseSpec, Find, LstmSpec, SnakeSpec, Spec


@dataclass
class NativeOps(GraphOps):
    kernels: Kernels = None  # type: ignore[assignment]
    precision: str = "float32"
    rings = True
    time_axis = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._depthwise_of: dict[int, tuple[Window, DepthwiseSpec]] = {}  # by the tensor's address
        self._norm_of: dict[int, tuple[list[Tensor], NormParams]] = {}

    def _state_view(self, state: Tensor, region: Region, first: int, rows: int) -> Tensor:
        step, floats = region.channels * F32, state.contents.ne[0]
        offset = region.offset * F32 + first * step
        return self.lib.ggml_view_3d(
            self.c, state, region.channels, rows, self.batch, step, floats * F32, offset
        )  # [C, rows, B]

    def _rows_view(self, x: Tensor, first: int, rows: int) -> Tensor:
        ne, nb = x.contents.ne, x.contents.nb
        return self.lib.ggml_view_3d(self.c, x, ne[0], rows, ne[2], nb[1], nb[2], first * nb[1])

    def _turned(self, x: Tensor) -> Tensor:
        return x

    def _tap(self, weight: Tensor, j: int, channels: int) -> Tensor:
        return self.lib.ggml_view_1d(self.c, weight, channels, j * channels * F32)

    def _zeros(self, rows: int, channels: int) -> Tensor:
        shape = self.batch, rows, channels
        feed = f"zeros {shape}", lambda _: np.zeros(shape, np.float32), "F32", *shape[::-1]
        return self._feed(*feed)

    def _repeated(self, y: Signal, x: Signal) -> Tensor:
        ne, nb = x.tensor.contents.ne, x.tensor.contents.nb
        return self.lib.ggml_view_3d(self.c, x.tensor, ne[0], y.length, ne[2], 0, nb[2], 0)  # every row is the first

    def _channels(self, y: Signal, x: Signal, first: int) -> Tensor:
        nb = x.tensor.contents.nb
        return self.lib.ggml_view_3d(self.c, x.tensor, y.channels, y.length, self.batch, nb[1], nb[2], first * F32)

    def _custom(self, function: Any, params: ctypes.Structure, ne: tuple[int, ...], *sources: Tensor) -> Tensor:
        arguments = pointers(self.lib, list(sources))
        self.g.keep += [params, arguments]
        return self.lib.ggml_custom_4d(
            self.c, self.lib.bindings["GGML_TYPE_F32"], *(*ne, 1, 1, 1)[:4],
            arguments, len(sources), function, -1, ctypes.addressof(params),
        )  # fmt: skip

    # Convolutions

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
        activation: SnakeSpec | Elu | None,
        skip: tuple[Window, int] | None = None,
    ) -> Tensor:
        """One node: [outputs, rows, B]."""
        packing = Packing(spec, self.kernels, self.precision)
        sources: dict[str, Tensor] = {
            "weight": self.w[spec.name + ".weight"],
            "scale": self.w.get(spec.name + ".scale"),
            "bias": self.w[spec.name + ".bias"],
            "chunk": window.tensor,
            "history": window.history,
        }
        if isinstance(activation, SnakeSpec):
            sources.update(alpha=self.w[activation.name + ".alpha"], inverse=self.w[activation.name + ".inverse"])
        if skip:
            sources.update(skip_chunk=skip[0].tensor, skip_history=skip[0].history)
        if packing.winograd:
            sources.update(position=self._feed("position", _positions(self.plan.period), "I32", self.batch))
        sources = {name: tensor for name, tensor in sources.items() if tensor}
        params = Conv1dParams(
            taps=spec.taps,
            dilation=dilation,
            stride=stride,
            vectors=packing.vectors,
            block=packing.block,
            together=packing.together,
            weight_bytes=packing.weight_bytes,
            activation=Activation.ELU if activation is ELU else Activation.SNAKE if activation else Activation.NONE,
            zeros=window.zeros,
            skip_zeros=skip[0].zeros if skip else 0,
            skip_first=skip[1] if skip else 0,
            rate=window.rate // stride,
            delay=0 if self.phase.first else delay,
            **{name: list(sources).index(name) if name in sources else -1 for name in SOURCES},
        )
        return self._custom(packing.kernel, params, (outputs, rows, self.batch), *sources.values())

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
        return self._call_conv1d(
            window, conv, outputs=conv.out_channels, rows=y.length,
            dilation=dilation, stride=conv.stride, delay=y.delay, activation=activation, skip=skip,
        )  # fmt: skip

    def _conv_transpose1d(
        self, y: Signal, window: Window, conv: ConvSpec, blocks: int, crop: int, activation: SnakeSpec | Elu | None
    ) -> Tensor:
        outputs = conv.out_channels * conv.stride
        blocked = self._call_conv1d(
            window, conv, outputs=outputs, rows=blocks, dilation=1, stride=1, delay=0, activation=activation
        )
        x = self.lib.ggml_reshape_3d(self.c, blocked, conv.out_channels, blocks * conv.stride, self.batch)
        return x if y.length == blocks * conv.stride else self._rows_view(x, crop, y.length)

    def _depthwise(self, y: Signal, window: Window, spec: DepthwiseSpec) -> Tensor:
        tensor = super()._depthwise(y, window, spec)
        self._depthwise_of[_address(tensor)] = window, spec
        return tensor

    def _upsample(self, y: Signal, x: Signal, before: Tensor, name: str, stride: int) -> Tensor:
        first, *others = self._upsampled(x, before, name, stride)
        for phase in others:
            first = self.lib.ggml_concat(self.c, first, phase, 0)  # [stride C, T, B]
        return self.lib.ggml_reshape_3d(self.c, first, y.channels, y.length, self.batch)

    # Samples by themselves

    def _pad(self, y: Signal, x: Signal, left: int, right: int, elu: bool) -> Tensor:
        if not (left or right or elu):
            return x.tensor
        params, rows = NormParams(left=left, right=right, mode=int(elu)), y.length * self.batch
        return self._shaped(y, self._custom(self.kernels.pad, params, (y.channels, rows), self._flat(x)))

    def _gelu(self, y: Signal, x: Signal, by_tanh: bool) -> Tensor:
        params = NormParams(mode=int(by_tanh))
        self.g.keep.append(params)
        flat = self.lib.ggml_custom_inplace(
            self.c, self._flat(x), None, 0, self.kernels.gelu, -1, ctypes.addressof(params)
        )
        return self._shaped(y, flat)

    def _swish(self, y: Signal, x: Signal) -> Tensor:
        if _address(x.tensor) not in self._norm_of:
            return self.lib.ggml_silu(self.c, x.tensor)
        sources, params = self._norm_of[_address(x.tensor)]
        fused = NormParams(epsilon=params.epsilon, groups=params.groups, mode=1)
        return self._custom(self.kernels.group_norm, fused, (y.channels, y.length), *sources)

    def _polar(self, y: Signal, x: Signal) -> Tensor:
        rows = y.length * self.batch
        return self._shaped(y, self._custom(self.kernels.polar, NormParams(), (y.channels, rows), self._flat(x)))

    # Norms

    def _layer_norm(self, y: Signal, x: Signal, name: str, epsilon: float) -> Tensor:
        weights, params = [self.w[name + ".weight"], self.w[name + ".bias"]], NormParams(epsilon=epsilon)
        rows = self._flat(x)
        if (made := self._depthwise_of.get(_address(x.tensor))) and self.plan.whole_clip:  # no cut to agree with
            window, spec = made
            rows, params.taps = self._flat(window), spec.kernel
            weights += [self.w[spec.name + ".weight"], self.w[spec.name + ".bias"]]
        return self._shaped(
            y, self._custom(self.kernels.layer_norm, params, (y.channels, y.length * self.batch), rows, *weights)
        )

    def _group_norm(self, y: Signal, x: Signal, name: str, groups: int, epsilon: float) -> Tensor:
        params = NormParams(epsilon=epsilon, groups=groups)
        sources = [x.tensor, self.w[name + ".weight"], self.w[name + ".bias"]]
        tensor = self._custom(self.kernels.group_norm, params, (y.channels, y.length), *sources)
        self._norm_of[_address(tensor)] = sources, params
        return tensor

    def _shaped(self, y: Signal, flat: Tensor) -> Tensor:
        return self.lib.ggml_reshape_3d(self.c, flat, y.channels, y.length, self.batch)

    # Attention and recurrence

    def _full_attention(self, y: Signal, q: Signal, k: Signal, v: Signal, heads: int) -> Tensor:
        size, panel = q.channels // heads, self.kernels.panel
        keys = self._custom(
            self.kernels.pack_attention, AttentionParams(keys=1, heads=heads),
            (size, -(-k.length // panel) * panel, heads), k.tensor,
        )  # fmt: skip
        values = self._custom(
            self.kernels.pack_attention, AttentionParams(keys=0, heads=heads),
            (-(-size // panel) * panel, v.length, heads), v.tensor,
        )  # fmt: skip
        params = AttentionParams(scale=size**-0.5, heads=heads)
        return self._custom(self.kernels.attention, params, (y.channels, y.length), q.tensor, keys, values)

    def _ring_attention(
        self,
        y: Signal,
        q: Signal,
        k: Signal,
        v: Signal,
        heads: int,
        rotary: Rotary,
        offset: int,
        window: int,
        capacity: int,
    ) -> Tensor:
        rate, size = q.rate, q.channels // heads

        def turns(moment: Moment) -> np.ndarray:
            return np.stack([rotary.turns(int(p) * rate, moment.frames * rate, size) for p in moment.positions])

        def control(moment: Moment) -> np.ndarray:
            """Address of a stream's ring, slot of the chunk's first position, positions before it that are seen."""
            rows = [
                (at & 0xFFFFFFFF, at >> 32, p * rate % capacity, min(p * rate, window - 1))
                for at, p in zip(moment.kept, moment.positions.tolist(), strict=True)
            ]
            return np.array(rows, np.uint32).view(np.int32)

        sources = [
            q.tensor, k.tensor, v.tensor,
            self._feed(f"turns {rotary} {rate} {size}", turns, "F32", size, y.length, self.batch),
            self._feed(f"control {rate} {window} {capacity}", control, "I32", 4, self.batch),
        ]  # fmt: skip
        params = SlidingAttentionParams(heads=heads, window=window, capacity=capacity, offset=offset)
        return self._custom(self.kernels.sliding_attention, params, (y.channels, y.length, self.batch), *sources)

    def _lstm(self, y: Signal, gates: Signal, spec: LstmSpec, state: Tensor) -> Tensor:
        sources = gates.tensor, self.w[spec.name + ".weight"], state
        return self._custom(self.kernels.lstm, LstmParams(), (y.channels, y.length), *sources)


def _positions(period: int) -> Feed:
    """Frames that each stream had before. (A method as feed would make a cycle with its graph.)"""
    return lambda moment: (moment.positions % period).astype(np.int32)


def _address(tensor: Tensor) -> int:
    return ctypes.addressof(tensor.contents)


class Native(Lowering):
    """The lowering for the CPU with kernels."""

    name = "native"
    rings = True

    def __init__(
        self, lib: Library, device: Device, kernels: Kernels, *, precision: str = "float32", n_threads: int = 1
    ) -> None:
        super().__init__(lib, device)
        self.kernels, self.precision, self.n_threads = kernels, precision, n_threads
        self.ops = functools.partial(NativeOps, kernels=kernels, precision=precision)

    def load(self, specs: Mapping[str, Spec], find: Find) -> TensorBuffer:
        shapes: Shapes = {}
        for spec in specs.values():
            shapes.update(self.shapes_of(spec))
        shapes = shapes or {"none": ("F32", (1,))}  # ggml has no empty buffers
        buffer = TensorBuffer(self.lib, self.device, shapes, zeroed=False)
        # largest first: packing them takes most memory, while the buffer is not yet in use
        ordered = sorted(specs.values(), key=lambda s: -math.prod(shapes.get(s.name + ".weight", ("", (1,)))[1]))
        in_threads(lambda spec: self.store(buffer, spec, find), ordered, self.n_threads)
        return buffer

    def shapes_of(self, spec: Spec) -> Shapes:
        if isinstance(spec, ConvSpec):
            return Packing(spec, self.kernels, self.precision).shapes()
        if isinstance(spec, LstmSpec):
            return {f"{spec.name}.weight": ("F32", (self.kernels.lstm_floats(spec.units),))}
        return super().shapes_of(spec)

    def store(self, buffer: TensorBuffer, spec: Spec, find: Find) -> None:
        if not isinstance(spec, ConvSpec | LstmSpec):
            super().store(buffer, spec, find)
            return
        values = [find(name, shape).read() for name, shape in spec.shapes().items()]
        if isinstance(spec, ConvSpec):
            Packing(spec, self.kernels, self.precision).store(buffer, *values)
        else:
            target = buffer.tensors[f"{spec.name}.weight"].contents.data
            ctypes.memset(target, 0, self.kernels.lstm_floats(spec.units) * F32)  # lanes beyond the units
            self.kernels.pack_lstm(target, *values)
