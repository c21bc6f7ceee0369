"""Prompts as OuteTTS was trained on them: the text, then the speaker's words as codes, then the model goes on.

``build_prompt`` writes what the package outetts 0.4.4 writes for the same text and speaker, byte
for byte, but never changes the speaker (outetts appends the separator to its last word at every call).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import PromptError, SpeakerError
from .markup import (
    AUDIO_END,
    AUDIO_START,
    BOS,
    CODE,
    CODE_END,
    CODE_START,
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
    check_version(version)
    if voice is not None and version != 2:
        raise PromptError(f"a description of the voice is only known to version 2, not {version}")
    known = None if speaker is None else as_speaker(speaker)
    if known is not None:
        known.check_version(version)
    if version == 1:
        words = [*(words_v1(known.text) if known else []), *words_v1(text)]
        return _opening(TEXT_SEP.join(words)) + (_words_v1(known.words) if known else "")
    if version == 2:
        return _prompt_v2(text, known, voice)
    if known is None:
        return _opening(tidy_v3(text))
    merged, end = merge_texts(known.text, tidy_v3(text))
    last = known.words[-1]
    words_v3 = [*known.words[:-1], Word(last.text + end, last.duration, last.codes, last.features)]
    return f"{_opening(merged)}{_words_v3(words_v3)}\n{WORD_START}"


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
    if version == 1:
        words = words_v1(known.text if text is None else text)
        return _opening(TEXT_SEP.join(words)) + _words_v1(known.words) + ENDING
    if text is not None:
        raise PromptError("a training prompt has the speaker's own text, except in version 1")
    if version == 2:
        tokens = tokens_v2(known.text)
        opening = _opening(_text_v2(tokens), known.extra.get("emotion"))
        return opening + _words_v2(tokens, known.words) + ENDING
    overall = f"{GLOBAL_START}{features(dict(known.global_features))}{GLOBAL_END}\n"
    return _opening(tidy_v3(known.text)) + overall + _words_v3(known.words) + ENDING


def check_version(version: int) -> None:
    if version not in VERSIONS:
        raise PromptError(f"version is {version!r}, expected 1 (OuteTTS 0.1), 2 (0.2 and 0.3) or 3 (1.0)")


def _opening(text: str, voice: str | None = None) -> str:
    described = "" if voice is None else f"{VOICE_START}{voice}{VOICE_END}\n"
    return f"{BOS}\n{TEXT_START}{text}{TEXT_END}\n{described}{AUDIO_START}\n"


# -- versions 1 and 2


def _words_v1(words: Sequence[Word]) -> str:
    return "\n".join(
        f"{word.text}{time(word.duration)}{CODE_START}{''.join(map(CODE.format, word.codes[0]))}{CODE_END}"
        for word in words
    )


def _prompt_v2(text: str, speaker: Speaker | None, voice: str | None) -> str:
    written = _text_v2(tokens_v2(text))
    if speaker is None:
        return _opening(written, voice)
    tokens = tokens_v2(speaker.text)
    audio = _words_v2(tokens, speaker.words)
    return f"{_opening(_text_v2(tokens) + SPACE + written, voice)}{audio}{SPACE}\n"


def _text_v2(tokens: Sequence[Token]) -> str:
    return SPACE.join(token.marked for token in tokens)


def _words_v2(tokens: Sequence[Token], words: Sequence[Word]) -> str:
    spoken = [token.word for token in tokens if not token.is_emotion]
    for index, (word, expected) in enumerate(zip(words, spoken, strict=False), 1):
        if word.text != expected:
            raise SpeakerError(f"word {index} of the speaker is {word.text!r}, but its text has {expected!r} there")
    if len(words) != len(spoken):
        raise SpeakerError(f"the speaker has {len(words)} words, but its text has {len(spoken)}")
    remaining = iter(words)
    lines = []
    for token in tokens:
        if token.is_emotion:
            lines.append(token.word)
            continue
        word = next(remaining)
        lines.append(f"{token.marked}{time(word.duration)}{''.join(map(CODE.format, word.codes[0]))}")
    return f"{SPACE}\n".join(lines)


# -- version 3


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


def _words_v3(words: Sequence[Word]) -> str:
    return "\n".join(
        f"{WORD_START}{word.text}{FEATURES}{time(word.duration)}{features(dict(word.features))}{WORD_CODES}"
        f"{''.join(FRAME.format(c1, c2) for c1, c2 in zip(*word.codes, strict=True))}{WORD_END}"
        for word in words
    )
