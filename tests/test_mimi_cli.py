"""The commands that are Mimi's own."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from commands import run

from vocoder_plugin import Codec


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
    assert result.stderr == f"{latents.shape[0]} frames of {latents.shape[1]} values, 12.5 a second\n"
    assert "exists already" in run("features", wav, out, "--codec", converted).stderr


@pytest.mark.parametrize("streaming", [False, True])
def test_features_at_another_rate(converted, wav, tmp_path, streaming, monkeypatch):
    monkeypatch.setattr("vocoder_plugin.commands.console.PIECE_SECONDS", 0.13)
    out = tmp_path / "features.npy"
    result = run("features", wav, out, "--codec", converted, "--frame-rate", 10, *["--streaming"] * streaming)
    assert result.exit_code == 0, result.stderr
    with Codec.load(converted) as codec:
        samples, rate = soundfile.read(wav, dtype="float32")
        np.testing.assert_array_equal(np.load(out), codec.encode_latents(samples, rate, frame_rate=10))
    assert result.stderr == "11 frames of 32 values, 10 a second\n"


def test_features_of_another_codec(small_dac_file, small_dac, wav, tmp_path):
    result = run("features", wav, tmp_path / "features.npy", "--codec", small_dac_file)
    assert result.exit_code == 0, result.stderr
    samples, rate = soundfile.read(wav, dtype="float32")
    latents = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(latents, small_dac.encode_latents(samples, rate), atol=1e-4)
    assert result.stderr == f"75 frames of {small_dac.latent_dim} values, 75 a second\n"


def test_codes_there_and_back(converted, wav, tmp_path):
    assert run("encode", wav, tmp_path / "codes.npz", "--codec", converted).exit_code == 0
    result = run("decode", tmp_path / "codes.npz", tmp_path / "out.wav", "--codec", converted, "--streaming")
    assert result.exit_code == 0, result.stderr
    codes = np.load(tmp_path / "codes.npz")["audio_codes"]
    with Codec.load(converted) as codec:
        assert codes.shape[1] == codec.n_codebooks
        assert soundfile.info(tmp_path / "out.wav").frames == codec.decoded_length(codes.shape[2])


@pytest.mark.parametrize("rate", [8000, 44100])
def test_encode_in_pieces(converted, tmp_path, rate, monkeypatch):
    """Stereo, at another rate, piece by piece: the codes of the whole, and the arrays that the docs name."""
    monkeypatch.setattr("vocoder_plugin.commands.console.PIECE_SECONDS", 0.31)
    stereo = np.random.default_rng(3).normal(0, 0.1, (rate, 2)).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", stereo, rate, subtype="FLOAT")
    out = tmp_path / "codes.npz"
    result = run("encode", tmp_path / "in.wav", out, "--codec", converted, "--streaming", "--codebooks", 3)
    assert result.exit_code == 0, result.stderr
    with Codec.load(converted, n_codebooks=3) as codec, np.load(out) as archive:
        assert {name: archive[name].shape for name in archive} == {
            "audio_codes": (1, 3, 13), "sample_rate": (), "num_codebooks": (), "num_frames": (),
            "codec": (), "codec_name": (),
        }  # fmt: skip
        assert (archive["sample_rate"], archive["num_codebooks"], archive["num_frames"]) == (24000, 3, 13)
        np.testing.assert_array_equal(archive["audio_codes"][0], codec.encode(stereo, rate))


def test_decode_with_fewer_codebooks(converted, tmp_path):
    codes = np.random.default_rng(4).integers(0, 32, (1, 8, 5))
    np.savez(tmp_path / "codes.npz", audio_codes=codes)
    np.savez(tmp_path / "few.npz", audio_codes=codes[:, :3])
    for name, options in (("codes", ["--codebooks", 3]), ("few", []), ("few", ["--codebooks", 3])):
        result = run(
            "decode", tmp_path / f"{name}.npz", tmp_path / "out.wav", "--codec", converted, "--force", *options
        )
        assert result.exit_code == 0, result.stderr
        with Codec.load(converted, n_codebooks=3) as codec:
            expected = np.clip(np.rint(codec.decode(codes[0, :3]) * 32768), -32768, 32767)
        np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="int16")[0], expected)


def test_codebooks_that_are_not_there(converted, small_dac_file, wav, tmp_path):
    np.savez(tmp_path / "few.npz", audio_codes=np.zeros((1, 3, 5), int))
    out = tmp_path / "out.wav"
    for command, message in (
        (
            ["encode", wav, tmp_path / "x.npz", "--codec", converted, "--codebooks", 9],
            "n_codebooks is 9, expected 1 to 8",
        ),
        (
            ["encode", wav, tmp_path / "x.npz", "--codec", small_dac_file, "--codebooks", 1],
            "n_codebooks is 1, expected 2",
        ),
        (["decode", tmp_path / "few.npz", out, "--codec", converted, "--codebooks", 4], "has 3 codebooks, fewer than"),
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert message in result.stderr and result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.npz"]


def test_info(converted):
    lines = run("info", converted).stdout.splitlines()
    assert lines[0] == "architecture  mimi"
    assert lines[2:9] == [
        "sample rate   24000 Hz, 1920 samples a frame, 12.5 frames/s",
        "codebooks     8 of 32 entries",
        "latents       32 values a frame",
        "encoder       rates 4 5 6 8",
        "decoder       rates 8 6 5 4",
        "option        n_codebooks: Use the first N codebooks: more cost more and sound better. [default: 8]",
        "option        sliding_window: Positions that attention sees, for a file that does not say. [default: 250]",
    ]


def test_convert_refuses_what_is_there(converted, fixtures):
    result = run("convert", "mimi", fixtures / "tiny_mimi_hf", converted)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
