"""Token ids that a model writes after a prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import ArgumentError, refusal
from .protocols import LanguageModel
from .vocabulary import vocabulary_of

# OuteTTS's sampling; llama_cpp applies the penalty to its last_n_tokens_size, 64 by default
SAMPLING = {"temp": 0.4, "repeat_penalty": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05}


class Generation(Iterator[int]):
    """The tokens of one generation, as they come; the last may be an end token.

    Attributes
    ----------
    cut : str
        Why the generation stopped before the model ended it, in words; empty where it did not.
    """

    def __init__(self, steps: Iterator[int], *, end: frozenset[int], limit: int, why: str) -> None:
        self.cut = ""
        self._tokens = self._run(steps, end, limit, why)

    def _run(self, steps: Any, end: frozenset[int], limit: int, why: str) -> Iterator[int]:
        with contextlib.closing(steps):
            for count, token in enumerate(steps, start=1):
                yield token
                if token in end:
                    return
                if count == limit:  # asking for another token would evaluate this one
                    self.cut = why
                    return

    def __next__(self) -> int:
        return next(self._tokens)


def generate_tokens(
    llm: LanguageModel, prompt: str, *, end: frozenset[int], max_tokens: int, **sampling: Any
) -> Generation:
    """Tokens that the model writes after a prompt, until an end token, ``max_tokens`` or a full context.

    Control tokens in the prompt count; ``prompt_tokens`` keeps text from outside from bringing any.
    """
    vocabulary_of(llm)  # refuses a closed Llama
    tokens = llm.tokenize(prompt.encode("utf-8"), add_bos=False, special=True)
    if not tokens:
        raise ArgumentError("the prompt is empty")
    if max_tokens < 1:
        raise ArgumentError(refusal("max_tokens", max_tokens, "at least 1"))
    left = llm.n_ctx() - len(tokens)
    if left < 1:
        raise ArgumentError(f"the prompt has {len(tokens)} tokens, which leaves no room in a context of {llm.n_ctx()}")
    why = f"max_tokens = {max_tokens} was reached" if max_tokens <= left else f"the context of {llm.n_ctx()} is full"
    steps = llm.generate(tokens, **{**SAMPLING, **sampling})
    return Generation(steps, end=end, limit=min(max_tokens, left), why=why)
