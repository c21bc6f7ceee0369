"""The order of tokens that the language model reads and writes.

Speech is a row of blocks, one for each sound, pauses and the gaps between words included::

    <|next:K|> <|AE1|> <|frames:3|> <|17|> <|1630|> <|8|>

The sound after this one and the sound itself are given; the model writes how many frames it lasts and a code for each
frame. ``<|begin|>`` opens a sentence, whose first sound is the silence before it (``<|start|>``). Nothing else is ever
asked of the model, so it can neither leave out a word nor go on for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .phones import PHONES, SPACE

CODES = 2048
MOST_FRAMES = 40
BEGIN, END = "<|begin|>", "<|end|>"  # <|end|> is the sound after the last, and llama.cpp's end of text


def phone_token(phone: str) -> str:
    return f"<|{phone}|>"


def next_token(phone: str | None) -> str:
    return f"<|next:{phone}|>" if phone else END


def frames_token(frames: int) -> str:
    return f"<|frames:{frames}|>"


VOCABULARY: tuple[str, ...] = (
    BEGIN,
    END,
    *(phone_token(phone) for phone in PHONES),
    *(next_token(phone) for phone in PHONES),
    *(frames_token(frames) for frames in range(1, MOST_FRAMES + 1)),
    *(f"<|{code}|>" for code in range(CODES)),
)
NUMBERS = {token: number for number, token in enumerate(VOCABULARY)}
FIRST_FRAMES = NUMBERS[frames_token(1)]
FIRST_CODE = NUMBERS["<|0|>"]


def prompts(phones: Sequence[str]) -> Iterator[list[int]]:
    """What is fed ahead of each sound's frames and codes."""
    for i, phone in enumerate(phones):
        following = phones[i + 1] if i + 1 < len(phones) else None
        fed = [NUMBERS[next_token(following)], NUMBERS[phone_token(phone)]]
        yield [NUMBERS[BEGIN], *fed] if i == 0 else fed


def sequence(timed: Sequence[tuple[str, int]], codes: Sequence[int]) -> tuple[list[int], list[bool]]:
    """A spoken sentence's tokens, and which of them the model writes."""
    tokens: list[int] = []
    written: list[bool] = []
    at = 0
    for fed, (_, frames) in zip(prompts([phone for phone, _ in timed]), timed, strict=True):
        kept = min(frames, MOST_FRAMES)
        own = [FIRST_FRAMES + kept - 1, *(FIRST_CODE + int(code) for code in codes[at : at + kept])]
        tokens += fed + own
        written += [False] * len(fed) + [True] * len(own)
        at += frames
    return tokens, written


def sentence_sounds(words: Sequence[Sequence[str]], marks: Sequence[str], start: str) -> list[str]:
    """The sounds of a sentence in order: silence, words, what is between them, and the last mark."""
    sounds = [start]
    for phones, mark in zip(words, marks, strict=True):
        sounds += [*phones, mark or SPACE]
    return sounds
