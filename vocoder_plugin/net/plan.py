"""When each sample of each layer becomes available: the arithmetic of exact streaming.

A codec's forward pass is a function of an ``Ops`` object. ``Plan`` is the ``Ops`` that computes
no samples, only time: it runs the forward once and learns the lag of every signal, the samples
each layer must remember between chunks, and the weights it needs. The lowerings in ``ops.py``
inherit the same arithmetic and add tensors to it.

A stream is cut into chunks. Zero padding exists only at its true ends, at every layer: a first
chunk is padded on the left, a last one on the right, a middle one continues from the history that
the chunk before it left behind. A convolution with padding p therefore gives its first outputs p
samples late; that lag adds up over the layers, and the skip branch of a residual unit reads its
window at the same lag. Offline decoding is the chunk that is first and last at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Tensor = Any  # a ctypes pointer to ggml_tensor; None in a Plan and for an empty signal


@dataclass(frozen=True)
class Phase:
    """Where a chunk lies in its stream."""

    first: bool
    last: bool


WHOLE = Phase(first=True, last=True)
FIRST = Phase(first=True, last=False)
MIDDLE = Phase(first=False, last=False)
LAST = Phase(first=False, last=True)


@dataclass(frozen=True, eq=False)
class Signal:
    """The samples of one layer that this chunk makes available.

    ``rate`` is in samples per frame. After n frames, and before the end, n * rate - delay samples
    have appeared in total.
    """

    tensor: Tensor
    channels: int
    length: int
    rate: int
    delay: int


@dataclass(frozen=True, eq=False)
class Window:
    """A signal joined with what lies around it: ``zeros`` of padding, ``history``, the chunk, ``zeros_after``."""

    signal: Signal
    history: Tensor
    history_rows: int
    zeros: int
    zeros_after: int

    @property
    def rows(self) -> int:
        return self.zeros + self.history_rows + self.signal.length + self.zeros_after


@dataclass(frozen=True)
class ConvSpec:
    """A convolution's weights: torch's [out, in, kernel], or [in, out, kernel] for a transposed one.

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


@dataclass(frozen=True)
class SnakeSpec:
    name: str
    channels: int


@dataclass(frozen=True)
class EluSpec:
    """ELU in Snake's place; it has no weights."""


ELU = EluSpec()
Activation = SnakeSpec | EluSpec


