"""The vocabulary of forward passes: what each operation means, and when each sample becomes available.

A codec's forward pass is a function of an ``Ops`` object. ``Plan`` (plan.py) is the ``Ops`` that computes no
samples, only time; the lowerings (native.py, portable.py) inherit the same arithmetic and add tensors to it.

A stream is cut into chunks. Zero padding exists only at its true ends, at every layer: a first chunk is padded
on the left, a last one on the right, a middle one continues from the history that the chunk before it left
behind. A convolution with padding p therefore gives its first outputs p samples late; that lag adds up over the
layers, and the skip branch of a residual unit reads its window at the same lag. Offline decoding is the chunk
that is first and last at once. Operations that look at every frame (group norms, full attention, reflected
edges) need that chunk: a pass that has one has no exact stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..runtime.ggml import Tensor
from .signal import Moment, Phase, Signal, Window
from .weights import ConvSpec, DepthwiseSpec, LstmSpec, SnakeSpec, Spec, TableSpec, VectorSpec

VECTOR = 16  # floats in the widest vector of any variant of the kernels
Feed = Callable[[Moment], np.ndarray]
"""An input that is a function of when the chunk is computed."""


@dataclass(frozen=True)
class Snake:
    """x + sin²(alpha x) / alpha, with an alpha a channel (Ziyin et al. 2020, arXiv:2006.08195)."""

    name: str


@dataclass(frozen=True)
class Elu:
    """x where it is positive, else exp(x) - 1."""


ELU = Elu()


@dataclass(frozen=True)
class Causal:
    """All padding before the stream: zeros, or its first sample again and again."""

    replicate: bool = False


@dataclass(frozen=True)
class Reflect:
    """EnCodec's: the clip mirrored at both ends, so that stride s gives ceil(T / s) outputs. Needs whole clips."""


