"""Streams over passes that see a whole clip: pieces for the decoder, exact chunks for an encoder in stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError, refusal
from .format import Format
from .passes import Pass
from .pushing import TakesCodes, TakesSamples, advancing

# Chosen by measurement (docs/wavtokenizer.md): what follows a frame and what is decoded again before it, in seconds.
LOOKAHEAD_SECONDS = 0.1
CONTEXT_SECONDS = 2.0
FADE_FRAMES = 1  # over which one piece's samples give way to the next one's


def decode_clip(format: Format, pass_: Pass, codes: np.ndarray) -> np.ndarray:
    """Checked codes [rows, n], n > 0, in one piece -> samples."""
    return pass_.run_clip("decode", codes.shape[1], [format.table_rows(codes)])[0][0]


class PieceDecoderStream(TakesCodes):
    """Codes in, samples out, each push decoded with frames before and after it as a clip of its own.

    The decoder looks at the whole clip, so the samples differ from offline ones, the less the longer the piece
    (docs/wavtokenizer.md has the measurements). A stream whose frames all arrive in one ``finish`` gives the
    offline samples. From one piece to the next there is a short cross-fade, since they differ where they meet.

    A context manager. One thread at a time may use a stream (StreamError otherwise).

    Attributes
    ----------
    lookahead_frames : int
        Frames by which the samples lag.
    context_frames : int
        Frames before the new ones that are decoded with them.
    exact : bool
        False.
    """

    exact = False

    def __init__(
        self, format: Format, pass_: Pass, *, lookahead_frames: int | None = None, context_frames: int | None = None
    ) -> None:
        self._format, self._pass = format, pass_
        self.lookahead_frames = self._frames("lookahead_frames", lookahead_frames, LOOKAHEAD_SECONDS)
        self.context_frames = self._frames("context_frames", context_frames, CONTEXT_SECONDS)
        super().__init__()

    def _frames(self, name: str, value: int | None, seconds: float) -> int:
        if value is not None and value < 0:
            raise ArgumentError(refusal(name, value, "at least 0"))
        return round(seconds * self._format.frame_rate) if value is None else value

    def _clear(self) -> None:
        self._codes = np.empty((len(self._format.rows), 0), np.int32)  # from the context's first frame on
        self._given = 0  # frames of them whose samples are out
        self._fading = np.empty(0, np.float32)  # the last piece's samples after those

    def _feed(self, codes: np.ndarray, *, last: bool) -> np.ndarray:
        codes = self._format.checked(codes)
        with advancing([self], "decode", last=last):
            self._codes = np.concatenate([self._codes, codes], axis=1)
            due = self._codes.shape[1] - (0 if last else self.lookahead_frames)
            if due <= self._given:
                return np.empty(0, np.float32)
            hop = self._format.hop_length
            piece = decode_clip(self._format, self._pass, self._codes)
            samples, n = piece[self._given * hop : due * hop], self._fading.size
            ramp = (np.arange(n, dtype=np.float32) + 0.5) / max(n, 1)
            samples[:n] += (self._fading - samples[:n]) * (1 - ramp)
            self._fading = piece[due * hop : (due + FADE_FRAMES) * hop]
            drop = max(0, due - self.context_frames)
            self._codes, self._given = self._codes[:, drop:], due - drop
            return samples


@dataclass(frozen=True)
class Stages:
    """An encoder that is local, then recurrent, then local again, in passes of whole clips that are put together.

    The pass ``front`` has the head ``front``, counted in samples: samples to rows of ``units`` channels; a row sees
    the samples of ``reach`` frames on either side. ``recurrent`` has ``recurrent``: rows and the state before,
    [2, units] for each of ``layers``, to rows and the state after. ``tail`` has ``encode`` and ``latents``; a frame
    sees ``tail_reach`` rows on either side.
    """

    reach: int
    units: int
    layers: int
    tail_reach: int


class _Local:
    """Rows in, frames out; a frame is computed from its own rows and those of ``reach`` frames on either side.

    At the true ends of the clip there is no more on that side, and the computation sees an end there.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], *, rows: int, reach: int, most: int) -> None:
        self._run, self._rows, self._reach, self._most = run, rows, reach, most
        self._buffer: np.ndarray | None = None  # from the context's first row on
        self._context = 0  # frames in it that are done

    def push(self, x: np.ndarray, *, last: bool) -> list[np.ndarray]:
        """New rows -> frames in pieces of at most ``most``."""
        joined = x if self._buffer is None else np.concatenate([self._buffer, x])
        pieces = []
        while True:
            frames, partial = divmod(len(joined), self._rows)
            end = frames + (partial > 0) if last else frames - self._reach
            count = min(self._most, end - self._context)
            if count <= 0:
                break
            stop = self._context + count
            whole = last and stop == end
            around = joined if whole else joined[: (stop + self._reach) * self._rows]
            pieces.append(self._run(around)[self._context : stop])
            drop = (
                max(0, stop - self._reach) // 2 * 2
            )  # minimal filtering goes by pairs of frames: the same ones always
            joined, self._context = joined[drop * self._rows :], stop - drop
            if whole:
                break
        self._buffer = joined
        return pieces


class StagedEncoderStream(TakesSamples):
    """Samples in, codes or latents out, identical to offline encoding however the samples are cut into pushes.

    A context manager. One thread at a time may use a stream (StreamError otherwise). See TakesSamples.
    """

    exact = True

    def __init__(
        self,
        format: Format,
        passes: dict[str, Pass],
        stages: Stages,
        latent_dim: int,
        *,
        sample_rate: float | None = None,
        frame_rate: float | None = None,
    ) -> None:
        self._passes, self._stages, self._pass = passes, stages, passes["front"]
        super().__init__(format, latent_dim, sample_rate=sample_rate, frame_rate=frame_rate)

    def _clear(self) -> None:
        super()._clear()
        stages, most = self._stages, self._passes["tail"].chunk_frames
        self._front = _Local(self._run_front, rows=self._format.hop_length, reach=stages.reach, most=most)
        self._tail = _Local(self._run_tail, rows=1, reach=stages.tail_reach, most=most)
        self._state = [np.zeros((2, stages.units), np.float32) for _ in range(stages.layers)]
        self._head = "encode"

    def _feed(self, head: str, samples: np.ndarray, *, last: bool) -> np.ndarray:
        samples = self._format.checked_samples(samples)
        with advancing([self], head, last=last):
            self._head, parts = head, []
            for piece in self._front.push(self._resampler.push(samples, last=last), last=last):
                parts += self._tail.push(self._run_recurrent(piece), last=False)
            if last:
                parts += self._tail.push(np.empty((0, self._stages.units), np.float32), last=True)
            return self._given(head, parts if head == "latents" else [codes[np.newaxis] for codes in parts], last=last)

    def _run_front(self, samples: np.ndarray) -> np.ndarray:
        """Samples [n] -> rows [ceil(n / hop_length), units]."""
        return self._passes["front"].run_clip("front", samples.size, [np.ascontiguousarray(samples)])[0][0]

    def _run_recurrent(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, units] -> rows [n, units]; the state goes on."""
        inputs = [np.ascontiguousarray(rows), *self._state]
        y, *after = self._passes["recurrent"].run_clip("recurrent", len(rows), inputs)
        self._state = [state[0] for state in after]
        return y[0]

    def _run_tail(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, units] -> codes int32 [n] or latents [n, latent_dim]."""
        outputs = self._passes["tail"].run_clip(self._head, len(rows), [np.ascontiguousarray(rows)])
        return outputs[0][0] if self._head == "latents" else outputs[0]
