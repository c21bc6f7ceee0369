"""The commands as a user types them: what they write, what they say where, and how they refuse."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import soundfile
from click.testing import Result
from commands import assert_done, refusal, run, run_process, spawn, talk
from tiny_llm import CONTROL, write_tiny_llm

from vocoder_plugin import Codec, SpeechStream, codec, deinterleave, kernels
from vocoder_plugin.audio.samples import pcm16
from vocoder_plugin.codecs import registry
from vocoder_plugin.codecs.registry import models
from vocoder_plugin.llm import generate_tokens

pytestmark = pytest.mark.usefixtures("no_thread_left")
PROMPT = "<|im_start|>\n<|text_start|>hello<|text_end|>\n<|audio_start|>\n"
COMMANDS = {
    (): ["convert", "info", "encode", "decode", "generate", "doctor"],
    ("convert",): ["dac", "mimi", "wavtokenizer"],
    ("convert", "wavtokenizer"): ["SOURCE", "OUT", "--type", "--dialect", "codec.cpp|llama", "--config", "--force"],
    ("convert", "dac"): ["SOURCE", "OUT", "--type", "f32|f16|bf16|q8_0", "--sample-rate", "--force"],
    ("info",): ["FILE", "--tensors"],
    ("encode",): ["AUDIO", "OUT", "--codec", "--device", "--threads", "--codebooks", "--streaming", "--force"],
    ("decode",): ["CODES", "OUT", "--codec", "--device", "--threads", "--codebooks", "--streaming", "--raw", "--force"],
    ("generate",): [
        "--model", "--codec", "--device", "--threads", "--prompt-file", "--out", "--streaming", "--raw", "--play",
        "--max-tokens", "--temperature", "--seed", "--n-ctx", "--n-gpu-layers", "--force",
    ],
    ("convert", "mimi"): ["SOURCE", "OUT", "--type", "--force"],
    ("features",): ["AUDIO", "OUT", "--codec", "--frame-rate", "the codec's", "--streaming", "--force"],
    ("doctor",): ["CODEC_FILES", "--device"],
}  # fmt: skip


@pytest.fixture(scope="session")
def codes_file(tmp_path_factory, speaker):
    path = tmp_path_factory.mktemp("codes") / "codes.npz"
    np.savez(path, audio_codes=speaker["codes"][np.newaxis])
    return path


@pytest.fixture
def wav_file(tmp_path, small_reference):
    path = tmp_path / "in.wav"
    soundfile.write(path, small_reference["wav"], 24000, subtype="FLOAT")
    return path


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    return path


# help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(command, flag):
    result = run(*command, flag)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {' '.join(command)}".rstrip())
    assert [word for word in COMMANDS[command] if word not in result.stdout] == []


def test_help_keeps_its_summaries_whole():
    for command in ((), ("convert",), ("speaker",)):
        assert "..." not in run(*command, "--help").stdout.replace("[ARGS]...", "")


def test_libraries_are_imported_when_they_are_needed():
    heavy = "llama_cpp", "soundfile", "gguf", "rich", "huggingface_hub", "matplotlib", "sounddevice"
    code = f"import sys, vocoder_plugin.commands.cli; print([n for n in {heavy} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"[]"


def test_as_a_module():
    result = run_process("--version")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"version" in result.stdout


def test_version():
    assert run("--version").stdout.split()[-1].count(".") == 2


@pytest.mark.parametrize("args", [["nonsense"], ["decode"], ["decode", "a.npz", "b.wav"], ["generate", "-o", "a.wav"]])
def test_wrong_usage(args):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--threads", "0"), ("--threads", "two"), ("--threads", "513")])
def test_wrong_option_values(codes_file, small_dac_file, tmp_path, option, value):
    result = run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file, option, value)
    assert result.exit_code == 2
    assert option in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--n-ctx", "63"), ("--n-ctx", 1 << 32), ("--seed", "-1")])
def test_wrong_values_for_an_llm(llm_file, small_dac_file, tmp_path, option, value):
    result = generate(llm_file, small_dac_file, tmp_path / "out.wav", "--prompt-file", "none", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


# convert


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("f32", "188 F32"),
        ("f16", "124 F32, 64 F16"),
        ("bf16", "124 F32, 64 BF16"),
        ("q8_0", "124 F32, 54 F16, 10 Q8_0"),
    ],
)
def test_convert(fixtures, tmp_path, codes_file, small_reference, kind, tensors):
    out = tmp_path / "out.gguf"
    result = run("convert", "dac", fixtures / "small_dac.pth", out, "--type", kind)
    assert_done(result)
    assert result.stderr == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"
    assert f"tensors       {tensors}; " in run("info", out).stdout
    assert_done(run("decode", codes_file, tmp_path / "out.wav", "--codec", out))
    samples, _ = soundfile.read(tmp_path / "out.wav")
    reference = small_reference["audio"]
    error = np.linalg.norm(samples - reference) / np.linalg.norm(reference)
    assert error < {"f32": 1e-4, "f16": 2e-3, "bf16": 1.2e-2, "q8_0": 2.5e-2}[kind]


def test_convert_is_f16_unless_told(fixtures, tmp_path):
    assert_done(run("convert", "dac", fixtures / "tiny_dac_hf", tmp_path / "out.gguf"))
    assert " F16" in run("info", tmp_path / "out.gguf").stdout


def test_convert_refuses_an_existing_output(fixtures, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    assert refusal(run("convert", "dac", fixtures / "small_dac.pth", out)).startswith(f"{out} exists already; ")
    assert out.read_bytes() == b"precious"
    assert_done(run("convert", "dac", fixtures / "small_dac.pth", out, "--force"))
    assert out.read_bytes()[:4] == b"GGUF"
    assert os.listdir(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100, b"PK\x03\x04garbage"], ids=repr)
def test_convert_of_a_bad_source(tmp_path, content):
    source = tmp_path / "bad.pth"
    if content is not None:
        source.write_bytes(content)
    assert str(source) in refusal(run("convert", "dac", source, tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()
    failed = run("convert", "dac", source, tmp_path / "out.gguf", "--force")
    assert failed.exit_code == 1
    assert [name for name in os.listdir(tmp_path) if name != "bad.pth"] == []


def test_convert_of_a_name_on_the_hub(tmp_path):
    said = refusal(run("convert", "dac", "someone/codec", tmp_path / "out.gguf"))
    assert said.startswith("someone/codec: there is no such file; if it is a repo on the hub, name a file of it: ")


def test_converter_that_cannot_be_imported(monkeypatch, fixtures, tmp_path):
    broken = dataclasses.replace(models()["dac"].converter, function="no_such_module:convert")
    monkeypatch.setattr(models()["dac"], "converter", broken)
    said = refusal(run("convert", "dac", fixtures / "small_dac.pth", tmp_path / "out.gguf"))
    assert said.startswith("the converter no_such_module:convert cannot be loaded: ModuleNotFoundError: ")


def test_convert_to_an_unknown_type(fixtures, tmp_path):
    result = run("convert", "dac", fixtures / "small_dac.pth", tmp_path / "out.gguf", "--type", "q4_0")
    assert result.exit_code == 2
    assert "q4_0" in result.stderr


# info


def test_info(small_dac_file):
    result = run("info", small_dac_file)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in result.stdout.replace("sample rate", "rate").splitlines())
    assert lines.pop("name")
    assert lines.pop("tensors").startswith("188 F32; ")
    assert lines == {
        "architecture": "dac",
        "rate": "24000 Hz, 320 samples a frame, 75 frames/s",
        "codebooks": "2 of 1024 entries",
        "latents": "48 values a frame",
        "encoder": "rates 2 4 5 8",
        "decoder": "rates 8 5 4 2",
    }


def test_info_of_every_tensor(small_dac_file):
    plain, listed = (run("info", small_dac_file, *flags).stdout.splitlines() for flags in ((), ("--tensors",)))
    assert listed[: len(plain)] == plain
    assert len(listed) == len(plain) + 188
    assert "  vq.q0.codebook.weight  F32  [1024, 8]" in listed


def test_info_of_a_language_model(llm_file):
    assert run("info", llm_file).stdout.splitlines()[0].split() == ["architecture", "llama"]


def test_info_of_a_name_that_commands_the_terminal(small_dac_file, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(small_dac_file.read_bytes().replace(b"DAC 24 kHz", b"\x1b[2J\x1b]0;xy"))
    result = run("info", path, "--tensors")
    assert result.exit_code == 0, result.stderr
    assert r"name          \x1b[2J\x1b]0;xy" in result.stdout
    assert "\x1b" not in result.stdout
    path.write_bytes(small_dac_file.read_bytes().replace(b"\x03\0\0\0\0\0\0\0dac", b"\x03\0\0\0\0\0\0\0d\x1bc"))
    said = refusal(run("decode", path, tmp_path / "out.wav", "--codec", path))
    assert "\x1b" not in said


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "garbage", "truncated", "hostile"])
def test_info_of_a_bad_file(small_dac_file, tmp_path, damage):
    path = tmp_path / "bad.gguf"
    data = small_dac_file.read_bytes()
    match damage:
        case "folder":
            path.mkdir()
        case "empty" | "garbage" | "truncated":
            path.write_bytes({"empty": b"", "garbage": b"garbage" * 99, "truncated": data[: len(data) // 2]}[damage])
        case "hostile":
            path.write_bytes(data[:8] + b"\xff" * 16 + data[24:])
    assert refusal(run("info", path)).startswith(f"{path}: ")


# encode


def test_encode(wav_file, small_dac_file, tmp_path, small_reference):
    out = tmp_path / "codes.npz"
    result = run("encode", wav_file, out, "--codec", small_dac_file)
    assert_done(result)
    assert result.stderr == "75 frames of 2 codebooks, 1.00 s\n"
    with np.load(out, allow_pickle=False) as archive:
        assert set(archive) == {"audio_codes", "sample_rate", "num_codebooks", "num_frames", "codec", "codec_name"}
        assert (archive["codec"].item(), archive["codec_name"].item()) == ("dac", "DAC 24 kHz")
        assert archive["audio_codes"].dtype == np.int32
        assert np.array_equal(archive["audio_codes"], small_reference["encoded"][np.newaxis])
        assert [archive[key].shape for key in ("sample_rate", "num_codebooks", "num_frames")] == [()] * 3
        assert [int(archive[key]) for key in ("sample_rate", "num_codebooks", "num_frames")] == [24000, 2, 75]


def test_encode_resamples_and_mixes(tmp_path, small_dac_file):
    soundfile.write(tmp_path / "in.flac", np.zeros((48000, 2)), 48000)
    assert_done(run("encode", tmp_path / "in.flac", tmp_path / "codes.npz", "--codec", small_dac_file))
    with np.load(tmp_path / "codes.npz") as archive:
        assert archive["audio_codes"].shape == (1, 2, 75)


@pytest.mark.parametrize("content", [None, b"", b"garbage"], ids=repr)
def test_encode_of_a_bad_file(tmp_path, small_dac_file, content):
    source = tmp_path / "bad.wav"
    if content is not None:
        source.write_bytes(content)
    assert refusal(run("encode", source, tmp_path / "codes.npz", "--codec", small_dac_file)).startswith(f"{source}: ")
    assert not (tmp_path / "codes.npz").exists()


def test_encode_names_a_sample_that_is_no_number(tmp_path, small_dac_file, monkeypatch):
    """By its place in the file, though the file is read in pieces."""
    monkeypatch.setattr("vocoder_plugin.commands.console.PIECE_SECONDS", 0.1)
    samples = np.zeros(24000, np.float32)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "in.wav", samples, 24000, subtype="FLOAT")
    for options in ([], ["--streaming"]):
        result = run("encode", tmp_path / "in.wav", tmp_path / "out.npz", "--codec", small_dac_file, *options)
        assert refusal(result) == f"{tmp_path / 'in.wav'}: sample 20000 of the audio is not a finite number"


def test_encode_of_no_samples(tmp_path, small_dac_file):
    soundfile.write(tmp_path / "empty.wav", np.empty(0), 24000)
    result = run("encode", tmp_path / "empty.wav", tmp_path / "codes.npz", "--codec", small_dac_file)
    assert refusal(result) == "there are no samples to encode"


# decode


def test_encode_and_decode(wav_file, small_dac_file, small_dac, tmp_path):
    assert_done(run("encode", wav_file, tmp_path / "codes.npz", "--codec", small_dac_file))
    assert_done(run("decode", tmp_path / "codes.npz", tmp_path / "out.wav", "--codec", small_dac_file))
    assert soundfile.info(tmp_path / "out.wav").frames == small_dac.decoded_length(75)


@pytest.mark.parametrize(("suffix", "kind"), [(".wav", "WAV"), (".flac", "FLAC"), (".ogg", "OGG")])
def test_decode_formats(codes_file, small_dac_file, small_dac, small_reference, tmp_path, suffix, kind):
    out = tmp_path / f"out{suffix}"
    assert_done(run("decode", codes_file, out, "--codec", small_dac_file))
    found = soundfile.info(out)
    assert (found.format, found.samplerate, found.channels) == (kind, 24000, 1)
    assert found.frames == small_dac.decoded_length(277)
    if kind != "OGG":
        samples, _ = soundfile.read(out)
        assert np.allclose(samples, small_reference["audio"], rtol=0, atol=1 / 32768)


def test_decode_to_standard_output(codes_file, small_dac_file, small_reference):
    result = run("decode", codes_file, "-", "--codec", small_dac_file)
    assert result.exit_code == 0
    samples, rate = soundfile.read(io.BytesIO(result.stdout_bytes))
    assert rate == 24000
    assert np.allclose(samples, small_reference["audio"], rtol=0, atol=1 / 32768)
    assert result.stderr.startswith("3.69 s of audio in ")


@pytest.mark.parametrize(("command", "name", "magic"), [("encode", "out.npz", b"PK"), ("decode", "out.wav", b"RIFF")])
def test_existing_outputs_are_refused(codes_file, wav_file, small_dac_file, tmp_path, command, name, magic):
    source = {"encode": wav_file, "decode": codes_file}[command]
    out = tmp_path / "new" / name
    out.parent.mkdir()
    out.write_bytes(b"precious")
    message = refusal(run(command, source, out, "--codec", small_dac_file))
    assert message == f"{out} exists already; use --force to overwrite it"
    assert out.read_bytes() == b"precious"
    assert_done(run(command, source, out, "--codec", small_dac_file, "--force"))
    assert out.read_bytes().startswith(magic)
    assert os.listdir(out.parent) == [name]


@pytest.mark.parametrize("command", ["encode", "convert", "features"])
def test_an_input_is_never_overwritten(fixtures, wav_file, small_dac_file, tmp_path, command):
    source = tmp_path / "source"
    source.write_bytes((fixtures / "small_dac.pth" if command == "convert" else wav_file).read_bytes())
    (tmp_path / "link").symlink_to(source)
    before = source.read_bytes()
    args = ["convert", "dac"] if command == "convert" else [command, "--codec", small_dac_file]
    for out in (source, tmp_path / "link"):
        message = refusal(run(*args, source, out, "--force"))
        assert message == f"{out} is an input of this command; name another output"
    assert source.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("command", ["encode", "convert"])
def test_outputs_that_are_no_files(fixtures, wav_file, small_dac_file, tmp_path, command):
    """A folder; a named pipe, which stands for devices such as /dev/null (the superuser could lose that one)."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    args = ["convert", "dac", fixtures / "small_dac.pth"]
    if command == "encode":
        args = ["encode", wav_file, "--codec", small_dac_file]
    for out in (tmp_path / "folder", tmp_path / "pipe"):
        assert refusal(run(*args, out, "--force")) == f"{out} is no ordinary file; name another output"
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_to(codes_file, tmp_path, monkeypatch):
    """Said before the codec is loaded. (The superuser may write anywhere, and may run this test.)"""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    said = refusal(run("decode", codes_file, tmp_path / "out.wav", "--codec", "none.gguf"))
    assert said == f"{tmp_path}: this folder cannot be written to"


