"""The public codec: what it says of itself, bad input, long input, threads and closing."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from vocoder_plugin import AudioError, Codec, CodesError, DeviceError, ModelFileError, VocoderError
from vocoder_plugin.streams.exact import State


def test_attributes(small_dac):
    assert small_dac.name == "DAC 24 kHz"
    assert (small_dac.sample_rate, small_dac.hop_length, small_dac.frame_rate) == (24000, 320, 75.0)
    assert (small_dac.n_codebooks, small_dac.codebook_size) == (2, 1024)
    assert small_dac.has_encoder
    assert small_dac.has_decoder
    assert small_dac.device.is_cpu
    assert repr(small_dac).startswith(
        "<Codec 'DAC 24 kHz': 24000 Hz, 2 codebooks of 1024 at 75 frames/s, on CPU (native/"
    )


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3)), r"of type float64, expected integers"),
        (np.zeros((2, 3), bool), r"of type bool, expected integers"),
        ([["a", "b"], ["c", "d"]], r"expected integers"),
        (np.zeros((2, 0), int), r"no codes to decode"),
        (np.zeros(4, int), r"shape \(4,\), expected \(2, n_frames\)"),
        (np.zeros((1, 4), int), r"shape \(1, 4\), expected \(2, n_frames\)"),
        (np.zeros((1, 2, 4), int), r"shape \(1, 2, 4\)"),
        (np.array([[0, 5], [0, 1024]]), r"code 1024 of codebook 1, frame 1, is out of range \(expected 0 to 1023\)"),
        (np.array([[0, -1], [0, 0]]), r"code -1 of codebook 0, frame 1"),
        (np.array([[0, 2**40], [0, 0]]), r"code 1099511627776"),
    ],
)
def test_bad_codes(small_dac, codes, message):
    with pytest.raises(CodesError, match=message):
        small_dac.decode(codes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_codes_of_any_integer_type(small_dac, dtype):
    codes = np.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(small_dac.decode(codes.astype(dtype)), small_dac.decode(codes.astype(np.int32)))


def test_codes_are_not_changed(small_dac):
    codes = np.arange(40).reshape(2, 20)
    before = codes.copy()
    small_dac.decode(codes[:, ::2])
    np.testing.assert_array_equal(codes, before)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.array([0.0, np.nan]), 24000, r"sample 1 of the audio is not a finite number"),
        (np.array([np.inf]), 24000, r"sample 0 of the audio is not a finite number"),
        (np.zeros(0), 24000, r"no samples to encode"),
        (np.zeros((2, 3, 4)), 24000, r"shape \(2, 3, 4\), expected \(n_samples,\) or \(n_samples, channels\)"),
        (np.zeros((5, 0)), 24000, r"shape \(5, 0\)"),
        (np.zeros(5, complex), 24000, r"of type complex128, expected float"),
        (np.zeros(5, np.uint8), 24000, r"of type uint8"),
        (np.zeros(5), 0, r"sample rate is 0, expected 1000 to 1000000 Hz"),
        (np.zeros(5), -1, r"sample rate is -1"),
    ],
)
def test_bad_audio(small_dac, audio, rate, message):
    with pytest.raises(AudioError, match=message):
        small_dac.encode(audio, rate)


def test_silence_and_one_sample(small_dac):
    silence = small_dac.encode(np.zeros(24000, np.float32), 24000)
    assert silence.shape == (2, 75)
    assert (silence[:, 20:50] == silence[:, 20:21]).all()  # away from the ends every frame is the same
    assert small_dac.encode(np.array([0.5]), 24000).shape == (2, 1)
    assert np.isfinite(small_dac.decode(silence)).all()


def test_stereo_integers_and_other_rates(small_dac, small_reference):
    wav = small_reference["wav"]
    expected = small_dac.encode(wav, 24000)
    np.testing.assert_array_equal(small_dac.encode(np.stack([wav, wav], axis=1), 24000), expected)
    as_int = np.round(wav * 32768).astype(np.int16)
    np.testing.assert_array_equal(small_dac.encode(as_int, 24000), small_dac.encode(as_int / 32768, 24000))
    assert small_dac.encode(wav[::2], 12000).shape == expected.shape
    assert small_dac.encode(np.repeat(wav, 2), 48000).shape == expected.shape


def test_two_minutes_in_bounded_memory(small_dac):
    frames = 2 * 60 * 75
    codes = np.random.default_rng(0).integers(0, 1024, (2, frames)).astype(np.int32)
    small_dac.decode(codes[:, :200])
    before = small_dac.memory["CPU"].compute
    audio = small_dac.decode(codes)
    assert audio.shape == (frames * 320 - 8,)
    assert small_dac.memory["CPU"].compute == before
    np.testing.assert_array_equal(audio[: 190 * 320], small_dac.decode(codes[:, :200])[: 190 * 320])
    encoded = small_dac.encode(audio, 24000)
    assert encoded.shape == (2, frames)
    assert small_dac.memory["CPU"].compute < 64 << 20


def test_threads_share_a_codec(small_dac):
    codes = [np.random.default_rng(i).integers(0, 1024, (2, 50)).astype(np.int32) for i in range(6)]
    expected = [small_dac.decode(c) for c in codes]
    results: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: small_dac.decode(codes[i])})) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(expected):
        np.testing.assert_array_equal(results[i], wanted)


def test_exit_while_a_daemon_thread_decodes(small_dac_file):
    """It must not compute in memory that exit has freed."""
    program = f"""
