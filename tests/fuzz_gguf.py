#!/usr/bin/env python3
"""Flips random bytes of a codec file, again and again: each must load and run, or be refused with a VocoderError.

python tests/fuzz_gguf.py --seed 1 --count 2000 codec.gguf
"""

import argparse
import faulthandler
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from vocoder_plugin import Codec, VocoderError


def damaged(content: bytes, header: int, rng: np.random.Generator) -> bytes:
    """A copy with 1 to 8 bytes changed, nine times out of ten in the header, where they do more than another weight."""
    flipped = np.frombuffer(content, np.uint8).copy()
    low, high = (0, header) if rng.random() < 0.9 else (header, len(content))
    for place in rng.integers(low, high, rng.integers(1, 9)):
        flipped[place] ^= rng.integers(1, 256)
    return flipped.tobytes()


def survives(path: Path) -> bool:
    """Whether the file loads; what loads must also run."""
    try:
        with Codec.load(path, n_threads=1) as codec, np.errstate(all="ignore"):
            codec.decode(np.zeros((codec.n_codebooks, 2), np.int32))
            codec.encode(np.zeros(codec.hop_length, np.float32), codec.sample_rate)
    except VocoderError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    faulthandler.enable()
    content = arguments.source.read_bytes()
    header = gguf.GGUFReader(arguments.source).data_offset
    loaded = 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.count):
            print(f"\r{i}", end="", file=sys.stderr, flush=True)  # the last one stays when a library aborts
            path = Path(folder) / f"{i}.gguf"
            path.write_bytes(damaged(content, header, np.random.default_rng((arguments.seed, i))))
            loaded += survives(path)
            path.unlink()
    print(f"{arguments.count} files: {arguments.count - loaded} refused, {loaded} loaded")


if __name__ == "__main__":
    main()
