"""Words to sounds: the CMU Pronouncing Dictionary, and letter-to-sound rules learned from it for all other words."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

from .phones import FUNCTION_WORDS, VOWELS, without_stress

WEAK_FORMS = {"the": ["DH", "AH0"], "a": ["AH0"], "to": ["T", "AH0"], "of": ["AH0", "V"], "and": ["AH0", "N", "D"]}
BEFORE_VOWELS = {"the": ["DH", "IY0"], "to": ["T", "UW0"]}


@cache
def dictionary() -> dict[str, list[str]]:
    """The first pronunciation of each word in lower case."""
    with gzip.open(str(files(__package__) / "cmudict.txt.gz"), "rt", encoding="ascii") as lines:
        return {word: phones.split() for word, _, phones in (line.strip().partition(" ") for line in lines)}


def sentence_phones(words: list[str]) -> list[list[str]]:
    """The sounds of each word of a sentence, function words in their weak forms.

    Raises
    ------
    KeyError
        With the word, if the dictionary lacks it.
    """
    spoken = [dictionary()[word] for word in words]
    for i, word in enumerate(words):
        following = spoken[i + 1] if i + 1 < len(words) else None
        if following is None:
            continue  # at the end of a sentence words are said in full
        if word in BEFORE_VOWELS and following[0][:2] in VOWELS:
            spoken[i] = BEFORE_VOWELS[word]
        elif word in WEAK_FORMS:
            spoken[i] = WEAK_FORMS[word]
        elif word in FUNCTION_WORDS:
            spoken[i] = without_stress(spoken[i])
    return spoken
