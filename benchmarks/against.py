#!/usr/bin/env python3
"""Two versions of the package side by side in one run: what each codec's clips, steps and pushes take.

Each version is the Python that it is installed in, so that kernels and all are its own. The two work in turns, in
processes that are started anew in every round, as two processes of one and the same program differ by some per cent.
A ratio is the median over all turns of new by old; the exit status is 1 if one is beyond ``--limit``.

Models have their full size and seeded random weights. OLD_PYTHON makes them, for which it needs what the parity tests
need, unless ``--folder`` has them from another run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rivals
from rich.console import Console
from rich.progress import track
from rich.table import Table
from workers import Worker, serve

FILES = {
    "dac": "dac_f16.gguf",
    "wavtokenizer": "f32.gguf",
    "mimi": "mimi_f32.gguf",
}  # as the other benchmarks name them
PRECISIONS = ("float32", "int16")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TURN_SECONDS = 0.25  # a turn repeats a task for so long; what is short is noisy
WARM_TURNS = 2  # graphs are built, and a window of attention fills


class Task(NamedTuple):
    """``size`` is of a clip in seconds, or of a push in frames."""

    codec: str
    do: str
    size: float

    def __str__(self) -> str:
        unit = "frames" if self.do.endswith(("push", "step")) else "s"
        return f"{self.codec} {self.do} {self.size:g} {unit}"


CLIPS = [Task(codec, do, size) for codec in FILES for do in ("decode", "encode") for size in (1, 10)]
STEPS = [Task("mimi", "decode step", 1), Task("mimi", "encode step", 1)]
TASKS = [*CLIPS, Task("dac", "push", 1), Task("dac", "push", 15), *STEPS]


def calls(name: str, folder: Path, threads: int) -> dict[str, Callable[[float], Any]]:
    """Inside a worker: by task, a function of its size that gives the seconds of each time it was done."""
    import vocoder_plugin
    from vocoder_plugin import Codec

    kind, precision, clock = name.split()
    options = {"n_codebooks": 8} if kind == "mimi" else {}
    codec = Codec.load(folder / FILES[kind], n_threads=threads, precision=precision, **options)
    decoder, encoder = codec.decoder_stream(), codec.encoder_stream()

    def codes(frames: int) -> np.ndarray:
        rng = np.random.default_rng(frames)
        return rng.integers(0, codec.codebook_size, (codec.n_codebooks, frames)).astype(np.int32)

    def samples(n: int) -> np.ndarray:
        return rivals.test_audio(-(-n // rivals.HOP))[:n]

    def decode(seconds: float) -> list[float]:
        clip = codes(round(seconds * codec.frame_rate))
        return repeated(lambda: codec.decode(clip), CLOCKS[clock])

    def encode(seconds: float) -> list[float]:
        clip = samples(round(seconds * codec.sample_rate))
        return repeated(lambda: codec.encode(clip, codec.sample_rate), CLOCKS[clock])

    def push(frames: float) -> list[float]:
        chunk = codes(int(frames))
        return repeated(lambda: decoder.push(chunk), CLOCKS[clock])

    def encode_push(frames: float) -> list[float]:
        chunk = samples(int(frames) * codec.hop_length)
        return repeated(lambda: encoder.push(chunk), CLOCKS[clock])

    return {
        "decode": decode, "encode": encode, "push": push, "decode step": push, "encode step": encode_push,
        "package": lambda _: [vocoder_plugin.__file__, codec.lowering],
    }  # fmt: skip


def repeated(call: Callable[[], Any], now: Callable[[], float]) -> list[float]:
    """Seconds of each of as many calls as fill a turn, after one that finds others' data in the caches."""
    call()
    times: list[float] = []
    while not times or sum(times) < TURN_SECONDS:
        start = now()
        call()
        times.append(now() - start)
    return times


