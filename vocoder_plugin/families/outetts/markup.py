"""The control tokens of OuteTTS prompts, as texts that the model's tokenizer turns into ids."""

from __future__ import annotations

import re

BOS, EOS = "<|im_start|>", "<|im_end|>"
TEXT_START, TEXT_END = "<|text_start|>", "<|text_end|>"
AUDIO_START, AUDIO_END = "<|audio_start|>", "<|audio_end|>"
CODE = "<|{}|>"  # versions 1 and 2: a code
CODE_START, CODE_END = "<|code_start|>", "<|code_end|>"  # version 1: around the codes of a word
TEXT_SEP = "<|text_sep|>"  # version 1: between words of the text
SPACE = "<|space|>"  # version 2: between words
VOICE_START, VOICE_END = "<|voice_characteristic_start|>", "<|voice_characteristic_end|>"  # version 2
EMOTION_START, EMOTION_END = "<|emotion_start|>", "<|emotion_end|>"  # version 2
WORD_START, WORD_END = "<|word_start|>", "<|word_end|>"  # version 3, as all below
FEATURES, WORD_CODES = "<|features|>", "<|code|>"
GLOBAL_START, GLOBAL_END = "<|global_features_start|>", "<|global_features_end|>"
FRAME = "<|c1_{}|><|c2_{}|>"
FEATURE_NAMES = ("energy", "spectral_centroid", "pitch")

PUNCTUATION = {
    ".": "<|period|>",
    "!": "<|exclamation_mark|>",
    "?": "<|question_mark|>",
    ",": "<|comma|>",
    '"': "<|double_quote|>",
    "„": "<|low_double_quote|>",
    "¡": "<|inverted_exclamation|>",
    "¿": "<|inverted_question|>",
    "…": "<|ellipsis|>",
    "...": "<|ellipsis|>",
    "。": "<|cjk_period|>",
    "！": "<|cjk_exclamation|>",
    "？": "<|cjk_question|>",
    "，": "<|cjk_comma|>",
    "؟": "<|arabic_question|>",
}  # version 2


def time(seconds: float) -> str:
    return f"<|t_{seconds:.2f}|>"


def features(values: dict[str, int]) -> str:
    """The three feature tokens; a missing feature is 0."""
    return "".join(f"<|{name}_{values.get(name, 0)}|>" for name in FEATURE_NAMES)


MARKUP = re.compile(r"<\|[^|]*\|>")
EMOTION_MARK = re.compile(f"({re.escape(EMOTION_START)}|{re.escape(EMOTION_END)})")
OTHER_MARKUP = re.compile(rf"<\|(?!{EMOTION_START[2:-2]}\||{EMOTION_END[2:-2]}\|)[^|]*\|>")


def without_markup(text: str, *, emotions: bool = False) -> str:
    """A text from outside with spaces in place of what looks like a control token; ``emotions`` keeps theirs.

    What is left has no such token: where one is inside another, the outer one now has a space in it.
    """
    return (OTHER_MARKUP if emotions else MARKUP).sub(" ", text)
