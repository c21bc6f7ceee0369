"""Decoding on a thread of its own, so that generation goes on meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

MOST_WAITING = 2  # chunks not decoded yet, the one in work included; ``submit`` waits beyond that
Decode = Callable[[np.ndarray], np.ndarray]


class _Line:
    """What the caller's thread and the worker's share. The worker's holds nothing else that a caller could drop."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[np.ndarray] = deque()
        self.samples: deque[np.ndarray] = deque()
        self.working = self.closed = False
        self.error: BaseException | None = None

    def wait_until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.error is not None or true())

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify_all()

    def work(self, decode: Decode) -> None:
        """The worker's thread: chunks in order, until ``close`` or an error."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.waiting)
                if self.closed or self.error is not None:
                    return
                codes, self.working = self.waiting.popleft(), True
            try:
                samples, error = [decode(codes)], None
            except BaseException as raised:  # raised again on the caller's thread
                samples, error = [], raised
            with self.changed:
                self.working, self.error = False, error
                self.samples.extend(samples)
                self.changed.notify_all()


class Worker:
    """Decodes the chunks of one stream on one thread, in order.

    The thread works in ggml, which ctypes calls without the interpreter's lock; samples come back
    to whoever asks, and so do errors, after which no chunk is decoded any more. For one caller's thread at a time.

    Parameters
    ----------
    decode : callable
        Codes [n_codebooks, n] -> samples float32 [m]; runs on the worker's thread.
    """

    def __init__(self, decode: Decode) -> None:
        self._line = line = _Line()
        # A daemon: whoever forgets to close must not keep the interpreter from its end.
        self._thread = threading.Thread(target=line.work, args=(decode,), name="vocoder-decode", daemon=True)
        self._thread.start()
        weakref.finalize(self, line.close)

    def submit(self, codes: np.ndarray) -> None:
        """Hand over a chunk; waits while more than MOST_WAITING chunks are not decoded."""
        line = self._line
        with line.changed:
            line.waiting.append(codes)
            line.changed.notify_all()
        line.wait_until(lambda: len(line.waiting) + line.working <= MOST_WAITING)

    def ready(self) -> list[np.ndarray]:
        """Samples of the chunks that are decoded, in order; raises what decoding raised."""
        line = self._line
        with line.changed:
            samples = list(line.samples)
            line.samples.clear()
            if line.error is not None and not samples:
                raise line.error
        return samples

    def drain(self) -> list[np.ndarray]:
        """Wait for every chunk; their samples, in order."""
        line = self._line
        line.wait_until(lambda: not line.waiting and not line.working)
        if line.error is not None:
            raise line.error
        return self.ready()

    def close(self) -> None:
        """Drop chunks not begun, wait for the one in work, end the thread. May be called more than once."""
        self._line.close()
        self._thread.join()
        self._line.samples.clear()
