#!/usr/bin/env python3
"""What each file type costs: signal-to-noise ratio of decoded samples, and encoded codes that stay the same.

The reference is the plugin's own F32 file (which agrees with descript-audio-codec to 3e-6, see
tests/parity). Needs what the parity tests need. Models are at full size with seeded random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
TYPES = ("f32", "f16", "bf16", "q8_0")


def snr(reference: np.ndarray, samples: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    reference, samples = reference.astype(np.float64), samples.astype(np.float64)
    return 10 * np.log10(np.sum(reference**2) / np.sum((samples - reference) ** 2))


def main() -> None:
    from oracles import DAC_SIZES, descript_dac, save_descript
    from rivals import test_audio

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["outetts", "44khz"], choices=DAC_SIZES)
    parser.add_argument("--frames", type=int, default=225)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.frames} frames, against the F32 file")
    for column in ("model", "type", "MB", "decode SNR dB", "encode: same codes in codebook 1", "in all"):
        table.add_column(column, justify="left" if column in ("model", "type") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            checkpoint = Path(folder) / f"{size}.pth"
            save_descript(descript_dac(size), size, checkpoint)
            results: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            for kind in track(TYPES, description=size, console=Console(stderr=True), transient=True):
                path = Path(folder) / f"{size}_{kind}.gguf"
                dac.convert(checkpoint, path, type=kind)
                with Codec.load(path) as codec:
                    audio = test_audio(-(-arguments.frames * codec.hop_length // 320))
                    codes = codec.encode(audio, codec.sample_rate)
                    rng = np.random.default_rng(0)
                    random = rng.integers(0, codec.codebook_size, (codec.n_codebooks, arguments.frames))
                    results[kind] = codec.decode(random), codes
                samples, codes = results["f32"]
                same = results[kind][1] == codes
                table.add_row(
                    size, kind.upper(), f"{path.stat().st_size / 1e6:.0f}",
                    "" if kind == "f32" else f"{snr(samples, results[kind][0]):.1f}",
                    f"{same[0].mean():.1%}", f"{same.mean():.1%}",
                )  # fmt: skip
                path.unlink()
            table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
