"""Text as each version of OuteTTS was trained on it.

Versions 1 and 2 take lower-case Latin words without digits: MeCab parts words (of any language, as
in training), uroman (1) or anyascii (2) romanises, inflect spells numbers. Plain English needs inflect
alone, for its digits: a rule parts its words as MeCab does. Version 3 takes text of any script and only
tidies it. The rules are those of the package outetts 0.4.4, whose output they match byte for byte; see
docs/outetts.md for what happens where that package fails.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import refusal
from .errors import PromptError, missing
from .markup import EMOTION_END, EMOTION_START, PUNCTUATION, without_markup

NUMBER = re.compile(r"\d+(\.\d+)?")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMOTION = re.compile(f"({re.escape(EMOTION_START)}.*?{re.escape(EMOTION_END)})")
KEPT_MARKS = "".join(mark for mark in PUNCTUATION if len(mark) == 1)
STRAY = re.compile(f"[^a-zA-Z\u0080-\uffff{re.escape(KEPT_MARKS)}\\s]")

TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"…", "..."),
        (r"\.{2,}", "..."),
        (r"[“”„‟«»]", '"'),
        (r"[‘’‛‹›`´]", "'"),
        (r"[–—―−‐]", "-"),
        (r"-{2,}", "-"),
        (r"[\x00-\x1F\x7F-\x9F\u00AD\u200B-\u200D\uFEFF]", ""),  # control and zero-width characters
        (r"\s+", " "),
        (r"\s+([,.?!:;])", r"\1"),
        (r"([,.?!:;])(?=[^\s,.?!:;])", r"\1 "),
        (r"(\w)\s+'\s*(\w)", r"\1'\2"),
        (r"(\w)\s+'\s*([,.?!:;\s]|$)", r"\1'\2"),
        (r"(?i)(\w)\s*'\s*([tsdmren])\b", r"\1'\2"),  # can 't
        (r"([?!])\1+", r"\1"),
        (r"\s+", " "),
        (r'"', ""),
    )
)

# How MeCab with unidic-lite parts ASCII, found by comparing 700,000 random texts. It knows the marks of SINGLE as
# words, and takes others as one word together with all marks beside them. Longer runs depend on what is around.
MARK = r"[!-/:-@\[-`{-~]"
HARD = re.compile(rf"[A-Za-z]{{25}}|[0-9]{{25}}|{MARK}{{5}}|[^ -~\t\n\r\f\v]")
ASCII_PART = re.compile(rf"[A-Za-z]+|[0-9]+|{MARK}+")
SINGLE = frozenset("!#$%&()*+./:<=>?@{|}~")


@dataclass(frozen=True)
class Token:
    """A word of a version 2 text with the punctuation tokens before and after it."""

    word: str
    before: str = ""
    after: str = ""

    @property
    def marked(self) -> str:
        return self.before + self.word + self.after

    @property
    def is_emotion(self) -> bool:
        return EMOTION_START in self.word


def need_text(text: str) -> str:
    if not isinstance(text, str):
        raise PromptError(refusal("the text", f"of type {type(text).__name__}", "str"))
    return text


def words_v1(text: str) -> list[str]:
    """Words of a text for version 1: lower-case, a to z."""
    text = _romanise(_part_words(need_text(text)))
    text = spell_numbers(text.lower())
    text = re.sub(r"[-_/,.\\]", " ", text)
    return re.sub(r"[^a-z\s]", "", text).split()


def tokens_v2(text: str) -> list[Token]:
    """Words of a text for version 2 with their punctuation; emotion blocks stay whole."""
    tokens: list[Token] = []
    for part in EMOTION.split(need_text(text)):
        if part.strip().startswith(EMOTION_START):
            tokens.append(Token(without_markup(part, emotions=True)))
        elif part.strip():
            tokens += _tokens_v2(part)
    return tokens


def words_v2(text: str) -> list[str]:
    """The bare words of a text for version 2."""
    return [token.word for token in tokens_v2(text) if not token.is_emotion]


def _tokens_v2(text: str) -> list[Token]:
    parts: list[str] = []
    for part in _part_words(text.replace("'", "").replace("`", "")).split():
        if part in PUNCTUATION and parts:
            parts[-1] += part
        else:
            parts.append(part)
    text = _to_ascii(" ".join(parts)).replace("-", " ")
    text = STRAY.sub("", spell_numbers(text.lower()))
    tokens: list[Token] = []
    written: list[str] = []
    for part in text.split():
        if part in PUNCTUATION and written:
            written[-1] += part
        else:
            written.append(part)
    for part in written:
        if all(char in string.punctuation for char in part):
            continue
        word = re.sub("[^a-z]", "", part)
        start = part.find(word)
        if start < 0:  # marks inside the word: they are lost
            tokens.append(Token(word))
        else:
            tokens.append(Token(word, _marks(part[:start]), _marks(part[start + len(word) :])))
    return tokens


def _marks(chars: str) -> str:
    return "".join(PUNCTUATION[char] for char in chars if char in PUNCTUATION)


def tidy_v3(text: str) -> str:
    """A text for version 3: repaired, one kind of quote and dash, even spacing, no double quotes, no markup."""
    import ftfy

    text = unicodedata.normalize("NFKC", ftfy.fix_text(need_text(text)))
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    # only now: width, entities and zero-width characters are gone that would have hidden a control token
    return without_markup(text).strip()


def words_v3(text: str) -> list[str]:
    """Words in which version 3 would say a tidied text: at spaces; MeCab's words in Japanese and Chinese."""
    words = tidy_v3(text).split()
    if not any(is_kana_or_han(char) for char in text):
        return words
    parted: list[str] = []
    for part in _part_words(" ".join(words)).split():
        if parted and not any(char.isalnum() for char in part):
            parted[-1] += part
        else:
            parted.append(part)
    return parted


