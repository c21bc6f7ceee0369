"""Sounds to codes with llama-cpp-python: the loop that the order of tokens asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np

from .english import sentences
from .phones import START
from .pronounce import sentence_phones
from .sequence import CODES, FIRST_CODE, FIRST_FRAMES, MOST_FRAMES, prompts, sentence_sounds

TEMPERATURE, TOP_K = 0.6, 20


def text_sounds(text: str) -> list[list[str]]:
    """The sounds of each sentence of a text."""
    return [sentence_sounds(sentence_phones(list(s.words)), s.marks, START) for s in sentences(text)]


def sentence_codes(
    llm: Any,
    sounds: Sequence[str],
    *,
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
    speed: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """The codes of one sentence, as the model writes them.

    Parameters
    ----------
    llm : llama_cpp.Llama
        Of this voice. What it holds is dropped.
    sounds : sequence of str
        As ``text_sounds`` gives them.
    temperature : float
        0 takes the likeliest each time.
    speed : float
        Divides the frames of each sound that the model chose; the model then speaks that many.
    """
    chance = np.random.default_rng(seed)
    rest = 0.0  # of frames, so that rounding each sound does not change the pace
    llm.reset()
    waiting: list[int] = []
    for prompt in prompts(sounds):
        logits = _evaluated(llm, [*waiting, *prompt])
        wanted = (1 + _chosen(logits[FIRST_FRAMES:][:MOST_FRAMES], temperature, top_k, chance)) / speed + rest
        frames = min(MOST_FRAMES, max(1, round(wanted)))
        rest = min(1.0, max(-1.0, wanted - frames))
        waiting = [FIRST_FRAMES + frames - 1]
        for _ in range(frames):
            code = _chosen(_evaluated(llm, waiting)[FIRST_CODE:][:CODES], temperature, top_k, chance)
            waiting = [FIRST_CODE + code]
            yield code


def _evaluated(llm: Any, tokens: list[int]) -> np.ndarray:
    """The logits after these tokens: a view, good until the next call."""
    llm.eval(tokens)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),))


def _chosen(logits: np.ndarray, temperature: float, top_k: int, chance: np.random.Generator) -> int:
    if temperature <= 0:
        return int(np.argmax(logits))
    best = np.argpartition(logits, -top_k)[-top_k:] if top_k < len(logits) else np.arange(len(logits))
    weights = np.exp((logits[best] - logits[best].max()) / temperature)
    return int(chance.choice(best, p=weights / weights.sum()))
