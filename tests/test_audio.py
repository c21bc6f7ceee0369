"""Sound arrays and files: mixing down, resampling, reading and writing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from vocoder_plugin import AudioError
from vocoder_plugin.audio.samples import (
    MOST_CHANNELS,
    Resampler,
    as_mono,
    audio_blocks,
    audio_format,
    open_audio,
    read_audio,
    resample,
    write_audio,
)
from vocoder_plugin.errors import AudioKindError

RATE = 24000
ENDINGS = {"WAV": ".wav", "FLAC": ".flac", "OGG": ".ogg"}


def tone(seconds: float, *, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak_hz(samples: np.ndarray, rate: int) -> float:
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(samples.size)))) * rate / samples.size


# as_mono


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_float_samples_stay(kind):
    audio = np.array([0.0, 0.5, -0.25, 1.0, -1.5], kind)
    mono = as_mono(audio)
    assert mono.dtype == np.float32
    assert mono.tolist() == audio.tolist()


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_integer_samples_are_scaled(kind):
    limits = np.iinfo(kind)
    mono = as_mono(np.array([limits.min, 0, limits.max // 2 + 1, limits.max], kind))
    assert mono.dtype == np.float32
    assert mono[:3].tolist() == [-1.0, 0.0, 0.5]
    assert mono[3] == np.float32(limits.max / -float(limits.min))


@pytest.mark.parametrize("order", ["C", "F"])
def test_channels_are_averaged(order):
    mono = as_mono(np.array([[0.5, -0.5], [1.0, 0.5], [0.0, 0.25]], np.float32, order=order))
    assert mono.tolist() == [0.0, 0.75, 0.125]
    assert as_mono(np.array([[16384, 0]], np.int16)).tolist() == [0.25]
    assert as_mono(np.ones((4, 1))).tolist() == [1.0] * 4


def test_result_is_contiguous():
    assert as_mono(np.arange(10.0)[::2]).flags.c_contiguous


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_empty_audio_stays_empty(shape):
    assert as_mono(np.zeros(shape)).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite(value):
    audio = np.zeros(6)
    audio[3:] = value
    with pytest.raises(AudioError, match="sample 3 of the audio is not a finite number"):
        as_mono(audio)
    with pytest.raises(AudioError, match="sample 1 of the audio is not a finite number"):
        as_mono(np.array([[0, 0], [0, value]]))


@pytest.mark.parametrize(
    ("audio", "name"),
    [
        (np.zeros(3, np.uint8), "uint8"),
        (np.zeros(3, bool), "bool"),
        (np.zeros(3, complex), "complex128"),
        (np.array(["a"]), "<U1"),
        (None, "object"),
    ],
)
def test_types_refused(audio, name):
    with pytest.raises(AudioKindError) as error:
        as_mono(audio)
    assert str(error.value) == f"audio is of type {name}, expected float or signed integer samples"


@pytest.mark.parametrize("shape", [(), (3, 0), (1, 2, 3)])
def test_shapes_refused(shape):
    with pytest.raises(AudioError) as error:
        as_mono(np.zeros(shape))
    assert str(error.value) == f"audio has shape {shape}, expected (n_samples,) or (n_samples, channels)"


@pytest.mark.parametrize("shape", [(1, 24000), (2, 24000), (1, MOST_CHANNELS + 1)])
def test_channels_that_come_first_are_refused(shape):
    with pytest.raises(AudioError, match=r"expected .*\(n_samples, channels\); if channels come first .* \(audio\.T\)"):
        as_mono(np.zeros(shape))


def test_parts_of_different_sizes():
    with pytest.raises(AudioKindError, match="parts of different sizes"):
        as_mono([[1.0, 2.0], [3.0]])


# resample


def test_same_rate_changes_nothing():
    samples = tone(0.1)
    assert resample(samples, RATE, RATE) is samples
    assert resample(samples[:0], 48000, RATE).size == 0


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_resampling_keeps_length_and_tone(rate):
    samples = resample(tone(1.0, rate=rate), rate, RATE)
    assert samples.dtype == np.float32
    assert abs(samples.size - RATE) <= 1
    assert peak_hz(samples, RATE) == pytest.approx(440, abs=1)
    inner = slice(RATE // 10, -RATE // 10)
    assert np.allclose(samples[inner], tone(1.0)[: samples.size][inner], atol=1e-3)


def test_resampling_removes_what_the_target_cannot_hold():
    samples = resample(tone(1.0, rate=48000, hz=20000), 48000, RATE)
    assert np.abs(samples[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_rates_refused(rate):
    with pytest.raises(AudioError, match=f"the sample rate is {rate}, expected 1000 to 1000000 Hz"):
        resample(tone(0.1), rate, RATE)


@pytest.mark.parametrize("rate", ["24000", None, 24000j])
def test_rates_that_are_no_numbers(rate):
    with pytest.raises(AudioKindError, match=r"the sample rate is .*, expected a number of Hz"):
        resample(tone(0.1), rate, RATE)


# read_audio


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_files_are_read(tmp_path, kind):
    path = tmp_path / f"tone{ENDINGS[kind]}"
    soundfile.write(path, tone(0.5, rate=22050), 22050, format=kind)
    samples, rate = read_audio(path)
    assert rate == 22050
    assert samples.dtype == np.float32
    assert samples.shape == (11025,)
    assert np.allclose(samples, tone(0.5, rate=22050), atol=0.05 if kind == "OGG" else 1e-4)


def test_channels_are_read(tmp_path):
    stereo = np.stack([tone(0.1), -tone(0.1)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE, subtype="FLOAT")
    samples, _ = read_audio(str(tmp_path / "stereo.wav"))
    assert np.array_equal(samples, stereo)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_standard_input_is_read(monkeypatch, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5), RATE, format=kind)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(buffer.getvalue())))
    samples, rate = read_audio("-")
    assert (samples.shape, rate) == ((RATE // 2,), RATE)
    assert peak_hz(samples, rate) == pytest.approx(440, abs=2)


def test_missing_file(tmp_path):
    with pytest.raises(AudioError) as error:
        read_audio(tmp_path / "none.wav")
    assert str(error.value) == f"{tmp_path / 'none.wav'}: there is no such file"


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"RIFF\x10\0\0\0WAVE", b"fLaC"])
def test_damaged_files(tmp_path, monkeypatch, data):
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(error.value).startswith(f"{path}: ")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(AudioError, match=r"^-: "):
        read_audio("-")


def refusal_of(path) -> str:
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert error.value.path == str(path)
    return str(error.value).removeprefix(f"{path}: ")


def test_what_is_no_regular_file(tmp_path):
    """None of them may be waited for: a pipe nobody writes to, a device without end, links to them."""
    assert refusal_of(tmp_path) == "cannot be read: it is a folder, expected a regular file"
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path / "link.wav"):
        assert refusal_of(path) == "cannot be read: it is a named pipe, expected a regular file"
    assert refusal_of("/dev/zero") == "cannot be read: it is a device, expected a regular file"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        assert refusal_of(tmp_path / "s") == "cannot be read: it is a socket, expected a regular file"
    assert refusal_of("a\0b.wav").startswith("cannot be read: ")


@pytest.mark.parametrize(("data", "said"), [
    (b"", "it is empty (0 bytes), expected a sound file"),
    (b"\0\0\0\x20ftypM4A " + bytes(100), "MPEG-4 (m4a, mp4) is not among those that are read"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(100), "Windows Media (wma) is not among"),
    (b"#!AMR\n" + bytes(100), "AMR is not among"),
    (b"garbage" * 100, "its format is not among"),
])  # fmt: skip
def test_formats_that_are_not_read(tmp_path, data, said):
    path = tmp_path / "clip.x"
    path.write_bytes(data)
    assert refusal_of(path).startswith(said)
    assert refusal_of(path).endswith("convert it: ffmpeg -i clip.x clip.wav") is bool(data)


def test_raw_samples(tmp_path):
    (tmp_path / "clip.raw").write_bytes(bytes(100))
    assert refusal_of(tmp_path / "clip.raw").startswith("raw samples do not say their rate")


def test_a_name_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(path, tone(0.1), RATE)
    assert read_audio(os.fsdecode(path))[0].size == 2400


def test_a_header_that_promises_more_than_there_is(tmp_path):
    soundfile.write(tmp_path / "tone.flac", tone(1.0), RATE)
    data = bytearray((tmp_path / "tone.flac").read_bytes())
    data[22:26] = b"\xff" * 4  # of the 36 bits that count the samples
    (tmp_path / "tone.flac").write_bytes(data)
    assert refusal_of(tmp_path / "tone.flac")


# write_audio


@pytest.mark.parametrize(("path", "kind"), [("a.wav", "WAV"), ("a.FLAC", "FLAC"), ("b/c.d.ogg", "OGG"), ("-", "WAV")])
def test_format_by_suffix(path, kind):
    assert audio_format(path) == kind


@pytest.mark.parametrize(("path", "what"), [("a.MP3", ".mp3"), ("wav", "a file without suffix")])
def test_suffixes_refused(path, what):
    with pytest.raises(AudioError) as error:
        audio_format(path)
    assert str(error.value) == f"{path}: cannot write {what}; use one of .wav, .flac, .ogg"


@pytest.mark.parametrize("to_buffer", [False, True])
@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_formats_written(tmp_path, kind, subtype, to_buffer):
    target = io.BytesIO() if to_buffer else tmp_path / f"tone{ENDINGS[kind]}"
    write_audio(target, tone(0.5), RATE, format=kind)
    if to_buffer:
        target.seek(0)
    with soundfile.SoundFile(target) as file:
        assert (file.format, file.subtype, file.samplerate, file.channels) == (kind, subtype, RATE, 1)
        samples = file.read(dtype="float32")
    assert samples.shape == (RATE // 2,)
    assert np.allclose(samples, tone(0.5), atol=0.05 if kind == "OGG" else 1 / 32768)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_samples_beyond_one_are_clipped(tmp_path, kind):
    path = tmp_path / "loud"
    write_audio(path, np.array([3.0, -3.0, 1.0, -1.0, 0.25], np.float32), RATE, format=kind)
    samples, _ = soundfile.read(path, dtype="int16")
    assert samples.tolist() == [32767, -32768, 32767, -32768, 8192]


def test_no_samples(tmp_path):
    write_audio(tmp_path / "empty.wav", np.empty(0, np.float32), RATE, format="WAV")
    assert soundfile.info(tmp_path / "empty.wav").frames == 0


def test_long_ogg(tmp_path):
    # libvorbis overflows the stack when one call brings minutes of audio: in a process of its own
    program = """if True:
        import sys
        import numpy as np
        from vocoder_plugin.audio.samples import write_audio
        write_audio(sys.argv[1], np.zeros(24000 * 180, np.float32), 24000, format="OGG")
    """
    path = tmp_path / "long.ogg"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 0
    assert soundfile.info(path).frames == RATE * 180


class Full(io.BytesIO):
    """A file on a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 20, 20_000])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_full_disk(kind, room, capfd):
    noise = np.random.default_rng(0).normal(0, 0.2, RATE * 4)
    with pytest.raises(AudioError, match=r"^cannot be written: No space left on device$"):
        write_audio(Full(room), noise, RATE, format=kind)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_file_that_cannot_be_completed_leaves_what_was_there(tmp_path, monkeypatch, kind):
    (tmp_path / "out").write_bytes(b"before")
    monkeypatch.setattr("vocoder_plugin.audio.samples.complete_file", lambda _path: contextlib.nullcontext(Full(999)))
    with pytest.raises(AudioError, match="No space left on device") as error:
        write_audio(tmp_path / "out", tone(1.0), RATE, format=kind)
    assert error.value.path == str(tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out").read_bytes() == b"before"
    with pytest.raises(AudioError, match="none/x: cannot be written: No such file"):
        write_audio(tmp_path / "none" / "x", tone(1.0), RATE, format=kind)
    assert os.listdir(tmp_path) == ["out"]


# resampling as samples come


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 20000), max_size=20), n=st.integers(0, 20000))
def test_any_cut_resamples_to_the_same(rate, cuts, n):
    samples = np.random.default_rng(0).normal(0, 0.3, n).astype(np.float32)
    resampler = Resampler(rate, RATE)
    parts = [resampler.push(part) for part in np.split(samples, sorted(cuts))]
    joined = np.concatenate([*parts, resampler.push(samples[:0], last=True)])
    assert joined.size == (2 * n * RATE + rate) // (2 * rate)
    np.testing.assert_array_equal(joined, resample(samples, rate, RATE))


