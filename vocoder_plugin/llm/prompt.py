"""Prompts in parts: markup of our own, whose control tokens count, and text from outside, which may bring none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ..errors import ArgumentError
from .protocols import LanguageModel
from .vocabulary import token_text, vocabulary_of


class Outside(str):
    """A part of a prompt that came from outside: none of it becomes a control token."""

    __slots__ = ()


def prompt_tokens(llm: LanguageModel, parts: Iterable[str]) -> list[int]:
    """Token ids of a prompt's parts, without BOS.

    Where the parts meet at control tokens, these are the ids of the whole text, unless text from
    outside spells a control token: that is written in characters, or, where the vocabulary takes it
    for a token all the same, left out.
    """
    vocabulary = vocabulary_of(llm)
    tokens: list[int] = []
    for from_outside, run in itertools.groupby(parts, lambda part: isinstance(part, Outside)):
        if not from_outside:
            tokens += llm.tokenize("".join(run).encode(), add_bos=False, special=True)
            continue
        for text in filter(None, run):
            found = llm.tokenize(_encoded(text), add_bos=False, special=False)
            tokens += [token for token in found if not _is_markup(vocabulary, token)]
    return tokens


def _is_markup(vocabulary: object, token: int) -> bool:
    """Whether a token means something to the model: one of control, or of the user's own such as ``<think>``.

    llama.cpp finds tokens of the second kind in any text, and some vocabularies have white space among them.
    """
    import llama_cpp

    kind = llama_cpp.llama_vocab_get_attr(vocabulary, token)
    if kind & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL:
        return True
    if not kind & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED:
        return False
    text = token_text(vocabulary, token)
    return text.startswith("<") and text.endswith(">")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"the text is not valid Unicode: {text[error.start :][:20]!r}") from None
