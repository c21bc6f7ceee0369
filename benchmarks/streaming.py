#!/usr/bin/env python3
"""What streaming costs: chunk sizes against offline, many streams at once, first audio, memory over 30 minutes.

Needs what the parity tests need, to make the full-size model with seeded random weights. Repetitions are
interleaved; figures are medians. ``--only`` picks parts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rivals import prepare, test_codes

from vocoder_plugin import Codec

CONSOLE = Console(width=100)
CONTEXT = 10  # frames on each side of a peer's sliding window


def push_all(codec: Codec, codes: np.ndarray, size: int) -> np.ndarray:
    with codec.decoder_stream() as stream:
        parts = [stream.push(codes[:, t : t + size]) for t in range(0, codes.shape[1], size)]
        return np.concatenate([*parts, stream.flush()])


def sliding_window(codec: Codec, codes: np.ndarray, size: int) -> np.ndarray:
    """What peers do: decode each chunk with its context again and keep the middle."""
    parts, hop, frames = [], codec.hop_length, codes.shape[1]
    for start in range(0, frames, size):
        before, after = min(CONTEXT, start), min(CONTEXT, max(0, frames - start - size))
        samples = codec.decode(codes[:, start - before : start + size + after])
        parts.append(samples[before * hop : samples.size - after * hop if after else None])
    return np.concatenate(parts)


def medians(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in track(range(repeat + 1), console=Console(stderr=True), transient=True):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repetition:  # the first builds graphs
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def chunk_sizes(codec: Codec, repeat: int) -> None:
    codes = test_codes(300)
    calls: dict[str, Callable[[], object]] = {"offline": lambda: codec.decode(codes)}
    for size in (75, 15, 5, 1):
        calls[f"stream, {size} frames a push"] = lambda size=size: push_all(codec, codes, size)
    for size in (75, 15):
        calls[f"sliding window, {size} + 2 x {CONTEXT} frames"] = lambda size=size: sliding_window(codec, codes, size)
    result = medians(calls, repeat)
    table = Table(title=f"4 s of audio, {codec!r}")
    for column in ("", "s", "RTF", "relative to offline"):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in result.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / 4:.3f}", f"{seconds / result['offline']:.2f}")
    CONSOLE.print(table)


def many_streams(codec: Codec, repeat: int) -> None:
    codes = test_codes(75)
    table = Table(title="streams of 1 s each")
    for column in ("streams", "frames a push", "one after the other, s", "push_many, s", "ratio"):
        table.add_column(column, justify="right")
    for count, size in ((2, 1), (4, 1), (8, 1), (8, 15)):
        streams = [codec.decoder_stream() for _ in range(count)]

        def apart(streams=streams, size=size) -> None:
            for stream in streams:
                stream.reset()
            for t in range(0, 75, size):
                for stream in streams:
                    stream.push(codes[:, t : t + size])

        def together(streams=streams, size=size) -> None:
            for stream in streams:
                stream.reset()
            for t in range(0, 75, size):
                codec.push_many(streams, [codes[:, t : t + size]] * len(streams))

        result = medians({"apart": apart, "together": together}, repeat)
        ratio = result["together"] / result["apart"]
        table.add_row(str(count), str(size), f"{result['apart']:.3f}", f"{result['together']:.3f}", f"{ratio:.2f}")
        for stream in streams:
            stream.close()
    CONSOLE.print(table)


def first_audio(codec: Codec, repeat: int) -> None:
    """Work between the last frame that the first samples need and those samples, frames pushed as they come."""
    codes, times = test_codes(30), []
    with codec.decoder_stream() as stream:
        ahead = stream.lookahead_frames
        for _ in range(repeat * 3 + 1):
            stream.reset()
            spent = 0.0
            for t in range(ahead + 1):
                start = time.perf_counter()
                samples = stream.push(codes[:, t : t + 1])
                spent += time.perf_counter() - start
            assert samples.size
            times.append(spent)
    CONSOLE.print(
        f"first audio: {statistics.median(times[1:]) * 1e3:.1f} ms of decoding in all, with {ahead + 1} frames in "
        f"({samples.size} samples)\n"
    )


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS in /proc/self/status")


def long_stream(codec: Codec, minutes: int) -> None:
    codes, total, at_one_minute = test_codes(45), 0, 0
    with codec.decoder_stream() as stream:
        pushes = round(minutes * 60 * codec.frame_rate / 45)
        for i in track(range(pushes), console=Console(stderr=True), transient=True):
            total += stream.push(codes).size
            if i == round(60 * codec.frame_rate / 45):
                at_one_minute = resident()
        total += stream.flush().size
    assert total == codec.decoded_length(pushes * 45)
    growth = (resident() - at_one_minute) / 2**20
    CONSOLE.print(
        f"{minutes} minutes: {total} samples, as the formula says; memory grew {growth:.2f} MiB after minute 1\n"
    )


PARTS = {"chunks": chunk_sizes, "many": many_streams, "first": first_audio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where models are kept between runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--minutes", type=int, default=30, help="length of the long stream")
    parser.add_argument("--only", nargs="+", default=[*PARTS, "long"], choices=[*PARTS, "long"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "dac_f32.gguf").exists():
            prepare(folder)
        with Codec.load(folder / "dac_f32.gguf", n_threads=arguments.threads, precision=arguments.precision) as codec:
            for name, part in PARTS.items():
                if name in arguments.only:
                    part(codec, arguments.repeat)
            if "long" in arguments.only:
                long_stream(codec, arguments.minutes)


if __name__ == "__main__":
    main()
