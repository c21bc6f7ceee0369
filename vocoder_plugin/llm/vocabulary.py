"""llama.cpp's vocabulary of a model."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError, KindError, refusal
from .protocols import LanguageModel


def vocabulary_of(llm: LanguageModel) -> Any:
    """llama.cpp's pointer to the vocabulary.

    Raises KindError for what is no Llama, and ArgumentError for one that was closed, on which llama.cpp would crash.
    """
    import llama_cpp

    if not hasattr(llm, "model"):
        raise KindError(refusal("the language model", f"of type {type(llm).__name__}", "a llama_cpp.Llama"))
    if not llm.model or not llm.ctx:
        raise ArgumentError("the Llama is closed; load the model again")
    return llama_cpp.llama_model_get_vocab(llm.model)


def token_text(vocabulary: Any, token: int) -> str:
    """How a vocabulary spells a token."""
    import llama_cpp

    return (llama_cpp.llama_vocab_get_text(vocabulary, token) or b"").decode("utf-8", "replace")
