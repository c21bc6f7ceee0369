"""Features, loudness and speakers against outetts' own audio processor and a real descript-audio-codec."""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import soundfile
import torch
from oracles import descript_dac, import_dac, save_descript, speech_like
from test_outetts_parity import import_prompt_processors

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac as dac_converter
from vocoder_plugin.families.outetts import create_speaker, features, loudness

RATE = 24000


@pytest.fixture(scope="module")
def reference():
    """outetts' version 3 audio processor and DAC interface; its recogniser and resampler are not needed at 24 kHz."""
    import_dac()
    root = import_prompt_processors()["package"].__path__[0]
    for name in ("outetts.dac", "outetts.whisper", "outetts.utils", "torchaudio"):
        stub = types.ModuleType(name)
        stub.__path__ = [f"{root}/{name.removeprefix('outetts.')}"]
        sys.modules[name] = stub
    sys.modules["torchaudio"].transforms = types.SimpleNamespace(Resample=lambda _from, _to: lambda wav: wav)
    sys.modules["torchaudio"].load = lambda file: (lambda samples, rate: (torch.from_numpy(samples.T.copy()), rate))(
        *soundfile.read(file, dtype="float32", always_2d=True)
    )
    for name, item in (
        ("outetts.whisper.transcribe", "transcribe_once_word_level"),
        ("outetts.utils.preprocessing", "text_normalizations"),
    ):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], item, None)
    return types.SimpleNamespace(
        processor=importlib.import_module("outetts.version.v3.audio_processor"),
        dac=importlib.import_module("outetts.dac.interface"),
    )


def espeak(text: str, *options: str) -> np.ndarray:
    """Speech at 24 kHz; of another kind where espeak-ng is not installed."""
    if not shutil.which("espeak-ng"):
        return speech_like(RATE, len(text) * 2000)
    wav = subprocess.run(["espeak-ng", "--stdout", *options, text], check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    positions = np.arange(0, len(samples) - 1, rate / RATE)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)


@pytest.fixture(scope="module")
def segments() -> dict[str, np.ndarray]:
    """50 segments: words of several voices, noise, tones, silence, clicks, one sample."""
    rng = np.random.default_rng(6)
    found = {}
    for voice, pitch in (("en", "50"), ("en+f3", "70"), ("de", "20")):
        speech = espeak(
            "The quick brown fox jumps over the lazy dog, while seven small birds sing.", "-v", voice, "-p", pitch
        )
        for i in range(8):
            length = int(rng.integers(500, 12000))
            start = int(rng.integers(0, len(speech) - length))
            found[f"{voice} {i}"] = speech[start : start + length]
        found[f"{voice} whole"] = speech
    seconds = np.arange(RATE) / RATE
    for frequency in (60, 75, 100, 220, 440, 599, 1000):
        found[f"{frequency} Hz"] = (0.5 * np.sin(2 * np.pi * frequency * seconds)).astype(np.float32)
    for level in (1e-4, 0.05, 0.9):
        found[f"noise {level}"] = (level * rng.standard_normal(5000)).clip(-1, 1).astype(np.float32)
    for length in (240, 241, 400, 401, 560, 561):
        found[f"noise of {length}"] = (0.2 * rng.standard_normal(length)).astype(np.float32)
    click = np.zeros(2400, np.float32)
    click[1200] = 1
    train = np.zeros(9600, np.float32)
    train[::200] = 0.8
    found |= {
        "click": click,
        "clicks": train,
        "silence": np.zeros(4800, np.float32),
        "dc": np.full(4800, 0.3, np.float32),
    }
    found |= {
        "one sample": np.full(1, 0.5, np.float32),
        "few samples": np.full(100, 0.5, np.float32),
        "none": click[:0],
    }
    return found


