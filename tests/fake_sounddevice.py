"""A stand-in for the sounddevice module: a thread asks for samples, as PortAudio does, and keeps them."""

from __future__ import annotations

import threading
import time

import numpy as np

BLOCK = 480  # samples asked for at a time


class PortAudioError(Exception):
    pass


class CallbackStop(Exception):  # noqa: N818
    pass


class Loudspeaker:
    """The module; holds what the one stream opened on it was given."""

    PortAudioError, CallbackStop = PortAudioError, CallbackStop

    def __init__(self) -> None:
        self.broken = self.closed = False
        self.options: dict[str, object] = {}
        self._blocks: list[np.ndarray] = []
        self._thread: threading.Thread | None = None

    def OutputStream(self, samplerate, *, callback, finished_callback, **options):  # noqa: N802
        if self.broken:
            raise PortAudioError("Error querying device -1")
        self.closed = False
        self.options = {"samplerate": samplerate, **options}
        self._callback, self._finished_callback = callback, finished_callback
        self._thread = threading.Thread(target=self._run, name="loudspeaker")
        return self

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self.closed:
            out = np.full((BLOCK, 1), np.nan, np.float32)
            try:
                self._callback(out, BLOCK, None, None)
            except CallbackStop:
                break
            finally:
                self._blocks.append(out[:, 0])
            time.sleep(0.0005)
        self._finished_callback()

    @property
    def active(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self.closed = True
        self._thread.join()

    def heard(self) -> np.ndarray:
        return np.concatenate(self._blocks)

    def sound(self) -> np.ndarray:
        """What was heard, without the silence before and after."""
        heard = self.heard()
        where = np.flatnonzero(heard)
        return heard[where[0] : where[-1] + 1] if where.size else heard[:0]

    def wait_until_idle(self) -> None:
        """Until there was some sound, and then a block of silence."""
        give_up = time.monotonic() + 30
        while not (len(self._blocks) > 1 and self.sound().size and not self._blocks[-1].any()):
            assert time.monotonic() < give_up, "the sound does not end"
            time.sleep(0.001)
