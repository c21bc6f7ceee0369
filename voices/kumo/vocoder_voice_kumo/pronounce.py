"""Words to sounds: the CMU Pronouncing Dictionary, and letter-to-sound rules learned from it for all other words."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

from .letters import pronounce_by_rule
from .phones import FUNCTION_WORDS, VOWELS, without_stress

WEAK_FORMS = {"the": ["DH", "AH0"], "a": ["AH0"], "to": ["T", "AH0"], "of": ["AH0", "V"], "and": ["AH0", "N", "D"]}
BEFORE_VOWELS = {"the": ["DH", "IY0"], "to": ["T", "UW0"]}


@cache
def dictionary() -> dict[str, list[str]]:
    """The first pronunciation of each word in lower case."""
    with gzip.open(str(files(__package__) / "cmudict.txt.gz"), "rt", encoding="ascii") as lines:
        return {word: phones.split() for word, _, phones in (line.strip().partition(" ") for line in lines)}


LETTER_NAMES = dict(
    **{"a": "EY1", "b": "B IY1", "c": "S IY1", "d": "D IY1", "e": "IY1", "f": "EH1 F", "g": "JH IY1", "h": "EY1 CH"},
    **{"i": "AY1", "j": "JH EY1", "k": "K EY1", "l": "EH1 L", "m": "EH1 M", "n": "EH1 N", "o": "OW1", "p": "P IY1"},
    **{"q": "K Y UW1", "r": "AA1 R", "s": "EH1 S", "t": "T IY1", "u": "Y UW1", "v": "V IY1", "x": "EH1 K S"},
    **{"w": "D AH1 B AH0 L Y UW0", "y": "W AY1", "z": "Z IY1"},
)


def word_phones(word: str) -> list[str]:
    """The sounds of a word in lower case, said alone; of one without vowels, its letters' names."""
    known = dictionary()
    if word in known and len(word) > 1:
        return known[word]
    if word in LETTER_NAMES:
        return LETTER_NAMES[word].split()
    stem, mark, ending = word.partition("'")
    if mark and ending in ("s", "") and stem:
        phones = word_phones(stem)
        hissing = phones[-1] in ("S", "Z", "SH", "ZH", "CH", "JH")
        return phones + (["AH0", "Z"] if hissing else ["S"] if phones[-1] in ("P", "T", "K", "F", "TH") else ["Z"])
    letters = "".join(letter for letter in word if letter in LETTER_NAMES)
    phones = pronounce_by_rule(letters)
    if not any(phone[:2] in VOWELS for phone in phones):
        return [phone for letter in letters for phone in LETTER_NAMES[letter].split()]
    return phones


def sentence_phones(words: list[str]) -> list[list[str]]:
    """The sounds of each word of a sentence, function words in their weak forms."""
    spoken = [["EY1"] if word == "a" else word_phones(word) for word in words]
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