import threading, time, numpy, vocoder_plugin
codec = vocoder_plugin.Codec.load({str(small_dac_file)!r}, n_threads=2)
begun = threading.Event()
def work():
    while True:
        codec.decode(numpy.zeros((2, 2000), int))
        begun.set()
threading.Thread(target=work, daemon=True).start()
begun.wait(30)
time.sleep(0.1)  # into the midst of the next
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_beside_new_streams(small_dac_file, monkeypatch):
    """Another thread begins a stream while the states are counted."""
    with Codec.load(small_dac_file, n_threads=1) as codec:
        streams, real = [codec.decoder_stream() for _ in range(3)], State.nbytes.fget
        thread = threading.Thread(target=lambda: streams.append(codec.decoder_stream()))

        def nbytes(state):
            if thread.ident is None:
                thread.start()
                thread.join(0.1)
            return real(state)

        monkeypatch.setattr(State, "nbytes", property(nbytes))
        before = codec.memory["CPU"].state
        thread.join()
        assert codec.memory["CPU"].state == before / 3 * 4


def test_closed(small_dac_file):
    codec = Codec.load(small_dac_file, n_threads=1)
    codes = np.zeros((2, 12), int)
    codec.decode(codes)
    stream = codec.decoder_stream()
    codec.close()
    codec.close()
    with pytest.raises(VocoderError, match="this codec is closed"):
        codec.decode(codes)
    with pytest.raises(VocoderError, match="closed"):
        stream.push(codes)


def test_load_errors(small_dac_file, tmp_path):
    with pytest.raises(DeviceError, match="no device 'Nowhere0'"):
        Codec.load(small_dac_file, device="Nowhere0")
    for n_threads in (0, 1_000_000):
        with pytest.raises(ValueError, match=f"n_threads is {n_threads}, expected 1 to 512"):
            Codec.load(small_dac_file, n_threads=n_threads)
    with pytest.raises(VocoderError, match="no native kernels 'avx9'"):
        Codec.load(small_dac_file, kernels="avx9")
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        Codec.load(tmp_path / "missing.gguf")


def test_memory_is_given_back(small_dac_file):
    """Loading, decoding and dropping a codec many times does not grow the process."""
    code = (
        "import sys, gc, numpy as np\n"
        "from vocoder_plugin import Codec\n"
        "codes = np.zeros((2, 40), int)\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "def once():\n"
        "    codec = Codec.load(sys.argv[1], n_threads=1)\n"
        "    codec.decode(codes); codec.encode(np.zeros(12800), 24000)\n"
        "    codec.decoder_stream().push(codes)\n"
        "for _ in range(40): once()\n"
        "gc.collect(); gc.disable()\n"
        "once(); assert gc.collect() < 20, 'cycles'\n"  # only array types of ctypes; the rest is freed at once
        "before = rss()\n"
        "for _ in range(40): once()\n"
        "print(rss() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_dac_file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 << 20
