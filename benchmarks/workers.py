"""Rivals in processes of their own, so that each imports only what it needs and memory can be told apart.

Protocol, one JSON value a line: the worker says which tasks it has; then {"do": task, "size": n} is answered by
{"seconds": s, "peak_mib": m, "result": …}. A result is passed on where it is a number or a list of numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def serve(calls: Mapping[str, Callable[[Any], Any]]) -> None:
    """Inside the worker: do what is asked until there is nothing more to read."""
    print(json.dumps(sorted(calls)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        result = calls[request["do"]](request["size"])
        seconds = time.perf_counter() - start
        kept = result if isinstance(result, (int, float, list)) else None
        del result  # else the next one would be made beside it, and count as peak memory
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "result": kept}), flush=True)


def peak_mib() -> float:
    """Peak resident memory of this process (getrusage would count what the parent had when it forked)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Worker:
    """A running worker: ``script --worker name folder threads``, which calls ``serve``.

    Parameters
    ----------
    python : str
        The interpreter, by default this one; another has another version of the package.

    Attributes
    ----------
    tasks : list of str
        What it can do.
    """

    def __init__(self, script: str, name: str, folder: Path, threads: int, python: str = sys.executable) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", script, "--worker", name, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.tasks: list[str] = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} stopped with exit status {self._process.wait()}")
        return json.loads(line)

    def ask(self, do: str, size: float = 0) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": do, "size": size}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
