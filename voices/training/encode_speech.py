#!/usr/bin/env python3
"""The codes of all speech, for the language model: ``encode_speech.py DATA CODEC``.

Writes ``CODEC/codes/KIND_NNNNN.npz`` for every shard of both kinds that has none yet: the model's tokens, which of them
it is to write, and where each sentence begins.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from checkpoints import load
from codec_model import Codec, CodecSize
from shards import Clip, complete_shards, read_clips
from vocoder_voice_kumo.phones import MARKS, START
from vocoder_voice_kumo.sequence import sequence

START_FRAMES, END_FRAMES = 4, 8  # what is kept of the silence around a sentence
KINDS = ("test", "audio", "features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--codes", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec(CodecSize(codes=options.codes)).eval()
    state = {"frozen": False}
    if not load(options.codec / "codec.pt", state, codec=codec) or not state["frozen"]:
        parser.error(f"{options.codec}/codec.pt has no final codes yet; train_codec.py makes them")
    (options.codec / "codes").mkdir(exist_ok=True)
    for kind in KINDS:
        for path in complete_shards(options.data / kind):
            target = options.codec / "codes" / f"{kind}_{path.stem}.npz"
            if not target.exists():
                write_tokens(target, [clip_tokens(codec, clip) for clip in read_clips(path)])


def clip_tokens(codec: Codec, clip: Clip) -> tuple[list[int], list[bool]]:
    codes = codec.codes(torch.from_numpy(clip.inputs.astype(np.float32))[None])[0].numpy()
    timed, codes = trimmed(clip.phones, codes)
    return sequence(timed, codes)


def trimmed(timed: list[tuple[str, int]], codes: np.ndarray) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Without most of the silence at both ends."""
    (first, before), (last, after) = timed[0], timed[-1]
    assert first == START and last in MARKS
    cut_before, cut_after = max(0, before - START_FRAMES), max(0, after - END_FRAMES)
    kept = [(first, before - cut_before), *timed[1:-1], (last, after - cut_after)]
    return kept, codes[cut_before : len(codes) - cut_after]


def write_tokens(target: Path, clips: list[tuple[list[int], list[bool]]]) -> None:
    partial = target.with_suffix(".partial.npz")
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in clips)])
    np.savez_compressed(
        partial,
        tokens=np.concatenate([np.asarray(tokens, np.uint16) for tokens, _ in clips]),
        written=np.concatenate([np.asarray(written, bool) for _, written in clips]),
        starts=starts,
    )
    partial.rename(target)


if __name__ == "__main__":
    main()
