"""Speaker profiles from clips: word times, codes, features; sliced as the package outetts slices them."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...audio.samples import as_mono, read_audio, resample
from ...codec import Codec
from ...errors import AudioError
from . import features, loudness
from .align import Aligner, align
from .errors import AlignmentError, SpeakerError
from .fingerprint import fingerprint
from .speaker import Speaker, Word
from .text import words_v1, words_v2
from .words import WordTime, check_words, read_words

LONGEST, LONG = 20.0, 15.0  # seconds: refused beyond, warned about beyond
EXTENSION = 20  # frames: the first word starts so much early, the last ends so much late
WINDOW_SECONDS = 5  # the codec encodes such windows on their own
EMPTY = 1  # the code of a word without frames, in versions 1 and 2

TextTimes = Sequence[WordTime | Mapping[str, Any] | tuple[str, float, float]]


def create_speaker(
    audio: str | os.PathLike[str] | np.ndarray,
    transcript: str | None = None,
    *,
    codec: Codec,
    words: TextTimes | str | os.PathLike[str] | None = None,
    sample_rate: int | None = None,
    version: int | None = None,
    aligner: str | Aligner | None = None,
    aligner_options: Mapping[str, Any] | None = None,
) -> Speaker:
    """A profile of the voice in a clip.

    Parameters
    ----------
    audio : path-like, or float array [n] or [n, channels] with its ``sample_rate``
        Up to 20 s; best up to 15 s.
    transcript : str, optional
        What is said. Needed unless ``words`` are given or the aligner finds them.
    codec : Codec
        The one of the model that shall speak; must have an encoder.
    words : word times or a path, optional
        Triples (text, start, end) in seconds, WordTime, dicts, or a file for ``read_words``.
    version : int, optional
        By default 3 for a codec of two codebooks, 2 for one.
    aligner : str or function, optional
        By default ``pocketsphinx``, for an English transcript; see ``outetts.align``.
    aligner_options : mapping, optional
        Such as the ``model`` of ``faster-whisper``.

    Raises
    ------
    AudioError
        For a clip that is too long, silent, or cannot be read.
    AlignmentError
        If there are no usable word times.
    SpeakerError
        If version and codec do not fit.
    """
    version = (3 if codec.n_codebooks == 2 else 2) if version is None else version
    if codec.n_codebooks != (2 if version == 3 else 1):
        raise SpeakerError(f"version {version} does not go with codec {codec.name!r} of {codec.n_codebooks} codebooks")
    samples = load_clip(audio, sample_rate, codec.sample_rate)
    if words is None:
        if transcript is None and aligner is None:
            raise AlignmentError("a speaker needs a transcript, word times, or an aligner that recognises speech")
        times = align(
            samples, codec.sample_rate, transcript, aligner=aligner or "pocketsphinx", **(aligner_options or {})
        )
    else:
        times = read_words(words) if isinstance(words, (str, os.PathLike)) else check_words(words)
    length = samples.size / codec.sample_rate
    if times[-1].start >= length:
        raise AlignmentError(
            f"word {times[-1].text!r} starts at {times[-1].start:.2f} s, but the clip has {length:.2f} s"
        )
    if words is not None and transcript is not None and version == 3:  # 1 and 2 compare as their models read them
        _check_same(times, transcript)
    text = plain_text(" ".join(time.text for time in times) if transcript is None else transcript)
    made_by = {"name": codec.name, "sha256": fingerprint(codec.path)}
    if version == 3:
        overall = features.measure(samples, codec.sample_rate)
        return Speaker(3, text, tuple(_words_v3(samples, times, codec)), overall, made_by)
    return Speaker(version, text, tuple(_words_v1_v2(samples, text, times, codec, version)), codec=made_by)


def _check_same(times: Sequence[WordTime], transcript: str) -> None:
    """Refuse words that are not those of the transcript; marks, case and how words are parted do not count."""

    def bare(texts: Iterable[str]) -> list[str]:
        return ["".join(filter(str.isalnum, text.casefold())) for text in texts]

    timed, written = bare(time.text for time in times), bare(transcript.split())
    if "".join(timed) != "".join(written):
        place = next((i for i, (a, b) in enumerate(zip(timed, written, strict=False)) if a != b), len(timed))
        raise AlignmentError(
            f"the words do not fit the transcript from its word {min(place, len(written)) + 1} on; "
            "leave the transcript out, or give times of its words"
        )


def load_clip(audio: str | os.PathLike[str] | np.ndarray, sample_rate: int | None, target_rate: int) -> np.ndarray:
    """A clip as mono float32 [n] at the target's rate; AudioError if it is not of a usable length."""
    if isinstance(audio, np.ndarray):
        if sample_rate is None:
            raise AudioError("an array of samples needs its sample_rate")
        given, rate = audio, sample_rate
    else:
        given, rate = read_audio(audio)
    samples = resample(as_mono(given), rate, target_rate)
    seconds = samples.size / target_rate
    if samples.size == 0:
        raise AudioError("the clip is empty")
    if seconds > LONGEST:
        raise AudioError(
            f"the clip has {seconds:.1f} s, expected at most {LONGEST:g} s; cut it to 10 to 15 s of speech"
        )
    if seconds > LONG:
        warnings.warn(f"the clip has {seconds:.1f} s; up to {LONG:g} s give the best voice", stacklevel=3)
    return samples