def test_features(reference, segments):
    theirs = reference.processor.Features("cpu")
    assert len(segments) == 50
    for name, samples in segments.items():
        ours = features.measure(samples, RATE)
        if 0 < len(samples) <= 240:  # outetts fails: not one frame for the pitch
            with pytest.raises((RuntimeError, IndexError)):
                theirs.extract_audio_features(torch.from_numpy(samples)[None], RATE)
            assert ours["pitch"] == 0
            if not name.startswith("noise"):
                assert ours == {"energy": 50, "spectral_centroid": 0, "pitch": 0}
        else:
            assert ours == theirs.extract_audio_features(torch.from_numpy(samples)[None], RATE), name


def test_pitch_track(reference, segments):
    for name, samples in segments.items():
        if len(samples) >= 400:
            expected = reference.processor.calculate_pitch(torch.from_numpy(samples), RATE).numpy()
            np.testing.assert_allclose(features.pitch_track(samples, RATE), expected, atol=0.1, err_msg=name)


def test_loudness(reference, segments):
    measured = 0
    for name, samples in segments.items():
        if len(samples) < 400 or not np.isfinite(loudness.measure(samples, RATE)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = reference.dac.process_audio_tensor(torch.from_numpy(samples)[None, None]).numpy()[0, 0]
        ours = loudness.normalise(samples, RATE)
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=name)
        assert abs(loudness.measure(ours, RATE) - loudness.measure(theirs, RATE)) < 0.1
        measured += 1
    assert measured > 40


@pytest.fixture(scope="module")
def codecs(reference, tmp_path_factory):
    """The small DAC as outetts uses it and as this package does."""
    folder = tmp_path_factory.mktemp("codec")
    model = descript_dac("small")
    save_descript(model, "small", folder / "small.pth")
    dac_converter.convert(folder / "small.pth", folder / "small.gguf", type="f32")
    theirs = reference.dac.DacInterface.__new__(reference.dac.DacInterface)
    theirs.model, theirs.device, theirs.sr = model, torch.device("cpu"), RATE
    with Codec.load(folder / "small.gguf", n_threads=2) as ours:
        yield theirs, ours


SPOKEN = [("The", 0.05, 0.3), ("quick", 0.3, 0.62), ("brown", 0.7, 1.01), ("fox.", 1.01, 1.5)]


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        (2.0, SPOKEN),
        (11.0, SPOKEN),  # three windows of the codec
        (11.0, [("The", 0.5, 0.5), ("quick", 0.51, 2.0), ("fox.", 2.0, 10.9)]),  # a word without sound
        (3.0, [("All.", 0.0, 0.4)]),
    ],
)
def test_create_speaker(reference, codecs, times, seconds, tmp_path):
    speech = np.resize(espeak("The quick brown fox jumps over the lazy dog."), int(seconds * RATE))
    file = io.BytesIO()
    soundfile.write(file, speech, RATE, format="WAV", subtype="FLOAT")
    processor = reference.processor.AudioProcessor.__new__(reference.processor.AudioProcessor)
    processor.device, processor.features = torch.device("cpu"), reference.processor.Features("cpu")
    processor.audio_codec = codecs[0]
    words = [{"word": word, "start": start, "end": end} for word, start, end in times]
    text = " ".join(word for word, _, _ in times)
    theirs = processor.create_speaker_from_dict({"audio": {"bytes": file.getvalue()}, "text": text, "words": words})
    ours = create_speaker(speech, text, sample_rate=RATE, words=times, codec=codecs[1]).to_dict()
    assert ours.pop("codec")["name"] == codecs[1].name
    assert ours.pop("interface_version") == 3
    differing = total = 0
    for mine, other in zip(ours["words"], theirs["words"], strict=True):
        for row in ("c1", "c2"):
            assert len(mine[row]) == len(other[row])
            differing += sum(a != b for a, b in zip(mine.pop(row), other.pop(row), strict=True))
            total += len(mine)
    assert ours == theirs
    assert differing <= 0.002 * total  # ties
