#!/usr/bin/env python3
"""WavTokenizer by this plugin and by torch, side by side in one run, each in a process of its own.

The model has its published size and seeded random weights. Repetitions are interleaved; figures are medians,
peak memory is of the whole process. Needs what the parity tests need.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rivals import test_audio
from workers import Worker, serve

SAMPLE_RATE, FRAME_RATE, BINS = 24000, 75, 4096
RIVALS = {
    "plugin f32": ("plugin", "float32"),
    "plugin int16": ("plugin", "int16"),
    "torch f32": ("torch", "float32"),
    "torch bf16": ("torch", "bfloat16"),
}


def test_codes(seconds: float) -> np.ndarray:
    frames = round(seconds * FRAME_RATE)
    return np.random.default_rng(frames).integers(0, BINS, (1, frames)).astype(np.int32)


def test_samples(seconds: float) -> np.ndarray:
    return test_audio(round(seconds * FRAME_RATE))


def import_oracle() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
    import wavtokenizer_oracle

    return wavtokenizer_oracle


def plugin(folder: Path, kind: str, threads: int) -> dict[str, Callable[[float], Any]]:
    from vocoder_plugin import Codec

    codec = Codec.load(folder / "f32.gguf", n_threads=threads, precision=kind)
    return {
        "decode": lambda seconds: codec.decode(test_codes(seconds)),
        "encode": lambda seconds: codec.encode(test_samples(seconds), SAMPLE_RATE),
    }


def with_torch(folder: Path, kind: str, threads: int) -> dict[str, Callable[[float], Any]]:
    import torch

    oracle = import_oracle()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = oracle.build(oracle.SIZES["75"])
    state = torch.load(folder / "wavtokenizer.ckpt")["state_dict"]
    model.load_state_dict(state, strict=False)
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)  # as fast as torch can be
    dtype = getattr(torch, kind)
    model.backbone.to(dtype)
    model.head.out.to(dtype)

    def decode(seconds: float) -> Any:
        features = model.codes_to_features(torch.from_numpy(test_codes(seconds).astype(np.int64))).to(dtype)
        x = model.backbone(features, bandwidth_id=torch.tensor([0]))
        return model.head(x.to(dtype)) if dtype is torch.float32 else _head_in_float(model.head, x)

    def encode(seconds: float) -> Any:
        samples = torch.from_numpy(test_samples(seconds))[None]
        return model.encode_infer(samples, bandwidth_id=torch.tensor([0]))[1]

    return {"decode": decode, "encode": encode}


def _head_in_float(head: Any, x: Any) -> Any:
    """Torch has no FFT in bfloat16."""
    import torch

    size, phase = head.out(x).float().transpose(1, 2).chunk(2, dim=1)
    return head.istft(torch.polar(size.exp().clip(max=1e2), phase))


def work(name: str, folder: Path, threads: int) -> None:
    package, kind = RIVALS[name]
    serve({"plugin": plugin, "torch": with_torch}[package](folder, kind, threads))


def prepare(folder: Path) -> None:
    from vocoder_plugin.converters import wavtokenizer

    oracle = import_oracle()
    oracle.save_checkpoint(oracle.wavtokenizer("75"), folder / "wavtokenizer.ckpt")
    wavtokenizer.convert(folder / "wavtokenizer.ckpt", folder / "f32.gguf", type="f32")


def compare(do: str, seconds: float, names: list[str], folder: Path, threads: int, repeat: int) -> list[list[str]]:
    rivals = [Worker(__file__, name, folder, threads) for name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    for repetition in range(repeat + 1):
        for rival in rivals:
            answer = rival.ask(do, seconds)
            peaks[rival.name] = answer["peak_mib"]
            if repetition:
                times[rival.name].append(answer["seconds"])
    for rival in rivals:
        rival.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians.get("torch f32")
    return [
        [
            f"{do} {seconds:g} s", name, f"{median:.3f}", f"{median / seconds:.4f}",
            f"{base / median:.2f}" if base else "", f"{peaks[name]:.0f}",
        ]
        for name, median in medians.items()
    ]  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10, 30], help="clip lengths")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME")
    parser.add_argument("--do", nargs="+", choices=("decode", "encode"), default=["decode", "encode"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions after one warm-up")
    parser.add_argument("--folder", type=Path, help="keep the models here, and use them again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "f32.gguf").exists():
            prepare(folder)
        table = Table(title=f"WavTokenizer, {arguments.threads} threads")
        for column in ("clip", "", "median s", "RTF", "times as fast as torch f32", "peak MiB"):
            table.add_column(column, justify="left" if column == "" else "right")
        for do in arguments.do:
            for seconds in arguments.seconds:
                names = [n for n in arguments.rivals if do == "decode" or n != "torch bf16"]  # it encodes in f32
                threads, repeat = arguments.threads, arguments.repeat
                for row in compare(do, seconds, names, folder, threads, repeat):
                    table.add_row(*row)
                table.add_section()
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
