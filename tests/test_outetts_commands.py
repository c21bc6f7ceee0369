"""speak, create-speaker and speaker show as a user types them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from click.testing import Result
from commands import refusal, run, talk
from hub_server import Hub
from speaking_llm import FRAMES, outetts_0_all, outetts_0_script, outetts_1_speaker, write_speaking_llm
from tiny_llm import CONTROL, write_tiny_llm

from vocoder_plugin.commands.speak import Pace
from vocoder_plugin.families.outetts import Speaker, speech

CODES = np.array(FRAMES, np.int32).T
TEXT = "Go on, then."


@pytest.fixture(scope="module")
def files(tmp_path_factory, speaking_files, speaker, small_dac_file):
    """Models that speak, fall silent and never end, one of another version, one without audio; a speaker."""
    folder = tmp_path_factory.mktemp("speak")
    for path in speaking_files.values():
        (folder / path.name).symlink_to(path)
    write_speaking_llm(folder / "old.gguf", outetts_0_script(), special=outetts_0_all())
    write_tiny_llm(folder / "plain.gguf", CONTROL)
    (folder / "me.json").write_text(json.dumps(outetts_1_speaker(speaker, 4)))
    (folder / "dac.gguf").symlink_to(small_dac_file)
    return folder


@pytest.fixture(autouse=True)
def profile_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "vocoder-plugin" / "speakers"


def speak(files, *args: object, model: str = "word", stdin: str | None = None) -> Result:
    return run(
        "speak", "-m", files / f"{model}.gguf", "--codec", files / "dac.gguf", "--n-ctx", 2048, "--seed", 1, *args,
        stdin=stdin,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(small_dac) -> np.ndarray:
    return np.round(small_dac.decode(CODES) * 32768) / 32768


def assert_said(path, expected: np.ndarray) -> None:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    np.testing.assert_allclose(samples, np.clip(expected, -1, 1), atol=1.1 / 32768)


def test_speak(files, expected, tmp_path):
    out = tmp_path / "out.wav"
    result = speak(files, TEXT, "--speaker", files / "me.json", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(
        r"0\.11 s of audio from 25 tokens in \d+\.\d\d s \(\d+ tokens/s, RTF \d+\.\d\d\), 1 chunk\n",
        talk(result.stderr),
    )
    assert_said(out, expected)
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["out.wav"]


@pytest.mark.parametrize("source", ["argument", "stdin", "file", "prompt"])
def test_where_the_text_comes_from(source, files, expected, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    args = {
        "argument": [TEXT], "stdin": ["-"], "file": ["--file", tmp_path / "text.txt"], "prompt": ["-p", TEXT],
    }[source]  # fmt: skip
    result = speak(files, *args, "--speaker", "none", "-o", tmp_path / "out.flac", stdin=TEXT)
    assert result.exit_code == 0, result.stderr
    assert_said(tmp_path / "out.flac", expected)


def test_llama_tts_flags(files, expected, tmp_path):
    out = tmp_path / "out.wav"
    result = run(
        "speak", "-m", files / "word.gguf", "-mv", files / "dac.gguf", "--tts-speaker-file", files / "me.json",
        "-p", TEXT, "-o", out, "-c", 2048, "-ngl", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert_said(out, expected)


def test_standard_output(files, expected):
    result = speak(files, TEXT, "--speaker", "none", "-o", "-")
    assert_said(io.BytesIO(result.stdout_bytes), expected)
    result = speak(files, TEXT, "--speaker", "none", "-o", "-", "--raw")
    raw = np.frombuffer(result.stdout_bytes, "<i2") / 32767
    np.testing.assert_allclose(raw, np.clip(expected, -1, 1), atol=2 / 32767)


def test_guided(files, small_dac, tmp_path):
    result = speak(files, TEXT, "--speaker", files / "me.json", "-o", tmp_path / "out.wav", "--guided")
    assert result.exit_code == 0, result.stderr
    assert_said(tmp_path / "out.wav", np.round(small_dac.decode(np.tile(CODES, 3)) * 32768) / 32768)


def test_play(files, expected, loudspeaker, tmp_path):
    result = speak(files, TEXT, "--speaker", "none", "--play", "-o", tmp_path / "out.wav")
    assert result.exit_code == 0, result.stderr
    assert loudspeaker.options["samplerate"] == 24000
    np.testing.assert_allclose(loudspeaker.sound(), np.clip(expected, -1, 1)[expected.nonzero()[0][0] :], atol=1e-4)
    assert_said(tmp_path / "out.wav", expected)


def test_play_without_sounddevice(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    said = refusal(speak(files, TEXT, "--speaker", "none", "--play"))
    assert said == "playing needs sounddevice; pip install 'vocoder-plugin[play]'"


def test_raw_samples(files, tmp_path):
    """What --raw writes is what is in the file."""
    assert speak(files, TEXT, "--speaker", "none", "-o", tmp_path / "out.wav").exit_code == 0
    raw = speak(files, TEXT, "--speaker", "none", "-o", "-", "--raw")
    assert raw.exit_code == 0, raw.stderr
    assert raw.stdout_bytes == soundfile.read(tmp_path / "out.wav", dtype="int16")[0].astype("<i2").tobytes()


def test_no_speaker_lists_the_profiles(files, tmp_path, profile_folder):
    said = refusal(speak(files, TEXT, "-o", tmp_path / "out.wav"))
    assert f"there are no profiles in {profile_folder}" in said
    assert "make one with `vocoder-plugin create-speaker" in said
    assert "--speaker owner/repo/file.json" in said
    profile_folder.mkdir(parents=True)
    for name in ("ben", "anna"):
        (profile_folder / f"{name}.json").write_bytes((files / "me.json").read_bytes())
    assert "anna, ben" in refusal(speak(files, TEXT, "-o", tmp_path / "out.wav"))
    assert speak(files, TEXT, "-o", tmp_path / "out.wav", "--speaker", "anna").exit_code == 0
    assert "carl: there is no such file" in refusal(speak(files, TEXT, "-o", tmp_path / "x.wav", "--speaker", "carl"))
    assert run("speaker", "list").stdout == "anna\nben\n"


def test_hub(files, expected, tmp_path):
    """Model, codec and speaker from a hub: in a process of its own, which reads HF_ENDPOINT when it starts."""
    repo = {f"tiny-{tag}.gguf": (files / "word.gguf").read_bytes() for tag in ("Q8_0", "FP16")}
    with Hub({"me/tiny-GGUF": repo, "me/dac": {"dac.gguf": (files / "dac.gguf").read_bytes()},
              "me/voices": {"anna.json": (files / "me.json").read_bytes()}}) as hub:  # fmt: skip
        command = [
            sys.executable, "-m", "vocoder_plugin", "speak", TEXT, "--hf", "me/tiny-GGUF:FP16", "--codec",
            "me/dac/dac.gguf", "--speaker", "me/voices/anna.json", "-o", "out.wav", "--n-ctx", "2048", "--force",
        ]  # fmt: skip
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}

        def call(*more: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [*command, *more], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
            )

        first = call()
        assert first.returncode == 0, first.stderr
        assert_said(tmp_path / "out.wav", expected)
        got = [path.split("/")[-1] for method, path in hub.requests if method == "GET" and "/resolve/" in path]
        assert sorted(got) == ["anna.json", "dac.gguf", "tiny-FP16.gguf"]
        hub.requests.clear()
        second = call("--offline")
        assert second.returncode == 0, second.stderr
        assert hub.requests == []


@pytest.mark.parametrize(("command", "flags"), [
    ("speak", ["TEXT", "--file", "--model", "--hf", "-mv", "--speaker", "--tts-speaker-file", "--raw", "--play"]),
    ("speak", ["--guided", "--voice", "--loudness", "--seed", "--max-length", "--offline", "--force"]),
    ("create-speaker", ["--audio", "--transcript", "--words", "--asr", "--codec", "--out", "--version"]),
    ("speaker show", ["PROFILE", "--codec", "--wav", "--png"]),
])  # fmt: skip
def test_help(command, flags):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert [flag for flag in flags if flag not in result.stdout] == []


@pytest.mark.parametrize(("model", "args", "said"), [
    ("none", [TEXT], r"none\.gguf: there is no such file"),
    ("plain", [TEXT], "the model has no audio tokens of OuteTTS"),
    ("old", [TEXT], r"the model is OuteTTS 0\.\d.*, which needs a codec with 1 codebook"),
    ("silent", [TEXT], "the model wrote no audio for 'Go on, then.', tried 3 times"),
    ("word", [" ... "], "there is nothing to say"),
    ("word", [TEXT, "--n-ctx", 64, "--speaker", "me.json"], r"has \d+ tokens, which leaves no room for speech in \d+"),
    ("word", [TEXT, "--max-length", 20], "leaves no room for speech in 20"),
    ("word", [TEXT, "--voice", "soft"], "only known to version 2"),
    ("word", [TEXT, "--codec", "me.json"], "me.json"),
    ("word", [TEXT, "--codec", "none.gguf"], "none.gguf"),
    ("word", ["--file", "none.txt"], r"none\.txt: cannot be read"),
    ("word", [TEXT, "-o", "out.mp3"], r"cannot write \.mp3"),
    ("word", [TEXT, "-o", "nowhere/out.wav"], "there is no such folder"),
])  # fmt: skip
def test_refused(model, args, said, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.json").write_bytes((files / "me.json").read_bytes())
    result = speak(files, "-o", "out.wav", "--speaker", "none", *args, model=model)
    assert re.search(said, refusal(result))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.json"]


@pytest.mark.parametrize(("command", "said"), [
    (["speak"], "give the text once"),
    (["speak", TEXT, "-p", TEXT], "give the text once"),
    (["speak", TEXT, "-m", "a.gguf", "--hf", "a/b"], "name one model"),
    (["create-speaker", "--audio", "a.wav", "-o", "me"], "what is said in the clip"),
    (["create-speaker", "--audio", "a.wav", "-o", "me", "--words", "w", "--asr", "y"], "exclude each other"),
])  # fmt: skip
def test_misuse(command, said):
    result = run(*command, "--codec", "c.gguf")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_progress_measures_the_prompt_apart():
    pace = Pace()
    told = speech.Progress(chunks=1, total_words=4)
    for seconds, tokens, retries in ((23.0, 2, 0), (24.0, 42, 1)):
        told.elapsed, told.tokens, told.evaluated, told.retries = seconds, tokens, 100 + tokens, retries
        told.seconds = 0.0004 if tokens == 2 else 0.8
        told.words = tokens // 20
        pace.follow(told)
        if tokens == 2:
            assert pace.far() == "100 prompt tokens in 23.0 s; 0 of 4 words, 0.0 s, 0 tokens/s"
    assert pace.far() == ("100 prompt tokens in 23.0 s; 2 of 4 words, 0.8 s, 40 tokens/s, RTF 30.00, 1 tried again")
    assert (
        pace.summary() == "0.80 s of audio from 42 tokens in 24.00 s (40 tokens/s, RTF 30.00), 1 chunk, 1 tried again"
    )


@pytest.mark.parametrize(("args", "said"), [
    ([], "nowhere to put the sound: give -o FILE, or --play"),
    (["--play", "--raw"], "--raw writes to standard output only"),
    (["-o", "out.wav", "--raw"], "--raw writes to standard output only"),
])  # fmt: skip
def test_no_such_output(args, said, files):
    result = speak(files, TEXT, "--speaker", "none", *args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_that_has_enough(files):
    """A closed pipe ends the command without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable, "-m", "vocoder_plugin", "speak", TEXT, "-m", str(files / "word.gguf"), "--codec",
        str(files / "dac.gguf"), "--speaker", "none", "-o", "-", "--raw",
    ]  # fmt: skip
    try:
        result = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(("content", "said"), [
    ("{", "not a JSON file"), ('{"text": "a"}', "'words' is missing"),
    ('{"text": "a", "words": [{"word": "a", "duration": 1, "codes": [1]}]}', r"made for OuteTTS 0\.2 or 0\.3, but"),
    ('{"text": "a", "words": [{"word": "a", "duration": 1, "c1": [1], "c2": []}]}', "a frame needs a code of each"),
    (r'{"text": "a\ud83d", "words": [{"word": "a", "duration": 1, "c1": [1], "c2": [1]}]}', "'text' .* half of a char"),
    (r'{"text": "a", "words": [{"word": "\ud83d", "duration": 1, "c1": [1], "c2": [1]}]}', "word 1: .* half of a char"),
])  # fmt: skip
def test_damaged_speakers(content, said, files, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    result = speak(files, TEXT, "--speaker", tmp_path / "bad.json", "-o", tmp_path / "out.wav")
    assert re.search(said, refusal(result))


@pytest.mark.parametrize("option", ["--temperature", "--loudness"])
def test_numbers_that_are_none(option, files, tmp_path):
    result = speak(files, TEXT, "--speaker", files / "me.json", "-o", tmp_path / "out.wav", option, "nan")
    assert result.exit_code == 2
    assert "nan is not a finite number" in " ".join(result.stderr.split())
    assert not (tmp_path / "out.wav").exists()


def test_a_speaker_without_codes(files, tmp_path):
    silent = {"text": "a", "words": [{"word": "a", "duration": 1, "c1": [], "c2": []}]}
    (tmp_path / "silent.json").write_text(json.dumps(silent))
    show = run("speaker", "show", tmp_path / "silent.json", "--codec", files / "dac.gguf", "--wav", tmp_path / "a.wav")
    assert show.exit_code == 1
    assert talk(show.stderr) == "Error: there are no codes to decode\n"
    assert speak(files, TEXT, "--speaker", tmp_path / "silent.json", "-o", tmp_path / "out.wav").exit_code == 0


def test_a_voice_that_is_no_text(files, small_wavtokenizer_file, tmp_path):
    """Bytes in Latin-1, as they arrive from the command line."""
    result = run(
        "speak", TEXT, "-m", files / "old.gguf", "--codec", small_wavtokenizer_file, "--speaker", "none", "-o",
        tmp_path / "out.wav", "--voice", os.fsdecode(b"caf\xe9"),
    )  # fmt: skip
    assert refusal(result).startswith("the text is not valid Unicode: ")


def test_existing_files_are_kept(files, tmp_path):
    out = tmp_path / "out.wav"
    out.write_bytes(b"mine")
    assert "exists already; use --force" in refusal(speak(files, TEXT, "--speaker", "none", "-o", out))
    assert "no audio" in refusal(speak(files, TEXT, "--speaker", "none", "-o", out, "--force", model="silent"))
    assert out.read_bytes() == b"mine"
    assert speak(files, TEXT, "--speaker", "none", "-o", out, "--force").exit_code == 0
    assert soundfile.info(out).frames > 0


def test_warnings_are_lines(files, tmp_path):
    result = speak(files, TEXT, "--speaker", "none", "-o", tmp_path / "out.wav", "--max-length", 200, model="endless")
    assert result.exit_code == 0
    assert re.match(r"warning: the limit of 200 tokens was reached.*\n\d+\.\d\d s of audio", talk(result.stderr))


def test_an_error_in_the_middle_keeps_what_was_said(files, expected, tmp_path, monkeypatch):
    from vocoder_plugin.families.outetts import SpeechError, speech

    whole, calls = speech._Speech.chunk, []

    def chunk(self, plan, **options):
        calls.append(plan)
        if len(calls) == 2:
            raise SpeechError("llama.cpp could not compute")
        return whole(self, plan, **options)

    monkeypatch.setattr(speech._Speech, "chunk", chunk)
    text = " ".join("This sentence has exactly ten words in it, count them." for _ in range(6))
    result = speak(files, text, "--speaker", "none", "-o", tmp_path / "out.wav")
    assert result.exit_code == 1
    kept, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    kept_first = f"{tmp_path / 'out.wav'} keeps the first {len(kept) / 24000:.2f} s\n"
    assert re.fullmatch(rf"{re.escape(kept_first)}Error: .*could not compute.*\n", talk(result.stderr))
    np.testing.assert_allclose(kept, np.clip(expected[: len(kept)], -1, 1), atol=1.1 / 32768)


def test_interruption_leaves_a_playable_file(files, tmp_path):
    """Ctrl-C in the middle: what was said so far is a whole wav; exit code 130, no traceback."""
    out = tmp_path / "out.wav"
    command = [
        sys.executable, "-m", "vocoder_plugin", "speak", TEXT, "-m", str(files / "endless.gguf"), "--codec",
        str(files / "dac.gguf"), "--speaker", "none", "-o", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if out.exists() and out.stat().st_size > 20000:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    stderr = talk(stderr)
    assert process.returncode == 130, stderr
    samples, rate = soundfile.read(out)
    assert rate == 24000
    assert stderr == f"interrupted: {out} keeps the first {len(samples) / rate:.2f} s\n"
    assert len(samples) > 9000


@pytest.fixture(scope="module")
def spoken(fixtures) -> dict:
    return json.loads((fixtures / "spoken.json").read_text())[0]


def create(files, *args: object) -> Result:
    return run("create-speaker", "--codec", files / "dac.gguf", *args)


def test_create_speaker_and_speak(files, fixtures, spoken, small_dac, tmp_path):
    out = tmp_path / "me.json"
    result = create(files, "--audio", fixtures / spoken["file"], "--transcript", spoken["text"], "-o", out)
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(rf"{re.escape(str(out))}: 11 words, 3\.\d\d s, for version 3\n", result.stderr)
    assert [word.text for word in Speaker.load(out).words] == spoken["text"].split()
    assert speak(files, TEXT, "--speaker", out, "-o", tmp_path / "out.wav").exit_code == 0

    result = run("speaker", "show", out, "--codec", files / "dac.gguf", "--wav", tmp_path / "me.wav")
    assert result.exit_code == 0, result.stderr
    assert "version 3, 11 words, " in result.stdout
    assert f"text: {spoken['text']}" in result.stdout
    assert re.search(r"^teacher +\d\.\d\d +\d+ +\d+ +\d+ +\d+$", result.stdout, re.MULTILINE)
    assert_said(tmp_path / "me.wav", np.round(small_dac.decode(Speaker.load(out).codes) * 32768) / 32768)


def test_create_speaker_of_words(files, fixtures, spoken, tmp_path, profile_folder):
    ends = [*spoken["starts"][1:], 3.3]
    words = [list(word) for word in zip(spoken["text"].split(), spoken["starts"], ends, strict=True)]
    (tmp_path / "words.json").write_text(json.dumps(words))
    result = create(files, "--audio", fixtures / spoken["file"], "--words", tmp_path / "words.json", "-o", "anna")
    assert result.exit_code == 0, result.stderr
    assert Speaker.load(profile_folder / "anna.json").text == spoken["text"]
    again = create(files, "--audio", fixtures / spoken["file"], "--words", tmp_path / "words.json", "-o", "anna")
    assert "exists already; use --force" in refusal(again)
    assert run("speaker", "show", "anna").exit_code == 0


def test_picture(files, tmp_path):
    result = run("speaker", "show", files / "me.json", "--codec", files / "dac.gguf", "--png", tmp_path / "me.png")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"{tmp_path / 'me.png'}: 4 words\n"
    data = (tmp_path / "me.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width >= 800 and height >= 600


@pytest.mark.parametrize(("args", "said"), [
    (["--transcript", "a", "--audio", "none.wav"], r"none\.wav: there is no such file"),
    (["--asr", "none"], "no aligner 'none'; installed are"),
    (["--asr", "faster-whisper"], "faster-whisper"),
    (["--words", "none.json"], r"none\.json: cannot be read"),
    (["--transcript", "a", "--version", "2"], "version 2 does not go with codec"),
])  # fmt: skip
def test_create_speaker_refuses(args, said, files, fixtures, spoken, tmp_path):
    result = create(files, "--audio", fixtures / spoken["file"], "-o", tmp_path / "me.json", *args)
    assert re.search(said, refusal(result))
    assert not (tmp_path / "me.json").exists()


def test_create_speaker_keeps_what_is_there(files, fixtures, spoken, tmp_path):
    """Neither the word times nor a good profile are lost to --force and a command that goes wrong."""
    clip = fixtures / spoken["file"]
    words = tmp_path / "words.json"
    words.write_text(json.dumps([{"word": "caf\udce9", "start": 0.0, "end": 0.1}]))
    before = words.read_bytes()
    said = refusal(create(files, "--audio", clip, "--words", words, "-o", words, "--force"))
    assert said == f"{words} is an input of this command; name another output"
    assert words.read_bytes() == before

    profile = tmp_path / "me.json"
    profile.write_text("precious")
    damaged = os.fsdecode(b"caf\xe9")  # a transcript in Latin-1, as it arrives
    said = refusal(create(files, "--audio", clip, "--words", words, "--transcript", damaged, "-o", profile, "--force"))
    assert said.startswith(f"{profile}: cannot be written: the text is not valid Unicode")
    assert profile.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["me.json", "words.json"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("name", "file"), [("me", "me.json"), ("my.voice", "my.voice.json")])
def test_names_of_profiles(name, file, files, fixtures, spoken, tmp_path, profile_folder):
    (tmp_path / "words.json").write_text(json.dumps([{"word": "The", "start": 0.0, "end": 0.1}]))
    args = "--audio", fixtures / spoken["file"], "--words", tmp_path / "words.json"
    assert create(files, *args, "-o", name).exit_code == 0
    assert [path.name for path in profile_folder.iterdir()] == [file]
    assert run("speaker", "list").stdout == f"{name}\n"
    assert run("speaker", "show", name).exit_code == 0
    for other in ("", "none", "-"):
        assert "cannot name a profile" in refusal(create(files, *args, "-o", other))


def test_speaker_show_refuses(files):
    assert "takes its codec" in run("speaker", "show", files / "me.json", "--wav", "x.wav").stderr
    show = "speaker", "show", files / "me.json", "--codec", files / "dac.gguf"
    assert "cannot draw .bmp; use one of .png" in refusal(run(*show, "--png", "x.bmp"))
    assert "there is no such file" in refusal(run("speaker", "show", "nobody"))
    result = run("speaker", "list")
    assert result.stdout == ""
    assert "there are no profiles" in result.stderr