def test_convert_does_not_write_to_standard_output(fixtures):
    result = run("convert", "dac", fixtures / "small_dac.pth", "-")
    assert result.exit_code == 2
    assert "cannot go to standard output" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_output_has_ordinary_permissions(codes_file, small_dac_file, tmp_path):
    assert_done(run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file))
    (tmp_path / "other").touch()
    assert (tmp_path / "out.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def raw_zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


GOOD = np.zeros((1, 2, 5), np.int32)
NOT_NPZ = "{path}: not an npz file; `vocoder-plugin encode` writes such files"
NO_ARRAY = "{path}: has no array 'audio_codes'; `vocoder-plugin encode` writes such files"
SHAPE = "{path}: audio_codes has shape %s, expected (1, codebooks, frames)"
OUT_OF_RANGE = "code %s of codebook 1, frame 3, is out of range (expected 0 to 1023)"


def with_code(code: int) -> np.ndarray:
    codes = GOOD.copy()
    codes[0, 1, 3] = code
    return codes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "{path}: there is no such file"),
        (b"", NOT_NPZ),
        (b"garbage" * 100, NOT_NPZ),
        (npy(GOOD), NOT_NPZ),
        (npz(audio_codes=GOOD)[:-30], NOT_NPZ),
        (npz(codes=GOOD), NO_ARRAY),
        (npz(), NO_ARRAY),
        (raw_zip("audio_codes", b"text"), NO_ARRAY),
        (npz(audio_codes=GOOD[0]), SHAPE % "(2, 5)"),
        (npz(audio_codes=np.int32(5)), SHAPE % "()"),
        (npz(audio_codes=np.concatenate([GOOD, GOOD])), SHAPE % "(2, 2, 5)"),
        (npz(audio_codes=GOOD[:, :1]), "codes have shape (1, 5), expected (2, n_frames)"),
        (npz(audio_codes=GOOD.astype(np.float32)), "codes are of type float32, expected integers"),
        (npz(audio_codes=with_code(1024)), OUT_OF_RANGE % 1024),
        (npz(audio_codes=with_code(-1)), OUT_OF_RANGE % -1),
        (npz(audio_codes=GOOD[:, :, :0]), "there are no codes to decode"),
    ],
    ids=[
        "missing", "empty", "garbage", "npy", "truncated", "other key", "no key", "no array", "two dimensions",
        "scalar", "two streams", "one codebook", "float", "too large", "negative", "no frames",
    ],
)  # fmt: skip
def test_decode_of_wrong_codes(tmp_path, small_dac_file, data, message):
    path = tmp_path / "codes.npz"
    if data is not None:
        path.write_bytes(data)
    result = run("decode", path, tmp_path / "out.wav", "--codec", small_dac_file)
    assert refusal(result) == message.format(path=path)
    assert set(os.listdir(tmp_path)) <= {"codes.npz"}


