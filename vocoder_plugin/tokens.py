"""From a language model's tokens to frames of codes.

A speech LLM writes a frame as one token a codebook, in a fixed order, with text tokens between
words. ``AudioVocabulary`` finds those tokens in a model's vocabulary by their text, never by
number; ``Deinterleaver`` puts frames together and finds its place again when tokens are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import TokenError


@dataclass(frozen=True)
class TokenLayout:
    """How a family of models spells its audio tokens.

    ``patterns`` has a regular expression for each codebook, in the order of a frame's tokens; its
    one group is the code. ``end`` lists texts that end the audio.
    """

    name: str
    patterns: tuple[str, ...]
    end: tuple[str, ...] = ("<|audio_end|>", "<|im_end|>")


OUTETTS_1 = TokenLayout("OuteTTS 1.0", (r"<\|c1_(\d+)\|>", r"<\|c2_(\d+)\|>"))
OUTETTS_0 = TokenLayout("OuteTTS 0.1 to 0.3", (r"<\|(\d+)\|>",))
LAYOUTS = (OUTETTS_1, OUTETTS_0)


@dataclass(frozen=True)
class AudioVocabulary:
    """The audio tokens of one model.

    Attributes
    ----------
    codes : dict
        Token id -> (place in the frame, code). Codes the codec does not have are included, to be
        recognised as invalid.
    end : frozenset of int
        Token ids that end the audio.
    """

    layout: TokenLayout
    codebook_size: int
    codes: dict[int, tuple[int, int]]
    end: frozenset[int]

    @property
    def n_codebooks(self) -> int:
        return len(self.layout.patterns)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        *,
        n_codebooks: int,
        codebook_size: int,
        layouts: Sequence[TokenLayout] = LAYOUTS,
        end: Iterable[int] = (),
    ) -> AudioVocabulary:
        """Find the layout with ``n_codebooks`` codebooks in a vocabulary given as texts by token id.

        Raises
        ------
        TokenError
            If the vocabulary has no such tokens, or lacks codes that the codec has.
        """
        found = {layout.name: cls._match(layout, texts) for layout in layouts}
        fitting = [layout for layout in layouts if len(layout.patterns) == n_codebooks]
        for layout in fitting:
            codes = found[layout.name]
            if not codes:
                continue
            have = set(codes.values())
            missing = [(p, c) for p in range(n_codebooks) for c in range(codebook_size) if (p, c) not in have]
            if missing:
                place, code = missing[0]
                raise TokenError(
                    f"the model's vocabulary lacks {len(missing)} of the codec's codes, "
                    f"such as code {code} of codebook {place}"
                )
            ends = frozenset(end) | {i for i, text in enumerate(texts) if text in layout.end}
            return cls(layout, codebook_size, codes, ends)
        others = [name for name, codes in found.items() if codes]
        raise TokenError(
            f"the model has no audio tokens for a codec with {n_codebooks} codebook{'s' * (n_codebooks != 1)}"
            + (f"; it speaks {' or '.join(others)}, which needs another codec file" if others else "")
        )

    @staticmethod
    def _match(layout: TokenLayout, texts: Sequence[str]) -> dict[int, tuple[int, int]]:
        codes = {}
        for place, pattern in enumerate(layout.patterns):
            compiled = re.compile(pattern)
            for token, text in enumerate(texts):
                if text.startswith("<") and (match := compiled.fullmatch(text)):
                    codes[token] = (place, int(match[1]))
        return codes

    @classmethod
    def from_llm(cls, llm: Any, codec: Any) -> AudioVocabulary:
        """The audio tokens of a ``llama_cpp.Llama`` that fit a codec; raises TokenError if there are none."""
        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(llm.model)
        n = llm.n_vocab()
        texts = [(llama_cpp.llama_vocab_get_text(vocab, i) or b"").decode("utf-8", "replace") for i in range(n)]
        end = [i for i in range(n) if texts[i].startswith("<") and llama_cpp.llama_vocab_is_eog(vocab, i)]
        return cls.from_texts(
            texts, n_codebooks=codec.n_codebooks, codebook_size=codec.codebook_size, end=[*end, llm.token_eos()]
        )


@dataclass
class TokenReport:
    """What a stream of tokens held. A damaged frame is dropped whole; the frames around it are kept."""

    frames: int = 0
    damaged_frames: int = 0  # begun but not finished, or with an invalid code
    invalid_tokens: int = 0  # codes that the codec does not have
    stray_tokens: int = 0  # audio tokens that belong to no frame: the rest of a damaged one
    other_tokens: int = 0  # text and control tokens


@dataclass
class Deinterleaver:
    """Puts audio tokens together to frames, one token at a time.

    A frame begins with its first codebook's token. Any other audio token must be the next one due;
    if it is not, the frame begun is dropped, and frames start again at the next first token. So a
    lost, doubled or invalid token costs the frame it is in and no other. Tokens that are no audio
    tokens do not disturb a frame.
    """

    vocabulary: AudioVocabulary
    report: TokenReport = field(default_factory=TokenReport)
    _frame: list[int] = field(default_factory=list)
    _broken: bool = False  # the frame begun has an invalid code

    def push(self, token: int) -> list[int] | None:
        """The codes of the frame that this token completes, or None."""
        place_code = self.vocabulary.codes.get(token)
        if place_code is None:
            self.report.other_tokens += 1
            return None
        place, code = place_code
        if place != len(self._frame):
            self._drop()
            if place != 0:
                self.report.stray_tokens += 1
                return None
        if code >= self.vocabulary.codebook_size:
            self.report.invalid_tokens += 1
            self._broken = True
        self._frame.append(code)
        if len(self._frame) < self.vocabulary.n_codebooks:
            return None
        if self._broken:
            self._drop()
            return None
        frame, self._frame = self._frame, []
        self.report.frames += 1
        return frame

    def finish(self) -> None:
        """No more tokens will come: a frame begun counts as damaged."""
        self._drop()

    def _drop(self) -> None:
        if self._frame:
            self.report.damaged_frames += 1
        self._frame, self._broken = [], False


def deinterleave(tokens: Iterable[int], vocabulary: AudioVocabulary) -> tuple[np.ndarray, TokenReport]:
    """Tokens -> codes int32 [n_codebooks, n_frames] and a report of what was skipped or damaged."""
    deinterleaver = Deinterleaver(vocabulary)
    frames = [frame for token in tokens if (frame := deinterleaver.push(token)) is not None]
    deinterleaver.finish()
    return np.array(frames, np.int32).reshape(-1, vocabulary.n_codebooks).T, deinterleaver.report
