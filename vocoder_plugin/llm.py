"""The llama_cpp side: tokens of a running generation in, samples out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .codec import Codec
from .errors import VocoderError
from .tokens import AudioVocabulary, Deinterleaver, TokenReport

# OuteTTS's sampling; llama_cpp applies the penalty to its last_n_tokens_size, 64 by default
SAMPLING = {"temp": 0.4, "repeat_penalty": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05}
SCHEDULE = (1, 8, 16, 32)  # frames to wait for before the first chunk, the second, …; then the last again


class SpeechStream:
    """Decodes the audio tokens of a generation as they come.

    >>> stream = SpeechStream(llm, codec)
    >>> for token in llm.generate(prompt, **SAMPLING):
    ...     for pcm in stream.push(token):
    ...         play(pcm)
    ...     if stream.finished:
    ...         break
    >>> play(stream.flush())

    A context manager. Not to be shared between threads.

    Parameters
    ----------
    llm : llama_cpp.Llama
        Its vocabulary must have the codec's audio tokens (TokenError otherwise).
    codec : Codec
    schedule : sequence of int
        Frames to collect before each chunk is decoded: small at first for an early start, larger
        later for speed; the last entry repeats.

    Attributes
    ----------
    finished : bool
        The model has ended its audio.
    report : TokenReport
        Frames so far, and tokens that were skipped or damaged.
    """

    def __init__(self, llm: Any, codec: Codec, *, schedule: Sequence[int] = SCHEDULE) -> None:
        if not schedule or min(schedule) < 1:
            raise ValueError(f"schedule is {schedule!r}, expected frame counts of at least 1")
        self.vocabulary = AudioVocabulary.from_llm(llm, codec)
        self.finished = False
        self._codec = codec
        self._schedule = list(schedule)
        self._chunks = 0
        self._deinterleaver = Deinterleaver(self.vocabulary)
        self._frames: list[list[int]] = []
        self._stream = codec.decoder_stream()

    @property
    def report(self) -> TokenReport:
        return self._deinterleaver.report

    def push(self, token: int) -> Iterator[np.ndarray]:
        """Take one token; iterate over the samples (float32 [m], m > 0) that it made ready."""
        return iter(self._push(token))

    def _push(self, token: int) -> list[np.ndarray]:
        if self.finished:
            return []
        if token in self.vocabulary.end:
            self.finished = True
            return []
        frame = self._deinterleaver.push(token)
        if frame is None:
            return []
        self._frames.append(frame)
        if len(self._frames) < self._schedule[min(self._chunks, len(self._schedule) - 1)]:
            return []
        samples = self._stream.push(self._waiting())
        if samples.size == 0:  # the decoder still looks ahead: the first chunk is not out yet
            return []
        self._chunks += 1
        return [samples]

    def _waiting(self) -> np.ndarray:
        codes = np.array(self._frames, np.int32).reshape(-1, self.vocabulary.n_codebooks).T
        self._frames = []
        return codes

    def flush(self) -> np.ndarray:
        """End the audio: the remaining samples, float32 [m]; m may be 0."""
        self.finished = True
        self._deinterleaver.finish()
        return self._stream.finish(self._waiting())

    def close(self) -> None:
        """Free the decoder's state; may be called at any time, more than once."""
        self.finished = True
        self._stream.close()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def generate_tokens(llm: Any, prompt: str, *, end: frozenset[int], max_tokens: int, **sampling: Any) -> Iterator[int]:
    """Tokens that the model writes after a prompt, until an end token, ``max_tokens`` or a full context."""
    tokens = llm.tokenize(prompt.encode("utf-8"), add_bos=False, special=True)
    if not tokens:
        raise VocoderError("the prompt is empty")
    limit = min(max_tokens, llm.n_ctx() - len(tokens))
    if limit < 1:
        raise VocoderError(f"the prompt has {len(tokens)} tokens, which leaves no room in a context of {llm.n_ctx()}")
    for count, token in enumerate(llm.generate(tokens, **{**SAMPLING, **sampling})):
        if token in end or count >= limit:
            return
        yield token