@pytest.mark.parametrize(
    "data",
    [
        npz(audio_codes=np.array([{}], object)),
        raw_zip("audio_codes.npy", npy(GOOD)[:-4]),
        raw_zip("audio_codes.npy", npy(GOOD)[:20]),
    ],
    ids=["pickled", "truncated array", "truncated header"],
)
def test_decode_of_a_damaged_archive(tmp_path, small_dac_file, data):
    path = tmp_path / "codes.npz"
    path.write_bytes(data)
    result = run("decode", path, tmp_path / "out.wav", "--codec", small_dac_file)
    assert refusal(result).startswith(f"{path}: a damaged npz file (")


def test_codes_of_another_codec(codes_file, wav_file, small_dac_file, small_wavtokenizer_file, tmp_path):
    codes = tmp_path / "codes.npz"
    assert_done(run("encode", wav_file, codes, "--codec", small_wavtokenizer_file))
    said = refusal(run("decode", codes, tmp_path / "out.wav", "--codec", small_dac_file))
    assert said == (
        f"{codes}: these are codes of a 'wavtokenizer' codec at 24000 Hz, but {small_dac_file} is 'dac' at 24000 Hz"
    )
    np.savez(codes, audio_codes=GOOD, codec="dac", sample_rate=44100)
    assert "of a 'dac' codec at 44100 Hz" in refusal(run("decode", codes, "-", "--codec", small_dac_file))
    np.savez(codes, audio_codes=GOOD, codec=["dac", "mimi"], sample_rate=24000)  # no name at all: as if there were none
    assert run("decode", codes, "-", "--codec", small_dac_file).exit_code == 0


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors", "folder"])
def test_a_checkpoint_as_codec(codes_file, llm_file, prompt_file, tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"PK")
    for command in (["decode", codes_file, "-"], ["generate", "-m", llm_file, "--prompt-file", prompt_file, "-o", "-"]):
        said = refusal(run(*command, "--codec", path))
        assert said.startswith(
            f"{path}: expected a codec's GGUF file; make one of a checkpoint: vocoder-plugin convert"
        )


