"""Long text in chunks that the model says well: 10 to 30 words, ending where sentences end if they can."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...errors import ArgumentError
from .text import is_kana_or_han, need_text

MIN_WORDS, MAX_WORDS = 10, 30
HALVES = 2  # a word counts 2, a kana or han character 1, its punctuation 0
SENTENCE_END = re.compile(r"[.!?…。！？؟︕︖।]+[\"'”’»)\]」』]*$")
CLAUSE_END = re.compile(r"[,;:，；：、،؛—–]+[\"'”’»)\]」』]*$")
ABBREVIATION = re.compile(r"(?:(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|fig|jr|sr)\.|(?:\w\.)+)$", re.IGNORECASE)
AFTER_CLAUSE, AFTER_WORD, INSIDE_WORD = 4.0, 12.0, 20.0  # what it costs to end a chunk there; a sentence's end is free


@dataclass(frozen=True)
class Piece:
    """A part of a text that is never divided, with the space before it, and what it costs to end a chunk after it."""

    text: str
    space: str
    halves: int
    cost: float


def split_text(text: str, *, min_words: int = MIN_WORDS, max_words: int = MAX_WORDS) -> list[str]:
    """Chunks of a text, in order; without white space, they hold all of the text.

    Each has ``min_words`` to ``max_words`` words, if the text has as many and ``max_words`` is at
    least twice ``min_words``. The ends are chosen together, for the whole text: first at ends of
    sentences, else of clauses. A Japanese or Chinese character counts as half a word.
    """
    if not 1 <= min_words <= max_words:
        raise ArgumentError(f"chunks of {min_words} to {max_words} words, expected 1 <= min_words <= max_words")
    pieces = _pieces(need_text(text))
    if not pieces:
        return []
    ends = _best_ends(pieces, min_words * HALVES, max_words * HALVES) or _best_ends(pieces, 0, max_words * HALVES)
    chunks, start = [], 0
    for end in ends:
        chunks.append("".join(piece.space + piece.text for piece in pieces[start:end]).strip())
        start = end
    return chunks


def count_words(text: str) -> int:
    """Words as ``split_text`` counts them."""
    return sum(piece.halves for piece in _pieces(text)) // HALVES


def _best_ends(pieces: list[Piece], least: int, most: int) -> list[int]:
    """Where chunks end so that the sum of costs is smallest; empty if no chunks of these sizes fit the text."""
    before = [0]
    for piece in pieces:
        before.append(before[-1] + piece.halves)
    if before[-1] <= least:
        return [len(pieces)]
    middle = (least + most) / 2
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(pieces) + 1):
        cost, place = math.inf, 0
        start = end - 1
        while start >= 0 and (size := before[end] - before[start]) <= most:
            if size >= least and best[start][0] < math.inf:
                uneven = ((size - middle) / middle) ** 2
                if best[start][0] + uneven < cost:
                    cost, place = best[start][0] + uneven, start
            start -= 1
        at_end = 0.0 if end == len(pieces) else pieces[end - 1].cost
        best.append((cost + at_end, place))
    if best[-1][0] == math.inf:
        return []
    ends = [len(pieces)]
    while (place := best[ends[-1]][1]) > 0:
        ends.append(place)
    return ends[::-1]


def _pieces(text: str) -> list[Piece]:
    parts: list[tuple[str, str]] = []  # space before, text
    for space, word in re.findall(r"(\s*)(\S+)", text):
        divided = _divide(word) if any(map(is_kana_or_han, word)) else [word]
        parts.append((space, divided[0]))
        parts += [("", part) for part in divided[1:]]
    pieces = []
    for index, (space, part) in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else ("\n\n", "")
        pieces.append(Piece(part, " " if space else "", _halves(part), _cost(part, *following)))
    return pieces


def _divide(word: str) -> list[str]:
    """Characters of a word in Japanese or Chinese, with the marks behind them; other scripts stay together."""
    parts: list[str] = []
    for char in word:
        joins = parts and not is_kana_or_han(char) and (not char.isalnum() or not is_kana_or_han(parts[-1][0]))
        if joins and not (char.isalnum() and not parts[-1][-1].isalnum()):
            parts[-1] += char
        else:
            parts.append(char)
    return parts


def _halves(part: str) -> int:
    if is_kana_or_han(part[0]):
        return 1
    return HALVES if any(char.isalnum() for char in part) or len(part) > 1 else 0


def _cost(part: str, space: str, following: str) -> float:
    if space.count("\n") > 1:  # a paragraph ends
        return 0.0
    if ABBREVIATION.fullmatch(part):
        return INSIDE_WORD
    spaced = space or is_kana_or_han(part[0])
    if spaced and SENTENCE_END.search(part) and not following[:1].islower():
        return 0.0
    if spaced and CLAUSE_END.search(part):
        return AFTER_CLAUSE
    return AFTER_WORD if space else INSIDE_WORD
