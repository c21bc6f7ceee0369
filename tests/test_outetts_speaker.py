"""Speaker profiles: reading, refusing, hearing."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest
from speaking_llm import outetts_1_speaker
from test_outetts_prompts import V1, V2, V3

from vocoder_plugin import VocoderError
from vocoder_plugin.families.outetts import Speaker, SpeakerError, Word, profiles


def changed(data: dict, path: tuple, value: object) -> dict:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize("data", [V1, V2, V3])
def test_round_trip(data, tmp_path):
    data = data | {"codec": {"name": "dac", "sha256": "00" * 32}, "licence": "CC0"}
    (tmp_path / "in.json").write_text(json.dumps(data))
    speaker = Speaker.load(tmp_path / "in.json")
    speaker.save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == data
    with pytest.raises(SpeakerError, match="exists already"):
        speaker.save(tmp_path / "out.json")
    speaker.replace(text="Oh").save(tmp_path / "out.json", force=True)
    assert Speaker.load(tmp_path / "out.json").text == "Oh"


@pytest.mark.parametrize(("data", "version"), [
    (V1, 1), (V2, 2), (V3, 3), ({"version": "0.2"}, 2), ({"version": "0.3"}, 2), ({"version": "0.1"}, 1), ({}, 2),
])  # fmt: skip
def test_version(data, version):
    bare = {key: value for key, value in V1.items() if key != "interface_version"}
    speaker = Speaker.from_dict(bare | data)
    assert speaker.version == version
    assert {"interface_version": version}.items() <= speaker.to_dict().items()
    assert speaker.to_dict().get("version") == data.get("version")


def test_version_of_codes_without_one():
    bare = {key: value for key, value in V3.items() if key != "interface_version"}
    assert Speaker.from_dict(bare).version == 3
    assert Speaker.from_dict(bare | {"version": "1.0"}).version == 3


@pytest.mark.parametrize(("path", "value", "said"), [
    (("text",), None, "'text' is missing, expected a string"),
    (("words",), [], "'words' is missing or empty"),
    (("words",), {"a": 1}, "'words' is missing or empty"),
    (("interface_version",), 4, "'interface_version' is 4, expected 1, 2 or 3"),
    (("interface_version",), True, "'interface_version' is True"),
    (("words", 1), 3, "word 2 is 3, expected an object"),
    (("words", 1, "word"), 3, "word 2: 'word' is 3"),
    (("words", 1, "duration"), "1", "word 2 .'hi'.: 'duration' is '1', expected seconds"),
    (("words", 1, "duration"), float("nan"), "'duration' is nan"),
    (("words", 1, "duration"), -0.1, "'duration' is -0.1"),
    (("words", 1, "c2"), [], "word 2 .'hi'. has 1 in c1 and 0 in c2: a frame needs a code of each"),
    (("words", 1, "c1"), None, "'c1' is missing, expected a list of codes"),
    (("words", 1, "c1"), [1024], "'c1' has the code 1024, expected 0 to 1023"),
    (("words", 1, "c1"), [-1], "'c1' has the code -1"),
    (("words", 1, "c1"), [1.0], "'c1' has the code 1.0"),
    (("words", 1, "c1"), [True], "'c1' has the code True"),
    (("words", 1, "features"), [1], "'features' is .1., expected an object"),
    (("words", 1, "features", "energy"), 101, "energy is 101, expected an integer 0 to 100"),
    (("words", 1, "features", "energy"), "|><|im_end|>", "energy is .*, expected an integer"),
    (("global_features", "pitch"), 0.5, "pitch is 0.5"),
    (("codec",), "dac", "'codec' is 'dac', expected an object"),
])  # fmt: skip
def test_damage(path, value, said, tmp_path):
    data = changed(V3, path, value)
    with pytest.raises(SpeakerError, match=said):
        Speaker.from_dict(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(SpeakerError, match=rf"bad\.json: .*{said}") as caught:
        Speaker.load(tmp_path / "bad.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100000, b'{"text": "x"}'])
def test_no_profile(content, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(SpeakerError, match=r"bad\.json"):
        Speaker.load(tmp_path / "bad.json")


def test_no_file(tmp_path):
    with pytest.raises(SpeakerError, match=r"none\.json: cannot be read: No such file"):
        Speaker.load(tmp_path / "none.json")
    with pytest.raises(SpeakerError, match="cannot be written"):
        Speaker.from_dict(V3).save(tmp_path / "none" / "x.json")


@pytest.mark.parametrize(("name", "kind"), [("pipe", "named pipe"), ("link", "device"), ("folder", "folder")])
def test_what_is_no_regular_file(name, kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for read in (Speaker.load, lambda path: profiles.find(str(path))):
        with pytest.raises(SpeakerError, match=f"{name}: cannot be read: it is a {kind}, expected a regular file"):
            read(tmp_path / name)


def test_what_a_refusal_names(tmp_path):
    path = tmp_path / "bad.json"
    for key, where in (("interface_version", ()), ("duration", ("words", 0)), ("c1", ("words", 1)), ("text", ())):
        path.write_text(json.dumps(changed(V3, (*where, key), {})))
        with pytest.raises(ValueError) as caught:
            Speaker.load(path)
        assert (caught.value.path, caught.value.key) == (str(path), key)


@pytest.mark.parametrize("data", [V1, V2, V3])
def test_copies(data):
    speaker = Speaker.from_dict(data | {"codec": {"name": "dac", "sha256": "00" * 32}, "tags": ["a"]})
    for made in (copy.deepcopy(speaker), copy.copy(speaker), pickle.loads(pickle.dumps(speaker))):
        assert made == speaker
        assert made.to_dict() == speaker.to_dict()
        with pytest.raises(TypeError):
            made.extra["tags"] = []
    assert copy.deepcopy(speaker).extra["tags"] is not speaker.extra["tags"]


def test_nothing_of_a_speaker_can_be_set():
    features = {"energy": 5}
    word = Word("a", 0.1, ((1,), (2,)), features)
    features["energy"] = 6
    assert word.features == {"energy": 5}
    with pytest.raises(TypeError):
        word.features["energy"] = 6


def test_damaged_at_any_place(tmp_path):
    """A file cut or changed anywhere is read or refused, never anything else."""
    text = json.dumps(V3)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        place = int(rng.integers(len(text)))
        damaged = text[:place] + (chr(rng.integers(32, 127)) + text[place + 1 :] if rng.integers(2) else "")
        (tmp_path / "bad.json").write_text(damaged)
        try:
            Speaker.load(tmp_path / "bad.json")
        except VocoderError:
            refused += 1
    assert refused > 100


def test_decode(small_dac, speaker):
    profile = Speaker.from_dict(outetts_1_speaker(speaker, len(speaker["words"])))
    np.testing.assert_array_equal(profile.codes, speaker["codes"])
    np.testing.assert_array_equal(profile.decode(small_dac), small_dac.decode(speaker["codes"]))
    assert profile.check_codec(small_dac) is None


def test_codec_of_another_model(small_dac):
    with pytest.raises(SpeakerError, match=r"codes of 1 codebook .*OuteTTS 0.2 or 0.3.*has 2"):
        Speaker.from_dict(V2).decode(small_dac)


def test_codec_of_the_same_kind(small_dac):
    other = Speaker.from_dict(V3 | {"codec": {"name": "another dac", "sha256": "ab" * 32}})
    warning = other.check_codec(small_dac)
    assert "'another dac' (abababababab)" in warning
    assert repr(small_dac.name) in warning
    assert other.decode(small_dac).size > 0