def test_repos_where_files_are_wanted(codes_file, small_dac_file, prompt_file):
    said = refusal(run("decode", codes_file, "-", "--codec", "someone/codec"))
    assert said.startswith("someone/codec: there is no such file; if it is a repo on the hub, name a file of it: ")
    said = refusal(generate("someone/llm", small_dac_file, "-", "--prompt-file", prompt_file))
    assert said.endswith("someone/llm/FILE, or someone/llm:TAG such as someone/llm:Q8_0")


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("command", ["decode", "encode", "features", "convert"])
def test_a_full_disk(command, codes_file, wav_file, small_dac_file, fixtures, tmp_path):
    """A limit on the size of files fails like it: one line with the file and the reason, and nothing left behind."""
    out = tmp_path / {"decode": "out.wav", "encode": "out.npz", "features": "out.npy", "convert": "out.gguf"}[command]
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).normal(0, 0.1, 24000 * 60), 24000)
    source = {"decode": codes_file, "convert": fixtures / "small_dac.pth"}.get(command, long)
    middle = ["dac"] if command == "convert" else []
    args = [command, *middle, source, out, *([] if middle else ["--codec", small_dac_file])]
    shell = ["sh", "-c", 'ulimit -f 8; exec "$0" -m vocoder_plugin "$@"', sys.executable]
    result = subprocess.run([*shell, *map(str, args)], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"Error: {out}: cannot be written: File too large\n")
    assert os.listdir(tmp_path) == ["long.wav"] or set(os.listdir(tmp_path)) == {"in.wav", "long.wav"}


def test_decode_to_an_unknown_format(codes_file, small_dac_file, tmp_path):
    out = tmp_path / "out.mp3"
    message = refusal(run("decode", codes_file, out, "--codec", small_dac_file))
    assert message == f"{out}: cannot write .mp3; use one of .wav, .flac, .ogg"


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_output_in_a_missing_folder(codes_file, wav_file, small_dac_file, tmp_path, command):
    source = {"encode": wav_file, "decode": codes_file}[command]
    message = refusal(run(command, source, tmp_path / "none" / "out.wav", "--codec", small_dac_file))
    assert message == f"{tmp_path / 'none'}: there is no such folder"


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("content", [None, b"garbage"], ids=["missing", "garbage"])
def test_bad_codec_file(codes_file, wav_file, tmp_path, command, content):
    codec = tmp_path / "codec.gguf"
    if content:
        codec.write_bytes(content)
    source = {"encode": wav_file, "decode": codes_file}[command]
    assert refusal(run(command, source, tmp_path / "out.wav", "--codec", codec)).startswith(f"{codec}: ")


def test_language_model_as_codec(codes_file, llm_file, tmp_path):
    message = refusal(run("decode", codes_file, tmp_path / "out.wav", "--codec", llm_file))
    assert message.startswith(f"{llm_file}: architecture 'llama' is not supported (expected 'dac', ")


def test_unknown_device(codes_file, small_dac_file, tmp_path):
    result = run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file, "--device", "Abacus")
    assert "'Abacus'" in refusal(result)


def test_kernels_switched_off(codes_file, small_dac_file, small_reference):
    result = run("decode", codes_file, "-", "--codec", small_dac_file, kernels="off")
    assert result.exit_code == 0
    assert result.stderr.endswith(" on CPU, portable)\n")
    samples, _ = soundfile.read(io.BytesIO(result.stdout_bytes))
    assert np.allclose(samples, small_reference["audio"], rtol=0, atol=1 / 32768)


def test_kernels_by_name(codes_file, small_dac_file):
    best, last = kernels.available()[0], kernels.available()[-1]
    assert f"native/{best})" in run("decode", codes_file, "-", "--codec", small_dac_file).stderr
    assert f"native/{last})" in run("decode", codes_file, "-", "--codec", small_dac_file, kernels=last).stderr


def test_precision(codes_file, small_dac_file, small_reference):
    result = run("decode", codes_file, "-", "--codec", small_dac_file, "--precision", "int16")
    samples, _ = soundfile.read(io.BytesIO(result.stdout_bytes))
    error = np.linalg.norm(samples - small_reference["audio"]) / np.linalg.norm(samples)
    assert 1e-4 < error < 2e-3
    refused = run("decode", codes_file, "-", "--codec", small_dac_file, "--precision", "int16", kernels="off")
    assert "needs the native kernels" in refusal(refused)


# generate


def generate(llm_file, codec_file, out, *options: object, stdin: bytes | None = None) -> Result:
    return run("generate", "--model", llm_file, "--codec", codec_file, "-o", out, "--threads", 1, *options, stdin=stdin)


