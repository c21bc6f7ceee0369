"""A small English voice for vocoder-plugin: where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Voice:
    """The files of a voice; ``codec`` and ``llama`` are GGUF files."""

    name: str
    language: str
    codec: Path
    llama: Path
    sample_rate: int
    frame_rate: float


FOLDER = Path(str(files(__name__)))
VOICE = Voice("kumo", "en", FOLDER / "codec.gguf", FOLDER / "llama.gguf", 24000, 40.0)
