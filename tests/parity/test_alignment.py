# ruff: noqa: SIM905
"""Offline alignment of a hundred espeak-ng sentences, whose word times espeak-ng reports."""

from __future__ import annotations

import random

import numpy as np
import pytest
from espeak import Espeak

from vocoder_plugin.families.outetts.align import align

WORDS = (
    "the a old young quick lazy brown small happy river mountain teacher garden window doctor morning evening weather "
    "table bottle opened closed walked carried answered followed bought under over behind between slowly quickly never "
    "always because although yesterday tomorrow seven twelve water paper music letter animal kitchen station village "
    "winter summer and but with from into people children brother sister listened remembered"
).split()


@pytest.fixture(scope="module")
def espeak():
    return Espeak()


@pytest.mark.parametrize("voice", ["en-us", "en-gb"])
def test_hundred_sentences(espeak, voice):
    rng = random.Random(1)
    errors = []
    for _ in range(100):
        text = " ".join(rng.choices(WORDS, k=rng.randint(6, 12))).capitalize() + "."
        samples, rate, starts = espeak.say(text, voice)
        words = align(samples, rate, text, aligner="pocketsphinx")
        assert [word.text for word in words] == text.split()
        errors += [abs(word.start - start) for word, start in zip(words, starts, strict=True)]

    assert np.median(errors) <= 0.04
    assert np.percentile(errors, 95) <= 0.1