def generated(llm_file, codec_file, prompt: str, *, seed: int, temp: float, max_tokens: int) -> np.ndarray:
    """The samples that the model says, made with the package's own parts."""
    llm = llama_cpp.Llama(str(llm_file), n_ctx=512, n_threads=1, n_threads_batch=1, seed=seed, verbose=False)
    with Codec.load(codec_file, n_threads=1) as codec, SpeechStream(llm, codec) as stream:
        tokens = list(generate_tokens(llm, prompt, end=stream.vocabulary.end, max_tokens=max_tokens, temp=temp))
        codes, _ = deinterleave(tokens, stream.vocabulary)
        llm.close()
        return codec.decode(codes) if codes.size else np.empty(0, np.float32)


@pytest.mark.parametrize(("seed", "temperature"), [(1, 0.4), (2, 0.4), (1, 1.5), (1, 0)])
def test_generate(llm_file, small_dac_file, prompt_file, tmp_path, seed, temperature):
    expected = generated(llm_file, small_dac_file, PROMPT, seed=seed, temp=temperature, max_tokens=60)
    options = "--prompt-file", prompt_file, "--seed", seed, "--max-tokens", 60, "--n-ctx", 512
    options += "--temperature", temperature
    out = tmp_path / "out.wav"
    result = generate(llm_file, small_dac_file, out, *options)
    if expected.size == 0:
        assert "but no audio; is the prompt in the model's format?" in refusal(result)
        return
    assert_done(result)
    assert f"{expected.size / 24000:.2f} s of audio from " in result.stderr
    samples, rate = soundfile.read(out)
    assert rate == 24000
    assert samples.shape == expected.shape
    assert np.allclose(samples, np.clip(expected, -1, 1), rtol=0, atol=1e-4)
    again = generate(llm_file, small_dac_file, "-", *options)
    assert again.stdout_bytes == out.read_bytes()


def test_seeds_differ(llm_file, small_dac_file, prompt_file):
    options = "--prompt-file", prompt_file, "--max-tokens", 60, "--n-ctx", 512, "--temperature", 2
    outputs = {generate(llm_file, small_dac_file, "-", *options, "--seed", seed).stdout_bytes for seed in range(3)}
    assert len(outputs) > 1


def test_generate_says_what_was_damaged(llm_file, small_dac_file, prompt_file):
    # random weights do not keep to the order of codebooks
    options = "--prompt-file", prompt_file, "--seed", 1, "--max-tokens", 200, "--n-ctx", 512, "--temperature", 2
    result = generate(llm_file, small_dac_file, "-", *options)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert " damaged frames and " in result.stderr


@pytest.mark.parametrize(
    ("limits", "said"),
    [((400, 512), "max_tokens = 400 was reached"), ((8000, 256), "the context of 256 is full")],
)
def test_generate_says_that_it_was_cut_off(llm_file, small_dac_file, prompt_file, limits, said):
    options = "--prompt-file", prompt_file, "--seed", 1, "--max-tokens", limits[0], "--n-ctx", limits[1]
    result = generate(llm_file, small_dac_file, "-", *options)
    assert f"warning: the speech was cut off: {said}\n" in talk(result.stderr)


def test_generate_without_audio(llm_file, small_dac_file, prompt_file, tmp_path):
    out = tmp_path / "out.wav"
    result = generate(llm_file, small_dac_file, out, "--prompt-file", prompt_file, "--max-tokens", 1, "--n-ctx", 512)
    message = refusal(result)
    assert message.startswith("the model wrote ")
    assert message.endswith(" tokens, but no audio; is the prompt in the model's format?")
    assert not out.exists()


def test_prompt_from_standard_input(llm_file, small_dac_file, prompt_file):
    options = "--seed", 1, "--max-tokens", 200, "--n-ctx", 512
    outputs = [
        generate(llm_file, small_dac_file, "-", "--prompt-file", source, *options, stdin=stdin).stdout_bytes
        for source, stdin in ((prompt_file, None), ("-", PROMPT.encode()), ("-", PROMPT.replace("\n", "\r\n").encode()))
    ]
    assert outputs[0][:4] == b"RIFF"
    assert outputs[1:] == outputs[:1] * 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (b"", "the prompt is empty"),
        (b"\xff\xfe", "-: cannot be read as text: 'utf-8' codec can't decode byte 0xff"),
        (b"x" * 1000, "the prompt has 1000 tokens, which leaves no room in a context of 512"),
    ],
    ids=["empty", "not UTF-8", "longer than the context"],
)
def test_prompts_refused(llm_file, small_dac_file, prompt, message):
    result = generate(llm_file, small_dac_file, "-", "--prompt-file", "-", "--n-ctx", 512, stdin=prompt)
    assert refusal(result).startswith(message)


def test_byte_order_mark_of_a_prompt(llm_file, small_dac_file):
    """As Windows' editors write it: the model does not see it."""
    options = "--prompt-file", "-", "--seed", 1, "--max-tokens", 200, "--n-ctx", 512
    plain, marked = (
        generate(llm_file, small_dac_file, "-", *options, stdin=mark + PROMPT.encode()).stdout_bytes
        for mark in (b"", b"\xef\xbb\xbf")
    )
    assert plain[:4] == b"RIFF"
    assert marked == plain


def test_missing_prompt(llm_file, small_dac_file, tmp_path):
    path = tmp_path / "none.txt"
    result = generate(llm_file, small_dac_file, tmp_path / "out.wav", "--prompt-file", path)
    assert refusal(result) == f"{path}: cannot be read as text: No such file or directory"


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100], ids=["missing", "empty", "garbage"])
def test_bad_language_model(small_dac_file, prompt_file, tmp_path, content):
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    message = refusal(generate(path, small_dac_file, tmp_path / "out.wav", "--prompt-file", prompt_file))
    reason = "there is no such file" if content is None else "llama.cpp cannot load it: "
    assert message.startswith(f"{path}: {reason}")


def test_codec_as_language_model(small_dac_file, prompt_file, tmp_path):
    result = generate(small_dac_file, small_dac_file, tmp_path / "out.wav", "--prompt-file", prompt_file)
    assert refusal(result).startswith(f"{small_dac_file}: llama.cpp cannot load it: ")


def test_language_model_without_audio_tokens(small_dac_file, prompt_file, tmp_path):
    write_tiny_llm(tmp_path / "llm.gguf", CONTROL)
    result = generate(tmp_path / "llm.gguf", small_dac_file, tmp_path / "out.wav", "--prompt-file", prompt_file)
    assert refusal(result) == "the model has no audio tokens for a codec with 2 codebooks"
    assert not (tmp_path / "out.wav").exists()