def is_kana_or_han(char: str) -> bool:
    return "\u3040" <= char <= "\u30ff" or "\u4e00" <= char <= "\u9fff"


def spell_numbers(text: str) -> str:
    """The text with its numbers in English words."""
    return NUMBER.sub(lambda match: _number_speller()(match.group()), text)


@functools.cache
def _number_speller() -> Callable[[str], str]:
    try:
        import inflect
    except ImportError:
        raise missing("inflect", purpose="spelling numbers out", extra="romanise") from None
    engine: Any = inflect.engine()

    def spell(number: str) -> str:
        try:
            return str(engine.number_to_words(number))
        except Exception:  # beyond inflect's largest number, typeguard and all
            return " ".join("point" if char == "." else DIGITS[int(char)] for char in number)

    return spell


@functools.cache
def _tagger() -> Any:
    try:
        import MeCab

        return MeCab.Tagger("-Owakati")
    except (ImportError, RuntimeError):
        raise missing(
            "mecab-python3 with unidic-lite", purpose="parting this text into words", extra="romanise"
        ) from None


def _part_words(text: str) -> str:
    if HARD.search(text):
        return str(_tagger().parse(text) or "")
    words: list[str] = []
    for part in ASCII_PART.findall(text):
        if not words and part[0] in "(<{":  # a bracket that opens the text stands alone
            words.append(part[0])
            part = part[1:]
        words += part if SINGLE.issuperset(part) else [part]
    return " ".join(words)


@functools.cache
def _romaniser() -> Any:
    try:
        import uroman
    except ImportError:
        raise missing("uroman", purpose="text for OuteTTS 0.1", extra="romanise") from None
    return uroman.Uroman()


def _romanise(text: str) -> str:
    if text.isascii():
        return text
    return str(_romaniser().romanize_string(text))


def _to_ascii(text: str) -> str:
    if text.isascii():
        return text
    try:
        import anyascii
    except ImportError:
        raise missing("anyascii", purpose="text for OuteTTS 0.2 and 0.3", extra="romanise") from None
    return str(anyascii.anyascii(text))  # 0.3.2, as in training: 0.3.3 writes 302 characters otherwise, "っ" among them
