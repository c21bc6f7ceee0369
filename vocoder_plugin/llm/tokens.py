"""From a language model's tokens to frames of codes.

A speech LLM writes audio in steps of one token a codebook, in a fixed order, with text tokens between
words. In the simplest layout a step is a frame; in others some codebooks lag behind by whole steps.
``AudioVocabulary`` finds those tokens in a model's vocabulary by their text, never by number;
``Deinterleaver`` puts frames together and finds its place again when tokens are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..codec import Codec
from ..errors import ArgumentError, TokenError
from .protocols import LanguageModel
from .vocabulary import token_text, vocabulary_of


@dataclass(frozen=True)
class TokenLayout:
    """How a family of models spells and orders its audio tokens; see docs/tokens.md.

    Parameters
    ----------
    name : str
    patterns : tuple of str
        A regular expression for each place in a step, in the order of the tokens. Its one group is the code;
        what is not a number in there is no code (padding). Texts of audio tokens begin with ``<``.
    end : tuple of str
        Texts that end the audio.
    codebooks : tuple of int, optional
        The codebook of each place; by default the first place has codebook 0, and so on.
    delays : tuple of int, optional
        By how many steps each place lags: at step s it has the code of frame s - delay. By default 0.

    Raises
    ------
    ArgumentError
        If these contradict each other.
    """

    name: str
    patterns: tuple[str, ...]
    end: tuple[str, ...] = ("<|audio_end|>", "<|im_end|>")
    codebooks: tuple[int, ...] = ()
    delays: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.patterns)
        object.__setattr__(self, "codebooks", tuple(self.codebooks) or tuple(range(n)))
        object.__setattr__(self, "delays", tuple(self.delays) or (0,) * n)
        where = f"layout {self.name!r}: "
        if sorted(self.codebooks) != list(range(n)):
            raise ArgumentError(f"{where}codebooks are {self.codebooks}, expected 0 to {n - 1}, each once")
        if len(self.delays) != n or min(self.delays, default=0) != 0:
            raise ArgumentError(f"{where}delays are {self.delays}, expected {n}, the smallest of them 0")
        for pattern in self.patterns:
            if re.compile(pattern).groups != 1:
                raise ArgumentError(f"{where}pattern {pattern!r} has not one group, which is the code")

    @property
    def n_codebooks(self) -> int:
        return len(self.patterns)

    @property
    def delay(self) -> int:
        """Steps from a frame's first code to its last."""
        return max(self.delays)


NO_CODE = -1  # of a token whose group is not a number


OUTETTS_1 = TokenLayout("OuteTTS 1.0", (r"<\|c1_(\d+)\|>", r"<\|c2_(\d+)\|>"))
OUTETTS_0 = TokenLayout("OuteTTS 0.1 to 0.3", (r"<\|(\d+)\|>",))
LAYOUTS = (OUTETTS_1, OUTETTS_0)


