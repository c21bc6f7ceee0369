"""Prompts as OuteTTS was trained on them: the text, then the speaker's words as codes, then the model goes on.

``build_prompt`` writes what the package outetts 0.4.4 writes for the same text and speaker, byte
for byte, but never changes the speaker (outetts appends the separator to its last word at every call), and
leaves out what looks like a control token in texts from outside. ``prompt_parts`` also tells which parts
are from outside, so that a tokenizer can be kept from finding any in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import refusal
from ...llm.prompt import Outside
from .errors import PromptError, SpeakerError
from .markup import (
    AUDIO_END,
    AUDIO_START,
    BOS,
    CODE,
    CODE_END,
    CODE_START,
    EMOTION_MARK,
    EOS,
    FEATURES,
    FRAME,
    GLOBAL_END,
    GLOBAL_START,
    SPACE,
    TEXT_END,
    TEXT_SEP,
    TEXT_START,
    VOICE_END,
    VOICE_START,
    WORD_CODES,
    WORD_END,
    WORD_START,
    features,
    time,
    without_markup,
)
from .speaker import VERSIONS, Speaker, Word, as_speaker
from .text import Token, is_kana_or_han, tidy_v3, tokens_v2, words_v1

ENDING = f"\n{AUDIO_END}\n{EOS}\n"


def build_prompt(
    text: str,
    *,
    version: int,
    speaker: Speaker | Mapping[str, Any] | None = None,
    voice: str | None = None,
) -> str:
    """The prompt after which a model of this version says ``text``.

    Parameters
    ----------
    text : str
        Of any language for version 3; of one that can be romanised for 1 and 2.
    version : int
        1 for OuteTTS 0.1, 2 for 0.2 and 0.3, 3 for 1.0.
    speaker : Speaker or dict, optional
        Of the same version; left as it is.
    voice : str, optional
        A description of the voice, which version 2 knows.

    Raises
    ------
    PromptError
        For another version or type of text.
    SpeakerError
        If the speaker is damaged or of another version.
    """
    return "".join(prompt_parts(text, version=version, speaker=speaker, voice=voice))


def prompt_parts(
    text: str, *, version: int, speaker: Speaker | Mapping[str, Any] | None = None, voice: str | None = None
) -> list[str]:
    """``build_prompt`` in parts for ``llm.prompt_tokens``: those from outside are ``Outside``."""
    check_version(version)
    if voice is not None and version != 2:
        raise PromptError(f"a description of the voice is only known to version 2, not {version}")
    known = None if speaker is None else as_speaker(speaker)
    if known is not None:
        known.check_version(version)
    if version == 1:
        words = [*(words_v1(known.text) if known else []), *words_v1(text)]
        return [*_opening([TEXT_SEP.join(words)]), *(_words_v1(known.words) if known else [])]
    if version == 2:
        return [*_prompt_v2(text, known, voice)]
    if known is None:
        return [*_opening([Outside(tidy_v3(text))])]
    merged, end = merge_texts(without_markup(known.text), tidy_v3(text))
    last = known.words[-1]
    words_v3 = [*known.words[:-1], Word(last.text + end, last.duration, last.codes, last.features)]
    return [*_opening([Outside(merged)]), *_words_v3(words_v3), f"\n{WORD_START}"]


def build_training_prompt(
    speaker: Speaker | Mapping[str, Any], *, version: int | None = None, text: str | None = None
) -> str:
    """A whole example: the text and all of its audio, with the ends that the model is to learn.

    Parameters
    ----------
    speaker : Speaker or dict
        The example; left as it is. Version 2's "emotion" describes the voice.
    version : int, optional
        By default the speaker's.
    text : str, optional
        For version 1, by default the speaker's.
    """
    known = as_speaker(speaker)
    version = known.version if version is None else version
    check_version(version)
    known.check_version(version)
    return "".join([*_training(known, version, text), ENDING])


def _training(known: Speaker, version: int, text: str | None) -> Iterator[str]:
    if version == 1:
        words = words_v1(known.text if text is None else text)
        yield from _opening([TEXT_SEP.join(words)])
        yield from _words_v1(known.words)
        return
    if text is not None:
        raise PromptError("a training prompt has the speaker's own text, except in version 1")
    if version == 2:
        tokens = tokens_v2(known.text)
        yield from _opening(_text_v2(tokens), known.extra.get("emotion"))
        yield from _words_v2(tokens, known.words)
        return
    yield from _opening([tidy_v3(known.text)])
    yield f"{GLOBAL_START}{features(dict(known.global_features))}{GLOBAL_END}\n"
    yield from _words_v3(known.words)


def check_version(version: int) -> None:
    if version not in VERSIONS:
        raise PromptError(refusal("version", repr(version), "1 (OuteTTS 0.1), 2 (0.2 and 0.3) or 3 (1.0)"))


def _opening(text: Iterable[str], voice: object = None) -> Iterator[str]:
    yield f"{BOS}\n{TEXT_START}"
    yield from text
    yield f"{TEXT_END}\n"
    if voice is not None:
        yield from (VOICE_START, Outside(without_markup(str(voice))), f"{VOICE_END}\n")
    yield f"{AUDIO_START}\n"


def _words_v1(words: Sequence[Word]) -> Iterator[str]:
    for index, word in enumerate(words):
        yield "\n" * (index > 0)
        yield Outside(without_markup(word.text))
        yield f"{time(word.duration)}{CODE_START}{''.join(map(CODE.format, word.codes[0]))}{CODE_END}"


def _prompt_v2(text: str, speaker: Speaker | None, voice: str | None) -> Iterator[str]:
    written = tokens_v2(text)
    tokens = [] if speaker is None else tokens_v2(speaker.text)
    yield from _opening([*_text_v2(tokens), *([SPACE] if speaker else []), *_text_v2(written)], voice)
    if speaker is not None:
        yield from _words_v2(tokens, speaker.words)
        yield f"{SPACE}\n"


def _text_v2(tokens: Sequence[Token]) -> Iterator[str]:
    for index, token in enumerate(tokens):
        yield SPACE * (index > 0)
        yield from token_parts(token)


def token_parts(token: Token) -> Iterator[str]:
    """A word of a to z with its marks; or an emotion, whose words are from outside."""
    if not token.is_emotion:
        yield token.marked
        return
    for index, part in enumerate(EMOTION_MARK.split(token.word)):
        yield part if index % 2 else Outside(part)


def _words_v2(tokens: Sequence[Token], words: Sequence[Word]) -> Iterator[str]:
    spoken = [token.word for token in tokens if not token.is_emotion]
    for index, (word, expected) in enumerate(zip(words, spoken, strict=False), 1):
        if word.text != expected:
            raise SpeakerError(f"word {index} of the speaker is {word.text!r}, but its text has {expected!r} there")
    if len(words) != len(spoken):
        raise SpeakerError(f"the speaker has {len(words)} words, but its text has {len(spoken)}")
    remaining = iter(words)
    for index, token in enumerate(tokens):
        yield f"{SPACE}\n" * (index > 0)
        yield from token_parts(token)
        if not token.is_emotion:
            word = next(remaining)
            yield f"{time(word.duration)}{''.join(map(CODE.format, word.codes[0]))}"


def merge_texts(speaker_text: str, text: str) -> tuple[str, str]:
    """The speaker's text with the new one behind it, and the mark that now ends the speaker's last word."""
    speaker_text = speaker_text.strip()
    separator = ". "
    if any(is_kana_or_han(char) for char in speaker_text):
        separator = "" if speaker_text.endswith(("。", "？", "！", "?", "!")) else "。"
    elif speaker_text.endswith((".", "?", "!")):
        separator = " "
    elif not speaker_text:
        separator = ""
    return speaker_text + separator + text.strip(), separator.strip()


def _words_v3(words: Sequence[Word]) -> Iterator[str]:
    for index, word in enumerate(words):
        yield "\n" * (index > 0) + WORD_START
        yield Outside(without_markup(word.text))
        yield f"{FEATURES}{time(word.duration)}{features(dict(word.features))}{WORD_CODES}"
        yield f"{''.join(FRAME.format(c1, c2) for c1, c2 in zip(*word.codes, strict=True))}{WORD_END}"