def test_reset_makes_a_resampler_new():
    samples = tone(0.2, rate=16000)
    resampler = Resampler(16000, RATE)
    resampler.push(samples[::-1].copy())
    resampler.reset()
    np.testing.assert_array_equal(resampler.push(samples, last=True), resample(samples, 16000, RATE))


def test_resampled_samples_lag_little():
    resampler, pushed, got = Resampler(16000, RATE), 0, 0
    for part in np.split(tone(2.0, rate=16000), 100):
        pushed, got = pushed + part.size, got + resampler.push(part).size
        assert pushed / 16000 - got / RATE < 0.04


def test_a_file_in_blocks(tmp_path):
    stereo = np.stack([tone(0.25), tone(0.25, hz=880)], axis=1)
    soundfile.write(tmp_path / "tone.wav", stereo, RATE, subtype="FLOAT")
    with open_audio(tmp_path / "tone.wav") as sound:
        blocks = list(audio_blocks(sound, 0.1, path="tone.wav"))
    assert [len(block) for block in blocks] == [2400, 2400, 1200]
    np.testing.assert_array_equal(np.concatenate(blocks), stereo)


def test_a_file_damaged_in_the_middle(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.2, RATE * 4), RATE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20000] = bytes(20000)
    path.write_bytes(data)
    with open_audio(path) as sound, pytest.raises(AudioError, match=f"{path.name}: "):
        list(audio_blocks(sound, 0.1, path=path.name))
