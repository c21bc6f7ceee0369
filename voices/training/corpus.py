"""The sentences of the training speech: WordNet's examples of use and everyday sentences, in a fixed random order.

WordNet's data files come with Debian's package ``wordnet-base``; its licence permits any use with its notice kept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from everyday import everyday_sentence
from vocoder_voice_kumo.pronounce import dictionary

TEST_SENTENCES = Path(__file__).with_name("test_sentences.txt")
WORDS = range(2, 17)
UNWANTED = re.compile(r"\b(fuck|shit|nigger|cunt|whore|rape|slut|bitch)", re.IGNORECASE)


@dataclass(frozen=True)
class Sentence:
    """Words in lower case; ``marks[i]`` is what follows word i: a comma, a full stop, ``?``, ``!`` or nothing."""

    words: tuple[str, ...]
    marks: tuple[str, ...]


def read_sentence(text: str) -> Sentence | None:
    """The sentence of a text, or None if the dictionary lacks one of its words or it has other signs."""
    text = text.strip().replace("’", "'").replace("--", ", ").replace("-", " ")
    text = re.sub(r"[;:]", ",", text)
    if not re.fullmatch(r"[A-Za-z',.?! ]+", text) or "..." in text or UNWANTED.search(text):
        return None
    words, marks = [], []
    for piece in text.split():
        word = piece.rstrip(",.?!")
        found = word.lower() if word.lower() in dictionary() else word.lower().strip("'")
        if found not in dictionary() or (word.isupper() and word not in ("A", "I")):
            return None
        words.append(found)
        marks.append(piece[len(word) :][:1])
    if not words:
        return None
    marks[-1] = marks[-1] if marks[-1] in (".", "?", "!") else "."
    return Sentence(tuple(words), tuple(marks))


def test_sentences() -> list[Sentence]:
    found = [read_sentence(line) for line in TEST_SENTENCES.read_text(encoding="ascii").splitlines()]
    if None in found:
        raise ValueError(f"{TEST_SENTENCES}: the dictionary lacks a word of sentence {found.index(None) + 1}")
    return [sentence for sentence in found if sentence]


def wordnet_examples(folder: Path) -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                yield from re.findall(r'"([^"]+)"', line.partition("|")[2])


def training_sentences(wordnet: Path, *, everyday: int = 16000, seed: int = 1) -> list[Sentence]:
    """All training sentences, shuffled; a fifth of them two examples in one. None of the test's is among them."""
    chance = random.Random(seed)
    sentences = {sentence for text in wordnet_examples(wordnet) if (sentence := read_sentence(text))}
    single = sorted((s for s in sentences if len(s.words) in WORDS), key=lambda s: s.words)
    chance.shuffle(single)
    joined = []
    for first, second in zip(single[0::5], single[1::5], strict=False):
        if len(first.words) + len(second.words) in WORDS:
            marks = (*first.marks[:-1], chance.choice((",", ".")), *second.marks)
            joined.append(Sentence(first.words + second.words, marks))
    spoken = {sentence for _ in range(everyday) if (sentence := read_sentence(everyday_sentence(chance)))}
    test = {sentence.words for sentence in test_sentences()}
    everything = [s for s in (*single, *joined, *sorted(spoken, key=lambda s: s.words)) if s.words not in test]
    chance.shuffle(everything)
    return everything