def test_generate_refuses_outputs_first(tmp_path):
    (tmp_path / "out.wav").write_bytes(b"precious")
    missing = "--prompt-file", tmp_path / "none.txt"
    for out, message in {
        tmp_path / "none" / "out.wav": f"{tmp_path / 'none'}: there is no such folder",
        tmp_path / "out.mp3": f"{tmp_path / 'out.mp3'}: cannot write .mp3; use one of .wav, .flac, .ogg",
        tmp_path / "out.wav": f"{tmp_path / 'out.wav'} exists already; use --force to overwrite it",
    }.items():
        assert refusal(generate("none.gguf", "none.gguf", out, *missing)) == message
    assert (tmp_path / "out.wav").read_bytes() == b"precious"


# doctor


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    names = [line[0] for line in lines]
    assert names[:2] == ["vocoder-plugin", "python"]
    assert {"llama-cpp-python", "ggml-python", "gguf", "numpy", "soundfile", "libggml", "native", "device"} <= set(
        names
    )
    library = lines[names.index("libggml")]
    assert library[1][0].isdigit()
    assert os.path.exists(" ".join(library[2:]))
    assert lines[names.index("native")][2:3] == (kernels.available()[:1] or ["none:"])
    assert any(line[:3] == ["device", "CPU", "(cpu):"] for line in lines)


def test_doctor_lists_codecs_and_those_that_are_broken(monkeypatch):
    line = "the codec 'odd' (odd:Odd, odd 1.0) cannot be loaded: ImportError: \x1b[2Jno"
    found = dataclasses.replace(registry.door(), problems=(line,))
    monkeypatch.setattr("vocoder_plugin.codecs.registry.door", lambda: found)
    monkeypatch.setattr("vocoder_plugin.commands.inspect.door", lambda: found)
    result = run("doctor")
    assert re.search(r"^codec installed   dac \(vocoder-plugin \d\S*\)$", result.stdout, re.MULTILINE)
    assert (
        "codec broken      the codec 'odd' (odd:Odd, odd 1.0) cannot be loaded: ImportError: \\x1b[2Jno\n"
        in result.stdout
    )


def test_a_broken_codec_is_a_problem_of_its_own(tmp_path, codes_file, small_dac_file):
    """In another package: one warning, and the others work."""
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vocoder_plugin.codecs]\nodd = odd:Odd\n")
    (tmp_path / "odd.py").write_text("raise OSError('broken')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = run_process("decode", codes_file, "-", "--codec", small_dac_file, env=environment)
    assert result.returncode == 0
    warning, done = result.stderr.decode().splitlines()
    assert warning == "warning: the codec 'odd' (odd:Odd, odd 1.0) cannot be loaded: OSError: broken"
    assert " s of audio in " in done
    doctor = run_process("doctor", env=environment)
    assert (doctor.returncode, doctor.stderr) == (0, b"")
    assert (
        b"\ncodec broken      the codec 'odd' (odd:Odd, odd 1.0) cannot be loaded: OSError: broken\n" in doctor.stdout
    )


def test_missing_kernels_are_told_once(monkeypatch, codes_file, small_dac_file):
    codec._warn_of_missing_kernels.cache_clear()
    monkeypatch.setattr("vocoder_plugin.kernels.load", lambda _lib, _variant=None: None)
    results = [run("decode", codes_file, "-", "--codec", small_dac_file) for _ in range(2)]
    warning = "warning: the native kernels are missing, so codecs run about 4 times slower on the CPU; "
    assert [result.stderr.count(warning) for result in results] == [1, 0]
    assert "pip install" in results[0].stderr
    codec._warn_of_missing_kernels.cache_clear()
    assert warning not in run("decode", codes_file, "-", "--codec", small_dac_file, kernels="off").stderr


def test_doctor_without_portaudio(tmp_path, monkeypatch):
    """sounddevice is installed, but cannot be imported."""
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    (tmp_path / "sounddevice-1.0.dist-info").mkdir()
    (tmp_path / "sounddevice-1.0.dist-info" / "METADATA").write_text("Name: sounddevice\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    assert "sounddevice       1.0, but PortAudio library not found (only needed for --play)\n" in run("doctor").stdout


def test_doctor_tells_of_the_environment():
    assert "native kernels    off (VOCODER_KERNELS)\n" in run("doctor", kernels="off").stdout


# Sound while it is being made


@pytest.fixture
def speaking(prompt_file) -> tuple[object, ...]:
    """Options with which the small model says some audio, the same each time."""
    return "--prompt-file", prompt_file, "--seed", 1, "--max-tokens", 400, "--n-ctx", 512


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_decode_streaming(codes_file, small_dac_file, small_dac, tmp_path, suffix):
    files = [tmp_path / f"{name}{suffix}" for name in ("whole", "grown")]
    whole = run("decode", codes_file, files[0], "--codec", small_dac_file)
    grown = run("decode", codes_file, files[1], "--codec", small_dac_file, "--streaming")
    assert_done(grown)
    assert grown.stderr.split(" in ")[0] == whole.stderr.split(" in ")[0] == "3.69 s of audio"
    assert soundfile.info(files[1]).format == soundfile.info(files[0]).format
    samples = [soundfile.read(file, dtype="int16")[0] for file in files]
    assert samples[0].size == small_dac.decoded_length(277)
    assert np.abs(samples[0].astype(int) - samples[1]).max() <= (2000 if suffix == ".ogg" else 1)
    if small_dac.lowering != "portable" and suffix != ".ogg":
        assert files[0].read_bytes() == files[1].read_bytes()


def test_decode_streaming_is_bounded(codes_file, small_dac_file, tmp_path, monkeypatch):
    from vocoder_plugin.audio.output import GrowingFile

    sizes, write = [], GrowingFile.write

    def counted(self, samples):
        sizes.append(samples.size)
        write(self, samples)

    monkeypatch.setattr(GrowingFile, "write", counted)
    assert_done(run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file, "--streaming"))
    assert len(sizes) == 6
    assert max(sizes) <= 48 * 320


def test_raw_samples_on_standard_output(codes_file, small_dac_file, tmp_path):
    assert_done(run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file))
    samples, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    for options in (["--raw"], ["--raw", "--streaming"]):
        result = run("decode", codes_file, "-", "--codec", small_dac_file, *options)
        assert result.exit_code == 0
        raw = np.frombuffer(result.stdout_bytes, "<i2")
        assert raw.size == samples.size
        assert np.abs(raw.astype(int) - samples).max() <= 1