@dataclass(frozen=True)
class AudioVocabulary:
    """The audio tokens of one model.

    Attributes
    ----------
    codes : dict
        Token id -> (place in the step, code). Codes the codec does not have are included, to be
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
        return self.layout.n_codebooks

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
        fitting = [layout for layout in layouts if layout.n_codebooks == n_codebooks]
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
                    f"such as code {code} of codebook {layout.codebooks[place]}"
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
        codes: dict[int, tuple[int, int]] = {}
        candidates = [(token, text) for token, text in enumerate(texts) if text.startswith("<")]
        for place, pattern in enumerate(layout.patterns):
            compiled = re.compile(pattern)
            for token, text in candidates:
                if match := compiled.fullmatch(text):
                    if token in codes:
                        raise TokenError(
                            f"layout {layout.name!r}: token {text!r} fits places {codes[token][0]} and {place}"
                        )
                    codes[token] = (place, int(match[1]) if match[1] and match[1].isdecimal() else NO_CODE)
        return codes

    @classmethod
    def from_llm(cls, llm: LanguageModel, codec: Codec, *, layouts: Sequence[TokenLayout] = LAYOUTS) -> AudioVocabulary:
        """The audio tokens of a ``llama_cpp.Llama`` that fit a codec; raises TokenError if there are none."""
        import llama_cpp

        vocabulary = vocabulary_of(llm)
        texts = [token_text(vocabulary, token) for token in range(llm.n_vocab())]
        end = [
            token
            for token, text in enumerate(texts)
            if text.startswith("<") and llama_cpp.llama_vocab_is_eog(vocabulary, token)
        ]
        return cls.from_texts(
            texts,
            n_codebooks=codec.n_codebooks,
            codebook_size=codec.codebook_size,
            layouts=layouts,
            end=[*end, llm.token_eos()],
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

    A step begins with its first place's token. Any other audio token must be the next one due; if it
    is not, tokens were lost or came twice, and nothing tells which step a delayed code belongs to: all
    frames begun are dropped, and frames start again at the next first token, as at the start of a
    stream. So a lost or doubled token costs the frame it is in and those begun in the steps of delay
    before it, and no frame ever has codes from both sides of a loss. An invalid code costs its own
    frame only. Delayed codes of frames before the start mean nothing and are ignored. Tokens that are
    no audio tokens do not disturb a frame.
    """

    vocabulary: AudioVocabulary
    report: TokenReport = field(default_factory=TokenReport)
    _place: int = 0  # of the token that is due
    _step: int = 0  # since the start, or the last loss
    _frames: dict[int, list[int]] = field(default_factory=dict)  # begun: codes by codebook, NO_CODE where none is yet
    _broken: set[int] = field(default_factory=set)  # frames begun that have an invalid code

    def push(self, token: int) -> list[int] | None:
        """The codes of the frame that this token completes, codebook by codebook, or None."""
        place_code = self.vocabulary.codes.get(token)
        if place_code is None:
            self.report.other_tokens += 1
            return None
        place, code = place_code
        if place != self._place:
            self._drop()
            if place != 0:
                self.report.stray_tokens += 1
                return None
        self._place = place + 1
        self._keep(place, code)
        return self._end_step() if self._place == self.vocabulary.n_codebooks else None

    def _keep(self, place: int, code: int) -> None:
        layout = self.vocabulary.layout
        frame = self._step - layout.delays[place]
        if frame < 0:
            return
        codes = self._frames.setdefault(frame, [NO_CODE] * layout.n_codebooks)
        if 0 <= code < self.vocabulary.codebook_size:
            codes[layout.codebooks[place]] = code
        else:
            self.report.invalid_tokens += 1
            self._broken.add(frame)

    def _end_step(self) -> list[int] | None:
        done = self._step - self.vocabulary.layout.delay
        self._step, self._place = self._step + 1, 0
        if done < 0:
            return None
        codes = self._frames.pop(done)
        if done in self._broken:
            self._broken.remove(done)
            self.report.damaged_frames += 1
            return None
        self.report.frames += 1
        return codes

    def finish(self) -> None:
        """No more tokens will come: frames begun count as damaged, but for those of a delay that hold padding alone."""
        if self.vocabulary.layout.delay:
            self._frames = {f: codes for f, codes in self._frames.items() if max(codes) != NO_CODE}
        self._drop()

    def _drop(self) -> None:
        self.report.damaged_frames += len(self._frames)
        self._frames, self._broken, self._step, self._place = {}, set(), 0, 0


def deinterleave(tokens: Iterable[int], vocabulary: AudioVocabulary) -> tuple[np.ndarray, TokenReport]:
    """Tokens -> codes int32 [n_codebooks, n_frames] and a report of what was skipped or damaged."""
    deinterleaver = Deinterleaver(vocabulary)
    frames = [frame for token in tokens if (frame := deinterleaver.push(token)) is not None]
    deinterleaver.finish()
    return np.array(frames, np.int32).reshape(-1, vocabulary.n_codebooks).T, deinterleaver.report
