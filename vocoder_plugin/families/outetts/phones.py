"""Rough pronunciations of English words that the dictionary lacks: near enough to find them in a clip."""

from __future__ import annotations

# spelling -> phones of the CMU dictionary; the longest spelling that fits is taken, from the left
RULES = {
    "tion": "SH AH N", "sion": "ZH AH N", "ough": "AO", "augh": "AO", "eigh": "EY", "tch": "CH", "igh": "AY",
    "sch": "SH", "dge": "JH", "ing": "IH NG", "que": "K", "air": "EH R", "ear": "IH R", "eer": "IH R", "our": "AO R",
    "th": "TH", "sh": "SH", "ch": "CH", "ph": "F", "gh": "G", "wh": "W", "ck": "K", "ng": "NG", "qu": "K W",
    "kn": "N", "wr": "R", "ps": "S", "rh": "R", "sc": "S K", "ss": "S", "ll": "L", "tt": "T", "pp": "P", "ff": "F",
    "mm": "M", "nn": "N", "rr": "R", "bb": "B", "dd": "D", "gg": "G", "zz": "Z", "cc": "K", "ee": "IY", "ea": "IY",
    "ie": "IY", "ei": "EY", "oo": "UW", "ou": "AW", "ow": "OW", "oa": "OW", "oi": "OY", "oy": "OY", "ai": "EY",
    "ay": "EY", "au": "AO", "aw": "AO", "ew": "UW", "eu": "UW", "ue": "UW", "ui": "UW", "ar": "AA R", "er": "ER",
    "ir": "ER", "or": "AO R", "ur": "ER", "ce": "S", "ci": "S IH", "cy": "S IY", "ge": "JH", "le": "AH L",
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
LETTERS = {
    "a": "EY", "b": "B IY", "c": "S IY", "d": "D IY", "e": "IY", "f": "EH F", "g": "JH IY", "h": "EY CH", "i": "AY",
    "j": "JH EY", "k": "K EY", "l": "EH L", "m": "EH M", "n": "EH N", "o": "OW", "p": "P IY", "q": "K Y UW",
    "r": "AA R", "s": "EH S", "t": "T IY", "u": "Y UW", "v": "V IY", "w": "D AH B AH L Y UW", "x": "EH K S",
    "y": "W AY", "z": "Z IY",
}  # fmt: skip


def pronounce(word: str) -> list[str]:
    """Phones of a word of the letters a to z and apostrophes; spelt out if it has no vowel."""
    letters = word.replace("'", "")
    if not any(letter in "aeiouy" for letter in letters):
        return [phone for letter in letters for phone in LETTERS[letter].split()]
    if len(letters) > 3 and letters.endswith("e") and letters[-2] not in "aeioulcg":
        letters = letters[:-1]
    phones: list[str] = []
    while letters:
        spelling = next(letters[:size] for size in (4, 3, 2, 1) if letters[:size] in RULES)
        phones += RULES[spelling].split()
        letters = letters[len(spelling) :]
    return phones