def plain_text(text: str) -> str:
    """A transcript with plain spaces, quotes and dashes, as outetts stores it."""
    text = re.sub(r"\s+", " ", text).replace("…", "...").strip()
    for kinds, plain in (("“”", '"'), ("‘’", "'"), ("–—", "-")):
        text = re.sub(f"[{kinds}]", plain, text)
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text)


def encode_clip(samples: np.ndarray, codec: Codec) -> np.ndarray:
    """Codes [n_codebooks, n_frames] of a clip at the level and in the windows that OuteTTS 1.0 was trained on."""
    level = loudness.normalise(samples, codec.sample_rate)
    window = math.ceil(WINDOW_SECONDS * codec.sample_rate / codec.hop_length) * codec.hop_length
    parts = [codec.encode(level[i : i + window], codec.sample_rate) for i in range(0, level.size, window)]
    return np.concatenate(parts, axis=1)


def _words_v3(samples: np.ndarray, times: Sequence[WordTime], codec: Codec) -> list[Word]:
    codes, rate = encode_clip(samples, codec), codec.sample_rate
    words = []
    start = max(0, int(times[0].start * codec.frame_rate) - EXTENSION)
    for time in times:
        end = int(time.end * codec.frame_rate)
        if time is times[-1]:
            end = min(codes.shape[1], end + EXTENSION)
        rows = codes[:, start:end].tolist()
        measured = features.measure(samples[int(time.start * rate) : int(time.end * rate)], rate)
        words.append(
            Word(
                time.text,
                round(len(rows[0]) / codec.frame_rate, 2),
                tuple(tuple(row) for row in rows),
                measured,
            )
        )
        start = end
    return words


def _words_v1_v2(samples: np.ndarray, text: str, times: Sequence[WordTime], codec: Codec, version: int) -> list[Word]:
    """Words run from the end of the one before to their own; the clip is cut after the last."""
    split = words_v1 if version == 1 else words_v2
    expected = split(text)
    spoken = [part for time in times for part in _parts(time, split)]
    if [word for word, _ in spoken] != expected:
        place = next((i for i, (w, e) in enumerate(zip(spoken, expected, strict=False)) if w[0] != e), len(expected))
        raise AlignmentError(f"the words do not fit the transcript from its word {place + 1} on")
    codes = codec.encode(samples[: int(times[-1].end * codec.sample_rate)], codec.sample_rate)[0].tolist()
    words, start = [], 0
    for word, until in spoken:
        end = round(until * codec.frame_rate)
        row = codes[start:end] or [EMPTY]
        words.append(Word(word, round(len(row) / codec.frame_rate, 2), (tuple(row),)))
        start = end
    return words


def _parts(time: WordTime, split: Callable[[str], list[str]]) -> list[tuple[str, float]]:
    """The model's words for a written one ('25' is two), each with its end; time shared out by letters."""
    parts = split(time.text)
    letters = np.cumsum([len(part) for part in parts])
    return [
        (part, time.start + (time.end - time.start) * float(count / letters[-1]))
        for part, count in zip(parts, letters, strict=True)
    ]