@pytest.mark.parametrize("options", [["--stream"], ["-o", "-", "--raw"], ["-o", "-", "--raw", "--stream"]])
def test_generate_streaming(llm_file, small_dac_file, speaking, tmp_path, options):
    whole, grown = tmp_path / "whole.wav", tmp_path / "grown.wav"
    assert_done(generate(llm_file, small_dac_file, whole, *speaking))
    result = generate(llm_file, small_dac_file, grown, *speaking, *options)
    assert result.exit_code == 0, result.stderr
    assert " s of audio from 400 tokens in " in result.stderr
    samples, _ = soundfile.read(whole, dtype="int16")
    assert samples.size > 0
    if "--raw" in options:
        assert result.stdout_bytes == samples.astype("<i2").tobytes()
        assert not grown.exists()
    else:
        assert result.stdout == ""
        assert grown.read_bytes() == whole.read_bytes()


def test_streaming_file_is_playable_after_every_write(llm_file, small_dac_file, speaking, tmp_path, monkeypatch):
    from vocoder_plugin.audio.output import GrowingFile

    out, frames, write = tmp_path / "out.wav", [], GrowingFile.write

    def checked(self, samples):
        write(self, samples)
        frames.append(soundfile.info(out).frames)

    monkeypatch.setattr(GrowingFile, "write", checked)
    assert_done(generate(llm_file, small_dac_file, out, *speaking, "--stream"))
    assert len(frames) > 2
    assert frames == sorted(set(frames))
    assert frames[-1] == soundfile.info(out).frames


def test_streaming_refuses_an_existing_file(llm_file, codes_file, small_dac_file, speaking, tmp_path):
    out = tmp_path / "out.wav"
    out.write_bytes(b"precious")
    for command in (["decode", codes_file, out, "--streaming"], ["generate", "-m", llm_file, "-o", out, "--stream"]):
        options = speaking if command[0] == "generate" else ()
        assert "exists already" in refusal(run(*command, "--codec", small_dac_file, *options))
        assert out.read_bytes() == b"precious"
        assert_done(run(*command, "--codec", small_dac_file, *options, "--force"))
        assert out.read_bytes()[:4] == b"RIFF"
        out.write_bytes(b"precious")


def test_streaming_without_audio_leaves_no_file(llm_file, small_dac_file, prompt_file, tmp_path):
    out = tmp_path / "out.wav"
    options = "--prompt-file", prompt_file, "--max-tokens", 1, "--n-ctx", 512, "--stream"
    assert "but no audio" in refusal(generate(llm_file, small_dac_file, out, *options))
    out.write_bytes(b"precious")
    assert "but no audio" in refusal(generate(llm_file, small_dac_file, out, *options, "--force"))
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["decode", "a.npz", "a.wav", "--raw"], "--raw writes to standard output only"),
        (["decode", "a.npz", "-", "--streaming"], "use --raw, or leave out --streaming"),
        (["generate", "-m", "a", "--prompt-file", "p", "-o", "a.wav", "--raw"], "--raw writes to standard output only"),
        (["generate", "-m", "a", "--prompt-file", "p", "-o", "-", "--stream"], "use --raw, or leave out --stream"),
        (["generate", "-m", "a", "--prompt-file", "p"], "give -o FILE, or --play"),
    ],
)
def test_outputs_that_do_not_stream(args, message):
    result = run(*args, "--codec", "none.gguf")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