@dataclass(frozen=True)
class TableSpec:
    """Rows of an embedding, or of a codebook to search; ``size`` rows of ``dim`` values."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class ArraysSpec:
    """Any other layer's weights: (suffix, shape in torch's layout) of each; ``kind`` tells a lowering what they are."""

    name: str
    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]


Spec = ConvSpec | SnakeSpec | TableSpec | ArraysSpec


@dataclass(frozen=True)
class Region:
    """Rows of a layer in the flat state of a stream; ``offset`` in floats."""

    offset: int
    channels: int
    rows: int


@dataclass
class Ops:
    """Timing of the operations; a lowering overrides the ``_emit`` methods to build them.

    Parameters
    ----------
    phase : Phase
    frames : int
        Frames of this chunk.
    """

    phase: Phase
    frames: int
    windows: dict[int, Window] = field(default_factory=dict)

    # -- what a forward pass calls

    def conv1d(
        self,
        x: Signal,
        name: str,
        *,
        out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        causal: bool = False,
        replicate: bool = False,
        snake: str | None = None,
        elu: bool = False,
        add: Signal | None = None,
        search: bool = False,
    ) -> Signal:
        """Convolution of snake(x) or elu(x) with optional residual ``add``; padding defaults to "same" for stride 1.

        A causal one has all its padding before the stream, so its outputs do not lag: zeros, or the
        first sample again and again where ``replicate`` is set. For ``search`` see ConvSpec.
        """
        spec = ConvSpec(name, x.channels, out, kernel, stride, search=search)
        span = (kernel - 1) * dilation + 1
        padding = span // 2 if padding is None else padding
        if causal:
            padding = span - stride
        # the last outputs wait for `span - padding` samples beyond their own position
        delay = -(-(x.delay + span - padding) // stride) - 1
        history = padding - x.delay + delay * stride
        after = 0 if causal else padding
        window = self._window(x, name, history=history, before=padding, after=after, replicate=replicate)
        length = max(0, (window.rows - span) // stride + 1)
        timed = Signal(None, out, length, x.rate // stride, delay)
        skip = self._lagging(add, timed, name) if add is not None else None
        return self._emit_conv1d(window, spec, timed, dilation, ELU if elu else self._snake(snake, x), skip)

    def conv_transpose1d(
        self,
        x: Signal,
        name: str,
        *,
        out: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        causal: bool = False,
        snake: str | None = None,
        elu: bool = False,
    ) -> Signal:
        """Transposed convolution of snake(x) or elu(x), cropped by ``padding`` at both ends of the stream.

        A causal one gives ``stride`` outputs an input and is cropped at the end alone.

        Written as a plain convolution: block t of ``stride`` outputs reads inputs t, t-1, … t-taps+1.
        """
        spec = ConvSpec(name, x.channels, out, kernel, stride, transposed=True)
        reach = spec.taps - 1
        window = self._window(x, name, history=reach, before=reach, after=0 if causal else reach)
        blocks = max(0, window.rows - reach)
        crop = padding if self.phase.first else 0
        crop_end = spec.taps * stride - kernel + padding if self.phase.last and not causal else 0
        length = blocks * stride - crop - crop_end
        timed = Signal(None, out, length, x.rate * stride, x.delay * stride + padding)
        activation = ELU if elu else self._snake(snake, x)
        return self._emit_conv_transpose1d(window, spec, timed, blocks, crop, activation)

    def tanh(self, x: Signal) -> Signal:
        return self._emit_tanh(x)

    def embed(self, ids: Tensor, name: str, *, size: int, dim: int, per_frame: int = 1) -> Signal:
        """Rows of a table; ``per_frame`` ids a frame give per_frame * dim channels."""
        timed = Signal(None, dim * per_frame, self.frames, 1, 0)
        return self._emit_embed(ids, TableSpec(name, size, dim), timed)

    def embed_nearest(self, ids: Tensor, z: Signal, name: str, *, size: int, dim: int) -> Signal:
        """Rows of a table for ids that ``nearest`` found, in time with ``z``."""
        return self._emit_embed(ids, TableSpec(name, size, dim), Signal(None, dim, z.length, z.rate, z.delay))

    def nearest(self, z: Signal, name: str, *, size: int) -> Tensor:
        """Index of the table row with the largest inner product, for every frame of ``z``."""
        return self._emit_nearest(z, TableSpec(name, size, z.channels))

    # -- timing shared by all

    def _snake(self, name: str | None, x: Signal) -> SnakeSpec | None:
        return SnakeSpec(name, x.channels) if name else None

    def _window(
        self, x: Signal, name: str, *, history: int, before: int, after: int, replicate: bool = False
    ) -> Window:
        repeated = before if replicate and self.phase.first else 0
        older = self._emit_repeated(x, repeated) if repeated else None
        window = Window(
            signal=x,
            history=older if self.phase.first else self._emit_history(x, name, history),
            history_rows=repeated if self.phase.first else history,
            zeros=before - repeated if self.phase.first else 0,
            zeros_after=after if self.phase.last else 0,
        )
        if not self.phase.last:
            self._emit_remember(window, name, history)
        self.windows[id(x)] = window
        return window

    def _lagging(self, x: Signal, y: Signal, name: str) -> tuple[Window, int]:
        """The window of ``x`` and the row in it that lies at the same time as y's first sample."""
        lag = y.delay - x.delay
        window = self.windows.get(id(x))
        if window is None or (not self.phase.first and window.history_rows < lag):
            window = self._window(x, name + ".skip", history=lag, before=0, after=0)
        return window, window.zeros if self.phase.first else window.history_rows - lag

    # -- what a lowering builds; a Plan only records

    def _emit_conv1d(
        self,
        window: Window,
        spec: ConvSpec,
        timed: Signal,
        dilation: int,
        snake: Activation | None,
        skip: tuple[Window, int] | None,
    ) -> Signal:
        raise NotImplementedError

    def _emit_conv_transpose1d(
        self, window: Window, spec: ConvSpec, timed: Signal, blocks: int, crop: int, snake: Activation | None
    ) -> Signal:
        raise NotImplementedError

    def _emit_tanh(self, x: Signal) -> Signal:
        raise NotImplementedError

    def _emit_embed(self, ids: Tensor, spec: TableSpec, timed: Signal) -> Signal:
        raise NotImplementedError

    def _emit_nearest(self, z: Signal, spec: TableSpec) -> Tensor:
        raise NotImplementedError

    def _emit_history(self, x: Signal, name: str, rows: int) -> Tensor:
        raise NotImplementedError

    def _emit_repeated(self, x: Signal, rows: int) -> Tensor:
        """The first row of x, ``rows`` times."""
        raise NotImplementedError

    def _emit_remember(self, window: Window, name: str, rows: int) -> None:
        raise NotImplementedError


@dataclass
class Plan(Ops):
    """Runs a forward pass over time alone, for a middle chunk of one frame.

    Attributes
    ----------
    specs : dict
        Every weight the pass needs.
    regions : dict
        Layer name -> its rows in the state of a stream.
    state_floats : int
        Size of that state.
    first_frames : int
        Fewest frames of a first chunk: enough for every layer to give a sample.
    """

    phase: Phase = MIDDLE
    frames: int = 1
    specs: dict[str, Spec] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    state_floats: int = 0
    first_frames: int = 1

    def _timed(self, signal: Signal, *specs: Spec | EluSpec | None) -> Signal:
        for spec in specs:
            if spec is not None and not isinstance(spec, EluSpec):
                self.specs[spec.name] = spec
        self.first_frames = max(self.first_frames, -(-(signal.delay + 1) // signal.rate))
        return signal

    def _emit_conv1d(self, window, spec, timed, dilation, snake, skip):  # type: ignore[no-untyped-def]
        return self._timed(timed, spec, snake)

    def _emit_conv_transpose1d(self, window, spec, timed, blocks, crop, snake):  # type: ignore[no-untyped-def]
        return self._timed(timed, spec, snake)

    def _emit_tanh(self, x: Signal) -> Signal:
        return x

    def _emit_embed(self, ids: Tensor, spec: TableSpec, timed: Signal) -> Signal:
        return self._timed(timed, spec)

    def _emit_nearest(self, z: Signal, spec: TableSpec) -> Tensor:
        self.specs[spec.name] = spec

    def _emit_history(self, x: Signal, name: str, rows: int) -> Tensor:
        self.regions[name] = Region(self.state_floats, x.channels, rows)
        self.state_floats += x.channels * rows

    def _emit_repeated(self, x: Signal, rows: int) -> Tensor:
        pass

    def _emit_remember(self, window: Window, name: str, rows: int) -> None:
        pass
