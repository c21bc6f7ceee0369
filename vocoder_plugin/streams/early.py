"""A decoder stream that gives samples earlier than exact ones can be known."""

from __future__ import annotations

import numpy as np

from ..errors import ArgumentError
from ..net.signal import LAST, WHOLE
from .exact import DecoderStream, run_chunk
from .format import Format
from .passes import Pass


class EarlyDecoderStream(DecoderStream):
    """See DecoderStream; with a lookahead shorter than the decoder's reach.

    The samples between the two are decoded as if the last frame went on, at about twice the work
    (docs/streaming.md tells what that costs in SNR).
    """

    exact = False

    def __init__(self, format: Format, pass_: Pass, lookahead_frames: int) -> None:
        super().__init__(format, pass_)
        self._reach, self.lookahead_frames = self.lookahead_frames, lookahead_frames
        if not 0 <= lookahead_frames <= self._reach:
            self._state.memory.close()
            raise ArgumentError(f"lookahead_frames is {lookahead_frames}, expected 0 to {self._reach}")

    def _clear(self) -> None:
        super()._clear()
        self._pushed_frames = self._decoded_samples = self._given_samples = 0
        self._last_frame = np.empty((len(self._format.rows), 0), np.int32)

    def _take_in(self, data: np.ndarray, *, last: bool) -> None:
        super()._take_in(data, last=last)
        self._pushed_frames += data.shape[1]
        self._last_frame = np.concatenate([self._last_frame, data], axis=1)[:, -1:]

    def _result(self, head: str, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        """Exact samples not yet given, and beyond them, before the end, estimates up to the chosen lookahead."""
        samples = super()._result(head, parts, last=last)
        known = samples[self._given_samples - self._decoded_samples :]
        if last:
            return known
        self._decoded_samples += samples.size
        hop, n = self._format.hop_length, self._pushed_frames
        due = min((n - self.lookahead_frames) * hop, self._pass.length("decode", n))
        missing = due - max(self._given_samples, self._decoded_samples)
        if missing > 0:
            first = max(0, self._given_samples - self._decoded_samples)
            known = np.concatenate([known, self._estimate()[first : first + missing]])
        self._given_samples += known.size
        return known

    def _estimate(self) -> np.ndarray:
        """The samples after the exact ones, as if the last frame went on for the missing lookahead."""
        repeats = np.repeat(self._last_frame, self._reach - self.lookahead_frames, axis=1)
        codes = np.concatenate([*self._work.waiting, repeats], axis=1)
        return run_chunk([self], "decode", LAST if self._work.started else WHOLE, codes.shape[1], [codes])[0]
