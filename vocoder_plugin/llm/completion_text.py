"""Audio tokens in the text of a completion."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from .protocols import LanguageModel
from .vocabulary import token_text, vocabulary_of

OTHER = -1  # stands for every token that is neither audio nor an end
LONGEST = 64  # characters of a token's text; what is longer is no audio token
TOKEN = re.compile(r"<[^<>]*>")
BEGUN = re.compile(rf"<[^<>]{{0,{LONGEST}}}\Z")


class TextScanner:
    """Finds tokens in text that comes in pieces, wherever it is cut.

    Parameters
    ----------
    tokens : dict
        Text such as ``<|c1_12|>`` -> token id.
    """

    def __init__(self, tokens: dict[str, int]) -> None:
        self._tokens = tokens
        self._rest = ""  # the beginning of a token whose end has not come

    def feed(self, text: str) -> list[int]:
        """The ids of the tokens that this piece completes; OTHER for texts in <> that are not known."""
        text = self._rest + text
        begun = BEGUN.search(text)
        self._rest = begun[0] if begun else ""
        return [self._tokens.get(found[0], OTHER) for found in TOKEN.finditer(text)]


def token_texts(llm: LanguageModel, tokens: Iterable[int]) -> dict[str, int]:
    """Text -> id of these tokens of a ``llama_cpp.Llama``."""
    vocabulary = vocabulary_of(llm)
    return {token_text(vocabulary, token): token for token in tokens}


class _ShowingTokenizer:
    """A tokenizer of llama_cpp whose text has the control tokens in it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = True) -> bytes:
        return self._tokenizer.detokenize(tokens, prev_tokens=prev_tokens, special=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextlib.contextmanager
def special_tokens_shown(llm: LanguageModel) -> Iterator[None]:
    """Within the block, the completions of a ``llama_cpp.Llama`` spell out control tokens.

    llama_cpp leaves control tokens out of a completion's text, and has no option for that. Where a
    model's audio tokens are control tokens, ``SpeechStream.push_text`` needs this around the whole
    iteration over the chunks.
    """
    plain = llm.tokenizer_
    llm.tokenizer_ = _ShowingTokenizer(plain)
    try:
        yield
    finally:
        llm.tokenizer_ = plain
