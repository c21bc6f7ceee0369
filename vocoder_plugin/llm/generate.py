"""Token ids that a model writes after a prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import VocoderError

# OuteTTS's sampling; llama_cpp applies the penalty to its last_n_tokens_size, 64 by default
SAMPLING = {"temp": 0.4, "repeat_penalty": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05}


def generate_tokens(llm: Any, prompt: str, *, end: frozenset[int], max_tokens: int, **sampling: Any) -> Iterator[int]:
    """Tokens that the model writes after a prompt, until an end token, ``max_tokens`` or a full context."""
    tokens = llm.tokenize(prompt.encode("utf-8"), add_bos=False, special=True)
    if not tokens:
        raise VocoderError("the prompt is empty")
    limit = min(max_tokens, llm.n_ctx() - len(tokens))
    if limit < 1:
        raise VocoderError(f"the prompt has {len(tokens)} tokens, which leaves no room in a context of {llm.n_ctx()}")
    with contextlib.closing(llm.generate(tokens, **{**SAMPLING, **sampling})) as generator:
        for count, token in enumerate(generator, start=1):
            if token in end:
                return
            yield token
            if count == limit:  # asking for another token would evaluate this one
                return
