"""Output that grows: files, pipes, loudspeakers."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from vocoder_plugin import AudioError
from vocoder_plugin.audio.output import GrowingFile, Player, RawPipe
from vocoder_plugin.audio.samples import pcm16

RATE = 24000


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(-1.2, 1.2, n).astype(np.float32)


# pcm16


def test_pcm16():
    samples = np.array([0, 0.25, -0.25, 1, -1, 3, -3, 0.6 / 32768, -0.6 / 32768, 0.4 / 32768], np.float32)
    assert pcm16(samples).tolist() == [0, 8192, -8192, 32767, -32768, 32767, -32768, 1, -1, 0]
    assert pcm16(samples).dtype == np.dtype("<i2")


# GrowingFile


@pytest.mark.parametrize("sizes", [[1], [100, 0, 1, 30_000], [70_000, 70_000]])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_growing_file(tmp_path, kind, sizes):
    chunks = [noise(n) for n in sizes]
    with GrowingFile(tmp_path / "out", RATE, format=kind) as file:
        for chunk in chunks:
            file.write(chunk)
        assert file.n_samples == sum(sizes)
    info = soundfile.info(tmp_path / "out")
    assert (info.format, info.samplerate, info.channels, info.frames) == (kind, RATE, 1, sum(sizes))
    if kind != "OGG":
        samples, _ = soundfile.read(tmp_path / "out", dtype="int16")
        assert np.array_equal(samples, pcm16(np.concatenate(chunks)))


def test_wav_is_right_after_every_write(tmp_path):
    with GrowingFile(tmp_path / "out.wav", RATE, format="WAV") as file:
        for i in range(1, 5):
            file.write(noise(100))
            assert (tmp_path / "out.wav").stat().st_size == 44 + 200 * i
            assert soundfile.info(tmp_path / "out.wav").frames == 100 * i


def test_file_begins_with_the_first_samples(tmp_path):
    with GrowingFile(tmp_path / "out.wav", RATE, format="WAV"):
        pass
    assert os.listdir(tmp_path) == []


def test_growing_file_closes_twice_and_after_an_error(tmp_path):
    file = GrowingFile(tmp_path / "none" / "out.wav", RATE, format="WAV")
    with pytest.raises(AudioError, match=r"out\.wav: cannot be written: No such file or directory"):
        file.write(noise(5))
    file.close()
    file = GrowingFile(tmp_path / "out.wav", RATE, format="WAV")
    file.write(noise(5))
    file.close()
    file.close()
    assert soundfile.info(tmp_path / "out.wav").frames == 5


FULL_DISK = """if True:
    import resource, signal, sys
    import numpy as np
    from vocoder_plugin import AudioError
    from vocoder_plugin.audio.output import GrowingFile

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)  # as a disk with so much room
    samples = np.random.default_rng(0).normal(0, 0.3, 5001).astype(np.float32)
    with GrowingFile(sys.argv[1], 24000, format=sys.argv[2]) as file:
        try:
            while True:
                file.write(samples)
        except AudioError as error:
            print(file.n_samples, error)
"""


@pytest.mark.parametrize("room", [0, 30, 44, 45, 100_001])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_full_disk_keeps_what_was_written(tmp_path, kind, room):
    path = tmp_path / "out"
    command = [sys.executable, "-c", FULL_DISK, str(path), kind, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    n, said = done.stdout.split(" ", 1)
    assert said == f"{path}: cannot be written: File too large\n"
    assert done.stderr == ""
    if room < 1000:
        assert not path.exists()
        return
    parts = []
    with soundfile.SoundFile(path) as sound, contextlib.suppress(soundfile.LibsndfileError):  # FLAC: no end is marked
        while (part := sound.read(1000, dtype="float32")).size:
            parts.append(part)
    samples = np.concatenate(parts)
    whole = np.random.default_rng(0).normal(0, 0.3, 5001).astype(np.float32)
    if kind == "WAV":
        assert samples.size == int(n) == (room - 44) // 2
    assert samples.size >= 20_000
    if kind != "OGG":
        np.testing.assert_allclose(samples, np.resize(pcm16(whole) / 32768, samples.size), atol=1e-6)


def test_a_pipe_into_a_full_disk():
    said = "the samples cannot be written: No space left on device"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(AudioError, match=said):
        RawPipe(full).write(noise(5))


# RawPipe


def test_raw_pipe():
    buffer = io.BytesIO()
    pipe = RawPipe(io.BufferedWriter(buffer, 1 << 20))
    pipe.write(noise(7))
    assert buffer.getvalue() == pcm16(noise(7)).tobytes()  # flushed


# Player


@pytest.mark.parametrize("sizes", [[], [1], [480], [10, 2000, 1, 5000]])
def test_everything_is_heard(loudspeaker, sizes):
    chunks = [noise(n) for n in sizes]
    with Player(RATE) as player:
        for chunk in chunks:
            player.write(chunk)
    assert loudspeaker.options == {"samplerate": RATE, "channels": 1, "dtype": "float32"}
    assert loudspeaker.closed
    expected = np.clip(np.concatenate([np.empty(0, np.float32), *chunks]), -1, 1)
    assert np.array_equal(loudspeaker.sound(), expected)


def test_silence_while_nothing_comes(loudspeaker):
    with Player(RATE) as player:
        player.write(np.full(100, 0.5, np.float32))
        loudspeaker.wait_until_idle()
        player.write(np.full(100, -0.5, np.float32))
    heard = loudspeaker.heard()
    assert heard[heard != 0].tolist() == [0.5] * 100 + [-0.5] * 100
    assert np.flatnonzero(heard == -0.5)[0] - np.flatnonzero(heard == 0.5)[-1] > 1


def test_player_stops_at_once_on_an_error(loudspeaker):
    def run():
        with Player(RATE) as player:
            player.write(noise(10_000_000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert loudspeaker.closed
    assert loudspeaker.heard().size < 10_000_000


def test_no_sounddevice(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match="pip install 'vocoder-plugin\\[play\\]'"):
        Player(RATE)


def test_no_output_device(loudspeaker):
    loudspeaker.broken = True
    with pytest.raises(AudioError, match="there is no device to play on: Error querying device -1"):
        Player(RATE)
    assert not [thread for thread in threading.enumerate() if thread.name == "loudspeaker"]
