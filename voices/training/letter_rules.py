#!/usr/bin/env python3
"""Learn letter-to-sound rules from the dictionary: ``letter_rules.py TARGET.txt.gz``.

Letters and sounds are aligned by expectation maximisation, each letter with none, one or two sounds. A rule says what a
letter becomes between certain neighbours; of several that fit, the one with the longest context holds. A rule is kept
only where it says something else than the next shorter one and is heard at least twice.
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

from vocoder_voice_kumo.letters import CONTEXTS, EDGE, context_key, pronounce_by_rule
from vocoder_voice_kumo.pronounce import dictionary

MOST_SOUNDS = 2  # of one letter
ROUNDS = 5
HELD_OUT = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    words = [(word, phones) for word, phones in dictionary().items() if word.isalpha() and len(word) > 1]
    words = [(word, phones) for word, phones in words if len(phones) <= MOST_SOUNDS * len(word)]
    random.Random(1).shuffle(words)
    scores = learned_scores(words[::4])
    aligned = [(word, aligned_sounds(word, phones, scores)) for word, phones in words]
    rules = learned_rules([pair for pair in aligned[HELD_OUT:] if pair[1]])
    right = sum(pronounce_by_rule(word, rules) == phones for word, phones in words[:HELD_OUT])
    plain = sum(
        [p.rstrip("012") for p in pronounce_by_rule(word, rules)] == [p.rstrip("012") for p in phones]
        for word, phones in words[:HELD_OUT]
    )
    print(f"{len(rules)} rules; held-out words right: {right / HELD_OUT:.1%}, but for stress: {plain / HELD_OUT:.1%}")
    lines = "".join(f"{key} {sounds}\n" for key, sounds in sorted(rules.items()))
    with gzip.GzipFile(options.target, "wb", 9, mtime=0) as file:
        file.write(lines.encode("ascii"))


def learned_scores(words: list[tuple[str, list[str]]]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Log probabilities of a letter's sounds, stress apart."""
    scores: dict[tuple[str, tuple[str, ...]], float] = {}
    for _ in range(ROUNDS):
        counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for word, phones in words:
            for letter, sounds in zip(word, aligned_sounds(word, phones, scores) or (), strict=False):
                counts[letter, tuple(sound.rstrip("012") for sound in sounds)] += 1
        letters = Counter(letter for (letter, _), count in counts.items() for _ in range(count))
        scores = {pair: math.log(count / letters[pair[0]]) for pair, count in counts.items()}
    return scores


def aligned_sounds(
    word: str, phones: list[str], scores: dict[tuple[str, tuple[str, ...]], float]
) -> list[tuple[str, ...]] | None:
    """Each letter's share of the sounds, by the best path; before anything is learned, the most even one."""
    plain = [phone.rstrip("012") for phone in phones]
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for i, letter in enumerate(word):
        row: dict[int, tuple[float, int]] = {}
        for used, (score, _) in best[-1].items():
            for more in range(MOST_SOUNDS + 1):
                if used + more > len(plain):
                    break
                if scores:
                    step = scores.get((letter, tuple(plain[used : used + more])), -12.0)
                else:
                    step = -abs((used + more) / len(plain) - (i + 1) / len(word)) - 0.3 * (more != 1)
                if used + more not in row or score + step > row[used + more][0]:
                    row[used + more] = (score + step, used)
        best.append(row)
    if len(plain) not in best[-1]:
        return None
    shares, end = [], len(plain)
    for row in reversed(best[1:]):
        start = row[end][1]
        shares.append(tuple(phones[start:end]))
        end = start
    return shares[::-1]


def learned_rules(aligned: list[tuple[str, list[tuple[str, ...]]]]) -> dict[str, str]:
    rules: dict[str, str] = {}
    for left, right in CONTEXTS:
        votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        parents: dict[str, str] = {}
        shorter = CONTEXTS[: CONTEXTS.index((left, right))]
        for word, shares in aligned:
            padded = EDGE + word + EDGE
            for i, sounds in enumerate(shares):
                key = context_key(padded, i + 1, left, right)
                votes[key][" ".join(sounds)] += 1
                if key not in parents:
                    found = (rules.get(context_key(padded, i + 1, *sizes)) for sizes in reversed(shorter))
                    parents[key] = next((sounds for sounds in found if sounds is not None), "?")
        for key, counts in votes.items():
            sounds, count = counts.most_common(1)[0]
            if sounds != parents[key] and (count >= 2 or not shorter):
                rules[key] = sounds
    return rules


if __name__ == "__main__":
    main()
