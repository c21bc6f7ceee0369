"""Features, loudness and making speakers, by hand-made sounds; tests/parity compares with outetts itself."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
import soundfile

from vocoder_plugin import ArgumentError, AudioError
from vocoder_plugin.families.outetts import (
    AlignmentError,
    Speaker,
    SpeakerError,
    build_prompt,
    create_speaker,
    loudness,
)
from vocoder_plugin.families.outetts import features as features_module
from vocoder_plugin.families.outetts.create import load_clip, plain_text
from vocoder_plugin.families.outetts.plot import draw, picture_format

RATE = 24000


def tone(frequency: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def clip(fixtures) -> np.ndarray:
    """Three seconds of espeak-ng at 24 kHz."""
    samples, rate = soundfile.read(fixtures / "spoken_1.ogg", dtype="float32")
    positions = np.arange(0, len(samples) - 1, rate / RATE)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)


@pytest.mark.parametrize(("samples", "expected"), [
    (tone(240), (35, 2, 31)),  # 0.5/sqrt(2); 240/12000; (240-75)/525
    (tone(480), (35, 4, 77)),
    (tone(6000), (35, 50, 0)),
    (np.zeros(4800, np.float32), (0, 0, 0)),
    (np.ones(1, np.float32), (100, 0, 0)),
    (np.full(1, 3, np.float32), (100, 0, 0)),  # no token is above 100
    (np.zeros(0, np.float32), (0, 0, 0)),
    (np.array([np.nan], np.float32), (0, 0, 0)),
])  # fmt: skip
def test_features(samples, expected):
    found = features_module.measure(samples, RATE)
    assert list(found) == ["energy", "spectral_centroid", "pitch"]
    energy, centroid, pitch = found.values()
    assert (energy, centroid) == pytest.approx(expected[:2], abs=1)
    if expected[2]:
        assert pitch == pytest.approx(expected[2], abs=2)
    assert all(type(value) is int and 0 <= value <= 100 for value in found.values())


def test_white_noise_is_in_the_middle():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    found = features_module.measure(noise, RATE)
    assert found["energy"] == 10
    assert found["spectral_centroid"] == pytest.approx(50, abs=2)
    assert found["pitch"] <= 5  # hardly a frame is voiced


@pytest.mark.parametrize("frequency", [240, 300, 431.5, 590])
def test_pitch(frequency):
    """Near the tone's: the window of the reference draws lags towards shorter ones."""
    track = features_module.pitch_track(tone(frequency), RATE)
    assert track.size == 149  # the end is padded to a whole frame
    assert np.median(track) == pytest.approx(frequency, rel=0.06)


def test_frames_of_pitch():
    for size, frames in ((0, 0), (1, 0), (240, 0), (241, 1), (400, 1), (401, 2), (560, 2), (561, 3)):
        assert features_module.pitch_track(np.ones(size, np.float32), RATE).size == frames


def test_loudness(clip):
    level = loudness.normalise(clip * 0.1, RATE, target_lufs=-24)
    assert loudness.measure(level, RATE) == pytest.approx(-24, abs=0.1)
    np.testing.assert_allclose(level / np.abs(level).max(), clip / np.abs(clip).max(), atol=1e-5)


def test_loudness_leaves_the_peak_below_full_scale():
    clicks = np.zeros(RATE, np.float32)
    clicks[::4000] = 0.9
    assert np.abs(loudness.normalise(clicks, RATE)).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)


def test_short_clips_have_a_loudness():
    """As of the block that they are padded to: a quarter of it sounds."""
    short, block = tone(440, 0.1), tone(440, 0.4)
    assert loudness.measure(short, RATE) == pytest.approx(loudness.measure(block, RATE) - 10 * np.log10(4), abs=0.1)
    assert loudness.normalise(short, RATE).size == 2400


def test_silence_has_none():
    with pytest.raises(AudioError, match="silent"):
        loudness.normalise(np.zeros(RATE, np.float32), RATE)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_fixed_gain_does_not_look_around(clip, chunk):
    gain = loudness.FixedGain(12)
    whole = gain(clip)
    parts = np.concatenate([gain(clip[i : i + chunk]) for i in range(0, 7000, chunk)])
    np.testing.assert_array_equal(parts[:7000], whole[:7000])
    assert np.abs(whole).max() < 10 ** (-1 / 20)
    steps = np.diff(gain(np.linspace(-1, 1, 1001)))
    assert (steps >= 0).all() and steps[::50].max() < 0.01  # the limit bends, it does not break


