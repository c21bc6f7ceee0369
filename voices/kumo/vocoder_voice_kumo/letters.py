"""Letter-to-sound rules for words that no dictionary has.

A rule's key is a letter between its neighbours: ``ti[o]n`` is an o after ti and before n; ``#`` is the word's edge.
Rules are made by ``voices/training/letter_rules.py``.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

EDGE = "#"
CONTEXTS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4))  # letters before and after


def context_key(padded: str, at: int, left: int, right: int) -> str:
    """``padded`` has an edge at both ends; contexts that would reach beyond them are cut."""
    return f"{padded[max(0, at - left) : at]}[{padded[at]}]{padded[at + 1 : at + 1 + right]}"


@cache
def rules() -> dict[str, str]:
    with gzip.open(str(files(__package__) / "letter_rules.txt.gz"), "rt", encoding="ascii") as lines:
        return {key: sounds for key, _, sounds in (line.rstrip("\n").partition(" ") for line in lines)}


def pronounce_by_rule(word: str, known: dict[str, str] | None = None) -> list[str]:
    """The sounds of a word of the letters a to z, with one main stress where it has a vowel."""
    known = rules() if known is None else known
    padded = EDGE + word + EDGE
    sounds: list[str] = []
    for i in range(1, len(padded) - 1):
        keys = (context_key(padded, i, left, right) for left, right in reversed(CONTEXTS))
        sounds += next((known[key] for key in keys if key in known), "").split()
    return _stressed_once(sounds)


def _stressed_once(sounds: list[str]) -> list[str]:
    """Rules look at letters alone, so a word can end up with two main stresses or none; the first vowel then has it."""
    main = [i for i, sound in enumerate(sounds) if sound.endswith("1")]
    for i in main[1:]:
        sounds[i] = sounds[i][:-1] + "2"
    if not main:
        vowels = [i for i, sound in enumerate(sounds) if sound[-1].isdigit()]
        full = [i for i in vowels if sounds[i].endswith("2")] or [i for i in vowels if sounds[i] != "AH0"] or vowels
        if full:
            sounds[full[0]] = sounds[full[0]][:-1] + "1"
    return sounds
