"""A sentence's sounds in Kokoro's phonetic symbols, and its durations back to ours."""

from __future__ import annotations

import numpy as np
from corpus import Sentence
from vocoder_voice_kumo.phones import SPACE, START
from vocoder_voice_kumo.pronounce import sentence_phones

KOKORO = dict(
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "ɜɹ", "EY": "A", "IH": "ɪ"},
    **{"IY": "i", "OW": "O", "OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f"},
    **{"G": "ɡ", "HH": "h", "JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ"},
    **{"S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
)
UNSTRESSED = {"AH0": "ə", "ER0": "əɹ"}
STRESS = {"0": "", "1": "ˈ", "2": "ˌ"}


def kokoro_symbols(phone: str) -> str:
    """``AE1`` to ``ˈæ``."""
    if phone in UNSTRESSED:
        return UNSTRESSED[phone]
    if phone[-1] in STRESS:
        return STRESS[phone[-1]] + KOKORO[phone[:-1]]
    return KOKORO[phone]


def spoken_form(sentence: Sentence) -> list[tuple[str, str]]:
    """Pairs of a phone of ours and Kokoro's symbols for it; those of a pause are the mark and the space after it."""
    pairs: list[tuple[str, str]] = []
    for phones, mark in zip(sentence_phones(list(sentence.words)), sentence.marks, strict=True):
        pairs += [(phone, kokoro_symbols(phone)) for phone in phones]
        pairs.append((mark, f"{mark} ") if mark else (SPACE, " "))
    mark = pairs.pop()[0]
    return [*pairs, (mark, mark)]


def phone_durations(pairs: list[tuple[str, str]], durations: np.ndarray) -> list[tuple[str, int]]:
    """Our phones with their frames, from the silence before the first to the end of the last pause."""
    timed, at = [(START, int(durations[0]))], 1
    for phone, symbols in pairs:
        timed.append((phone, int(durations[at : at + len(symbols)].sum())))
        at += len(symbols)
    assert at == len(durations) - 1
    timed[-1] = (timed[-1][0], timed[-1][1] + int(durations[-1]))
    return timed
