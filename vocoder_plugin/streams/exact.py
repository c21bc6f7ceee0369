"""Streams that give exactly what offline decoding and encoding give, however they are cut.

They cut what the caller pushes into chunks and keep the state between them on the device. Offline decoding and
encoding are one push that is also the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ArgumentError
from ..net.signal import FIRST, LAST, MIDDLE, WHOLE, Phase
from .format import Format
from .passes import Pass, State
from .pushing import OneThread, TakesCodes, TakesSamples, advancing

MOST_TOGETHER = 32  # streams in one graph: more gain nothing


@dataclass
class Work:
    """What a stream has to do: frames along the last axis of what waits, and how far it is."""

    waiting: list[np.ndarray] = field(default_factory=list)
    frames: int = 0
    started: bool = False
    done: bool = False

    def put(self, data: np.ndarray, frames: int) -> None:
        self.waiting.append(data)
        self.frames += frames

    def take(self, frames: int) -> np.ndarray:
        joined = self.waiting[0] if len(self.waiting) == 1 else np.concatenate(self.waiting, axis=-1)
        width = joined.shape[-1] // self.frames if self.frames else 1
        self.waiting = [joined[..., frames * width :]]
        self.frames -= frames
        return joined[..., : frames * width]

    def next_chunk(self, pass_: Pass, *, last: bool) -> tuple[Phase, int] | None:
        """The phase and the frames of the chunk that can run now; None where there is none."""
        waiting, most, plan = self.frames, pass_.chunk_frames, pass_.plan
        ends = last and waiting <= most and plan.lags  # without lag nothing is left to give at the end
        if self.done or (not waiting and not (ends and self.started)):
            return None
        if self.started:
            return (LAST if ends else MIDDLE), min(waiting, most)
        if ends:
            return WHOLE, waiting
        return (FIRST, min(waiting, most)) if waiting >= plan.first_frames else None


class ExactStream(OneThread):
    """What both directions share: a pass, the state in it, and the work that waits."""

    exact: bool
    _format: Format
    _pass: Pass
    _state: State
    _work: Work

    def close(self) -> None:
        """Free the state. The stream cannot be used afterwards."""
        super().close()
        self._state.memory.close()

    def _checked(self, data: np.ndarray) -> np.ndarray:
        """Codes or samples, or the error that refuses them."""
        raise NotImplementedError

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        """Add checked codes or samples to the work."""
        raise NotImplementedError

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        """A chunk as the graph takes it."""
        raise NotImplementedError

    def _outputs(self, head: str, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        """What a graph gave to each of several streams."""
        raise NotImplementedError

    def _result(self, head: str, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        """What the caller gets for the chunks that were run."""
        raise NotImplementedError


def advance(
    streams: Sequence[ExactStream], inputs: Sequence[np.ndarray], head: str, *, last: bool = False
) -> list[np.ndarray]:
    """Checked codes or samples into streams over one pass, and every chunk that is ready through it.

    Streams whose next chunks are alike run together, and the weights are read once for all of them. With ``last``
    the streams end. Nothing is taken in unless every stream can take it.
    """
    with advancing(streams, head, last=last):
        for stream, data in zip(streams, inputs, strict=True):
            stream._take_in(data, last=last)
        parts: list[list[np.ndarray]] = [[] for _ in streams]
        while groups := _equal_chunks(streams, last):
            for (phase, frames), members in groups.items():
                group = [streams[i] for i in members]
                chunks = [stream._work.take(frames) for stream in group]
                for i, output in zip(members, run_chunk(group, head, phase, frames, chunks), strict=True):
                    parts[i].append(output)
                    streams[i]._work.started, streams[i]._work.done = True, phase.last
        return [stream._result(head, part, last=last) for stream, part in zip(streams, parts, strict=True)]


def _equal_chunks(streams: Sequence[ExactStream], last: bool) -> dict[tuple[Phase, int], list[int]]:
    """Streams by the chunk they can run next, MOST_TOGETHER at most."""
    groups: dict[tuple[Phase, int], list[int]] = {}
    for i, stream in enumerate(streams):
        if (chunk := stream._work.next_chunk(stream._pass, last=last)) is not None:
            group = groups.setdefault(chunk, [])
            if len(group) < MOST_TOGETHER:
                group.append(i)
    return groups


def run_chunk(
    streams: Sequence[ExactStream], head: str, phase: Phase, frames: int, chunks: list[np.ndarray]
) -> list[np.ndarray]:
    """One chunk of each stream, in one graph."""
    inputs = [np.concatenate([s._input(chunk) for s, chunk in zip(streams, chunks, strict=True)])] if frames else []
    outputs = streams[0]._pass.run(head, [stream._state for stream in streams], phase, frames, inputs)
    return streams[0]._outputs(head, outputs, len(streams))


def push_many(
    streams: Sequence[ExactStream], inputs: Sequence[np.ndarray], head: str | None = None
) -> list[np.ndarray]:
    """``streams[i].push(inputs[i])`` for all i, with streams that are equally far run together.

    Each gives what it would give alone. ``head`` is another than that of ``push``.
    """
    check_pairs(streams, inputs)
    if not streams:
        return []
    pass_, kind = streams[0]._pass, type(streams[0])
    if any(not stream.exact for stream in streams):
        raise ArgumentError("streams with a shortened lookahead cannot be decoded together")
    if any(stream._pass is not pass_ or type(stream) is not kind for stream in streams):
        raise ArgumentError("the streams are of different codecs or directions, expected one")
    checked = [stream._checked(data) for stream, data in zip(streams, inputs, strict=True)]
    return advance(streams, checked, head or ("decode" if isinstance(streams[0], DecoderStream) else "encode"))


def check_pairs(streams: Sequence[object], inputs: Sequence[object]) -> None:
    """Refuse anything but one input for each of different streams."""
    if len({id(stream) for stream in streams}) != len(streams) or len(streams) != len(inputs):
        raise ArgumentError(f"{len(streams)} streams for {len(inputs)} arrays, expected one each, all different")


class DecoderStream(TakesCodes, ExactStream):
    """Codes in, samples out, identical to offline decoding however the codes are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise); many streams
    may run over one codec.

    Attributes
    ----------
    lookahead_frames : int
        Frames by which the samples lag: once n > lookahead_frames frames are in, at least
        (n - lookahead_frames) frames' worth of samples are out.
    exact : bool
        Whether pushes plus flush give the offline samples: not so with a shorter lookahead than the decoder's
        own reach (see early.py).
    """

    exact = True

    def __init__(self, format: Format, pass_: Pass) -> None:
        self._format, self._pass = format, pass_
        self._state = pass_.new_state()
        self.lookahead_frames = reach_frames(pass_, format)
        super().__init__()

    def _clear(self) -> None:
        self._work = Work()

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        return advance([self], [self._checked(codes)], "decode", last=last)[0]

    def _checked(self, data: np.ndarray) -> np.ndarray:
        return self._format.checked(data)

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        self._work.put(data, data.shape[1])

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        return self._format.table_rows(chunk)

    def _outputs(self, head: str, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        return list(outputs[0])

    def _result(self, head: str, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])


def reach_frames(pass_: Pass, format: Format) -> int:
    """Frames after a frame that its samples depend on."""
    return -(-pass_.plan.outputs[0].delay // format.hop_length)


class EncoderStream(TakesSamples, ExactStream):
    """Samples in, codes or latents out, identical to offline encoding however the samples are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise). See TakesSamples.
    """

    exact = True

    def __init__(
        self,
        format: Format,
        pass_: Pass,
        latent_dim: int,
        *,
        sample_rate: float | None = None,
        frame_rate: float | None = None,
    ) -> None:
        self._pass = pass_
        self._state = pass_.new_state()
        super().__init__(format, latent_dim, sample_rate=sample_rate, frame_rate=frame_rate)

    def _clear(self) -> None:
        super()._clear()
        self._work = Work()
        self._partial = np.empty(0, np.float32)  # samples short of a frame

    def _feed(self, head: str, samples: np.ndarray, *, last: bool) -> np.ndarray:
        return advance([self], [self._checked(samples)], head, last=last)[0]

    def _checked(self, data: np.ndarray) -> np.ndarray:
        return self._format.checked_samples(data)

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        hop = self._format.hop_length
        samples = np.concatenate([self._partial, self._resampler.push(data, last=last)])
        if last:
            samples = np.pad(samples, (0, -samples.size % hop))
        frames = samples.size // hop
        self._work.put(samples[: frames * hop], frames)
        self._partial = samples[frames * hop :]

    def _input(self, chunk: np.ndarray) -> np.ndarray:
        return chunk

    def _outputs(self, head: str, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        if head == "latents":
            return list(outputs[0])
        return list(np.stack(outputs).reshape(len(outputs), streams, -1).swapaxes(0, 1))

    def _result(self, head: str, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        return self._given(head, parts, last=last)