def test_fixed_gain_of_a_clip(clip):
    gain = loudness.FixedGain.for_clip(clip * 0.05, RATE)
    assert loudness.measure(clip * 0.05, RATE) + gain.gain_db == pytest.approx(-18, abs=1e-6)
    assert loudness.FixedGain.for_clip(np.zeros(RATE), RATE).gain_db == 0


TIMES = [("The", 0.1, 0.4), ("old", 0.4, 0.8), ("one.", 1.0, 1.5)]


def test_speaker_of_words(small_dac, clip):
    speaker = create_speaker(clip, codec=small_dac, words=TIMES, sample_rate=RATE)
    assert speaker.version == 3
    assert speaker.text == "The old one."
    # the first word starts up to 20 frames early, words run to the end of their own, the last ends 20 late
    assert [word.n_frames for word in speaker.words] == [30, 60 - 30, 112 + 20 - 60]
    assert [word.duration for word in speaker.words] == [0.4, 0.4, 0.96]
    level = loudness.normalise(clip, RATE)
    np.testing.assert_array_equal(speaker.codes, small_dac.encode(level, RATE)[:, :132])
    for word, (_, start, end) in zip(speaker.words, TIMES, strict=True):
        assert word.features == features_module.measure(clip[int(start * RATE) : int(end * RATE)], RATE)
    assert speaker.global_features == features_module.measure(clip, RATE)
    assert speaker.codec["name"] == small_dac.name
    assert len(speaker.codec["sha256"]) == 64
    assert speaker.check_codec(small_dac) is None
    assert Speaker.from_dict(json.loads(json.dumps(speaker.to_dict()))) == speaker
    assert "<|word_start|>The<|features|><|t_0.40|>" in build_prompt("Go.", version=3, speaker=speaker)


def test_words_of_another_transcript_are_refused(small_dac, clip):
    for text in ("the OLD one", "“The” old - one!", "Theold one."):  # marks, case and parting do not count
        assert create_speaker(clip, text, codec=small_dac, words=TIMES, sample_rate=RATE).version == 3
    for text, place in (("The new one.", 2), ("The old one and more", 4), ("The old", 3), ("", 1)):
        with pytest.raises(AlignmentError, match=f"do not fit the transcript from its word {place} on; leave the tr"):
            create_speaker(clip, text, codec=small_dac, words=TIMES, sample_rate=RATE)


def test_codes_come_from_windows_of_five_seconds(small_dac, clip):
    long = np.resize(clip, 6 * RATE)
    speaker = create_speaker(long, "a", codec=small_dac, words=[("a", 0, 6)], sample_rate=RATE)
    level = loudness.normalise(long, RATE)
    windows = [small_dac.encode(level[i : i + 5 * RATE], RATE) for i in range(0, level.size, 5 * RATE)]
    np.testing.assert_array_equal(speaker.codes, np.concatenate(windows, axis=1))


def test_speaker_of_a_transcript(small_dac, fixtures):
    entry = json.loads((fixtures / "spoken.json").read_text())[0]
    speaker = create_speaker(fixtures / entry["file"], entry["text"], codec=small_dac)
    assert [word.text for word in speaker.words] == entry["text"].split()
    assert speaker.text == entry["text"]
    assert sum(word.duration for word in speaker.words) == pytest.approx(speaker.n_frames / 75, abs=0.1)


def test_stereo_and_another_rate(small_dac, clip, tmp_path):
    stereo = np.stack([clip, clip], axis=1)
    soundfile.write(tmp_path / "clip.wav", np.repeat(stereo, 2, axis=0), 2 * RATE, subtype="FLOAT")
    (tmp_path / "words.json").write_text(json.dumps(TIMES))
    speaker = create_speaker(tmp_path / "clip.wav", codec=small_dac, words=tmp_path / "words.json")
    same = create_speaker(clip, codec=small_dac, words=TIMES, sample_rate=RATE)
    assert [w.n_frames for w in speaker.words] == [w.n_frames for w in same.words]


