"""Prompts against outetts' own prompt processors, byte for byte."""

from __future__ import annotations

import copy
import json

import pytest
from outetts_texts import texts
from test_outetts_parity import StubTokenizer, import_prompt_processors

from vocoder_plugin.families.outetts import Speaker, build_prompt, build_training_prompt
from vocoder_plugin.families.outetts.markup import without_markup

TEXTS = texts()
SPEAKER_TEXTS = [
    "The cat watched from the windowsill, tail flicking.",
    'It was 25 degrees "outside" - wasn\'t it? Yes!',
    "no full stop at the end",
    "こんにちは、世界。今日は良い天気です",
    "안녕하세요, 세계",
    " padded, with spaces ",
]


@pytest.fixture(scope="module")
def processors():
    modules = import_prompt_processors()
    tokens = StubTokenizer([f"<|{i}|>" for i in range(4100)])
    for version in ("v1", "v2"):
        modules[version].AutoTokenizer.from_pretrained = lambda _path: tokens
    return {
        1: modules["v1"].PromptProcessor("stub"),
        2: modules["v2"].PromptProcessor("stub"),
        3: modules["v3"].PromptProcessor(None),
    }


def make_speaker(processors, version: int, text: str) -> dict:
    if version == 1:
        words = processors[1].process_text(text)
    elif version == 2:
        words = [token["word"] for token in processors[2].text_processor.process_text(text)]
    else:
        words = text.split()
    entries = []
    for i, word in enumerate(words):
        codes = [(37 * i + 11 * j) % 1024 for j in range(3 + i % 4)]
        entry = {"word": word, "duration": round(len(codes) / 75, 2)}
        if version == 3:
            entry |= {
                "c1": codes,
                "c2": codes[::-1],
                "features": {"energy": i % 101, "spectral_centroid": 100 - i % 101},
            }
        else:
            entry["codes"] = codes
        entries.append(entry)
    speaker = {"text": text, "words": entries, "interface_version": version}
    if version == 3:
        speaker["global_features"] = {"energy": 13, "spectral_centroid": 20, "pitch": 28}
    return speaker


def complete(processor, text: str, speaker: dict | None) -> str | Exception:
    try:
        return processor.get_completion_prompt(text, speaker=copy.deepcopy(speaker))
    except IndexError as error:
        return error


@pytest.mark.parametrize("version", [1, 2, 3])
def test_completion(processors, version):
    failed = []
    speakers = [None, *(make_speaker(processors, version, text) for text in SPEAKER_TEXTS)]
    for i, text in enumerate(TEXTS):
        for speaker in {0: None, 1: speakers[1 + i % len(SPEAKER_TEXTS)]}.values():
            harmless = text if version < 3 else without_markup(text)  # outetts lets control tokens in
            theirs, before = complete(processors[version], harmless, speaker), copy.deepcopy(speaker)
            ours = build_prompt(text, version=version, speaker=speaker)
            assert speaker == before
            if isinstance(theirs, Exception):
                failed.append(text)
            else:
                assert ours == theirs, repr(text)
    assert len(TEXTS) >= 300
    # outetts 0.4.4 fails where version 2 finds nothing in a text: there the prompt has an empty text
    assert set(failed) == ({"'", "''"} if version == 2 else set())


@pytest.mark.parametrize("version", [1, 2, 3])
def test_training(processors, version):
    harmless = (text for text in TEXTS if version < 3 or text == without_markup(text))
    for text in [*SPEAKER_TEXTS, *(text for text in harmless if version != 2 or text.strip("' "))]:
        speaker = make_speaker(processors, version, text)
        if not speaker["words"]:
            continue
        if version == 2 and len(text) % 2:
            speaker["emotion"] = "calm"
        options = {"text": text} if version == 1 else {}
        theirs = processors[version].get_training_prompt(speaker=copy.deepcopy(speaker), **options)
        assert build_training_prompt(speaker, **options) == theirs, repr(text)


def test_voice_and_emotion(processors):
    speaker = make_speaker(processors, 2, "Good evening, everybody.")
    text = "well <|emotion_start|>laughs, 2x<|emotion_end|> then, 5 more"
    theirs = processors[2].get_completion_prompt(text, emotion="a low voice", speaker=copy.deepcopy(speaker))
    assert build_prompt(text, version=2, speaker=speaker, voice="a low voice") == theirs


def test_published_speaker(processors):
    path = (
        f"{import_prompt_processors()['package'].__path__[0]}/version/v3/default_speakers/json/en-female-1-neutral.json"
    )
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    speaker = Speaker.load(path)
    assert speaker.to_dict() == data
    assert build_training_prompt(speaker) == processors[3].get_training_prompt(copy.deepcopy(data))
    for text in TEXTS[:50]:
        assert build_prompt(text, version=3, speaker=speaker) == complete(processors[3], text, data)


def test_upstream_appends_the_separator_at_every_call(processors):
    """The bug that build_prompt does not have: why the other tests copy the speaker."""
    speaker = make_speaker(processors, 3, "no full stop at the end")
    first = processors[3].get_completion_prompt("One.", speaker)
    assert speaker["words"][-1]["word"] == "end."
    assert processors[3].get_completion_prompt("One.", speaker) != first
    ours = make_speaker(processors, 3, "no full stop at the end")
    assert build_prompt("One.", version=3, speaker=ours) == build_prompt("One.", version=3, speaker=ours) == first
