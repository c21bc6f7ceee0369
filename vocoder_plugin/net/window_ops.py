"""Operations of causal transformers between causal convolutions, for exact streams in bounded memory.

Attention sees a sliding window of positions. ``WindowNative`` keeps keys and values in a ring per stream
that its kernel writes in place (kernels/sliding_attention.c); ``WindowPortable`` keeps the window's rows among the
state that the graphs carry from chunk to chunk. Keys are kept rotated by their absolute position, with
angles computed in float64 outside the graph, so that they are exact however long a stream becomes.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..kernels import Kernels, NormParams, SlidingAttentionParams
from ..runtime.ggml import Device, Library
from .clip_ops import ClipNative, ClipPortable
from .ops import F32, NativeOps, PortableOps, _pointers
from .plan import MIDDLE, ArraysSpec, Ops, Phase, Plan, Signal, Tensor

VECTOR = 16  # floats in the widest vector of any variant of the kernels


@dataclass(frozen=True)
class Attention:
    """The sizes that all attention layers of one direction share; ``chunk`` is most positions of a chunk."""

    heads: int
    head_dim: int
    layers: int
    window: int
    theta: float
    chunk: int

    @property
    def capacity(self) -> int:
        """Positions of a ring: a whole chunk, what its first position still sees, and more for whole vectors."""
        return -(-(self.window - 1 + self.chunk) // VECTOR) * VECTOR

    @property
    def ring_floats(self) -> int:
        """Keys and values of all layers and heads in one stream's ring."""
        return self.layers * self.heads * 2 * self.capacity * self.head_dim

    def turns(self, first: int, positions: int) -> np.ndarray:
        """Cosines and sines of rotary embedding, float32 [positions, head_dim], from position ``first``.

        Su et al. 2021, "RoFormer" (arXiv:2104.09864), in the layout that rotates a head's first half
        against its second, as transformers has it.
        """
        half = self.head_dim // 2
        speed = self.theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = np.arange(first, first + positions, dtype=np.float64)[:, np.newaxis] * speed
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def mask(self, past: int, history: int, positions: int) -> np.ndarray:
        """0 where a position sees a key, -inf elsewhere, float32 [positions, history + positions].

        ``past`` of the history's last rows are real.
        """
        query = np.arange(positions)[:, np.newaxis] + history
        key = np.arange(history + positions)[np.newaxis]
        seen = (key <= query) & (key > query - self.window) & (key >= history - past)
        return np.where(seen, np.float32(0), np.float32(-np.inf))


class WindowOps(Ops):
    """What a causal transformer calls beside convolutions."""

    def layer_norm(self, x: Signal, name: str, *, epsilon: float) -> Signal:
        """Normalise over channels, with weight and bias."""
        norm = ArraysSpec(name, "vector", (("weight", (x.channels,)), ("bias", (x.channels,))))
        return self._emit_layer_norm(x, norm, epsilon)

    def gelu(self, x: Signal) -> Signal:
        """GELU by erf. It may take x's place: do not use x again."""
        return self._emit_gelu(x)

    def attention(self, qkv: Signal, name: str, *, sizes: Attention, layer: int) -> Signal:
        """Causal attention with rotary embedding over a sliding window; queries, keys and values [3 C, T] -> [C, T]."""
        return self._emit_attention(qkv, name, sizes, layer)

    def upsample(self, x: Signal, name: str, *, stride: int) -> Signal:
        """Depthwise causal transposed convolution of kernel 2 * stride, without bias.

        y[stride * t + p] = w[p] x[t] + w[p + stride] x[t - 1], weights of each tap as ``name.tapN``.
        """
        spec = ArraysSpec(name, "vector", tuple((f"tap{j}", (x.channels,)) for j in range(2 * stride)))
        return self._emit_upsample(x, spec, stride)

    def subtract(self, x: Signal, y: Signal) -> Signal:
        return self._emit_subtract(x, y)

    def argmax(self, x: Signal) -> Tensor:
        """The channel with the largest value, for every frame: [T * batch]."""
        return self._emit_argmax(x)

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, epsilon: float) -> Signal:
        raise NotImplementedError

    def _emit_gelu(self, x: Signal) -> Signal:
        raise NotImplementedError

    def _emit_attention(self, qkv: Signal, name: str, sizes: Attention, layer: int) -> Signal:
        raise NotImplementedError

    def _emit_upsample(self, x: Signal, spec: ArraysSpec, stride: int) -> Signal:
        raise NotImplementedError

    def _emit_subtract(self, x: Signal, y: Signal) -> Signal:
        raise NotImplementedError

    def _emit_argmax(self, x: Signal) -> Tensor:
        raise NotImplementedError


