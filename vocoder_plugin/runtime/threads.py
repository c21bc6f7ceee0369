"""Work on several threads that does not depend on the interpreter being far from its end.

``concurrent.futures`` refuses work once the main thread has ended, while other threads of a program go on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def in_threads(work: Callable[[T], object], items: Iterable[T], n_threads: int) -> None:
    """Do ``work`` for every item, in order of beginning, on this thread and up to ``n_threads`` - 1 others.

    Where no more threads can be started, fewer do it all. Raises the first error, with the other items left undone.
    """
    waiting, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def go_on() -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:  # raised again on the caller's thread
                errors.append(error)

    threads = [threading.Thread(target=go_on, name="vocoder-load") for _ in range(n_threads - 1)]
    started = []
    for thread in threads:
        with contextlib.suppress(RuntimeError):  # the interpreter is about to end
            thread.start()
            started.append(thread)
    go_on()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