Padding = int | Causal | Reflect | None  # so many zeros at both ends; None keeps the length


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864), rotating a head's first half against its second.

    Angles are computed in float64 from absolute positions, so that they are exact however long a stream becomes.
    """

    theta: float = 10_000.0

    def turns(self, first: int, positions: int, dim: int) -> np.ndarray:
        """Cosines, then sines, float32 [positions, dim], from position ``first``."""
        half = dim // 2
        speed = self.theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = np.arange(first, first + positions, dtype=np.float64)[:, np.newaxis] * speed
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@dataclass
class Ops:
    """The operations, with their timing; ``_emit`` records or builds them.

    Parameters
    ----------
    phase : Phase
    frames : int
        Frames of this chunk.
    most_frames : int
        Frames of the longest chunk of any stream.
    batch : int
        Streams that are computed together.
    """

    phase: Phase
    frames: int
    most_frames: int = 1
    batch: int = 1

    rings = False  # whether attention keeps its keys and values in memory that stays put

    # Inputs and outputs. Their order is that of the arrays which a pass takes and gives.

    def codes_in(self, rows: int) -> Tensor:
        """Ids of table rows, frame by frame: int32 [frames * rows] of each stream."""
        return self._input("I32", self.frames * rows * self.batch)

    def samples_in(self, hop_length: int) -> Signal:
        """Samples [1, frames * hop_length]."""
        return self._rows_input(1, self.frames * hop_length, hop_length)

    def rows_in(self, channels: int) -> Signal:
        """A row of ``channels`` values a frame, given as float32 [frames, channels]: [channels, frames]."""
        return self._rows_input(channels, self.frames, 1)

    def carried_in(self, channels: int, rows: int) -> Tensor:
        """Rows that an earlier chunk gave, float32 [rows, channels]."""
        return self._input("F32", channels, rows)

    def samples_out(self, x: Signal) -> None:
        """Give [1, T] as float32 [batch, T]."""
        self._emit("samples_out", x)

    def rows_out(self, x: Signal) -> None:
        """Give [channels, T] as float32 [batch, T, channels]."""
        self._emit("rows_out", x)

    def codes_out(self, codes: Tensor, like: Signal) -> None:
        """Give indices that were found for every sample of ``like``, int32 [batch * T]."""
        self._emit("codes_out", like, codes=codes)

    # Convolutions

    def conv1d(
        self,
        x: Signal,
        name: str,
        *,
        out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding = None,
        activation: Snake | Elu | None = None,
        add: Signal | None = None,
        search: bool = False,
    ) -> Signal:
        """Convolution of activation(x), [channels, T] -> [out, ...], with optional residual ``add``.

        For ``search`` see ConvSpec.
        """
        if isinstance(padding, Reflect):
            x, padding, activation = self._reflected(x, kernel, stride, activation), 0, None
        spec = ConvSpec(name, x.channels, out, kernel, stride, search=search)
        span = (kernel - 1) * dilation + 1
        causal, replicate = isinstance(padding, Causal), isinstance(padding, Causal) and padding.replicate
        before = span - stride if isinstance(padding, Causal) else span // 2 if padding is None else padding
        # the last outputs wait for `span - before` samples beyond their own position
        delay = -(-(x.delay + span - before) // stride) - 1
        history = before - x.delay + delay * stride
        after = 0 if causal else before
        window = self._window(x, name, history=history, before=before, after=after, replicate=replicate)
        length = max(0, (window.rows - span) // stride + 1)
        y = Signal(None, out, length, x.rate // stride, delay)
        skip = self._lagging(add, y, name) if add is not None else None
        read = _activation(activation, x)
        return self._emit(
            "conv1d", y, spec, read, window=window, conv=spec, dilation=dilation, activation=read, skip=skip
        )

    def conv_transpose1d(
        self,
        x: Signal,
        name: str,
        *,
        out: int,
        kernel: int,
        stride: int,
        padding: int | Causal = 0,
        activation: Snake | Elu | None = None,
    ) -> Signal:
        """Transposed convolution of activation(x), cropped by ``padding`` at both ends of the stream.

        A causal one gives ``stride`` outputs an input and is cropped at the end alone.

        Written as a plain convolution: block t of ``stride`` outputs reads inputs t, t-1, … t-taps+1.
        """
        spec = ConvSpec(name, x.channels, out, kernel, stride, transposed=True)
        causal, crop = isinstance(padding, Causal), 0 if isinstance(padding, Causal) else padding
        reach = spec.taps - 1
        window = self._window(x, name, history=reach, before=reach, after=0 if causal else reach)
        blocks = max(0, window.rows - reach)
        crop_end = spec.taps * stride - kernel + crop if self.phase.last and not causal else 0
        crop_first = crop if self.phase.first else 0
        length = blocks * stride - crop_first - crop_end
        y = Signal(None, out, length, x.rate * stride, x.delay * stride + crop)
        read = _activation(activation, x)
        return self._emit(
            "conv_transpose1d", y, spec, read, window=window, conv=spec, blocks=blocks, crop=crop_first, activation=read
        )

    def depthwise(self, x: Signal, name: str, *, kernel: int) -> Signal:
        """Convolution of each channel by itself, with as many outputs as inputs; kernels are odd."""
        spec, reach = DepthwiseSpec(name, x.channels, kernel), kernel // 2
        delay = x.delay + reach
        window = self._window(x, name, history=2 * reach, before=reach, after=reach)
        y = Signal(None, x.channels, max(0, window.rows - 2 * reach), x.rate, delay)
        return self._emit("depthwise", y, spec, window=window, spec=spec)

    def upsample(self, x: Signal, name: str, *, stride: int) -> Signal:
        """Depthwise causal transposed convolution of kernel 2 * stride, without bias.

        y[stride * t + p] = w[p] x[t] + w[p + stride] x[t - 1], weights of each tap as ``name.tapN``.
        """
        spec = VectorSpec(name, x.channels, tuple(f"tap{j}" for j in range(2 * stride)))
        before = self._history(x, name, 1)
        y = replace(x, length=x.length * stride, rate=x.rate * stride, delay=x.delay * stride)
        return self._emit("upsample", y, spec, x=x, before=before, name=name, stride=stride)

    # Tables of vectors

    def embed(self, ids: Tensor, name: str, *, size: int, dim: int, per_frame: int = 1) -> Signal:
        """Rows of a table; ``per_frame`` ids a frame give per_frame * dim channels: [per_frame * dim, frames]."""
        table = TableSpec(name, size, dim)
        return self._emit("embed", Signal(None, dim * per_frame, self.frames, 1), table, ids=ids, table=table)

    def embed_nearest(self, ids: Tensor, z: Signal, name: str, *, size: int, dim: int) -> Signal:
        """Rows of a table for ids that were found for every sample of ``z``."""
        table = TableSpec(name, size, dim)
        return self._emit("embed", replace(z, channels=dim), table, ids=ids, table=table)

    def nearest(self, z: Signal, name: str, *, size: int) -> Tensor:
        """Index of the table row with the largest inner product, for every sample of ``z``: [batch * T]."""
        table = TableSpec(name, size, z.channels)
        return self._emit("nearest", replace(z), table, z=z, table=table).tensor

    def argmax(self, x: Signal) -> Tensor:
        """The channel with the largest value, for every sample: [batch * T]."""
        return self._emit("argmax", replace(x), x=x).tensor

    # Samples by themselves

    def tanh(self, x: Signal) -> Signal:
        return self._emit("tanh", replace(x), x=x)

    def elu(self, x: Signal) -> Signal:
        return self._emit("pad", replace(x), x=x, left=0, right=0, elu=True)

    def swish(self, x: Signal) -> Signal:
        """x * sigmoid(x)."""
        return self._emit("swish", replace(x), x=x)

    def gelu(self, x: Signal, *, tanh: bool = False) -> Signal:
        """GELU by erf, or by tanh. It may take x's place, the largest signal of a block: do not use x again."""
        return self._emit("gelu", replace(x), x=x, by_tanh=tanh)

    def add(self, x: Signal, y: Signal) -> Signal:
        """The sum of signals that are equally late."""
        return self._emit("add", replace(x), x=x, other=y)

    def subtract(self, x: Signal, y: Signal) -> Signal:
        return self._emit("subtract", replace(x), x=x, other=y)

    def split(self, x: Signal, parts: int) -> list[Signal]:
        """Equal ranges of channels."""
        size = x.channels // parts
        return [self._emit("channels", replace(x, channels=size), x=x, first=i * size) for i in range(parts)]

    def scaled(self, x: Signal, name: str, gain: Feed) -> Signal:
        """[1, T] times a function of position, float32 [batch, T]; ``name`` tells functions apart."""
        return self._emit("scaled", replace(x), x=x, gain=self._feed(name, gain, "F32", x.length, self.batch))

    def polar(self, x: Signal) -> Signal:
        """Log magnitudes and phases [2 bins, T] -> real and imaginary parts; magnitudes are at most 100."""
        return self._emit("polar", replace(x), x=x)

    # Norms

    def layer_norm(self, x: Signal, name: str, *, epsilon: float) -> Signal:
        """Normalise over channels, with weight and bias."""
        spec = VectorSpec(name, x.channels)
        return self._emit("layer_norm", replace(x), spec, x=x, name=name, epsilon=epsilon)

    def group_norm(self, x: Signal, name: str, *, groups: int, epsilon: float) -> Signal:
        """Normalise over all samples of a clip and the channels of each group, with weight and bias."""
        spec = VectorSpec(name, x.channels)
        return self._emit("group_norm", self._of_whole_clip(x), spec, x=x, name=name, groups=groups, epsilon=epsilon)

    # Attention and recurrence

    def attention(
        self,
        q: Signal,
        k: Signal,
        v: Signal,
        name: str,
        *,
        heads: int,
        rotary: Rotary | None = None,
        window: int | None = None,
        causal: bool = False,
    ) -> Signal:
        """softmax(q k / sqrt(size of a head)) v, [channels, T] each -> [channels, T].

        A causal one sees the last ``window`` positions, its own among them, in exact streams and bounded memory.
        Without either it sees the whole clip.
        """
        if not causal and window is None and rotary is None:
            return self._emit("full_attention", self._of_whole_clip(q), q=q, k=k, v=v, heads=heads)
        if not causal or window is None or rotary is None or q.delay:
            raise ArgumentError(
                f"attention {name!r}: expected a causal one with window, rotary embedding and no lag, or none of these"
            )
        y, size = replace(q), q.channels // heads
        if self.rings:
            capacity = -(-(window - 1 + self.most_frames * q.rate) // VECTOR) * VECTOR
            ring = dict(offset=self._kept(name, heads * 2 * capacity * size), window=window, capacity=capacity)
            return self._emit("ring_attention", y, q=q, k=k, v=v, heads=heads, rotary=rotary, **ring)
        q, k = (self._emit("rotated", replace(x), x=x, heads=heads, rotary=rotary) for x in (q, k))
        keys = self._window(k, f"{name}.k", history=window - 1, before=0, after=0)
        values = self._window(v, f"{name}.v", history=window - 1, before=0, after=0)
        return self._emit("masked_attention", y, q=q, keys=keys, values=values, heads=heads, window=window)

    def lstm(self, x: Signal, name: str, layer: int, state: Tensor) -> tuple[Signal, Signal]:
        """One layer with as many units as channels; ``state`` is h, c before -> outputs, and h, c after [H, 2]."""
        gates = self.conv1d(x, f"{name}.ih_l{layer}", out=4 * x.channels, kernel=1)
        spec = LstmSpec(f"{name}.hh_l{layer}", x.channels)
        run = replace(gates, channels=x.channels, length=x.length + 1)  # every h, then the last c
        run = self._emit("lstm", run, spec, gates=gates, spec=spec, state=state)
        outputs = self._emit("rows", replace(run, length=x.length), x=run, first=0)
        return outputs, self._emit("rows", replace(run, length=2), x=run, first=x.length - 1)

    # Timing that all share

    def _window(
        self, x: Signal, name: str, *, history: int, before: int, after: int, replicate: bool = False
    ) -> Window:
        repeated = before if replicate and self.phase.first else 0
        older = self._emit("repeated", replace(x, length=repeated), x=x).tensor if repeated else None
        window = Window(
            tensor=x.tensor,
            channels=x.channels,
            length=x.length,
            rate=x.rate,
            history=older if self.phase.first else self._history(x, name, history),
            history_rows=repeated if self.phase.first else history,
            zeros=before - repeated if self.phase.first else 0,
            zeros_after=after if self.phase.last else 0,
        )
        if not self.phase.last:
            self._remember(window, name, history)
        x.windows.append(window)
        return window

    def _lagging(self, x: Signal, y: Signal, name: str) -> tuple[Window, int]:
        """A window of ``x``, and the row in it that lies at the same time as y's first sample."""
        lag = y.delay - x.delay
        window = x.windows[-1] if x.windows else None
        if window is None or (not self.phase.first and window.history_rows < lag):
            window = self._window(x, name + ".skip", history=lag, before=0, after=0)
        return window, window.zeros if self.phase.first else window.history_rows - lag

    def _reflected(self, x: Signal, kernel: int, stride: int, activation: Snake | Elu | None) -> Signal:
        if isinstance(activation, Snake):
            raise ArgumentError("a convolution with reflected edges can have an ELU before it, not a Snake")
        total, extra = kernel - stride, -x.length % stride
        left, right = total - total // 2, total // 2 + extra
        y = replace(self._of_whole_clip(x), length=x.length + left + right)
        return self._emit("pad", y, x=x, left=left, right=right, elu=activation is not None)

    def _of_whole_clip(self, x: Signal) -> Signal:
        """A signal like ``x`` that is a function of all of it."""
        return replace(x)

    # What a plan records and a lowering builds

    def _emit(self, operation: str, y: Signal, *specs: Spec | Elu | None, **arguments: Any) -> Signal:
        """The signal ``y``, as this operation makes it."""
        raise NotImplementedError

    def _input(self, kind: str, *ne: int) -> Tensor:
        raise NotImplementedError

    def _rows_input(self, channels: int, rows: int, rate: int) -> Signal:
        raise NotImplementedError

    def _feed(self, name: str, feed: Feed, kind: str, *ne: int) -> Tensor:
        """An input that the pass itself gives; one of each name."""
        raise NotImplementedError

    def _kept(self, name: str, floats: int) -> int:
        """Where this layer's part begins in the memory of a stream that stays put, in floats."""
        raise NotImplementedError

    def _history(self, x: Signal, name: str, rows: int) -> Tensor:
        raise NotImplementedError

    def _remember(self, window: Window, name: str, rows: int) -> None:
        """Leave the window's last rows for the next chunk."""
        raise NotImplementedError


def _activation(activation: Snake | Elu | None, x: Signal) -> SnakeSpec | Elu | None:
    return SnakeSpec(activation.name, x.channels) if isinstance(activation, Snake) else activation
