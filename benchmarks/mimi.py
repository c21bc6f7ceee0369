#!/usr/bin/env python3
"""Mimi beside torch and moshi in one run, each in a process of its own: clips, the 80 ms step, long streams.

Models have their published size, 8 codebooks and seeded random weights. Repetitions are interleaved; figures are
medians. ``transformers`` is its MimiModel over whole clips; ``moshi`` is that package's own streaming, step by step.
Needs what the parity tests need.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from streaming import resident
from workers import Worker, serve

HOP, SAMPLE_RATE, FRAME_RATE, CODEBOOKS, BINS = 1920, 24000, 12.5, 8, 2048
RIVALS = {
    "plugin f32": ("plugin", "float32"),
    "plugin int16": ("plugin", "int16"),
    "plugin int8": ("plugin", "int8"),
    "transformers f32": ("transformers", "float32"),
    "moshi f32": ("moshi", "float32"),
}
TASKS = ("decode", "encode", "decode step", "encode step")
STEPS = 100  # of a stream, in each repetition
Calls = dict[str, Callable[[float], Any]]  # by task; steps give their times in seconds, of which there are so many


def test_codes(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, BINS, (CODEBOOKS, frames))


def test_samples(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(0, 0.1, frames * HOP).astype(np.float32)


def import_oracle() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
    import mimi_oracle

    return mimi_oracle


def timed(push: Callable[[Any], Any], items: list[Any]) -> list[float]:
    times = []
    for item in items:
        start = time.perf_counter()
        push(item)
        times.append(time.perf_counter() - start)
    return times


def plugin(folder: Path, kind: str, threads: int) -> Calls:
    from vocoder_plugin import Codec

    codec = Codec.load(folder / "mimi_f32.gguf", n_threads=threads, precision=kind)
    decoder, encoder = codec.decoder_stream(), codec.encoder_stream()
    return {
        "decode": lambda frames: codec.decode(test_codes(frames)),
        "encode": lambda frames: codec.encode(test_samples(frames), SAMPLE_RATE),
        "decode step": lambda n: timed(decoder.push, np.split(test_codes(n), n, axis=1)),
        "encode step": lambda n: timed(encoder.push, np.split(test_samples(n), n)),
        "weights": lambda _: codec.memory[codec.device.name].weights,
    }


def with_transformers(folder: Path, _kind: str, threads: int) -> Calls:
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = transformers.MimiModel(transformers.MimiConfig(num_quantizers=CODEBOOKS)).eval()
    return {
        "decode": lambda frames: model.decode(torch.from_numpy(test_codes(frames))[None]),
        "encode": lambda frames: model.encode(torch.from_numpy(test_samples(frames))[None, None]),
    }


def with_moshi(folder: Path, _kind: str, threads: int) -> Calls:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = import_oracle().moshi_mimi(CODEBOOKS)
    model.streaming_forever(1)

    def decode_steps(n: int) -> list[float]:
        return timed(model.decode, list(torch.from_numpy(test_codes(n))[None].split(1, dim=2)))

    def encode_steps(n: int) -> list[float]:
        return timed(model.encode, list(torch.from_numpy(test_samples(n))[None, None].split(HOP, dim=2)))

    return {"decode step": decode_steps, "encode step": encode_steps}


def work(name: str, folder: Path, threads: int) -> None:
    package, kind = RIVALS[name]
    serve({"plugin": plugin, "transformers": with_transformers, "moshi": with_moshi}[package](folder, kind, threads))


def prepare(folder: Path) -> None:
    from vocoder_plugin.converters import mimi

    folder.mkdir(parents=True, exist_ok=True)
    import_oracle().transformers_mimi().save_pretrained(folder / "hf")
    mimi.convert(folder / "hf", folder / "mimi_f32.gguf", type="f32")


def clips(rivals: list[Worker], do: str, seconds: float, repeat: int, table: Table) -> None:
    frames = round(seconds * FRAME_RATE)
    able = [rival for rival in rivals if do in rival.tasks]
    answers = [[rival.ask(do, frames) for rival in able] for _ in range(repeat + 1)][1:]
    medians = [float(np.median([a["seconds"] for a in of_one])) for of_one in zip(*answers, strict=True)]
    base = next((m for rival, m in zip(able, medians, strict=True) if rival.name.startswith("transformers")), None)
    for rival, median, last in zip(able, medians, answers[-1], strict=True):
        faster = f"{base / median:.2f}" if base else ""
        table.add_row(f"{do} {seconds:g} s", rival.name, f"{median / seconds:.4f}", faster, f"{last['peak_mib']:.0f}")
    table.add_section()


def steps(rivals: list[Worker], do: str, repeat: int, table: Table) -> None:
    able = [rival for rival in rivals if do in rival.tasks]
    answers = [[rival.ask(do, STEPS) for rival in able] for _ in range(repeat + 3)]
    for rival, of_one in zip(able, zip(*answers[3:], strict=True), strict=True):  # the window is full by then
        times = np.concatenate([a["result"][1:] for a in of_one]) * 1e3  # the first finds others' data in the caches
        median, late = np.median(times), np.percentile(times, 99)
        weights = f"{rival.ask('weights')['result'] / 2**20:.0f}" if "weights" in rival.tasks else ""
        peak = f"{of_one[-1]['peak_mib']:.0f}"
        table.add_row(do, rival.name, f"{median:.2f}", f"{late:.2f}", f"{late / median:.2f}", peak, weights)
    table.add_section()


def many_streams(folder: Path, counts: list[int], threads: int, repeat: int, table: Table) -> None:
    """Steps of several streams one after the other and together, in turns."""
    from vocoder_plugin import Codec

    with Codec.load(folder / "mimi_f32.gguf", n_threads=threads) as codec:
        for what in ("decoder_stream", "encoder_stream"):
            data = np.split(test_codes(25), 25, axis=1) if what == "decoder_stream" else np.split(test_samples(25), 25)
            for count in counts:
                streams = [getattr(codec, what)() for _ in range(count)]
                ways = {
                    "apart": lambda x: [stream.push(x) for stream in streams],  # noqa: B023
                    "together": lambda x: codec.push_many(streams, [x] * len(streams)),  # noqa: B023
                }
                times: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(repeat + 1):  # the first is a warm-up
                    for way, push in ways.items():
                        times[way] += timed(push, data)
                apart, together = (np.median(times[way][len(data) :]) * 1e3 for way in ways)
                table.add_row(what, str(count), f"{apart:.2f}", f"{together:.2f}", f"{together / apart:.2f}")
                for stream in streams:
                    stream.close()
            table.add_section()


def long_streams(folder: Path, minutes: int, threads: int, console: Console) -> None:
    """Both directions for so long: what the process holds beyond its weights, and how it grows."""
    from vocoder_plugin import Codec

    before = resident()
    codes, samples = test_codes(25), test_samples(25)
    with Codec.load(folder / "mimi_f32.gguf", n_threads=threads) as codec:
        rounds = round(minutes * 60 * FRAME_RATE / 25)
        with codec.decoder_stream() as decoder, codec.encoder_stream() as encoder:
            at_one_minute = n_samples = n_frames = 0
            for i in range(rounds):
                n_samples += decoder.push(codes).size
                n_frames += encoder.push(samples).shape[1]
                if i == 29:
                    at_one_minute = resident()
            after, weights = resident(), codec.memory[codec.device.name].weights
    assert (n_samples, n_frames) == (rounds * 25 * HOP, rounds * 25)
    console.print(
        f"{minutes} minutes both ways: {n_samples} samples, {n_frames} frames; resident beyond weights "
        f"{(after - before - weights) / 2**20:.1f} MiB, and {before / 2**20:.0f} MiB before loading; "
        f"grown by {(after - at_one_minute) / 2**20:.2f} MiB after minute 1"
    )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10], help="clip lengths")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME")
    parser.add_argument("--do", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--streams", type=int, nargs="+", default=[], help="numbers of streams to step together")
    parser.add_argument("--minutes", type=int, default=0, help="of a long stream, both ways (default: none)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5, help="repetitions after a warm-up")
    parser.add_argument("--folder", type=Path, help="keep the models here, and use them again")
    arguments = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "mimi_f32.gguf").exists():
            prepare(folder)
        rivals = [Worker(__file__, name, folder, arguments.threads) for name in arguments.rivals]
        clip_table, step_table = Table(title="clips"), Table(title="steps of 80 ms, in ms")
        for column in ("task", "", "RTF", "times as fast as transformers", "peak MiB"):
            clip_table.add_column(column, justify="left" if column == "" else "right")
        for column in ("task", "", "median", "p99", "p99 / median", "peak MiB", "weights MiB"):
            step_table.add_column(column, justify="left" if column == "" else "right")
        for do in arguments.do:
            if do.endswith("step"):
                steps(rivals, do, arguments.repeat, step_table)
            else:
                for seconds in arguments.seconds:
                    clips(rivals, do, seconds, arguments.repeat, clip_table)
        for rival in rivals:
            rival.close()
        for table in (clip_table, step_table):
            if table.rows:
                console.print(table)
        if arguments.streams:
            table = Table(title="steps of several streams, in ms")
            for column in ("", "streams", "one after the other", "push_many", "ratio"):
                table.add_column(column, justify="left" if column == "" else "right")
            many_streams(folder, arguments.streams, arguments.threads, arguments.repeat, table)
            console.print(table)
        if arguments.minutes:
            long_streams(folder, arguments.minutes, arguments.threads, console)


if __name__ == "__main__":
    main()
