"""What this room asks of others, for type checkers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np


class LanguageModel(Protocol):
    """A ``llama_cpp.Llama``: the members of it that this package uses."""

    n_threads: int
    n_tokens: int  # that the context holds; setting it cuts the context back
    draft_model: Any
    tokenizer_: Any

    @property
    def model(self) -> Any:
        """llama.cpp's model, None after ``close``."""

    @property
    def ctx(self) -> Any:
        """llama.cpp's context, None after ``close``."""

    @property
    def input_ids(self) -> Any:
        """Tokens of the context, an integer array of which the first ``n_tokens`` count."""

    def n_ctx(self) -> int: ...

    def n_vocab(self) -> int: ...

    def token_eos(self) -> int: ...

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]: ...

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes: ...

    def generate(self, *args: Any, **sampling: Any) -> Iterator[int]: ...

    def eval(self, tokens: Sequence[int]) -> Any: ...

    def reset(self) -> Any: ...


class CodeStream(Protocol):
    """A codec's stream that decodes."""

    def push(self, codes: np.ndarray) -> np.ndarray: ...
