"""The llama_cpp side: tokens of a running generation in, samples out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ..codec import Codec, usable_cores
from ..errors import ArgumentError, KindError, StreamError, TokenError, VocoderError, refusal
from .completion_text import TextScanner, token_texts
from .overlap import Worker
from .protocols import CodeStream, LanguageModel
from .tokens import LAYOUTS, AudioVocabulary, Deinterleaver, TokenLayout, TokenReport
from .vocabulary import vocabulary_of

if TYPE_CHECKING:
    import llama_cpp

SCHEDULE = (1, 8, 16, 32)  # frames to wait for before the first chunk, the second, …; then the last again
OnAudio = Callable[[np.ndarray], object]


class SpeechStream:
    """Decodes the audio tokens of one generation as they come.

    In a loop over tokens:

    >>> stream = SpeechStream(llm, codec)
    >>> for token in llm.generate(prompt, **SAMPLING):
    ...     for pcm in stream.push(token):
    ...         play(pcm)
    ...     if stream.finished:
    ...         break
    >>> play(stream.flush())

    In a callback of llama_cpp (see ``as_stopping_criteria`` and ``as_logits_processor``):

    >>> llm.create_completion(prompt, max_tokens=None, stopping_criteria=stream.as_stopping_criteria(play))
    >>> play(stream.flush())

    Over the text of a completion (see ``push_text``). Each way gives the same samples in all:
    ``codec.decode`` of all codes.

    A context manager. One thread at a time pushes; any thread may close.

    Parameters
    ----------
    llm : llama_cpp.Llama
        Its vocabulary must have the codec's audio tokens (TokenError otherwise).
    codec : Codec
    layout : TokenLayout, optional
        How the model spells and orders its audio tokens; by default OuteTTS's (docs/tokens.md).
    schedule : sequence of int
        Frames to collect before each chunk is decoded: small at first for an early start, larger
        later for speed; the last entry repeats. The first chunk is the one that gives the first
        samples: until then each ``schedule[0]`` frames are tried.
    overlap : bool, optional
        Decode on a thread of its own, all chunks but the first; samples then come back from a later
        ``push``, or from ``flush``. By default where the codec's device is not a CPU.
    lookahead_frames : int, optional
        Less delay than exact samples need, as ``Codec.decoder_stream`` takes it.
    whole : bool
        Offline decoding's samples from a codec whose streams only come near, all of them at the end; as
        ``Codec.decoder_stream`` takes it.

    Attributes
    ----------
    finished : bool
        The model has ended its audio, or the stream was ended. Tokens pushed after that are ignored.
    cut : bool
        The stream was ended (by ``flush``, ``close`` or ``max_tokens``) before the model ended its audio.
    overlap : bool
        Whether a thread of its own decodes.
    report : TokenReport
        Frames so far, and tokens that were skipped or damaged.
    """

    def __init__(
        self,
        llm: LanguageModel,
        codec: Codec,
        *,
        layout: TokenLayout | None = None,
        schedule: Sequence[int] = SCHEDULE,
        overlap: bool | None = None,
        lookahead_frames: int | None = None,
        whole: bool = False,
    ) -> None:
        if not schedule or min(schedule) < 1:
            raise ArgumentError(refusal("schedule", repr(schedule), "frame counts of at least 1"))
        if layout is not None and layout.n_codebooks != codec.n_codebooks:
            raise TokenError(
                f"layout {layout.name!r} has {layout.n_codebooks} codebooks, the codec {codec.n_codebooks}; "
                f"load another codec, or with n_codebooks={layout.n_codebooks} where the codec has that option"
            )
        self.vocabulary = AudioVocabulary.from_llm(llm, codec, layouts=LAYOUTS if layout is None else [layout])
        self.finished = False
        self.overlap = not codec.device.is_cpu if overlap is None else overlap
        self._llm = llm
        self._schedule = list(schedule)
        self._chunks = 0
        self._deinterleaver = Deinterleaver(self.vocabulary)
        self._frames: list[list[int]] = []
        self._stream = codec.decoder_stream(lookahead_frames=lookahead_frames, whole=whole)
        threads = max(1, usable_cores() - llm.n_threads)  # that the model leaves
        self._decode_beside = functools.partial(_push_with, self._stream, codec, threads)  # does not hold this object
        self._worker: Worker | None = None
        self._scanner: TextScanner | None = None
        self._error: BaseException | None = None  # of a callback that could not raise it
        self._ended = False  # by the model
        self._over = ""  # how the stream came to its end
        self._lock = threading.RLock()  # held while decoding, never while the user's code runs

    @property
    def report(self) -> TokenReport:
        return self._deinterleaver.report

    @property
    def cut(self) -> bool:
        return self.finished and not self._ended

    def push(self, token: int) -> Iterator[np.ndarray]:
        """Take one token; iterate over the samples (float32 [m], m > 0) that are ready by now.

        Raises what went wrong in decoding; the stream is closed then.
        """
        if not isinstance(token, (int, np.integer)):
            raise KindError(refusal("the token", f"{token!r:.40}", "a token id", "push_text takes text"))
        with self._lock:
            return iter(self._push(token))

    def _push(self, token: int) -> list[np.ndarray]:
        if self._over:
            return []
        if token in self.vocabulary.end and not self.finished:
            self.finished = self._ended = True
        try:
            if not self.finished and (frame := self._deinterleaver.push(token)) is not None:
                self._frames.append(frame)
                if len(self._frames) >= self._schedule[min(self._chunks, len(self._schedule) - 1)]:
                    return self._decode(self._waiting())
            return self._worker.ready() if self._worker else []
        except BaseException:
            self._release()
            raise

    def _decode(self, codes: np.ndarray) -> list[np.ndarray]:
        if self._chunks and self.overlap:
            self._worker = self._worker or Worker(self._decode_beside)
            self._worker.submit(codes)
            self._chunks += 1
            return self._worker.ready()
        samples = self._stream.push(codes)
        if samples.size == 0:  # the decoder still looks ahead: the first chunk is not out yet
            return []
        self._chunks += 1
        return [samples]

    def _waiting(self) -> np.ndarray:
        codes = np.array(self._frames, np.int32).reshape(-1, self.vocabulary.n_codebooks).T
        self._frames = []
        return codes

    def flush(self) -> np.ndarray:
        """End the audio: the remaining samples, float32 [m]; m may be 0.

        Raises
        ------
        StreamError
            After ``flush`` or ``close``.
        Exception
            What ``on_audio`` raised in a logits processor.
        """
        with self._lock:
            self._raise_stored()
            if self._over:
                raise StreamError(f"this stream {self._over}; make a new one for the next generation")
            self.finished = True
            self._deinterleaver.finish()
            try:
                samples = self._worker.drain() if self._worker else []
                samples.append(self._stream.finish(self._waiting()))
            except BaseException:
                self._release()
                raise
            self._over = "has ended"
            self._release()
            return np.concatenate(samples)

    def as_stopping_criteria(
        self, on_audio: OnAudio, *, max_tokens: int | None = None
    ) -> llama_cpp.StoppingCriteriaList:
        """A ``StoppingCriteriaList`` that decodes what is generated, and stops the generation with the audio.

        For ``create_completion`` and ``Llama.generate``, once. ``on_audio`` is called with samples,
        float32 [m], on the thread that generates; what it raises comes out of the generation, with
        this stream closed. ``flush`` gives the rest.

        Parameters
        ----------
        max_tokens : int, optional
            Most tokens to generate. llama_cpp shows a token to its callbacks only when it has
            chosen the next, so the last token before its own ``max_tokens`` is never seen, and
            with it up to one frame is lost. Give the limit here, and ``max_tokens=None`` there.
        """
        import llama_cpp

        follow = self._follower(on_audio, max_tokens)

        def stop(input_ids: np.ndarray, _logits: np.ndarray) -> bool:
            try:
                follow(input_ids)
            except BaseException:
                self._release()
                raise
            return self.finished

        return llama_cpp.StoppingCriteriaList([stop])

    def as_logits_processor(self, on_audio: OnAudio, *, max_tokens: int | None = None) -> llama_cpp.LogitsProcessorList:
        """A ``LogitsProcessorList`` that does the same where stopping criteria are not taken.

        For ``create_chat_completion``, once; put it last among other processors. llama_cpp calls
        it from C, where an exception would be lost. So when ``on_audio`` raises, the generation is
        ended by leaving the model only its end token, and ``flush`` or ``close`` raises. The end
        of the audio, or ``max_tokens``, ends the generation in the same way.
        """
        import llama_cpp

        follow = self._follower(on_audio, max_tokens)
        vocabulary = vocabulary_of(self._llm)
        ends = [token for token in sorted(self.vocabulary.end) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
        if not ends:
            raise TokenError("the model has no end token with which a logits processor could end a generation")

        def process(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            try:
                if not self.finished:
                    follow(input_ids)
            except BaseException as error:
                self._error = error
                self._release()
            if not self.finished:
                return scores
            only_end = np.full_like(scores, -np.inf)
            only_end[ends[0]] = 0
            return only_end

        return llama_cpp.LogitsProcessorList([process])

    def _follower(self, on_audio: OnAudio, max_tokens: int | None) -> Callable[[np.ndarray], None]:
        """Pushes what is new in the ids that llama_cpp shows; those of the first call are the prompt."""
        if self._llm.draft_model is not None:
            raise VocoderError("with a draft model, callbacks see tokens that may be taken back; use push in a loop")
        if max_tokens is not None and max_tokens < 1:
            raise ArgumentError(refusal("max_tokens", max_tokens, "at least 1"))
        prompt = seen = -1

        def follow(input_ids: np.ndarray) -> None:
            nonlocal prompt, seen
            if seen < 0:
                prompt = seen = len(input_ids)
            elif len(input_ids) < seen:
                raise StreamError("this callback has been through another generation; make a stream for each")
            new, seen = input_ids[seen:].tolist(), len(input_ids)
            for token in new:
                for pcm in self.push(token):
                    on_audio(pcm)
            if max_tokens is not None and seen - prompt >= max_tokens:
                self.finished = True

        return follow

    def push_text(self, text: str) -> Iterator[np.ndarray]:
        """Take a piece of a completion's text, with audio tokens such as ``<|c1_12|>`` in it.

        Pieces may be cut anywhere. Where the audio tokens are control tokens, iterate over the
        completion within ``special_tokens_shown(llm)``: llama_cpp leaves them out otherwise.

        >>> with special_tokens_shown(llm):
        ...     for chunk in llm.create_completion(prompt, max_tokens=None, stream=True):
        ...         for pcm in stream.push_text(chunk["choices"][0]["text"]):
        ...             play(pcm)
        >>> play(stream.flush())

        In the report, ``other_tokens`` counts only those written in <>.

        Raises
        ------
        TokenError
            If the model's completions leave out its audio tokens.
        """
        if not isinstance(text, str):
            raise KindError(refusal("the text", f"{text!r:.40}", "a str", "push takes a token id"))
        with self._lock:
            if self._scanner is None:
                self._scanner = self._new_scanner()
            return iter([pcm for token in self._scanner.feed(text) for pcm in self._push(token)])

    def _new_scanner(self) -> TextScanner:
        vocabulary_of(self._llm)  # refuses a closed Llama
        if not self._llm.detokenize([next(iter(self.vocabulary.codes))]):
            raise TokenError(
                "llama_cpp leaves this model's audio tokens out of the text; "
                "generate within `with special_tokens_shown(llm):`"
            )
        return TextScanner(token_texts(self._llm, [*self.vocabulary.codes, *self.vocabulary.end]))

    def close(self) -> None:
        """Free the decoder's state and end the thread; may be called at any time, more than once.

        From another thread it waits for the chunk in work. Raises what ``on_audio`` raised in a
        logits processor, unless ``flush`` has.
        """
        self._release()
        self._raise_stored()

    def _release(self) -> None:
        self.finished = True
        with self._lock:
            self._over = self._over or "is closed"
            self._end_worker()
            self._stream.close()

    def _end_worker(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None

    def _raise_stored(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: BaseException | TracebackType | None) -> None:
        self._release()
        if kind is None:
            self._raise_stored()


def _push_with(stream: CodeStream, codec: Codec, n_threads: int, codes: np.ndarray) -> np.ndarray:
    """Decode with no more threads than these."""
    with codec.at_most_threads(n_threads):
        return stream.push(codes)
