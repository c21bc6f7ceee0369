"""When each word of a clip is said, read from the files that aligners and editors write."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import regular_file
from .errors import AlignmentError

FILE_LIMIT = 4 << 20  # bytes
# Each of these looks at a character a bounded number of times, whatever the file holds.
CUE_TIME = re.compile(r"(?<!\d)(?:(\d+):)?(\d+):(\d+)[.,](\d+)")
INLINE_TIME = re.compile(r"<((?:\d+:)?\d+:\d+[.,]\d+)>")
CUE_MARKUP = re.compile(r"<[^<>]*>|\{[^{}]*\}")
PRAAT_ITEM = re.compile(r'"((?:[^"]|"")*)"|(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')


@dataclass(frozen=True)
class WordTime:
    """A word and its place in a clip, in seconds."""

    text: str
    start: float
    end: float


def read_words(path: str | os.PathLike[str]) -> list[WordTime]:
    """Word times from a .json, .ctm, .srt, .vtt or .TextGrid file.

    JSON is a list of ``{"word", "start", "end"}``, such a list under ``words``, or Whisper's
    ``segments``. A subtitle has one word a cue, or times within its cues. Of a TextGrid, the tier
    named ``words`` is taken, or its first tier of intervals.

    Raises AlignmentError if the file cannot be read or its times make no sense.
    """
    kind = Path(path).suffix.lower()
    if kind not in READERS:
        raise AlignmentError(f"word times are read from {', '.join(READERS)} files", path=path)
    try:
        size = regular_file(path).st_size
        if size > FILE_LIMIT:
            raise AlignmentError(f"{size} bytes are too many for word times", path=path)
        data = Path(path).read_bytes()
        utf_16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return check_words(list(READERS[kind](data.decode("utf-16" if utf_16 else "utf-8-sig"))))
    except OSError as error:
        raise AlignmentError(f"cannot be read: {error.strerror}", path=path) from None
    except AlignmentError as error:
        raise error if error.path else AlignmentError(str(error), path=path) from None
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise AlignmentError(f"not a readable {kind} file: {str(error)[:100]}", path=path) from None


def check_words(words: Sequence[WordTime | Any]) -> list[WordTime]:
    """Word times in order, given as WordTime, dicts or triples; AlignmentError if they make no sense."""
    checked: list[WordTime] = []
    for index, given in enumerate(words, 1):
        word = _word_time(given, index)
        if not word.text:
            continue
        if not (math.isfinite(word.start) and math.isfinite(word.end) and 0 <= word.start <= word.end):
            raise AlignmentError(f"word {index} ({word.text[:20]!r}) is said from {word.start} to {word.end} s")
        if checked and (word.start < checked[-1].start or word.end < checked[-1].end):
            raise AlignmentError(f"word {index} ({word.text[:20]!r}) comes before the word ahead of it")
        checked.append(word)
    if not checked:
        raise AlignmentError("there are no words")
    return checked


def _word_time(given: Any, index: int) -> WordTime:
    try:
        if isinstance(given, WordTime):
            text, start, end = given.text, given.start, given.end
        elif isinstance(given, dict):
            text, start, end = given["word"] if "word" in given else given["text"], given["start"], given["end"]
        else:
            text, start, end = given
        if not isinstance(text, str) or isinstance(start, bool) or isinstance(end, bool):
            raise TypeError
        return WordTime(text.strip(), float(start), float(end))
    except (KeyError, TypeError, ValueError):
        raise AlignmentError(f"word {index} is {str(given)[:40]}, expected its text, start and end") from None


def _json(text: str) -> Iterable[Any]:
    data = json.loads(text)
    if isinstance(data, dict):
        if isinstance(data.get("words"), list):
            return data["words"]
        segments = data.get("segments")
        if isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments):
            if not all(isinstance(segment.get("words"), list) for segment in segments):
                raise AlignmentError("its segments have no word times; have Whisper write them: --word_timestamps True")
            return [word for segment in segments for word in segment["words"]]
    if not isinstance(data, list):
        raise AlignmentError("expected a list of words, or an object with 'words' or 'segments'")
    return data


def _ctm(text: str) -> Iterable[WordTime]:
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split(maxsplit=5)
        if not fields or line.startswith(";;"):
            continue
        if len(fields) < 5:
            raise AlignmentError(
                f"line {number} has {len(fields)} fields, expected file, channel, start, duration, word"
            )
        start, duration = float(fields[2]), float(fields[3])
        yield WordTime(fields[4], start, start + duration)


def _cues(text: str) -> Iterable[WordTime]:
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        timing = next((index for index, line in enumerate(lines) if "-->" in line), None)
        if timing is None:
            continue
        times = [_seconds(match) for match in itertools.islice(CUE_TIME.finditer(lines[timing]), 2)]
        if len(times) < 2:
            raise AlignmentError(f"the cue {lines[timing][:40]!r} has no two times")
        yield from _cue_words(" ".join(lines[timing + 1 :]), times[0], times[1])


def _cue_words(cue: str, start: float, end: float) -> Iterable[WordTime]:
    pieces = INLINE_TIME.split(cue)  # text, time, text, time, ... text
    starts = [start, *(_seconds(CUE_TIME.fullmatch(piece)) for piece in pieces[1::2])]
    ends = [*starts[1:], end]
    for piece, first, last in zip(pieces[::2], starts, ends, strict=True):
        text = CUE_MARKUP.sub("", piece).strip()
        if len(text.split()) > 1:
            raise AlignmentError(f"the cue {text[:40]!r} has several words, expected a cue for each word")
        if text:
            yield WordTime(text, first, last)


def _seconds(match: re.Match[str] | None) -> float:
    if match is None:
        raise AlignmentError("a cue has a damaged time")
    hours, minutes, seconds, fraction = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _textgrid(text: str) -> Iterable[WordTime]:
    items = [m[1].replace('""', '"') if m[1] is not None else float(m[2]) for m in PRAAT_ITEM.finditer(_bare(text))]
    if items[:2] != ["ooTextFile", "TextGrid"] or len(items) < 5:
        raise AlignmentError("not a Praat TextGrid in text form")
    tiers: dict[str, list[WordTime]] = {}
    position = 5
    for _ in range(int(items[4])):
        kind, name, size = items[position], items[position + 1], int(items[position + 4])
        width = 3 if kind == "IntervalTier" else 2
        if not 0 <= size <= len(items):
            raise AlignmentError(f"tier {str(name)[:40]!r} says it has {size} items")
        rows = [items[position + 5 + i * width : position + 5 + (i + 1) * width] for i in range(size)]
        position += 5 + size * width
        if kind == "IntervalTier":
            if any(len(row) != 3 for row in rows):
                raise AlignmentError(f"tier {str(name)[:40]!r} ends early")
            tiers[str(name)] = [WordTime(str(row[2]).strip(), float(row[0]), float(row[1])) for row in rows]
    if not tiers:
        raise AlignmentError("the TextGrid has no tier of intervals")
    chosen = next((name for name in tiers if name.lower() in ("words", "word")), next(iter(tiers)))
    return tiers[chosen]


def _bare(text: str) -> str:
    """A TextGrid without the numbers in brackets, which only count the items; strings stay as they are."""
    return re.sub(r'("(?:[^"]|"")*")|\[\d*\]', lambda match: match[1] or "", text)


READERS = {".json": _json, ".ctm": _ctm, ".srt": _cues, ".vtt": _cues, ".textgrid": _textgrid}
