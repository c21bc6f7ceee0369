"""The commands that are Mimi's own."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from vocoder_plugin import Codec
from vocoder_plugin.cli import main


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def converted(fixtures, tmp_path_factory):
    path = tmp_path_factory.mktemp("mimi") / "mimi.gguf"
    result = run("convert", "mimi", fixtures / "tiny_mimi_hf", path, "--type", "f32")
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav") / "voice.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000, subtype="FLOAT")
    return path


def test_features(converted, wav, tmp_path):
    out = tmp_path / "features.npy"
    result = run("features", wav, out, "--codec", converted)
    assert result.exit_code == 0, result.stderr
    latents = np.load(out)
    with Codec.load(converted) as codec:
        samples, rate = soundfile.read(wav, dtype="float32")
        np.testing.assert_array_equal(latents, codec.encode_latents(samples, rate))
    assert result.stderr == f"{latents.shape[0]} frames of {latents.shape[1]} values\n"
    assert "exists already" in run("features", wav, out, "--codec", converted).stderr


def test_features_of_another_codec(small_dac_file, wav, tmp_path):
    result = run("features", wav, tmp_path / "features.npy", "--codec", small_dac_file)
    assert result.exit_code == 1
    assert "has no continuous features; they are Mimi's" in result.stderr
    assert not (tmp_path / "features.npy").exists()


def test_codes_there_and_back(converted, wav, tmp_path):
    assert run("encode", wav, tmp_path / "codes.npz", "--codec", converted).exit_code == 0
    result = run("decode", tmp_path / "codes.npz", tmp_path / "out.wav", "--codec", converted, "--streaming")
    assert result.exit_code == 0, result.stderr
    codes = np.load(tmp_path / "codes.npz")["audio_codes"]
    with Codec.load(converted) as codec:
        assert codes.shape[1] == codec.n_codebooks
        assert soundfile.info(tmp_path / "out.wav").frames == codec.decoded_length(codes.shape[2])


def test_convert_refuses_what_is_there(converted, fixtures):
    result = run("convert", "mimi", fixtures / "tiny_mimi_hf", converted)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
