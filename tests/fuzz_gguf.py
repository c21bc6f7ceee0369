#!/usr/bin/env python3
"""Damages codec files, again and again: each must load and run, or be refused with a VocoderError, soon and in memory.

python tests/fuzz_gguf.py --seed 1 --count 2000 dac.gguf mimi.gguf wavtokenizer.gguf

Half of the cases change fields that the header's structure has (counts, lengths, types, dimensions, offsets, whole
numbers), the others any bytes. Any codec's files can be given; a codec joins by having one.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from vocoder_plugin import Codec, VocoderError

MOST_SECONDS = 5.0  # of one case
MOST_BYTES = 200 << 20  # beyond ten times the file's size
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of GGUF's scalar types
ODD = (0, 1, 2, 3, 7, 8, 255, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def fields(content: bytes) -> list[tuple[int, int]]:
    """(offset, width) of every number in a file's header."""
    found: list[tuple[int, int]] = [(4, 4), (8, 8), (16, 8)]
    at = 24
    tensors, keys = struct.unpack_from("<QQ", content, 8)

    def number(width: int) -> int:
        nonlocal at
        found.append((at, width))
        at += width
        return int.from_bytes(content[at - width : at], "little")

    def text() -> None:
        nonlocal at
        length = number(8)  # before the addition, which it changes the place of
        at += length

    def value(kind: int) -> None:
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number(4), number(8)
            for _ in range(count):
                value(inner)
        else:
            number(WIDTHS[kind])

    for _ in range(keys):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found


def damaged(content: bytes, header: int, places: list[tuple[int, int]], rng: np.random.Generator) -> bytes:
    """A copy with 1 to 4 numbers of its header changed, or 1 to 8 bytes, nine times out of ten in the header."""
    changed = bytearray(content)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 5)):
            at, width = places[rng.integers(len(places))]
            old = int.from_bytes(changed[at : at + width], "little")
            new = int(rng.choice(np.array(ODD, object))) if rng.random() < 0.5 else old + int(rng.integers(-2, 3))
            changed[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    else:
        low, high = (0, header) if rng.random() < 0.9 else (header, len(content))
        for place in rng.integers(low, high, rng.integers(1, 9)):
            changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def survives(path: Path) -> bool:
    """Whether the file loads; what loads must also run, all that it has."""
    try:
        with Codec.load(path, n_threads=1) as codec, np.errstate(all="ignore"):
            if codec.has_decoder:
                codec.decode(np.zeros((len(codec.format.rows), 2), np.int32))
            if codec.has_encoder:
                codec.encode(np.zeros(codec.hop_length, np.float32), codec.sample_rate)
                codec.encode_latents(np.zeros(codec.hop_length, np.float32))
    except VocoderError:
        return False
    return True


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="cases of each source")
    arguments = parser.parse_args()
    faulthandler.enable()
    loaded = slow = 0
    for source in arguments.sources:
        content = source.read_bytes()
        header, places = gguf.GGUFReader(source).data_offset, fields(content)
        survives(source)  # what a healthy file takes counts as nothing
        before = peak_bytes()
        with tempfile.TemporaryDirectory() as folder:
            for i in range(arguments.count):
                print(f"\r{source.name} {i}", end="", file=sys.stderr, flush=True)  # the last stays when C aborts
                path = Path(folder) / f"{i}.gguf"
                path.write_bytes(damaged(content, header, places, np.random.default_rng((arguments.seed, i))))
                start = time.process_time()
                loaded += survives(path)
                if (seconds := time.process_time() - start) > MOST_SECONDS:
                    slow += 1
                    print(f"\n{source.name} {i} took {seconds:.1f} s")
                path.unlink()
        if (grown := peak_bytes() - before) > MOST_BYTES + 10 * len(content):
            sys.exit(f"{source.name}: memory grew by {grown >> 20} MiB")
    total = arguments.count * len(arguments.sources)
    print(f"{total} files: {total - loaded} refused, {loaded} loaded")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
