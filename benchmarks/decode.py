#!/usr/bin/env python3
"""Decode the same codes with this plugin, torch and onnxruntime, side by side in one run.

Needs what the parity tests need (torch, descript-audio-codec) and onnxruntime. The model is
OuteTTS's DAC at full size with seeded random weights. Repetitions are interleaved; figures are
medians, peak memory is of the whole process.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rivals import HOP, RIVALS, SAMPLE_RATE, Rival, prepare


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def versions() -> str:
    found = []
    for name in ("vocoder-plugin", "llama-cpp-python", "torch", "onnxruntime"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10], help="clip lengths (default: 1 10)")
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help=", ".join(RIVALS)
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every rival (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions after one warm-up (default: 5)")
    parser.add_argument("--do", choices=("decode", "encode"), default="decode")
    parser.add_argument(
        "--folder", type=Path, help="keep the models here, and use them again (default: a temporary one)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "dac_decoder.onnx").exists():
            prepare(folder)
        names = [n for n in arguments.rivals if not (arguments.do == "encode" and n.startswith("onnx"))]
        console = Console(width=120)
        table = Table(title=f"{arguments.do}, {arguments.threads} threads, {processor()}", caption=versions())
        for column in ("clip", "", "median s", "RTF", "relative to plugin f32", "peak MiB", "load s"):
            table.add_column(column, justify="left" if column == "" else "right")
        for seconds in arguments.seconds:
            frames = round(seconds * SAMPLE_RATE / HOP)
            rivals = [Rival(name, folder, arguments.threads) for name in names]
            loads = {r.name: r.ask("load")["seconds"] for r in rivals}
            times: dict[str, list[float]] = {r.name: [] for r in rivals}
            peaks: dict[str, float] = {}
            for repetition in range(arguments.repeat + 1):
                for rival in rivals:
                    answer = rival.ask(arguments.do, frames)
                    peaks[rival.name] = answer["peak_mib"]
                    if repetition:
                        times[rival.name].append(answer["seconds"])
            for rival in rivals:
                rival.close()
            medians = {name: statistics.median(values) for name, values in times.items()}
            base = medians.get("plugin f32", min(medians.values()))
            for name, median in medians.items():
                table.add_row(
                    f"{seconds:g} s", name, f"{median:.3f}", f"{median / seconds:.3f}",
                    f"{median / base:.2f}", f"{peaks[name]:.0f}", f"{loads[name]:.2f}",
                )  # fmt: skip
            table.add_section()
        console.print(table)


if __name__ == "__main__":
    main()
