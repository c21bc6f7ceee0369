"""Chunks of a stream through a codec's passes, with the state that makes them exact.

``Pass`` runs one direction of a codec, chunk by chunk. ``DecoderStream`` and ``EncoderStream`` cut
what the caller pushes into chunks and keep the state between them on the device. Offline decoding
and encoding are one push that is also the last.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..audio.samples import Resampler
from ..net.ops import GraphOps, Lowering
from ..net.plan import FIRST, LAST, MIDDLE, WHOLE, Phase, Plan
from ..net.weights import Find
from ..runtime.graph import Graph, Session, TensorBuffer
from .pushing import OneThread, TakesCodes, TakesSamples, advancing

if TYPE_CHECKING:
    from ..codec import Codec

Build = Callable[[GraphOps], None]
MOST_TOGETHER = 32  # streams in one graph: more gain nothing, and nodes of a graph are limited
POSITIONS = 720720  # positions count modulo this, a multiple of every dilation's period


@dataclass(eq=False)
class State:
    """What a stream keeps between chunks: the memory on the device, and the frames it has had."""

    memory: TensorBuffer
    frames: int = 0

    def __post_init__(self) -> None:
        self._size = self.memory.nbytes  # asked now, as another thread may close the stream at any time

    @property
    def nbytes(self) -> int:
        return self._size if self.memory.close.alive else 0


class Pass:
    """One direction of a codec on one device: its plan, weights, graphs and state slots.

    May be shared between threads; chunks of different streams take turns.

    Parameters
    ----------
    name : str
        Distinguishes its graphs in the session's cache.
    plan : Plan
        What a dry run of the forward pass found.
    build : callable
        Runs the forward pass on the ops it is given, declaring the graph's inputs and outputs.
    """

    def __init__(self, name: str, session: Session, lowering: Lowering, plan: Plan, find: Find, build: Build) -> None:
        self.name, self.session, self.plan = name, session, plan
        self._lowering, self._build = lowering, build
        self.weights = lowering.load(plan.specs, find)
        self._slots: dict[int, TensorBuffer] = {}
        self._states: weakref.WeakSet[State] = weakref.WeakSet()

    def new_state(self) -> State:
        """The state of a stream that has not begun."""
        shapes = {**self._kept(), "state": ("F32", (max(1, self.plan.state_floats),))}
        state = State(TensorBuffer(self.session.lib, self.session.device, shapes))
        with self.session.lock:  # beside Codec.memory
            self._states.add(state)
        return state

    def _kept(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensors that a stream keeps where they are, beside the state that goes to and from the slots."""
        return {}

    @property
    def state_bytes(self) -> int:
        """Bytes of the streams' states, and of the slots that graphs read and write."""
        return sum(slots.nbytes for slots in self._slots.values()) + sum(state.nbytes for state in self._states)

    def run(self, states: Sequence[State], phase: Phase, frames: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Advance streams by one chunk of ``frames`` frames each, all in the same phase.

        A last or whole chunk leaves the states as they are.
        """
        batch = len(states)
        with self.session.lock:
            self.session.check_open()
            slots = self._slots_for(batch)
            if phase.first:
                slots.clear()
            else:
                for i, state in enumerate(states):
                    state.memory.copy("state", slots, f"in[{i}]")
            position = np.array([0 if phase.first else state.frames % POSITIONS for state in states], np.int32)
            inputs = [position, *self._context(states, phase, frames), *inputs]
            key = (self.name, phase, frames, batch)
            outputs = self.session.run(key, lambda graph: self._build_graph(graph, slots, phase, frames, batch), inputs)
            if not phase.last:
                for i, state in enumerate(states):
                    slots.copy(f"out[{i}]", state.memory, "state")
                    state.frames = frames if phase.first else state.frames + frames
        return outputs

    def _context(self, states: Sequence[State], phase: Phase, frames: int) -> list[np.ndarray]:
        """What ``build`` declares as inputs before those of ``run``, besides the position."""
        return []

    def _slots_for(self, batch: int) -> TensorBuffer:
        """Room for at least so many streams; in powers of two, as graphs point to it for good."""
        room = 1 << (batch - 1).bit_length()
        if room not in self._slots:
            shape = ("F32", (max(1, self.plan.state_floats), room))
            shapes = {"in": shape, "out": shape}
            self._slots[room] = TensorBuffer(self.session.lib, self.session.device, shapes, columns=shapes)
        return self._slots[room]

    def _build_graph(self, graph: Graph, slots: TensorBuffer, phase: Phase, frames: int, batch: int) -> None:
        position = graph.input("I32", batch)
        graph.expand(position)
        ops = self._lowering.ops(
            phase=phase,
            frames=frames,
            graph=graph,
            weights=self.weights.tensors,
            regions=self.plan.regions,
            state_in=slots.tensors["in"],
            state_out=slots.tensors["out"],
            position=position,
            batch=batch,
        )
        self._build(ops)

    def close(self) -> None:
        self.weights.close()
        for slots in self._slots.values():
            slots.close()


class _Stream(OneThread):
    """What both directions of exact streams share: pending frames and phases."""

    exact: bool

    def __init__(self, codec: Codec, pass_: Pass, chunk_frames: int) -> None:
        self._codec, self._pass, self._chunk_frames = codec, pass_, chunk_frames
        self._state = pass_.new_state()
        super().__init__()

    def _clear(self) -> None:
        self._started = False
        self._pending: list[np.ndarray] = []
        self._pending_frames = 0

    def close(self) -> None:
        """Free the state. The stream cannot be used afterwards."""
        super().close()
        self._state.memory.close()

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        """Keep checked codes or samples until there is a chunk of them."""
        raise NotImplementedError

    def _append(self, frames: np.ndarray, n: int) -> None:
        """Keep n frames, which lie along the last axis."""
        self._pending.append(frames)
        self._pending_frames += n

    def _next_chunk(self, last: bool) -> tuple[Phase, int] | None:
        waiting, most = self._pending_frames, self._chunk_frames
        if not self._started:
            if last and waiting <= most:
                return (WHOLE, waiting) if waiting else None
            return (FIRST, min(waiting, most)) if waiting >= self._pass.plan.first_frames else None
        if last and waiting <= most:
            return LAST, waiting
        return (MIDDLE, min(waiting, most)) if waiting else None

    def _take(self, n: int) -> np.ndarray:
        joined = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending, axis=-1)
        width = joined.shape[-1] // self._pending_frames if self._pending_frames else 1
        self._pending = [joined[..., n * width :]]
        self._pending_frames -= n
        return joined[..., : n * width]

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        """A chunk as the graph takes it."""
        raise NotImplementedError

    def _outputs(self, pass_: Pass, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        """What a graph gave to each of several streams."""
        raise NotImplementedError

    def _result(self, pass_: Pass, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        """What the caller gets for the chunks that were run."""
        raise NotImplementedError


def advance(
    streams: Sequence[_Stream], inputs: Sequence[np.ndarray], pass_: Pass, *, last: bool = False
) -> list[np.ndarray]:
    """Checked codes or samples into streams of one codec, and every chunk that is ready through ``pass_``.

    Streams whose next chunks are alike run together, and the weights are read once for all of them. With ``last``
    the streams end. Nothing is taken in unless every stream can take it.
    """
    with advancing(streams, pass_, last=last):
        for stream, data in zip(streams, inputs, strict=True):
            stream._take_in(data, last=last)
        parts: list[list[np.ndarray]] = [[] for _ in streams]
        while groups := _equal_chunks(streams, last):
            for (phase, frames), members in groups.items():
                group = [streams[i] for i in members]
                chunks = [stream._take(frames) for stream in group]
                for i, output in zip(members, _run(group, pass_, phase, frames, chunks), strict=True):
                    parts[i].append(output)
                    streams[i]._started, streams[i]._finished = True, phase.last
        return [stream._result(pass_, part, last=last) for stream, part in zip(streams, parts, strict=True)]


def _equal_chunks(streams: Sequence[_Stream], last: bool) -> dict[tuple[Phase, int], list[int]]:
    """Streams by the chunk they can run next, MOST_TOGETHER at most."""
    groups: dict[tuple[Phase, int], list[int]] = {}
    for i, stream in enumerate(streams):
        if not stream._finished and (chunk := stream._next_chunk(last)) is not None:
            group = groups.setdefault(chunk, [])
            if len(group) < MOST_TOGETHER:
                group.append(i)
    return groups


def _run(
    streams: Sequence[_Stream], pass_: Pass, phase: Phase, frames: int, chunks: list[np.ndarray]
) -> list[np.ndarray]:
    inputs = [np.concatenate([s._input(chunk) for s, chunk in zip(streams, chunks, strict=True)])] if frames else []
    outputs = pass_.run([stream._state for stream in streams], phase, frames, inputs)
    return streams[0]._outputs(pass_, outputs, len(streams))


class DecoderStream(TakesCodes, _Stream):
    """Codes in, samples out, identical to offline decoding however the codes are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise); many streams
    may run over one codec.

    Attributes
    ----------
    lookahead_frames : int
        Frames by which the samples lag: once n > lookahead_frames frames are in, at least
        (n - lookahead_frames) frames' worth of samples are out.
    exact : bool
        Whether pushes plus flush give the offline samples. Not so with a shorter lookahead than
        the decoder's own reach: the samples between the two are decoded as if the last frame went
        on, at about twice the work (see docs/streaming.md for what that costs in SNR).
    """

    def __init__(
        self, codec: Codec, pass_: Pass, chunk_frames: int, *, delay: int, lookahead_frames: int | None = None
    ) -> None:
        self._reach = -(-delay // codec.hop_length)
        self.lookahead_frames = self._reach if lookahead_frames is None else lookahead_frames
        if not 0 <= self.lookahead_frames <= self._reach:
            raise ValueError(f"lookahead_frames is {lookahead_frames}, expected 0 to {self._reach}")
        self.exact = self.lookahead_frames == self._reach
        super().__init__(codec, pass_, chunk_frames)

    def _clear(self) -> None:
        super()._clear()
        self._pushed_frames = self._decoded_samples = self._given_samples = 0  # of a stream that is not exact
        self._last_frame = np.empty((self._codec.n_codebooks, 0), np.int32)

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        return advance([self], [self._codec.check_codes(codes)], self._pass, last=last)[0]

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        self._append(data, data.shape[1])
        if not self.exact:
            self._pushed_frames += data.shape[1]
            self._last_frame = np.concatenate([self._last_frame, data], axis=1)[:, -1:]

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        return self._codec.code_rows(chunk)

    def _outputs(self, pass_: Pass, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        return list(outputs[0])

    def _result(self, pass_: Pass, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        samples = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
        return samples if self.exact else self._with_estimate(samples, last=last)

    def _with_estimate(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        """Exact samples not yet given, and beyond them, before the end, estimates up to the chosen lookahead."""
        known = samples[self._given_samples - self._decoded_samples :]
        if last:
            return known
        self._decoded_samples += samples.size
        hop, n = self._codec.hop_length, self._pushed_frames
        due = min((n - self.lookahead_frames) * hop, self._codec.decoded_length(n))
        missing = due - max(self._given_samples, self._decoded_samples)
        if missing > 0:
            first = max(0, self._given_samples - self._decoded_samples)
            estimate = self._estimate()[first : first + missing]
            known = np.concatenate([known, estimate])
        self._given_samples += known.size
        return known

    def _estimate(self) -> np.ndarray:
        """The samples after the exact ones, as if the last frame went on for the missing lookahead."""
        repeats = np.repeat(self._last_frame, self._reach - self.lookahead_frames, axis=1)
        codes = np.concatenate([*self._pending, repeats], axis=1)
        return _run([self], self._pass, LAST if self._started else WHOLE, codes.shape[1], [codes])[0]


def push_many(streams: Sequence[_Stream], inputs: Sequence[np.ndarray], pass_: Pass | None = None) -> list[np.ndarray]:
    """``streams[i].push(inputs[i])`` for all i, with streams that are equally far run together.

    Each gives what it would give alone. ``pass_`` is another direction than that of ``push``.
    """
    if len({id(stream) for stream in streams}) != len(streams) or len(streams) != len(inputs):
        raise ValueError(f"{len(streams)} streams for {len(inputs)} arrays, expected one each, all different")
    if not streams:
        return []
    codec, kind = streams[0]._codec, type(streams[0])
    if any(stream._codec is not codec or type(stream) is not kind for stream in streams):
        raise ValueError("the streams are of different codecs or directions, expected one")
    if any(not stream.exact for stream in streams):
        raise ValueError("streams with a shortened lookahead cannot be decoded together")
    check = codec.check_codes if isinstance(streams[0], DecoderStream) else codec.check_samples
    return advance(streams, [check(data) for data in inputs], pass_ or streams[0]._pass)


class EncoderStream(TakesSamples, _Stream):
    """Samples in, codes out, identical to offline encoding however the samples are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise).

    Attributes
    ----------
    sample_rate : float
        Hz, of the samples that are pushed.
    """

    exact = True

    def __init__(self, codec: Codec, pass_: Pass, chunk_frames: int, *, sample_rate: float | None = None) -> None:
        self.sample_rate = codec.sample_rate if sample_rate is None else sample_rate
        self._resampler = Resampler(self.sample_rate, codec.sample_rate)
        super().__init__(codec, pass_, chunk_frames)

    def _clear(self) -> None:
        super()._clear()
        self._resampler.reset()
        self._partial = np.empty(0, np.float32)  # samples short of a frame

    def _feed(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        return self._advance(self._pass, samples, last=last)

    def _advance(self, pass_: Pass, samples: np.ndarray, *, last: bool) -> np.ndarray:
        return advance([self], [self._codec.check_samples(samples)], pass_, last=last)[0]

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        hop = self._codec.hop_length
        samples = np.concatenate([self._partial, self._resampler.push(data, last=last)])
        if last:
            samples = np.pad(samples, (0, -samples.size % hop))
        frames = samples.size // hop
        self._append(samples[: frames * hop], frames)
        self._partial = samples[frames * hop :]

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        return chunk

    def _outputs(self, pass_: Pass, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        codes = np.stack(outputs).reshape(len(outputs), streams, -1)
        return list(codes.swapaxes(0, 1))

    def _result(self, pass_: Pass, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        return np.concatenate([np.empty((self._codec.n_codebooks, 0), np.int32), *parts], axis=1)