@dataclass
class WindowPlan(WindowOps, Plan):
    """Runs a pass over time alone. With ``rings`` keys and values are no part of the state it plans."""

    phase: Phase = MIDDLE
    frames: int = 1
    rings: bool = False

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, epsilon: float) -> Signal:
        self.specs[norm.name] = norm
        return replace(x)  # another signal: windows are kept by signal

    def _emit_gelu(self, x: Signal) -> Signal:
        return replace(x)

    def _emit_attention(self, qkv: Signal, name: str, sizes: Attention, layer: int) -> Signal:
        y = replace(qkv, channels=qkv.channels // 3)
        if not self.rings:
            for part in "kv":
                self._window(replace(y), f"{name}.{part}", history=sizes.window - 1, before=0, after=0)
        return y

    def _emit_upsample(self, x: Signal, spec: ArraysSpec, stride: int) -> Signal:
        self.specs[spec.name] = spec
        self._emit_history(x, spec.name, 1)
        return replace(x, length=x.length * stride, rate=x.rate * stride)

    def _emit_subtract(self, x: Signal, y: Signal) -> Signal:
        return replace(x)

    def _emit_argmax(self, x: Signal) -> Tensor:
        return None


# -- native: channels-last


@dataclass
class WindowNativeOps(WindowOps, NativeOps):
    control: Tensor = None  # [4, B]: see struct vp_stream of kernels/params.h
    turns: Tensor = None  # [head_dim, T, B]

    def declare(self, sizes: Attention, positions: int) -> None:
        """The inputs that go before the pass' own."""
        self.control = self.g.input("I32", 4, self.batch)
        self.turns = self.g.input("F32", sizes.head_dim, positions, self.batch)

    def _custom(self, function: Any, params: ctypes.Structure, ne: tuple[int, ...], *sources: Tensor) -> Tensor:
        arguments = _pointers(self.lib, list(sources))
        self.g.keep += [params, arguments]
        return self.lib.ggml_custom_4d(
            self.c, self.lib.bindings["GGML_TYPE_F32"], *(*ne, 1, 1)[:4],
            arguments, len(sources), function, -1, ctypes.addressof(params),
        )  # fmt: skip

    def _in_batch(self, x: Signal, tensor: Tensor) -> Signal:
        return replace(x, tensor=self.lib.ggml_reshape_3d(self.c, tensor, x.channels, x.length, self.batch))

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, epsilon: float) -> Signal:
        weights = self.w[norm.name + ".weight"], self.w[norm.name + ".bias"]
        rows = self.lib.ggml_reshape_2d(self.c, x.tensor, x.channels, x.length * self.batch)
        ne = (x.channels, x.length * self.batch, 1)
        return self._in_batch(x, self._custom(self.kernels.layer_norm, NormParams(epsilon=epsilon), ne, rows, *weights))

    def _emit_gelu(self, x: Signal) -> Signal:
        rows = self.lib.ggml_reshape_2d(self.c, x.tensor, x.channels, x.length * self.batch)
        params = NormParams()
        self.g.keep.append(params)
        y = self.lib.ggml_custom_inplace(self.c, rows, None, 0, self.kernels.gelu, -1, ctypes.addressof(params))
        return self._in_batch(x, y)

    def _emit_attention(self, qkv: Signal, name: str, sizes: Attention, layer: int) -> Signal:
        y = replace(qkv, channels=qkv.channels // 3)
        params = SlidingAttentionParams(
            heads=sizes.heads, window=sizes.window, capacity=sizes.capacity,
            offset=layer * sizes.ring_floats // sizes.layers,
        )  # fmt: skip
        ne, nb = (y.channels, y.length, self.batch), qkv.tensor.contents.nb
        parts = (self.lib.ggml_view_3d(self.c, qkv.tensor, *ne, nb[1], nb[2], i * y.channels * F32) for i in range(3))
        sliding = self._custom(self.kernels.sliding_attention, params, ne, *parts, self.turns, self.control)
        return replace(y, tensor=sliding)

    def _emit_upsample(self, x: Signal, spec: ArraysSpec, stride: int) -> Signal:
        y = _upsampled(self, x, spec, stride, 1)
        joined = y[0]
        for phase in y[1:]:
            joined = self.lib.ggml_concat(self.c, joined, phase, 0)  # [stride C, T, B]
        return self._in_batch(replace(x, length=x.length * stride, rate=x.rate * stride), joined)

    def _emit_subtract(self, x: Signal, y: Signal) -> Signal:
        return replace(x, tensor=self.lib.ggml_sub(self.c, x.tensor, y.tensor))

    def _emit_argmax(self, x: Signal) -> Tensor:
        rows = self.lib.ggml_reshape_2d(self.c, x.tensor, x.channels, x.length * self.batch)
        return self.lib.ggml_argmax(self.c, rows)


def _upsampled(net: Any, x: Signal, spec: ArraysSpec, stride: int, time_axis: int) -> list[Tensor]:
    """Every ``stride``-th output, for each of them. A first chunk finds its history zeroed."""
    lib, c = net.lib, net.c
    before = net._emit_history(x, spec.name, 1)
    if x.length > 1:
        before = lib.ggml_concat(c, before, net._rows_view(x.tensor, 0, x.length - 1), time_axis)
    else:
        before = lib.ggml_cont(c, before)
    region = net.regions[spec.name]
    net._copy(net._rows_view(x.tensor, x.length - 1, 1), net._state_view(net.state_out, region, 0, 1))
    taps = [net.w[f"{spec.name}.tap{j}"] for j in range(2 * stride)]
    return [
        lib.ggml_add(c, lib.ggml_mul(c, x.tensor, taps[p]), lib.ggml_mul(c, before, taps[p + stride]))
        for p in range(stride)
    ]


class WindowNative(ClipNative):
    """The lowering for the CPU with kernels."""

    def __init__(
        self, lib: Library, device: Device, kernels: Kernels, *, precision: str = "float32", n_threads: int = 1
    ) -> None:
        super().__init__(lib, device, kernels, precision=precision, n_threads=n_threads)
        self.n_threads = n_threads
        self.ops = functools.partial(WindowNativeOps, kernels=kernels, precision=precision)


# -- portable: [T, C]


class WindowPortableOps(WindowOps, PortableOps):
    mask: Tensor  # [keys, T, 1, B]
    cosine: Tensor  # [T, head_dim / 2, 1, B]
    sine: Tensor

    def declare(self, sizes: Attention, positions: int) -> None:
        """The inputs that go before the pass' own."""
        history = 0 if self.phase.first else sizes.window - 1
        self.mask = self.g.input("F32", history + positions, positions, 1, self.batch)
        self.cosine = self.g.input("F32", positions, sizes.head_dim // 2, 1, self.batch)
        self.sine = self.g.input("F32", positions, sizes.head_dim // 2, 1, self.batch)

    def _transposed(self, x: Tensor) -> Tensor:
        return self.lib.ggml_cont(self.c, self.lib.ggml_transpose(self.c, x))

    def _emit_layer_norm(self, x: Signal, norm: ArraysSpec, epsilon: float) -> Signal:
        lib, c = self.lib, self.c
        y = self._transposed(lib.ggml_norm(c, self._transposed(x.tensor), epsilon))
        y = lib.ggml_add(c, lib.ggml_mul(c, y, self.w[norm.name + ".weight"]), self.w[norm.name + ".bias"])
        return replace(x, tensor=y)

    def _emit_gelu(self, x: Signal) -> Signal:
        return replace(x, tensor=self.lib.ggml_gelu_erf(self.c, x.tensor))

    def _emit_attention(self, qkv: Signal, name: str, sizes: Attention, layer: int) -> Signal:
        lib, c, n, size = self.lib, self.c, qkv.length, sizes.head_dim
        y = replace(qkv, channels=qkv.channels // 3)
        q, k, v = (self._heads(qkv, part, sizes) for part in range(3))  # [T, D, H, B]
        q, k = self._rotated(q, sizes), self._rotated(k, sizes)
        windows = []
        for part, tensor in (("k", k), ("v", v)):
            signal = replace(y, tensor=lib.ggml_reshape_3d(c, tensor, n, y.channels, self.batch))
            window = self._window(signal, f"{name}.{part}", history=sizes.window - 1, before=0, after=0)
            windows.append(lib.ggml_reshape_4d(c, self._joined(window), window.rows, size, sizes.heads, self.batch))
        keys, values = self._transposed(windows[0]), windows[1]  # [D, S, H, B], [S, D, H, B]
        scores = lib.ggml_mul_mat(c, keys, self._transposed(q))  # [S, T, H, B]
        shares = lib.ggml_soft_max_ext(c, scores, self.mask, size**-0.5, 0.0)
        out = self._transposed(lib.ggml_mul_mat(c, values, shares))  # [T, D, H, B]
        return replace(y, tensor=lib.ggml_reshape_3d(c, out, n, y.channels, self.batch))

    def _heads(self, qkv: Signal, part: int, sizes: Attention) -> Tensor:
        n, size = qkv.length, sizes.head_dim
        step, offset = n * F32, part * (qkv.channels // 3) * n * F32
        view = self.lib.ggml_view_4d(
            self.c, qkv.tensor, n, size, sizes.heads, self.batch,
            step, step * size, qkv.tensor.contents.nb[2], offset,
        )  # fmt: skip
        return self.lib.ggml_cont(self.c, view)

    def _rotated(self, x: Tensor, sizes: Attention) -> Tensor:
        lib, c = self.lib, self.c
        ne, nb = x.contents.ne, x.contents.nb
        half = sizes.head_dim // 2
        a, b = (
            lib.ggml_cont(c, lib.ggml_view_4d(c, x, ne[0], half, ne[2], ne[3], nb[1], nb[2], nb[3], i * half * nb[1]))
            for i in range(2)
        )
        first = lib.ggml_sub(c, lib.ggml_mul(c, a, self.cosine), lib.ggml_mul(c, b, self.sine))
        second = lib.ggml_add(c, lib.ggml_mul(c, b, self.cosine), lib.ggml_mul(c, a, self.sine))
        return lib.ggml_concat(c, first, second, 1)

    def _emit_upsample(self, x: Signal, spec: ArraysSpec, stride: int) -> Signal:
        lib, c, y = self.lib, self.c, None
        for phase in _upsampled(self, x, spec, stride, 0):
            part = lib.ggml_reshape_4d(c, phase, 1, x.length, x.channels, self.batch)
            y = lib.ggml_concat(c, y, part, 0) if y else part  # [stride, T, C, B]
        y = lib.ggml_reshape_3d(c, y, x.length * stride, x.channels, self.batch)
        return replace(x, tensor=y, length=x.length * stride, rate=x.rate * stride)

    def _emit_subtract(self, x: Signal, y: Signal) -> Signal:
        return replace(x, tensor=self.lib.ggml_sub(self.c, x.tensor, y.tensor))

    def _emit_argmax(self, x: Signal) -> Tensor:
        lib, c = self.lib, self.c
        rows = lib.ggml_reshape_2d(c, self._transposed(x.tensor), x.channels, x.length * self.batch)
        return lib.ggml_argmax(c, rows)


class WindowPortable(ClipPortable):
    """The lowering for any device of ggml."""

    ops = WindowPortableOps  # type: ignore[assignment]
