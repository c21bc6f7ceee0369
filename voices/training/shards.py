"""What make_speech.py wrote, clip by clip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Clip:
    name: str
    words: list[str]
    marks: list[str]
    phones: list[tuple[str, int]]  # with their frames
    inputs: np.ndarray  # [2F, 514] float16: features, scaled pitch and energy
    samples: np.ndarray | None  # [600 F] int16

    @property
    def frames(self) -> int:
        return len(self.inputs) // 2

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def written(self) -> str:
        """With its marks."""
        return " ".join(word + mark for word, mark in zip(self.words, self.marks, strict=True))


def complete_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if ".partial" not in path.name)


def read_clips(path: Path) -> Iterator[Clip]:
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(path) as arrays:
        features, curves = arrays["features"], arrays["curves"]
        samples = arrays["samples"] if "samples" in arrays.files else None
    pitch = np.log(np.maximum(curves[:, :1], 20.0))
    inputs = np.concatenate([features, pitch.astype(np.float16), curves[:, 1:].astype(np.float16)], axis=1)
    at = 0
    for i, clip in enumerate(facts["clips"]):
        frames = sum(count for _, count in clip["phones"])
        yield Clip(
            f"{path.stem}_{i}",
            clip["words"],
            clip["marks"],
            [(phone, count) for phone, count in clip["phones"]],
            inputs[2 * at : 2 * (at + frames)],
            samples[600 * at : 600 * (at + frames)] if samples is not None else None,
        )
        at += frames
