#!/usr/bin/env python3
"""Codecs on a device against the CPU of the same machine: how far samples differ, and how fast they come.

    python benchmarks/devices.py --device CUDA0 dac.gguf mimi.gguf wavtokenizer.gguf

Without files it takes the 24 kHz DAC at full width with seeded random weights. Errors are relative to the CPU's
samples in F32 (root mean square); times are medians of whole calls, samples on the host included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vocoder_plugin import Codec

COLUMNS = ("codec", "", "device RTF", "CPU RTF", "times as fast", "first call s", "relative error", "same codes")


def random_dac(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from random_dac import write_random_dac

    path = folder / "random_dac.gguf"
    write_random_dac(path, "24khz", encoder_dim=64, decoder_dim=1536, latent_dim=1024)
    return path


def timed(call: Callable[[], np.ndarray], repeat: int) -> tuple[np.ndarray, float, float]:
    """The result, the time of the first call and the median of the rest, in seconds."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, times[0], statistics.median(times[1:])


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def compare(path: Path, arguments: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one codec: decode, and encode where there is an encoder."""
    results: dict[str, dict[str, Any]] = {}
    for device in (arguments.device, "CPU"):
        with Codec.load(path, device=device, n_threads=arguments.threads) as codec:
            rng = np.random.default_rng(0)
            frames = round(arguments.seconds * codec.frame_rate)
            codes = rng.integers(0, codec.codebook_size, (codec.n_codebooks, frames)).astype(np.int32)
            samples = rng.normal(0, 0.1, frames * codec.hop_length).astype(np.float32)
            calls = {"decode": lambda: codec.decode(codes)}  # noqa: B023  called in this turn of the loop
            if codec.has_encoder:
                calls["encode"] = lambda: codec.encode(samples, codec.sample_rate)  # noqa: B023
            results[device] = {name: timed(call, arguments.repeat) for name, call in calls.items()}
            name = codec.name
    rows = []
    for what, (got, first, seconds) in results[arguments.device].items():
        expected, _, cpu_seconds = results["CPU"][what]
        error = f"{relative_error(got, expected):.1e}" if what == "decode" else ""
        same = f"{np.mean(got == expected):.2%}" if what == "encode" else ""
        rtf, cpu_rtf = seconds / arguments.seconds, cpu_seconds / arguments.seconds
        speed = f"{cpu_seconds / seconds:.1f}"
        rows.append([name, what, f"{rtf:.4f}", f"{cpu_rtf:.4f}", speed, f"{first:.2f}", error, same])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", type=Path, help="codec GGUF files")
    parser.add_argument("--device", required=True, help="such as CUDA0; see `vocoder-plugin doctor`")
    parser.add_argument("--seconds", type=float, default=10, help="of audio (default: 10)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: usable cores)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions after a warm-up (default: 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = Table(*COLUMNS, title=f"{arguments.seconds:g} s of audio on {arguments.device}")
        for path in arguments.codecs or [random_dac(Path(folder))]:
            for row in compare(path, arguments):
                table.add_row(*row)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
