"""WavTokenizer through the commands, as a user types them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from commands import run
from tiny_llm import outetts_0_tokens, write_tiny_llm


@pytest.fixture(scope="module")
def converted(fixtures, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "wavtokenizer.gguf"
    result = run("convert", "wavtokenizer", fixtures / "small_wavtokenizer.ckpt", out, "--type", "f32")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"
    return out


def test_info(converted):
    lines = run("info", converted).stdout.splitlines()
    assert lines[0] == "architecture  wavtokenizer_large"
    assert "sample rate   24000 Hz, 20 samples a frame, 1200 frames/s" in lines
    assert "codebooks     1 of 64 entries" in lines
    assert "encoder       rates 4 5" in lines


def test_encode_and_decode(converted, tmp_path, wavtokenizer_reference):
    r = wavtokenizer_reference
    soundfile.write(tmp_path / "in.wav", r["wav"], 24000, subtype="FLOAT")
    assert run("encode", tmp_path / "in.wav", tmp_path / "codes.npz", "--codec", converted).exit_code == 0
    with np.load(tmp_path / "codes.npz") as archive:
        np.testing.assert_array_equal(archive["audio_codes"][0], r["encoded"])
    np.savez(tmp_path / "given.npz", audio_codes=r["codes"][np.newaxis])
    result = run("decode", tmp_path / "given.npz", tmp_path / "out.wav", "--codec", converted)
    assert result.exit_code == 0, result.stderr
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 24000
    assert np.abs(samples - np.clip(r["audio"], -1, 1)).max() < 1.1 / 32768  # 16-bit samples


def test_llama_dialect(fixtures, tmp_path):
    out = tmp_path / "llama.gguf"
    source = fixtures / "small_wavtokenizer.ckpt"
    assert run("convert", "wavtokenizer", source, out, "--dialect", "llama").exit_code == 0
    assert run("info", out).stdout.startswith("architecture  wavtokenizer-dec\n")
    again = run("convert", "wavtokenizer", source, out)
    assert again.exit_code == 1
    assert "exists already; use --force" in again.stderr


def test_generate(converted, tmp_path):
    write_tiny_llm(tmp_path / "llm.gguf", outetts_0_tokens())
    (tmp_path / "prompt.txt").write_text("<|im_start|>\n<|text_start|>hello<|text_end|>\n<|audio_start|>\n")
    result = run(
        "generate", "--model", tmp_path / "llm.gguf", "--codec", converted, "--prompt-file", tmp_path / "prompt.txt",
        "-o", tmp_path / "out.wav", "--max-tokens", 2000, "--seed", 3, "--n-ctx", 4096,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 24000
    assert samples.size % 20 == 0
    assert samples.size > 0
