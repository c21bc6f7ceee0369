"""Text to words, words to sounds, sounds to tokens."""

import pytest
from vocoder_voice_kumo.english import cardinal, ordinal, sentences
from vocoder_voice_kumo.phones import PHONES, START
from vocoder_voice_kumo.pronounce import sentence_phones, word_phones
from vocoder_voice_kumo.sequence import BEGIN, END, NUMBERS, VOCABULARY, prompts, sentence_sounds, sequence


def said(text: str) -> str:
    return " / ".join(
        " ".join(word + mark for word, mark in zip(s.words, s.marks, strict=True)) for s in sentences(text)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50.", "doctor smith paid three dollars and fifty cents."),
        ("At 10:05, 42% left!", "at ten oh five, forty two percent left!"),
        ("In 1987; in 2007", "in nineteen eighty seven, in two thousand seven."),
        ("No. Yes?", "no. / yes?"),
        ("the 3rd and the 20th of 1,234,567", "the third and the twentieth of one million two hundred thirty four"
         " thousand five hundred sixty seven."),
        ("-3.25 km", "minus three point two five kilometers."),
        ("what?!", "what?"),
        ("", ""),
        ("... --- !!!", ""),
    ],
)  # fmt: skip
def test_text_is_spelled_out(text: str, expected: str) -> None:
    assert said(text) == expected


def test_numbers() -> None:
    assert cardinal(0) == "zero" and cardinal(10**15 * 3) == "three" + " zero" * 15
    assert [ordinal(n) for n in (1, 12, 20, 21, 100)] == [
        *("first", "twelfth", "twentieth", "twenty first", "one hundredth")
    ]


def test_weak_forms_depend_on_what_follows() -> None:
    assert sentence_phones(["the", "apple"])[0] == ["DH", "IY0"]
    assert sentence_phones(["the", "dog"])[0] == ["DH", "AH0"]
    assert sentence_phones(["what", "for"])[1] == ["F", "AO1", "R"]


@pytest.mark.parametrize("word", ["xyz", "zorblax's", "qqq", "blorping", "a", "o'hara", "brrr", "kubernetes"])
def test_any_word_has_sounds_that_the_model_knows(word: str) -> None:
    phones = word_phones(word)
    assert phones and set(phones) <= set(PHONES)


def test_a_sentence_is_written_block_by_block() -> None:
    sounds = sentence_sounds([["HH", "AY1"]], ["!"], START)
    tokens, written = sequence([(sound, 2) for sound in sounds], range(8))
    spelled = [VOCABULARY[token] for token in tokens]
    assert spelled[:8] == [
        BEGIN,
        "<|next:HH|>",
        "<|start|>",
        "<|frames:2|>",
        "<|0|>",
        "<|1|>",
        "<|next:AY1|>",
        "<|HH|>",
    ]
    assert spelled[-5:] == [END, "<|!|>", "<|frames:2|>", "<|6|>", "<|7|>"]
    fed = [token for prompt in prompts(sounds) for token in prompt]
    assert fed == [token for token, own in zip(tokens, written, strict=True) if not own]
    assert len(NUMBERS) == len(VOCABULARY)
