#!/usr/bin/env python3
"""What each precision of Mimi costs: decoded samples and latents in dB, and encoded codes that stay the same.

The reference is the plugin's own F32 file in float32 (which agrees with transformers to 1e-6, see tests/parity). The
model is at full size with seeded random weights. Needs what the parity tests need.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from accuracy import TYPES, snr
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vocoder_plugin import Codec
from vocoder_plugin.converters import mimi

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
INTEGERS = (("f32", "int16"), ("f16", "int16"), ("q8_0", "int16"), ("f32", "int8"), ("f16", "int8"))
WAYS = [*((kind, "float32") for kind in TYPES), *INTEGERS]


def main() -> None:
    from mimi_oracle import speech_like, transformers_mimi

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--folder", type=Path, help="keep the models here, and use them again")
    arguments = parser.parse_args()
    samples = speech_like(arguments.seconds, 3)
    table = Table(title=f"{arguments.seconds:g} s, 8 codebooks, against the F32 file in float32")
    for column in ("type", "precision", "MB", "decode SNR dB", "latents SNR dB", "same semantic codes", "same codes"):
        table.add_column(column, justify="left" if column in ("type", "precision") else "right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "hf").exists():
            transformers_mimi().save_pretrained(folder / "hf")
        codes = audio = latents = np.empty(0)
        for kind, precision in track(WAYS, console=Console(stderr=True), transient=True):
            path = folder / f"mimi_{kind}.gguf"
            if not path.exists():
                mimi.convert(folder / "hf", path, type=kind)
            with Codec.load(path, precision=precision, n_threads=2) as codec:
                found = codec.encode(samples, 24000)
                if not codes.size:
                    codes, audio, latents = found, codec.decode(found), codec.encode_latents(samples)
                same = found == codes
                ours = codec.decode(codes), codec.encode_latents(samples)
            is_reference = (kind, precision) == WAYS[0]
            table.add_row(
                kind.upper(), precision, f"{path.stat().st_size / 1e6:.0f}",
                "" if is_reference else f"{snr(audio, ours[0]):.1f}",
                "" if is_reference else f"{snr(latents, ours[1]):.1f}",
                f"{same[0].mean():.1%}", f"{same.mean():.1%}",
            )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