def prepare(folder: Path) -> None:
    """Make the models that are not there, with the package of this interpreter."""
    import mimi
    import wavtokenizer

    for kind, make in (("dac", rivals.prepare_plugin), ("wavtokenizer", wavtokenizer.prepare), ("mimi", mimi.prepare)):
        if not (folder / FILES[kind]).exists():
            make(folder)


class Row(NamedTuple):
    """Medians of the seconds of either version, and the ratio of new by old in each turn."""

    old: float
    new: float
    ratios: list[float]


def compare(tasks: list[Task], precision: str, pythons: tuple[str, str], arguments: argparse.Namespace) -> list[Row]:
    """All tasks of one codec in one precision."""
    times: list[list[tuple[float, ...]]] = [[] for _ in tasks]  # of old and new in each turn
    name = f"{tasks[0].codec} {precision} {arguments.clock}"
    for _ in track(range(arguments.rounds), name, console=Console(stderr=True), transient=True):
        workers = [Worker(__file__, name, arguments.folder, arguments.threads, python) for python in pythons]
        for task, of_task in zip(tasks, times, strict=True):
            for turn in range(WARM_TURNS + arguments.repeat):
                seconds = {}
                for side in (0, 1) if turn % 2 else (1, 0):
                    seconds[side] = statistics.median(workers[side].ask(task.do, task.size)["result"])
                if turn >= WARM_TURNS:
                    of_task.append((seconds[0], seconds[1]))
        for worker in workers:
            worker.close()
    return [
        Row(*map(statistics.median, zip(*of_task, strict=True)), [new / old for old, new in of_task])
        for of_task in times
    ]


def packages(pythons: tuple[str, str], arguments: argparse.Namespace) -> list[str]:
    found = []
    for python in pythons:
        worker = Worker(__file__, "dac float32 wall", arguments.folder, arguments.threads, python)
        found.append(", ".join(worker.ask("package")["result"]))
        worker.close()
    return found


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        serve(calls(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
        return 0
    if sys.argv[1:2] == ["--prepare"]:
        prepare(Path(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD_PYTHON")
    parser.add_argument("new", metavar="NEW_PYTHON")
    parser.add_argument("--rounds", type=int, default=3, help="times that processes are started anew (default: 3)")
    parser.add_argument("--repeat", type=int, default=7, help="timed turns of a task in each round (default: 7)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="cpu: processor time, with --threads 1, on a machine that others use too (default: wall)",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=1.02, help="ratio that is too slow (default: 1.02)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only tasks with this in their name, as printed")
    parser.add_argument("--folder", type=Path, help="keep the models here, and use them again")
    arguments = parser.parse_args()
    pythons = (arguments.old, arguments.new)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = arguments.folder or Path(temporary)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([arguments.old, "-W", "ignore", __file__, "--prepare", str(arguments.folder)], check=True)
        old, new = packages(pythons, arguments)
        table = Table(title=f"{arguments.threads} threads, {arguments.clock} time", caption=f"old: {old}\nnew: {new}")
        for column in ("", "precision", "old ms", "new ms", "new by old", "middle half of the ratios"):
            table.add_column(column, justify="left" if column in ("", "precision") else "right")
        slower = []
        for codec in FILES:
            for precision in PRECISIONS:
                tasks = [t for t in TASKS if t.codec == codec and arguments.only in f"{t} {precision}"]
                if not tasks:
                    continue
                for task, row in zip(tasks, compare(tasks, precision, pythons, arguments), strict=True):
                    ratio = statistics.median(row.ratios)
                    low, high = np.percentile(row.ratios, [25, 75])
                    cells = [f"{1e3 * row.old:.2f}", f"{1e3 * row.new:.2f}", f"{ratio:.3f}", f"{low:.2f} to {high:.2f}"]
                    table.add_row(str(task), precision, *cells)
                    if ratio > arguments.limit:
                        slower.append(f"{task} {precision}: {ratio:.3f}")
            table.add_section()
    console = Console(width=120)
    console.print(table)
    console.print("\n".join(["slower than the limit:", *slower]) if slower else "nothing is slower than the limit")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
