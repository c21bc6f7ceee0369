"""Finding when each word is said: offline from a transcript, or by a speech recogniser.

An aligner is a function ``(samples, sample_rate, transcript) -> list of WordTime`` of mono float32
samples, registered in the entry-point group ``vocoder_plugin.aligners``. The transcript is None
where the aligner has to find the words too; an aligner that cannot raises AlignmentError.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...audio.samples import resample
from .errors import AlignmentError, missing
from .phones import pronounce
from .text import spell_numbers
from .words import WordTime, check_words

GROUP = "vocoder_plugin.aligners"
Aligner = Callable[..., list[WordTime]]


def aligners() -> list[str]:
    """The names of the aligners that installed packages register."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def load_aligner(name: str) -> Aligner:
    """An aligner by its registered name."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    raise AlignmentError(f"there is no aligner {name!r}; installed are {', '.join(aligners()) or 'none'}")


def align(
    samples: np.ndarray, sample_rate: int, transcript: str | None, *, aligner: str | Aligner, **options: Any
) -> list[WordTime]:
    """Word times of mono samples [n] by an aligner, checked."""
    function = load_aligner(aligner) if isinstance(aligner, str) else aligner
    words = check_words(function(samples, sample_rate, transcript, **options))
    length = samples.size / sample_rate
    if words[-1].start > length:
        raise AlignmentError(f"word {words[-1].text!r} starts at {words[-1].start:.2f} s of a clip of {length:.2f} s")
    return words


# pocketsphinx has an English model in the package itself.
SPHINX_RATE = 16000
FRAMES_PER_SECOND = 100
# There is one path, and it must not be lost: no beam at all, and no second search that looks for others.
SEARCH = {"beam": 0.0, "pbeam": 0.0, "wbeam": 0.0, "maxhmmpf": -1, "bestpath": False}
# Measured on espeak-ng in six voices with right and wrong transcripts: these part nearly all of them.
LOWEST_SCORE = -0.0065  # the logarithm of the path's score, for each frame
MOST_UNUSED = 0.2  # of the sound, outside of the words
MOST_UNKNOWN = 0.3  # of the words, in no dictionary
ENGLISH = "pocketsphinx knows English only; for another language give word times (--words) or a recogniser (--asr)"

TITLES = {"dr": "doctor", "mr": "mister", "mrs": "missus", "st": "saint"}


def align_with_pocketsphinx(samples: np.ndarray, sample_rate: int, transcript: str | None) -> list[WordTime]:
    """Times of an English transcript's words; words of no dictionary are pronounced by rule."""
    if not transcript or not transcript.strip():
        raise AlignmentError("pocketsphinx times the words of a transcript, and there is none")
    tokens = transcript.split()
    spoken = [_spoken(token) for token in tokens]
    words = {word for parts in spoken for word in parts}
    if not words:
        raise AlignmentError(f"the transcript {transcript[:40]!r} has no English words")
    decoder = _sphinx()
    unknown = sorted(word for word in words if decoder.lookup_word(word) is None)
    if len(unknown) > max(2, MOST_UNKNOWN * len(words)):
        warnings.warn(
            f"{len(unknown)} of {len(words)} words of the transcript are in no English dictionary, "
            f"such as {', '.join(unknown[:3])}; {ENGLISH}",
            stacklevel=2,
        )
    for word in unknown:
        decoder.add_word(word, " ".join(pronounce(word)), True)
    decoder.set_align_text(" ".join(word for parts in spoken for word in parts))
    audio = np.clip(resample(np.asarray(samples, np.float32), sample_rate, SPHINX_RATE), -1, 1)
    decoder.start_utt()
    decoder.process_raw((audio * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = [
        (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
        for segment in decoder.seg() or ()
        if segment.word[0] not in "<[("
    ]
    if len(found) != sum(map(len, spoken)):
        raise AlignmentError(f"the transcript does not fit the clip: its words cannot be placed; {ENGLISH}")
    score = decoder.hyp().score
    unused = _unused(audio, found)
    if unused > MOST_UNUSED or score <= 0 or math.log(score) < LOWEST_SCORE * decoder.n_frames():
        what = (
            f"{unused:.0%} of the sound is in none of its words" if unused > MOST_UNUSED else "the sound is unlike it"
        )
        warnings.warn(f"the transcript may not be what is said in the clip: {what}; check it", stacklevel=2)
    return _gather(tokens, spoken, found)


def _unused(audio: np.ndarray, words: Sequence[tuple[float, float]]) -> float:
    """The part of a clip's sound, at 16 kHz, that lies outside of its words; silence does not count."""
    step = SPHINX_RATE // FRAMES_PER_SECOND
    levels = np.sqrt(np.mean(audio[: audio.size // step * step].reshape(-1, step) ** 2, axis=1))
    said = np.zeros(levels.size, bool)
    for start, end in words:
        said[round(start * FRAMES_PER_SECOND) : round(end * FRAMES_PER_SECOND)] = True
    loud = levels > 0.25 * np.median(levels[said]) if said.any() else levels > 0
    return float(np.mean(~said[loud])) if loud.any() else 0.0


def _gather(
    tokens: Sequence[str], spoken: Sequence[Sequence[str]], found: Sequence[tuple[float, float]]
) -> list[WordTime]:
    """A time for each token of several spoken words; a token without any (a dash) joins the one before it."""
    words: list[WordTime] = []
    waiting, place = "", 0
    for token, parts in zip(tokens, spoken, strict=True):
        if parts:
            last = place + len(parts) - 1
            words.append(WordTime(waiting + token, found[place][0], found[last][1]))
            waiting, place = "", last + 1
        elif words:
            words[-1] = WordTime(f"{words[-1].text} {token}", words[-1].start, words[-1].end)
        else:
            waiting = f"{token} "
    return words


def _spoken(token: str) -> list[str]:
    """The dictionary's words for a written one: 'well-known' is two, '25' is two."""
    plain = unicodedata.normalize("NFKD", token.lower().replace("’", "'"))
    foreign = [char for char in plain if char.isalpha() and not char.isascii()]
    if foreign:
        raise AlignmentError(f"{token[:40]!r} in the transcript has the letter {foreign[0]!r}, and {ENGLISH}")
    if re.search(r"\d", plain):
        plain = spell_numbers(plain)
    words = (part.strip("'") for part in re.findall(r"[a-z']+", re.sub(r"[\u0300-\u036f]", "", plain)))
    return [TITLES.get(word, word) for word in words if word]


@functools.cache
def _sphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError:
        raise missing("pocketsphinx", purpose="aligning a transcript", extra="align") from None
    return pocketsphinx.Decoder(samprate=SPHINX_RATE, lm=None, loglevel="FATAL", **SEARCH)


def transcribe_with_faster_whisper(
    samples: np.ndarray, sample_rate: int, transcript: str | None, *, model: str | os.PathLike[str] | None = None
) -> list[WordTime]:
    """Words and times by a Whisper model; a transcript only guides it.

    Parameters
    ----------
    model : path-like
        Folder of a model in CTranslate2's format, or a name that faster-whisper fetches.
    """
    try:
        import faster_whisper
    except ImportError:
        raise missing("faster-whisper", purpose="recognising speech", extra="asr") from None
    if model is None:
        raise AlignmentError("faster-whisper needs a model: a folder, or a name it can fetch, such as small")
    try:
        whisper = faster_whisper.WhisperModel(str(model), compute_type="int8")
        audio = resample(np.asarray(samples, np.float32), sample_rate, SPHINX_RATE)
        segments, _ = whisper.transcribe(audio, word_timestamps=True, initial_prompt=transcript)
        return [WordTime(word.word.strip(), word.start, word.end) for segment in segments for word in segment.words]
    except (OSError, RuntimeError, ValueError) as error:
        raise AlignmentError(f"faster-whisper cannot use {model}: {error}") from None
