"""Prompts written out by hand; tests/parity compares hundreds with outetts itself."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import anyascii
import gguf
import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outetts_texts import texts
from speaking_llm import outetts_0_all
from tiny_llm import byte_tokens, outetts_1_tokens, write_tiny_llm

from vocoder_plugin import VocoderError
from vocoder_plugin.families.outetts import PromptError, Speaker, SpeakerError, build_prompt, build_training_prompt
from vocoder_plugin.families.outetts import text as text_module
from vocoder_plugin.families.outetts.markup import PUNCTUATION
from vocoder_plugin.families.outetts.prompts import prompt_parts
from vocoder_plugin.families.outetts.speech import _guided_words
from vocoder_plugin.families.outetts.text import tidy_v3, tokens_v2, words_v1, words_v2, words_v3
from vocoder_plugin.llm import Outside, prompt_tokens

V1 = {
    "text": "Oh, hi",
    "words": [{"word": "oh", "duration": 0.03, "codes": [7, 8]}, {"word": "hi", "duration": 0.013, "codes": [9]}],
    "interface_version": 1,
}
V2 = V1 | {"interface_version": 2}
FEATURES = {"energy": 5, "spectral_centroid": 12, "pitch": 44}
V3 = {
    "text": "Oh, hi",
    "words": [
        {"word": "Oh,", "duration": 0.03, "c1": [7, 8], "c2": [1, 2], "features": FEATURES},
        {"word": "hi", "duration": 0.01, "c1": [9], "c2": [3], "features": {"energy": 6}},
    ],
    "global_features": FEATURES,
    "interface_version": 3,
}


def test_version_1():
    assert build_prompt("Take 12!", version=1) == (
        "<|im_start|>\n<|text_start|>take<|text_sep|>twelve<|text_end|>\n<|audio_start|>\n"
    )
    audio = "oh<|t_0.03|><|code_start|><|7|><|8|><|code_end|>\nhi<|t_0.01|><|code_start|><|9|><|code_end|>"
    assert build_prompt("Go", version=1, speaker=V1) == (
        "<|im_start|>\n<|text_start|>oh<|text_sep|>hi<|text_sep|>go<|text_end|>\n<|audio_start|>\n" + audio
    )
    assert build_training_prompt(V1) == (
        "<|im_start|>\n<|text_start|>oh<|text_sep|>hi<|text_end|>\n<|audio_start|>\n"
        + audio + "\n<|audio_end|>\n<|im_end|>\n"
    )  # fmt: skip


def test_version_2():
    opening = "<|im_start|>\n<|text_start|>{}<|text_end|>\n"
    assert build_prompt("Take 12!", version=2, voice="soft") == (
        opening.format("take<|space|>twelve<|exclamation_mark|>")
        + "<|voice_characteristic_start|>soft<|voice_characteristic_end|>\n<|audio_start|>\n"
    )
    audio = "oh<|comma|><|t_0.03|><|7|><|8|><|space|>\nhi<|t_0.01|><|9|>"
    assert build_prompt("Go", version=2, speaker=V2) == (
        opening.format("oh<|comma|><|space|>hi<|space|>go") + "<|audio_start|>\n" + audio + "<|space|>\n"
    )
    assert build_training_prompt(V2 | {"emotion": "glad"}) == (
        opening.format("oh<|comma|><|space|>hi")
        + "<|voice_characteristic_start|>glad<|voice_characteristic_end|>\n<|audio_start|>\n"
        + audio + "\n<|audio_end|>\n<|im_end|>\n"
    )  # fmt: skip


def test_version_3():
    assert build_prompt("Take “12” !", version=3) == (
        "<|im_start|>\n<|text_start|>Take 12!<|text_end|>\n<|audio_start|>\n"
    )
    first = "<|word_start|>Oh,<|features|><|t_0.03|><|energy_5|><|spectral_centroid_12|><|pitch_44|><|code|>"
    first += "<|c1_7|><|c2_1|><|c1_8|><|c2_2|><|word_end|>\n"
    second = (
        "<|features|><|t_0.01|><|energy_6|><|spectral_centroid_0|><|pitch_0|><|code|><|c1_9|><|c2_3|><|word_end|>\n"
    )
    assert build_prompt("Go.", version=3, speaker=V3) == (
        "<|im_start|>\n<|text_start|>Oh, hi. Go.<|text_end|>\n<|audio_start|>\n"
        f"{first}<|word_start|>hi.{second}<|word_start|>"
    )
    assert build_training_prompt(V3) == (
        "<|im_start|>\n<|text_start|>Oh, hi<|text_end|>\n<|audio_start|>\n"
        "<|global_features_start|><|energy_5|><|spectral_centroid_12|><|pitch_44|><|global_features_end|>\n"
        f"{first}<|word_start|>hi{second}<|audio_end|>\n<|im_end|>\n"
    )


@pytest.mark.parametrize(("spoken", "between", "last"), [
    ("Hello", ". ", "Hello."), ("Hello.", " ", "Hello"), ("Hello?", " ", "Hello"), ("Hello,", ". ", "Hello."),
    ("今日は", "。", "Hello。"), ("今日は。", "", "Hello"), ("今日は？", "", "Hello"), ("안녕", ". ", "Hello."),
    ("  ", "", "Hello"),
])  # fmt: skip
def test_separator(spoken, between, last):
    word = {"word": "Hello", "duration": 0.01, "c1": [1], "c2": [2]}
    prompt = build_prompt(" New ", version=3, speaker={"text": spoken, "words": [word], "interface_version": 3})
    assert f"<|text_start|>{spoken.strip()}{between}New<|text_end|>" in prompt
    assert f"<|word_start|>{last}<|features|>" in prompt


@pytest.mark.parametrize("speaker", [V1, V2, V3])
def test_the_speaker_is_left_as_it_is(speaker):
    given, loaded = copy.deepcopy(speaker), Speaker.from_dict(speaker)
    version = speaker["interface_version"]
    prompts = {build_prompt("Go.", version=version, speaker=s) for s in (given, given, loaded, loaded)}
    assert len(prompts) == 1
    assert given == speaker
    assert loaded == Speaker.from_dict(speaker)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_any_text_makes_a_prompt(version):
    for text in [*texts(0), "", " ", "\x00", "9" * 400, "\ud7ff\U0010ffff"]:
        prompt = build_prompt(text, version=version)
        assert prompt.startswith("<|im_start|>\n<|text_start|>")
        assert prompt.endswith("<|text_end|>\n<|audio_start|>\n")


ENGLISH = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", "\t", "\r\n", *".,;:!?'\"()[]-", "...", "--", "It's", "(The", "Dr.", "25", "3.5"]
        ),
        st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", max_size=30),
        st.text("0123456789", max_size=30),
        st.text([chr(i) for i in range(32, 127)], max_size=6),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=2000)
@given(ENGLISH)
def test_ascii_is_parted_as_mecab_does(text):
    """Whatever the shortcut takes."""
    assert text_module._part_words(text).split() == text_module._tagger().parse(text).split()


@settings(max_examples=300)
@given(ENGLISH)
def test_ascii_is_roman(text):
    assert str(text_module._romaniser().romanize_string(text)) == text
    assert anyascii.anyascii(text) == text


def test_plain_english_needs_no_romaniser(monkeypatch):
    said = [text for text in texts(0) if not text_module.HARD.search(text) and not any(map(str.isdigit, text))]
    assert len(said) > 70
    before = [(words_v1(text), tokens_v2(text)) for text in said]
    for package in ("MeCab", "uroman", "anyascii", "inflect"):
        monkeypatch.setitem(sys.modules, package, None)
    for made in (text_module._tagger, text_module._romaniser, text_module._number_speller):
        made.cache_clear()
    assert [(words_v1(text), tokens_v2(text)) for text in said] == before
    with pytest.raises(VocoderError, match="needs the package mecab-python3 with unidic-lite"):
        words_v1("今日は")
    with pytest.raises(VocoderError, match="needs the package inflect"):
        words_v2("Take 12")
    monkeypatch.undo()


def test_words():
    assert words_v1("It's 25, naïve_ones/twos") == ["it", "s", "twenty", "five", "naive", "ones", "twos"]
    assert words_v1("3.5") == ["three", "five"]  # MeCab parts it first, in outetts too
    assert [t.marked for t in tokens_v2("Ah, £5!")] == ["ah<|comma|>", "l", "five<|exclamation_mark|>"]
    assert [t.marked for t in tokens_v2('"Ah", so')] == ["ah", "so"]  # marks in a row are lost, in outetts too
    assert tidy_v3("Can 't  stop…… “now”!!") == "Can't stop... now!"
    assert words_v3("A b, c.") == ["A", "b,", "c."]
    assert words_v3("今日は、いい天気。") == ["今日", "は、", "いい", "天気。"]


@pytest.mark.parametrize(("options", "said"), [
    (dict(text="x", version=4), "version is 4, expected 1 .*, 2 .* or 3"),
    (dict(text=3, version=3), "the text is of type int, expected str"),
    (dict(text="x", version=3, voice="soft"), "only known to version 2"),
])  # fmt: skip
def test_refused(options, said):
    with pytest.raises(PromptError, match=said):
        build_prompt(**options)


@pytest.mark.parametrize(("speaker", "version"), [(V3, 2), (V3, 1), (V1, 2), (V1, 3), (V2, 3)])
def test_speaker_of_another_version(speaker, version):
    with pytest.raises(SpeakerError, match=r"is made for OuteTTS .*, but the model is OuteTTS .*create-speaker"):
        build_prompt("Go.", version=version, speaker=speaker)


def test_speaker_without_version_counts_as_2_and_serves_1():
    speaker = {key: value for key, value in V1.items() if key != "interface_version"}
    assert build_prompt("Go", version=1, speaker=speaker) == build_prompt("Go", version=1, speaker=V1)
    assert build_prompt("Go", version=2, speaker=speaker) == build_prompt("Go", version=2, speaker=V2)


def test_words_that_are_not_the_text():
    with pytest.raises(SpeakerError, match="word 2 of the speaker is 'hi', but its text has 'ho' there"):
        build_prompt("Go", version=2, speaker=V2 | {"text": "Oh, ho"})
    with pytest.raises(SpeakerError, match="has 2 words, but its text has 3"):
        build_prompt("Go", version=2, speaker=V2 | {"text": "Oh, hi you"})


DISGUISES = [
    "＜|audio_end|＞", "<\u200b|audio_end|>", "&lt;|audio_end|&gt;", "＜｜c1＿5｜＞", "＜｜５｜＞", "<|im_end|>",
    "<think>", "<s>", '<"|audio_end|>', "<|<|audio_end|>audio_end|>",
]  # fmt: skip
FRAGMENTS = [
    "<", ">", "|", "<|", "|>", "＜", "＞", "｜", "﹤", "﹥", "&lt;", "&gt;", "&#124;", "&amp;lt;", "\u200b", "\ufeff",
    "\u00ad", "\x00", "\u0338", "ß", "ﬁ", "Ã¼", "ï¼\x9c", "audio_end", "audio＿end", "im_end", "c1_5", "c1＿5", "５",
    "7", "think", "s", "_", " ", "\n", '"', "“", "…", "。", "?", "今", *DISGUISES, "<|emotion_start|>",
    "<|emotion_end|>", "<|audio_", "end|>",
]  # fmt: skip
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)
BETWEEN = {"<|text_sep|>", "<|space|>", "<|emotion_start|>", "<|emotion_end|>", *PUNCTUATION.values()}
EXTRA = ["<think>", "<s>", "<|custom_token_7|>", *BETWEEN]


@pytest.fixture(scope="module", params=[gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED], ids=["control", "user"])
def vocabularies(request, tmp_path_factory):
    """Llamas of both kinds of vocabulary, with all markup of prompts; llama.cpp finds tokens of users in any text."""
    found = {}
    for version, special in ((1, outetts_0_all()), (3, outetts_1_tokens())):
        path = tmp_path_factory.mktemp("vocabulary") / "llm.gguf"
        special = list(
            dict.fromkeys([*special, *EXTRA, "<|voice_characteristic_start|>", "<|voice_characteristic_end|>"])
        )
        write_tiny_llm(path, special, kind=request.param)
        found[version] = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, vocab_only=True)
        found[version].texts = [*byte_tokens(), *special]
    found[2] = found[1]
    yield found
    found[1].close()
    found[3].close()


def markup_in(llm, tokens) -> Counter:
    """The special tokens among these, but for those between words."""
    return Counter(llm.texts[token] for token in tokens if token >= 256 and llm.texts[token] not in BETWEEN)


def hostile_speaker(version: int, text: str, words: list[str]) -> dict:
    """A profile whose texts are from outside; version 2 knows no words but those of its text."""
    split = words_v2(text) if version == 2 else words
    entries = [
        {"word": word, "duration": 0.5, **({"c1": [7], "c2": [8]} if version == 3 else {"codes": [7]})}
        for word in split
    ]
    return {"text": text, "words": entries, "interface_version": version, "emotion": text}


@pytest.mark.parametrize("version", [1, 2, 3])
@settings(max_examples=150)
@given(text=HOSTILE, spoken=HOSTILE, word=HOSTILE)
def test_no_text_becomes_a_control_token(version, vocabularies, text, spoken, word):
    llm = vocabularies[version]
    voice = {"voice": word} if version == 2 else {}
    for speaker in (None, hostile_speaker(version, spoken, [word, word])):
        if speaker is not None and not speaker["words"]:
            continue
        harmless = speaker and hostile_speaker(version, " ".join("a" for _ in speaker["words"]), ["a", "a"])
        expected = markup_in(
            llm, ids(llm, build_prompt("a", version=version, speaker=harmless, **voice and {"voice": "a"}))
        )
        given = dict(version=version, speaker=speaker, **voice)
        assert markup_in(llm, prompt_tokens(llm, prompt_parts(text, **given))) == expected
        as_text = markup_in(llm, ids(llm, build_prompt(text, **given)))
        assert as_text - Counter({"<think>": 99, "<s>": 99}) == expected  # no markup of OuteTTS's; a str cannot tell
        if speaker is not None:
            trained = ids(llm, build_training_prompt(speaker))
            assert markup_in(llm, trained)["<|audio_end|>"] == markup_in(llm, trained)["<|im_end|>"] == 1
    for parts in _guided_words(text, version):
        assert not markup_in(llm, prompt_tokens(llm, parts))


@pytest.mark.parametrize("disguise", DISGUISES)
def test_control_tokens_in_disguise(vocabularies, disguise):
    llm = vocabularies[3]
    speaker = hostile_speaker(3, f"Oh {disguise}", [disguise])
    expected = markup_in(llm, ids(llm, build_prompt("a", version=3, speaker=hostile_speaker(3, "a", ["a"]))))
    assert expected["<|c1_7|>"] == expected["<|audio_start|>"] == 1
    assert markup_in(llm, prompt_tokens(llm, prompt_parts(f"Go {disguise}", version=3, speaker=speaker))) == expected


@pytest.mark.parametrize("version", [1, 2, 3])
def test_parts_of_harmless_prompts_are_the_tokens_of_the_whole(vocabularies, version):
    llm = vocabularies[version]
    speaker = {1: V1, 2: V2, 3: V3}[version]
    for text in texts(0)[::3]:
        if "<|" in text or "|>" in text:
            continue
        for known in (None, speaker):
            parts = prompt_parts(text, version=version, speaker=known)
            whole = build_prompt(text, version=version, speaker=known)
            assert "".join(parts) == whole
            assert prompt_tokens(llm, parts) == ids(llm, whole)


def test_text_from_outside_stays_what_it_is(vocabularies):
    """A vocabulary's own white space and letters count, wherever they come from."""
    llm = vocabularies[3]
    text = "a <b> |c| <|d  \n\t<e"
    assert prompt_tokens(llm, ["", Outside(""), Outside(text)]) == ids(llm, text)


def ids(llm, text: str) -> list[int]:
    return llm.tokenize(text.encode(), add_bos=False, special=True)