def test_play_without_sounddevice(llm_file, small_dac_file, speaking, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    message = "playing needs sounddevice; pip install 'vocoder-plugin[play]'"
    result = run("generate", "-m", llm_file, "--codec", small_dac_file, *speaking, "--play")
    assert refusal(result) == message
    result = generate(llm_file, small_dac_file, tmp_path / "out.wav", *speaking, "--play")
    assert refusal(result) == message
    assert not (tmp_path / "out.wav").exists()


def test_play(llm_file, small_dac_file, speaking, loudspeaker, tmp_path):
    out = tmp_path / "out.wav"
    assert_done(generate(llm_file, small_dac_file, out, *speaking, "--play"))
    samples, _ = soundfile.read(out, dtype="int16")
    heard = pcm16(loudspeaker.heard())  # with silence where the model was late
    assert heard[heard != 0].tolist() == samples[samples != 0].tolist()
    assert np.count_nonzero(heard) > 1000
    alone = run("generate", "-m", llm_file, "--codec", small_dac_file, *speaking, "--play", "--threads", 1)
    assert_done(alone)
    assert " s of audio from 400 tokens in " in alone.stderr


# Processes and signals


@pytest.fixture
def cut_short(llm_file, small_dac_file, prompt_file):
    """Runs a long generation, does something to it in the middle, and gives its exit status and standard error."""

    def run_and_cut(cut, *options: object, **streams) -> tuple[int, str]:
        args = "generate", "-m", llm_file, "--codec", small_dac_file, "--prompt-file", prompt_file, *options
        for seed in range(1, 10):  # random weights may choose an end token early
            limits = "--temperature", 2, "--seed", seed, "--max-tokens", 8000, "--n-ctx", 8192, "--force"
            with spawn(*args, *limits, **streams) as process:
                cut(process)
                said = talk(process.stderr.read())
                if process.wait(60) != 0:
                    return process.returncode, said
        raise AssertionError("every generation ended before it was cut short")

    return run_and_cut


def when_larger(path: Path, size: int, action):
    def cut(process: subprocess.Popen) -> None:
        while process.poll() is None and not (path.exists() and path.stat().st_size > size):
            time.sleep(0.005)
        action(process)

    return cut


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_ctrl_c_keeps_what_was_said(cut_short, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    interrupt = when_larger(out, 20_000, lambda process: process.send_signal(signal.SIGINT))
    status, said = cut_short(interrupt, "-o", out, "--stream")
    assert status == 130
    assert soundfile.info(out).frames > 0
    seconds = float(said.removeprefix(f"interrupted: {out} keeps the first ").removesuffix(" s\n"))
    assert seconds == pytest.approx(soundfile.info(out).frames / 24000, abs=0.5)  # within a chunk


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_process_leaves_a_playable_file(cut_short, tmp_path):
    out = tmp_path / "out.wav"
    status, _ = cut_short(when_larger(out, 20_000, lambda process: process.kill()), "-o", out, "--stream")
    assert status == -signal.SIGKILL
    assert soundfile.info(out).frames > 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_that_has_enough(cut_short):
    def read_some(process: subprocess.Popen) -> None:
        assert len(process.stdout.read(3000)) == 3000
        process.stdout.close()

    assert cut_short(read_some, "-o", "-", "--raw", stdout=subprocess.PIPE) == (1, "")


def test_ctrl_c_keeps_what_was_decoded(monkeypatch, codes_file, small_dac_file, tmp_path):
    from vocoder_plugin.audio.output import GrowingFile

    write, sizes = GrowingFile.write, []

    def interrupted(self, samples):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        write(self, samples)
        sizes.append(samples.size)

    monkeypatch.setattr(GrowingFile, "write", interrupted)
    out = tmp_path / "out.wav"
    result = run("decode", codes_file, out, "--codec", small_dac_file, "--streaming")
    assert result.exit_code == 130
    assert soundfile.info(out).frames == sum(sizes)
    assert result.stderr == f"interrupted: {out} keeps the first {sum(sizes) / 24000:.2f} s\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_progress_on_a_terminal_only(codes_file, small_dac_file, tmp_path):
    import pty

    args = "decode", codes_file, "-", "--codec", small_dac_file, "--raw"
    assert b"of 3.7 s of audio" not in run_process(*args).stderr
    terminal, end = pty.openpty()
    with spawn(*args, stdout=subprocess.DEVNULL, stderr=end) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
        assert process.wait(60) == 0
    os.close(terminal)
    assert b"3.7 of 3.7 s of audio" in shown
    assert shown.endswith(b")\r\n")


def test_progress_of_a_long_clip(codes_file, small_dac_file, tmp_path, monkeypatch):
    """Told on the way, with the same samples as at once."""
    outputs = [tmp_path / "once.wav", tmp_path / "told.wav"]
    assert_done(run("decode", codes_file, outputs[0], "--codec", small_dac_file))
    monkeypatch.setattr("vocoder_plugin.commands.console.PIECE_SECONDS", 1.0)
    monkeypatch.setattr("vocoder_plugin.commands.console.on_terminal", lambda: True)
    result = run("decode", codes_file, outputs[1], "--codec", small_dac_file)
    told = [float(seconds) for seconds in re.findall(r"(\d\.\d) of 3\.7 s of audio", result.stderr)]
    assert len(told) == 4
    assert told == sorted(set(told))
    samples = [soundfile.read(output, dtype="int16")[0].astype(int) for output in outputs]
    assert samples[0].shape == samples[1].shape
    assert np.abs(samples[0] - samples[1]).max() <= 1


def test_pipes(wav_file, small_dac_file, small_dac, tmp_path):
    encoded = run_process("encode", "-", tmp_path / "codes.npz", "--codec", small_dac_file, stdin=wav_file.read_bytes())
    assert (encoded.returncode, encoded.stdout) == (0, b"")
    assert encoded.stderr == b"75 frames of 2 codebooks, 1.00 s\n"
    decoded = run_process("decode", tmp_path / "codes.npz", "-", "--codec", small_dac_file)
    assert decoded.returncode == 0
    samples, rate = soundfile.read(io.BytesIO(decoded.stdout))
    assert (samples.size, rate) == (small_dac.decoded_length(75), 24000)
    assert decoded.stderr.count(b"\n") == 1


def test_codes_through_a_pipe(codes_file, small_dac_file):
    decoded = [run("decode", source, "-", "--codec", small_dac_file, "--raw", stdin=codes_file.read_bytes())
               for source in (codes_file, "-")]  # fmt: skip
    assert decoded[1].exit_code == 0, decoded[1].stderr
    assert decoded[1].stdout_bytes == decoded[0].stdout_bytes != b""


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_no_samples_to_a_terminal(codes_file, small_dac_file):
    import pty

    terminal, end = pty.openpty()
    try:
        result = run_process("decode", codes_file, "-", "--codec", small_dac_file, "--raw", stdout=end, timeout=60)
    finally:
        os.close(end)
        os.close(terminal)
    assert result.returncode == 1
    assert result.stderr.startswith(b"Error: standard output is a terminal; ")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize(
    ("closed", "status", "said"),
    [
        ("<&-", 1, "Error: standard input is closed\n"),
        (">&-", 1, "Error: standard output is closed\n"),
        ("2>&- >/dev/null", 0, ""),
        (">/dev/full", 1, "Error: the samples cannot be written: No space left on device\n"),
    ],
)
def test_standard_streams_that_fail(codes_file, small_dac_file, closed, status, said):
    source = "-" if closed == "<&-" else str(codes_file)
    command = f'"$0" -m vocoder_plugin.commands.cli decode "$1" - --codec "$2" --raw {closed}'
    shell = ["sh", "-c", command, sys.executable, source, str(small_dac_file)]
    result = subprocess.run(shell, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (status, said)


def test_generate_in_a_process(llm_file, small_dac_file):
    args = "--prompt-file", "-", "-o", "-", "--seed", 1, "--max-tokens", 200, "--n-ctx", 512
    result = run_process("generate", "-m", llm_file, "--codec", small_dac_file, *args, stdin=PROMPT.encode())
    assert result.returncode == 0
    samples, _ = soundfile.read(io.BytesIO(result.stdout))  # llama.cpp's log would come before the header
    assert samples.size > 0
    assert b" s of audio from " in result.stderr


def test_errors_of_a_process(small_dac_file):
    result = run_process("decode", "none.npz", "-", "--codec", small_dac_file)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.replace(b"\r\n", b"\n") == b"Error: none.npz: there is no such file\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_that_went_away(codes_file, small_dac_file):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run_process("decode", codes_file, "-", "--codec", small_dac_file, stdout=writer)
    finally:
        os.close(writer)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr


def test_ctrl_c(monkeypatch, codes_file, small_dac_file, tmp_path):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Codec, "decode", interrupted)
    result = run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_writing(monkeypatch, codes_file, small_dac_file, tmp_path):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vocoder_plugin.commands.console.write_audio", interrupted)
    (tmp_path / "out.wav").write_bytes(b"precious")
    result = run("decode", codes_file, tmp_path / "out.wav", "--codec", small_dac_file, "--force")
    assert result.exit_code == 130
    assert os.listdir(tmp_path) == ["out.wav"]
    assert (tmp_path / "out.wav").read_bytes() == b"precious"