class OneCodebook:
    """A codec of one codebook of 4096, at 75 frames a second: codes say which frame they are."""

    name, n_codebooks, codebook_size, sample_rate, hop_length, frame_rate = "counter", 1, 4096, RATE, 320, 75.0

    def __init__(self, path):
        self.path = path
        self.encoded = None

    def encode(self, samples, sample_rate):
        self.encoded = samples
        return np.arange(-(-samples.size // 320))[np.newaxis]


@pytest.mark.parametrize("version", [1, 2])
def test_speaker_of_versions_1_and_2(version, clip, small_dac):
    codec = OneCodebook(small_dac.path)
    times = [("We", 0.0, 0.2), ("counted", 0.2, 0.6), ("25,", 0.6, 1.4), ("OK!", 1.4, 1.4)]
    speaker = create_speaker(clip, "We counted 25, OK!", codec=codec, words=times, sample_rate=RATE, version=version)
    numbers = ["twenty", "five"] if version == 1 else ["twentyfive"]
    assert [word.text for word in speaker.words] == ["we", "counted", *numbers, "ok"]
    np.testing.assert_array_equal(codec.encoded, clip[: int(1.4 * RATE)])  # neither louder nor longer
    assert speaker.words[1].codes == (tuple(range(15, 45)),)
    assert sum(word.n_frames for word in speaker.words[:-1]) == 105
    assert speaker.words[-1].codes == ((1,),)  # a word without frames
    assert speaker.words[-1].duration == 0.01
    build_prompt("Go", version=version, speaker=speaker)
    with pytest.raises(AlignmentError, match="do not fit the transcript from its word 2 on"):
        create_speaker(clip, "We lost 25, OK!", codec=codec, words=times, sample_rate=RATE, version=version)


def test_refused(small_dac, clip):
    def create(samples=clip, transcript=None, **options):
        return create_speaker(samples, transcript, **dict(codec=small_dac, sample_rate=RATE) | options)

    with pytest.raises(AudioError, match=r"the clip has 20\.1 s, expected at most 20 s"):
        create(np.resize(clip, int(20.1 * RATE)), words=TIMES)
    with pytest.warns(UserWarning, match=r"the clip has 15\.1 s; up to 15 s"):
        load_clip(np.resize(clip, int(15.1 * RATE)), RATE, RATE)
    with pytest.raises(AudioError, match="empty"):
        create(clip[:0], words=TIMES)
    with pytest.raises(AudioError, match="silent"):
        create(np.zeros(2 * RATE, np.float32), words=TIMES)
    with pytest.raises(AudioError, match="needs its sample_rate"):
        create(sample_rate=None, words=TIMES)
    with pytest.raises(AudioError, match="no such file"):
        create("none.wav", words=TIMES)
    with pytest.raises(AlignmentError, match="a speaker needs a transcript, word times, or an aligner"):
        create()
    with pytest.raises(AlignmentError, match=r"'late' starts at 60\.00 s, but the clip has"):
        create(words=[("late", 60, 61)])
    with pytest.raises(AlignmentError, match="comes before the word ahead"):
        create(words=TIMES[::-1])
    with pytest.raises(SpeakerError, match=r"version 2 does not go with codec .* of 2 codebooks"):
        create(words=TIMES, version=2)


def test_plain_text():
    assert plain_text(" “It’s” –\n fine…\x07 ") == '"It\'s" - fine...'


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_drawing_any_script(small_dac, clip, tmp_path, kind):
    speaker = create_speaker(clip, codec=small_dac, words=[("今日は", 0, 1), ("$x_1$", 1, 2)], sample_rate=RATE)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(speaker, clip, small_dac, buffer, format=picture_format(tmp_path / f"me.{kind}"))
    assert {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[kind] in buffer.getvalue()[:1000]


@pytest.mark.parametrize(("name", "what"), [("me.gif", ".gif"), ("me", "a file without suffix"), ("me.SVGZ", ".svgz")])
def test_pictures_that_are_not_drawn(name, what):
    with pytest.raises(ArgumentError, match=rf"{name}: cannot draw {what}; use one of \.png, \.svg, \.pdf"):
        picture_format(name)
