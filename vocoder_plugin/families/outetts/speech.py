"""``speak``: text in, samples out while the model writes them."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...codec import Codec
from ...errors import ArgumentError, TokenError, VocoderError
from ...llm import LanguageModel, Outside, SpeechStream, prompt_tokens
from ...llm.vocabulary import vocabulary_of
from .chunks import MAX_WORDS, MIN_WORDS, count_words, split_text
from .errors import PromptError, SpeakerError, SpeechError
from .loudness import FixedGain
from .markup import CODE_END, FEATURES, SPACE, WORD_END, WORD_START, without_markup
from .prompts import check_version, prompt_parts, token_parts
from .sampler import Sampler, Sampling
from .speaker import CODECS, MODELS, Speaker, as_speaker
from .text import need_text, tokens_v2, words_v1, words_v3

MAX_LENGTH = 8192  # tokens of a prompt and its speech
PATIENCE = 256  # tokens without a frame of audio: the model has lost its way
WORD_MARKS = {1: CODE_END, 2: SPACE, 3: WORD_END}  # what the model writes after each word
# where the model goes on to a new word, and the guided one is put: ahead of and behind its text
GUIDES = {1: (f"{CODE_END}\n", ""), 2: (f"{SPACE}\n", ""), 3: (WORD_START, FEATURES)}
FIRST_GUIDE = {(1, True): "\n", (3, False): WORD_START}  # by version and speaker, ahead of the first; else nothing


@dataclass
class Progress:
    """How far ``speak`` has come.

    Attributes
    ----------
    chunk, chunks : int
        The chunk at work, from 1, and how many there are.
    words, total_words : int
        Words the model has ended, and words of the text.
    tokens : int
        Tokens that the model has written.
    evaluated : int
        Tokens that were computed, prompts and all: what the prefix of the prompt saves is not in it.
    seconds : float
        Of audio given out.
    elapsed : float
        Seconds since the start.
    """

    chunk: int = 0
    chunks: int = 0
    words: int = 0
    total_words: int = 0
    tokens: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    retries: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.elapsed if self.elapsed else 0.0

    @property
    def rtf(self) -> float:
        """Seconds of work for a second of audio."""
        return self.elapsed / self.seconds if self.seconds else float("inf")


def model_version(llm: LanguageModel) -> int:
    """Which OuteTTS a Llama is, by its vocabulary: 1, 2 or 3. TokenError if it is none."""
    vocabulary_of(llm)  # refuses a closed Llama
    if _known(llm, "<|c1_0|>", "<|c2_0|>", WORD_START):
        return 3
    if _known(llm, "<|0|>", SPACE):
        return 2
    if _known(llm, "<|0|>"):
        return 1
    raise TokenError("the model has no audio tokens of OuteTTS; use an OuteTTS model, such as OuteTTS-1.0-0.6B")


def speak(
    llm: LanguageModel,
    codec: Codec,
    text: str,
    *,
    speaker: Speaker | Mapping[str, Any] | None = None,
    version: int | None = None,
    voice: str | None = None,
    sampling: Sampling | None = None,
    seed: int | None = None,
    max_length: int = MAX_LENGTH,
    min_words: int = MIN_WORDS,
    max_words: int = MAX_WORDS,
    guided: bool = False,
    retries: int = 2,
    loudness: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[np.ndarray]:
    """Say a text; an iterator over samples, float32 [m] with m > 0 at ``codec.sample_rate``, as they come.

    Everything is checked before the first sample is asked for. Closing the iterator ends the speech.

    Parameters
    ----------
    llm : llama_cpp.Llama
        An OuteTTS model. What it has in its context is replaced, but for a common beginning.
    codec : Codec
        The one that goes with the model.
    text : str
        Of any length; control tokens in it are left out.
    speaker : Speaker or dict, optional
        The voice; without one, the model makes one up for each chunk.
    version : int, optional
        By default found in the model's vocabulary.
    voice : str, optional
        A description, which version 2 knows.
    sampling : Sampling, optional
        By default OuteTTS's. The repetition penalty always sees the last 64 tokens.
    seed : int, optional
        For the same speech again.
    max_length : int
        Most tokens of a chunk's prompt and speech together.
    min_words, max_words : int
        Size of the chunks, see ``split_text``.
    guided : bool
        Force the words of the text, in order, wherever the model goes on to a new word or would end.
    retries : int
        How often a chunk is tried again, with another seed, when the model writes no audio for it.
    loudness : float, optional
        LUFS of the speaker to aim at, such as -18, by one gain and a soft limit. By default nothing is changed.
    on_progress : function, optional
        Called with one Progress after each chunk of samples and at the end.

    Raises
    ------
    SpeechError
        If there is nothing to say, a prompt does not fit, no audio comes, or something else used the
        Llama's context between two parts of the audio.
    SpeakerError, TokenError, PromptError
        If speaker, codec and model do not go together.
    """
    found = model_version(llm)
    version = found if version is None else version
    check_version(version)
    if (version == 3) != (found == 3):
        raise PromptError(f"version {version} was asked for, but the model is {MODELS[found]}")
    codebooks = 2 if version == 3 else 1
    if codec.n_codebooks != codebooks:
        raise TokenError(
            f"the model is {MODELS[version]}, which needs a codec with {codebooks} codebook{'s' * (codebooks > 1)}, "
            f"but {codec.name!r} has {codec.n_codebooks}; use one of the kind {CODECS[version]!r}"
        )
    known = None if speaker is None else as_speaker(speaker)
    if known is not None:
        known.check_version(version)
        warning = known.check_codec(codec)
        if warning:
            warnings.warn(warning, stacklevel=2)
    elif loudness is not None:
        raise SpeakerError("the loudness is set by the speaker's, and there is no speaker")
    if max_length < 1 or retries < 0:
        raise ArgumentError(f"max_length is {max_length} and retries {retries}, expected at least 1 and 0")
    text = without_markup(need_text(text), emotions=version == 2)
    chunks = split_text(text, min_words=min_words, max_words=max_words)
    if not any(char.isalnum() for char in text):
        raise SpeechError("there is nothing to say: the text has no words")
    plans = []
    for chunk in chunks:
        prompt = prompt_parts(chunk, version=version, speaker=known, voice=voice)
        words = _guided_words(chunk, version) if guided else []
        plans.append(_Plan(prompt_tokens(llm, prompt), words, chunk))
    limit = min(max_length, llm.n_ctx())
    for plan in plans:
        if len(plan.prompt) >= limit:
            raise _no_room(plan, limit)
    gain = None
    if loudness is not None and known is not None:
        gain = FixedGain.for_clip(known.decode(codec), codec.sample_rate, target_lufs=loudness)
    progress = Progress(chunks=len(plans), total_words=count_words(text))
    speech = _Speech(llm, codec, version, sampling or Sampling(), seed, limit, progress)
    return _run(speech, plans, with_speaker=known is not None, retries=retries, gain=gain, tell=on_progress)


def _guided_words(text: str, version: int) -> list[list[str]]:
    """The words to force, each in parts of a prompt."""
    if version == 3:
        return [[Outside(word)] for word in words_v3(text)]
    if version == 1:
        return [[word] for word in words_v1(text)]
    words: list[list[str]] = [[]]
    for token in tokens_v2(text):
        words[-1] += token_parts(token)
        if token.is_emotion:
            words[-1].append(f"{SPACE}\n")
        else:
            words.append([])
    return words[:-1]  # an emotion behind the last word has no audio


@dataclass(frozen=True)
class _Plan:
    prompt: list[int]
    words: list[list[str]]  # to force, in parts of a prompt; none where the model is free
    text: str


def _no_room(plan: _Plan, limit: int) -> SpeechError:
    return SpeechError(
        f"the prompt of {plan.text[:30]!r} has {len(plan.prompt)} tokens, which leaves no room for speech in {limit}; "
        f"use a larger context (n_ctx), a shorter speaker, or fewer words a chunk"
    )


def _run(
    speech: _Speech,
    plans: list[_Plan],
    *,
    with_speaker: bool,
    retries: int,
    gain: FixedGain | None,
    tell: Callable[[Progress], None] | None,
) -> Iterator[np.ndarray]:
    progress, rate = speech.progress, speech.stream_rate
    start = time.perf_counter()

    def give(samples: np.ndarray) -> Iterator[np.ndarray]:
        progress.seconds += samples.size / rate
        progress.elapsed = time.perf_counter() - start
        if tell:
            tell(progress)
        if samples.size:
            yield samples if gain is None else gain(samples)

    with speech:
        try:
            for number, plan in enumerate(plans, 1):
                progress.chunk = number
                for attempt in range(retries + 1):
                    frames = speech.frames
                    progress.retries += attempt > 0
                    for samples in speech.chunk(plan, with_speaker=with_speaker, attempt=attempt):
                        yield from give(samples)
                    if speech.frames > frames:
                        break
                else:
                    raise SpeechError(
                        f"the model wrote no audio for {plan.text[:40]!r}, tried {retries + 1} "
                        f"time{'s' * (retries > 0)}; another seed, speaker or temperature may help"
                    )
        except (SpeechError, KeyboardInterrupt):  # what has been said is given out first
            with contextlib.suppress(VocoderError):
                yield from give(speech.stream.flush())
            raise
        yield from give(speech.stream.flush())


class _Speech:
    """The state of one ``speak``: the Llama's context, the samplers, the decoder."""

    def __init__(
        self,
        llm: LanguageModel,
        codec: Codec,
        version: int,
        sampling: Sampling,
        seed: int | None,
        limit: int,
        progress: Progress,
    ) -> None:
        self.llm, self.limit, self.progress = llm, limit, progress
        self.stream = SpeechStream(llm, codec)
        self.stream_rate = codec.sample_rate
        self._version, self._sampling, self._seed = version, sampling, seed
        self._word_mark = _token(llm, WORD_MARKS[version])
        self._goes_on = _token(llm, WORD_START) if version == 3 else self._word_mark  # to a new word
        self._samplers: list[Sampler] = []
        self._context: list[int] = []  # what the Llama's holds, if nothing else has used it

    @property
    def frames(self) -> int:
        return self.stream.report.frames

    def chunk(self, plan: _Plan, *, with_speaker: bool, attempt: int) -> Iterator[np.ndarray]:
        """Samples of one chunk, as far as they come before the next one."""
        vocabulary_of(self.llm)  # refuses a closed Llama
        sampler = self._sampler(attempt)
        sampler.start(plan.prompt)
        self._evaluate_prompt(plan.prompt)
        words = iter(plan.words)
        if plan.words:
            first = self._opening(next(words), FIRST_GUIDE.get((self._version, with_speaker), ""))
            sampler.accept(first)
            if not self._follow(first):
                raise _no_room(plan, self.limit)
        start = frames = self.frames
        idle = 0
        while self.llm.n_tokens < self.limit:
            token = sampler.sample()
            self.progress.tokens += 1
            self.progress.words += token == self._word_mark
            ends = token in self.stream.vocabulary.end
            if plan.words and (ends or token == self._goes_on):
                word = next(words, None)
                if word is None:
                    return
                forced = self._opening(word, GUIDES[self._version][0])
                sampler.replace_last(forced)
                if not self._follow(forced):
                    break
                continue
            if ends:
                return
            for samples in self.stream.push(token):
                yield samples
                self._check_context()
            if self.frames > frames:
                idle, frames = 0, self.frames
            else:
                idle += 1
                if idle >= PATIENCE:
                    self._warn(f"the model wrote {PATIENCE} tokens without audio; the rest of this chunk is left out")
                    return
            if not self._follow([token]):
                break
        self._limit_reached(plan, start)

    def _sampler(self, attempt: int) -> Sampler:
        """One sampler goes through all chunks; each new attempt has its own, of another seed."""
        while len(self._samplers) <= attempt:
            seed = None if self._seed is None else self._seed + len(self._samplers)
            self._samplers.append(Sampler(self.llm, self._sampling, seed=seed))
        return self._samplers[attempt]

    def _opening(self, word: list[str], before: str) -> list[int]:
        return prompt_tokens(self.llm, [before, *word, GUIDES[self._version][1]])

    def _evaluate_prompt(self, prompt: list[int]) -> None:
        """Compute a prompt but for the beginning that the context has already."""
        kept = common_prefix(self.llm, prompt)
        if kept:
            self.llm.n_tokens = kept
        else:
            self.llm.reset()
        self._context = prompt[:kept]
        self._evaluate(prompt[kept:])

    def _follow(self, tokens: list[int]) -> bool:
        """Compute further tokens; False where they do not fit."""
        if self.llm.n_tokens + len(tokens) > self.limit:
            return False
        self._evaluate(tokens)
        return True

    def _limit_reached(self, plan: _Plan, frames_before: int) -> None:
        if self.frames == frames_before:
            raise _no_room(plan, self.limit)
        self._warn(f"the limit of {self.limit} tokens was reached before the model ended {plan.text[:30]!r}")

    def _evaluate(self, tokens: list[int]) -> None:
        try:
            self.llm.eval(tokens)
        except RuntimeError as error:
            raise SpeechError(f"llama.cpp could not compute {len(tokens)} tokens: {error}") from None
        self.progress.evaluated += len(tokens)
        self._context += tokens

    def _check_context(self) -> None:
        """Refuse to go on where the code that took the samples has used the Llama for something else."""
        vocabulary_of(self.llm)
        n = self.llm.n_tokens
        if n != len(self._context) or not np.array_equal(self.llm.input_ids[:n], self._context):
            raise SpeechError(
                "the Llama was used for something else in the middle of a speech; "
                "let one end before the next, or load the model twice"
            )

    def _warn(self, message: str) -> None:
        self.progress.warnings.append(message)
        warnings.warn(message, stacklevel=2)

    def close(self) -> None:
        self.stream.close()
        for sampler in self._samplers:
            sampler.close()

    def __enter__(self) -> _Speech:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def common_prefix(llm: LanguageModel, prompt: list[int]) -> int:
    """How many of a prompt's first tokens the Llama's context holds; at least one is always left to compute."""
    if getattr(llm, "_is_recurrent", False) or getattr(llm, "_is_hybrid", False):
        return 0  # such a context cannot be cut back
    most = min(llm.n_tokens, len(prompt) - 1)
    differing = np.flatnonzero(llm.input_ids[:most] != np.array(prompt[:most], llm.input_ids.dtype))
    return int(differing[0]) if differing.size else most


def _token(llm: LanguageModel, text: str) -> int | None:
    tokens = prompt_tokens(llm, [text])
    return tokens[0] if len(tokens) == 1 else None


def _known(llm: LanguageModel, *texts: str) -> bool:
    return all(_token(llm, text) is not None for text in texts)
