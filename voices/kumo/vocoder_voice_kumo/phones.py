"""The sounds of American English as this voice knows them: ARPAbet with stress digits, pauses and the edges of speech.

Every sound is one token of the language model, spelled ``<|AE1|>``; see :mod:`.sequence` for the order of tokens.
"""

from __future__ import annotations

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH"),
    *("V", "W", "Y", "Z", "ZH"),
)
START = "start"  # the silence before the first word
SPACE = "_"  # between words without a pause
MARKS = (",", ".", "?", "!")
PHONES = (START, SPACE, *MARKS, *CONSONANTS, *(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"))

_FUNCTION_WORDS = (
    "a an the and or but nor of to in on at by for from with as if than that this is am are was were be been has have"
    " had do does did can could will would shall should may might must i you he she it we they me him her us them my"
    " your his its our their there not no so"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words of one syllable that are said without stress inside a sentence."""


def without_stress(phones: list[str]) -> list[str]:
    return [phone.replace("1", "0").replace("2", "0") for phone in phones]
