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
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rivals import HOP, PRODUCTS, RIVALS, SAMPLE_RATE, prepare, start

from vocoder_plugin.codecs.registry import read_model
from vocoder_plugin.gguf_file import GGUFFile
from vocoder_plugin.net.plan import Plan
from vocoder_plugin.net.weights import ConvSpec


@dataclass
class Figures:
    """One rival on one clip; times in seconds."""

    name: str
    clip: float
    load: float
    first: float = 0.0
    peak_mib: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def rtf(self) -> float:
        return self.median / self.clip


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


def operations(file: Path, seconds: float) -> float:
    """Floating-point operations of decoding so long a clip, two a multiply-add, by the textbook sums."""
    model = read_model(GGUFFile(file))
    plan = Plan.of(model.passes()["decoder"].values(), rings=False, most_frames=24)
    per_frame = 0
    for name, spec in plan.specs.items():
        if not isinstance(spec, ConvSpec):
            continue
        rate = plan.rates[name]
        per_frame += (
            2 * rate * spec.in_channels * spec.out_channels * spec.kernel // (spec.stride if spec.transposed else 1)
        )
    return per_frame * seconds * SAMPLE_RATE / HOP


def measure(arguments: argparse.Namespace, folder: Path, seconds: float, names: list[str]) -> list[Figures]:
    """All rivals on one clip, taking turns."""
    frames = round(seconds * SAMPLE_RATE / HOP)
    rivals = [start(name, folder, arguments.threads) for name in names]
    figures = [Figures(r.name, seconds, load=r.ask("load")["seconds"]) for r in rivals]
    for repetition in range(arguments.repeat + 1):
        for rival, figure in zip(rivals, figures, strict=True):
            answer = rival.ask(arguments.do, frames)
            figure.peak_mib = answer["peak_mib"]
            figure.first = figure.first or answer["seconds"]
            if repetition:
                figure.times.append(answer["seconds"])
    for rival in rivals:
        rival.close()
    return figures


def gemm_peak(folder: Path, threads: int, name: str) -> float:
    """GFLOP/s of torch's matrix product, the best of a few sizes and turns."""
    rival = start(name, folder, threads)
    rival.ask("load")
    best = 0.0
    for size in (768, 1536) * 3:
        seconds = rival.ask("multiply", size)["seconds"]
        best = max(best, 2e-9 * PRODUCTS * size**3 / seconds)
    rival.close()
    return best


def plot(path: Path, results: list[list[Figures]], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    names = [f.name for f in results[0]]
    for i, name in enumerate(names):
        places = [clip + (i - (len(names) - 1) / 2) * 0.8 / len(names) for clip in range(len(results))]
        axes.bar(places, [clip[i].rtf for clip in results], 0.8 / len(names), label=name)
    axes.set_xticks(range(len(results)), [f"{clip[0].clip:g} s" for clip in results])
    axes.set(xlabel="clip", ylabel="seconds of work per second of audio", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1, 10, 27, 300], help="clips (default: 1 10 27 300)"
    )
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help=", ".join(RIVALS)
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every rival (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions after one warm-up (default: 5)")
    parser.add_argument(
        "--longest-rival",
        type=float,
        default=30,
        help="clips longer than this are for the plugin alone (default: 30 s)",
    )
    parser.add_argument("--do", choices=("decode", "encode"), default="decode")
    parser.add_argument(
        "--folder", type=Path, help="keep the models here, and use them again (default: a temporary one)"
    )
    parser.add_argument("--plot", type=Path, help="PNG to write; needs matplotlib")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "dac_decoder.onnx").exists():
            prepare(folder)
        names = [n for n in arguments.rivals if not (arguments.do == "encode" and n.startswith("onnx"))]
        peak = gemm_peak(folder, arguments.threads, "torch f32") if "torch f32" in names else float("nan")
        console = Console(width=120)
        title = f"{arguments.do}, {arguments.threads} threads, {processor()}"
        table = Table(title=title, caption=f"{versions()}; torch's f32 matrix product: {peak:.0f} GFLOP/s")
        columns = ["clip", "", "median s", "RTF", "relative to plugin f32", "first s", "load s", "peak MiB"]
        for column in [*columns, "GFLOP/s", "of peak"] if arguments.do == "decode" else columns:
            table.add_column(column, justify="left" if column == "" else "right")
        results = []
        for seconds in arguments.seconds:
            chosen = [n for n in names if n.startswith("plugin") or seconds <= arguments.longest_rival]
            figures = measure(arguments, folder, seconds, chosen)
            results.append(figures)
            base = next((f.median for f in figures if f.name == "plugin f32"), figures[0].median)
            for f in figures:
                cells = [
                    f"{seconds:g} s", f.name, f"{f.median:.3f}", f"{f.rtf:.3f}", f"{f.median / base:.2f}",
                    f"{f.first:.2f}", f"{f.load:.2f}", f"{f.peak_mib:.0f}",
                ]  # fmt: skip
                if arguments.do == "decode":
                    speed = operations(folder / "dac_f32.gguf", seconds) / f.median / 1e9
                    cells += [f"{speed:.0f}", f"{speed / peak:.0%}"]
                table.add_row(*cells)
            table.add_section()
        console.print(table)
        if arguments.plot:
            plot(arguments.plot, [r for r in results if len(r) == len(names)], title)


if __name__ == "__main__":
    main()
