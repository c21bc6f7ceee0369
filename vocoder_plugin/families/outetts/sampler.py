"""OuteTTS's sampling on llama.cpp's own samplers, with the repetition penalty over exactly 64 tokens.

llama_cpp's ``generate`` takes the window from how the model was loaded and leaves the prompt out of
it; the models expect the last 64 tokens of prompt and speech together, whatever the Llama's settings.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ...llm import LanguageModel

PENALTY_WINDOW = 64  # tokens


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are OuteTTS's."""

    temperature: float = 0.4
    repetition_penalty: float = 1.1
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05


class Sampler:
    """Chooses the next token of a llama_cpp.Llama; the same seed chooses the same again.

    ``accept`` tells it every token that it did not choose itself: the prompt's, and forced ones.
    """

    def __init__(self, llm: LanguageModel, sampling: Sampling, *, seed: int | None) -> None:
        import llama_cpp

        self._llm = llm
        self._window: deque[int] = deque(maxlen=PENALTY_WINDOW)
        self._sample = llama_cpp.llama_sampler_sample
        self._reset, self._accept = llama_cpp.llama_sampler_reset, llama_cpp.llama_sampler_accept
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._chain = chain
        self._free = weakref.finalize(self, llama_cpp.llama_sampler_free, chain)
        init_penalties = llama_cpp.llama_sampler_init_penalties
        sizes = (llm.n_vocab(), PENALTY_WINDOW)[5 - len(init_penalties.argtypes) :]  # until 0.3.30 without n_vocab
        self._penalties = init_penalties(*sizes, sampling.repetition_penalty, 0.0, 0.0)
        stages = [self._penalties]
        if sampling.temperature <= 0:
            stages.append(llama_cpp.llama_sampler_init_greedy())
        else:
            stages += [
                llama_cpp.llama_sampler_init_top_k(sampling.top_k),
                llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
                llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
                llama_cpp.llama_sampler_init_temp(sampling.temperature),
                llama_cpp.llama_sampler_init_dist(llama_cpp.LLAMA_DEFAULT_SEED if seed is None else seed & 0xFFFFFFFF),
            ]
        for stage in stages:
            llama_cpp.llama_sampler_chain_add(chain, stage)

    def start(self, prompt: Iterable[int]) -> None:
        """Begin after a prompt: its last tokens fill the window."""
        self._window.clear()
        self._window.extend(prompt)
        self._refill()

    def sample(self) -> int:
        """The next token by the logits of the last evaluation."""
        token = int(self._sample(self._chain, self._llm.ctx, -1))
        self._window.append(token)
        return token

    def replace_last(self, tokens: Iterable[int]) -> None:
        """The last token sampled is not kept; these follow instead."""
        self._window.pop()
        self._window.extend(tokens)
        self._refill()

    def accept(self, tokens: Iterable[int]) -> None:
        """These tokens follow without having been sampled."""
        for token in tokens:
            self._window.append(token)
            self._accept(self._penalties, token)

    def _refill(self) -> None:
        self._reset(self._penalties)
        for token in self._window:
            self._accept(self._penalties, token)

    def close(self) -> None:
        self._free()
