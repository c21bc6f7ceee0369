"""Cutting text: nothing lost, sizes kept, sentences respected."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outetts_texts import texts

from vocoder_plugin.families.outetts import split_text
from vocoder_plugin.families.outetts.chunks import count_words

STORY = (
    "The old lighthouse stood alone. It had seen a hundred winters, and each of them had taken something from it. "
    "Dr. Smith, who came in May, said that it would stand for 3.14 years more at least! Nobody laughed. Nobody "
    "asked why. Because the keeper had left, because the road was gone, because no ship had passed here since the "
    "war, the lamp was never lit, and the birds, who had no use for lamps anyway, took the upper rooms for "
    "themselves and filled them with noise from March until the first snow. Then it was quiet. Very quiet."
)


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("text", texts())
def test_nothing_is_lost(text):
    chunks = split_text(text)
    assert "".join(map(bare, chunks)) == bare(text)
    assert all(chunk == chunk.strip() != "" for chunk in chunks)


@given(st.lists(st.sampled_from(["word", "end.", "pause,", "why?", "e.g.", "\n\n", "5.5"]), max_size=200))
def test_sizes(words):
    text = " ".join(words)
    chunks = split_text(text)
    sizes = [count_words(chunk) for chunk in chunks]
    assert [word for chunk in chunks for word in chunk.split()] == text.split()
    assert all(size <= 30 for size in sizes)
    if sum(sizes) >= 10:
        assert all(size >= 10 for size in sizes)
    else:
        assert len(sizes) <= 1


def test_ends_of_sentences_come_first():
    chunks = split_text(STORY)
    assert all(10 <= len(chunk.split()) <= 30 for chunk in chunks)
    assert chunks[0].endswith("from it.")
    assert chunks[1].endswith("asked why.")
    assert all(chunk[-1] in ".!," for chunk in chunks)  # the long sentence is cut at commas only
    assert sum(chunk[-1] == "," for chunk in chunks) <= 2
    assert chunks[-1].endswith("Very quiet.")


def test_no_end_at_abbreviations_and_numbers():
    text = "It was seen by Mr. Jones and by Mrs. Jones at camp 5 in the U.S. Army near St. Paul, e.g. In winter."
    pieces = [chunk for n in range(1, 6) for chunk in split_text(text, min_words=n, max_words=12)]
    assert not any(chunk.endswith(("Mr.", "Mrs.", "U.S.", "St.")) for chunk in pieces)


def test_paragraphs_end_sentences():
    text = (
        "Chapter one of the book about the sea and ships\n\nit was a dark night and there was nobody on the deck at all"
    )
    assert split_text(text, max_words=20)[0].endswith("ships")


def test_japanese_and_chinese():
    text = (
        "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。"
        * 3
    )
    chunks = split_text(text)
    assert "".join(chunks) == text
    assert all(chunk.endswith("。") for chunk in chunks)
    assert all(10 <= count_words(chunk) <= 30 for chunk in chunks)


def test_short_and_empty():
    assert split_text("Just this.") == ["Just this."]
    assert split_text(" \n ") == []
    assert count_words("Three small words.") == 3
    with pytest.raises(ValueError, match="expected 1 <= min_words <= max_words"):
        split_text("x", min_words=5, max_words=4)


def test_long_text_takes_steps_in_proportion():
    text = STORY * 40
    chunks = split_text(text)
    assert "".join(map(bare, chunks)) == bare(text)
    assert all(10 <= count_words(chunk) <= 30 for chunk in chunks)
