"""What Mimi's streams offer around the frames: other sample rates, other frame rates, turns, and batches."""

from __future__ import annotations

import ast
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocoder_plugin import AudioError, Codec, StreamError, kernels

LOWERINGS = [next(iter(kernels.available()), "off"), "off"]
WAV = np.random.default_rng(5).normal(0, 0.3, 40000).astype(np.float32)


@pytest.fixture(scope="module", params=dict.fromkeys(LOWERINGS))
def codec(request, fixtures):
    path = fixtures / "codec_cpp_mimi_hf_f32.gguf"
    with Codec.load(path, kernels=request.param, sliding_window=20, n_threads=2) as codec:
        yield codec


def assert_same(codec: Codec, got: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit with the native kernels; to rounding with ggml's own operations."""
    assert got.shape == expected.shape
    if codec.lowering != "portable":
        np.testing.assert_array_equal(got, expected)
    elif got.dtype == np.int32:
        assert (got == expected).mean() > 0.99
    else:
        assert np.linalg.norm(got - expected) < 5e-6 * np.linalg.norm(expected)


def n_latents(n_samples: int, sample_rate: int, frame_rate: float) -> int:
    resampled = (2 * n_samples * 24000 + sample_rate) // (2 * sample_rate)
    frames = -(-resampled // 1920)
    return -(-frames * Fraction(frame_rate) // Fraction(12.5))


@pytest.mark.parametrize(
    ("sample_rate", "frame_rate"), [(16000, 10.0), (24000, 10.0), (16000, 12.5), (44100, 25), (8000, 7.3)]
)
@settings(max_examples=3)
@given(cuts=st.lists(st.integers(0, WAV.size), max_size=6), data=st.data())
def test_any_cut_gives_the_offline_latents(codec, sample_rate, frame_rate, cuts, data):
    samples = WAV[: data.draw(st.integers(WAV.size // 2, WAV.size))]
    expected = codec.encode_latents(samples, sample_rate, frame_rate=frame_rate)
    assert expected.shape == (n_latents(samples.size, sample_rate, frame_rate), codec.latent_dim)
    with codec.encoder_stream(sample_rate=sample_rate, frame_rate=frame_rate) as stream:
        parts = [stream.push_latents(part) for part in np.split(samples, sorted(cuts))]
        assert_same(codec, np.concatenate([*parts, stream.flush_latents()]), expected)


def test_codes_of_another_rate(codec):
    with codec.encoder_stream(sample_rate=16000) as stream:
        assert stream.sample_rate == 16000
        parts = [stream.push(part) for part in np.split(WAV, 17 * np.arange(1, 40) ** 2)]
        assert_same(codec, np.concatenate([*parts, stream.flush()], axis=1), codec.encode(WAV, 16000))


def test_a_turn_after_reset_is_a_fresh_stream(codec):
    expected = codec.encode_latents(WAV[:9000], 16000, frame_rate=10.0)
    with codec.encoder_stream(sample_rate=16000, frame_rate=10.0) as stream:
        stream.push_latents(WAV)  # a turn that is broken off
        stream.reset()
        first = np.concatenate([stream.push_latents(WAV[:4000]), stream.finish_latents(WAV[4000:9000])])
        stream.reset()  # and one that was finished
        second = stream.finish_latents(WAV[:9000])
    assert_same(codec, first, expected)
    assert_same(codec, second, expected)


def test_latents_at_another_rate_lie_between_their_neighbours(codec):
    plain, slower = codec.encode_latents(WAV, 24000), codec.encode_latents(WAV, 24000, frame_rate=10.0)
    np.testing.assert_allclose(slower[4], plain[5], atol=1e-5)
    np.testing.assert_allclose(slower[1], 0.75 * plain[1] + 0.25 * plain[2], atol=1e-5)


def test_a_stream_of_resampled_latents_gives_no_codes(codec):
    with codec.encoder_stream(frame_rate=10.0) as stream:
        with pytest.raises(StreamError, match=r"latents at 10 frames/s; codes come at 12\.5"):
            stream.push(WAV)
        assert_same(codec, stream.finish_latents(WAV), codec.encode_latents(WAV, 24000, frame_rate=10.0))


@pytest.mark.parametrize("frame_rate", [0, -1, float("nan"), 24001])
def test_frame_rates_refused(codec, frame_rate):
    with pytest.raises(ValueError, match=r"frame_rate is .*, expected more than 0 and at most 24000"):
        codec.encoder_stream(frame_rate=frame_rate)


def test_sample_rates_refused(codec):
    with pytest.raises(AudioError, match="sample rate is 0, expected 1000 to 1000000 Hz"):
        codec.encoder_stream(sample_rate=0)
    with pytest.raises(AudioError, match="no samples"):
        codec.encode_latents(WAV[:0], 16000)


def test_latents_of_many_streams_together(codec):
    """Streams at different places, of different rates, each as it would be alone."""
    rates = [(16000, 10.0), (24000, 10.0), (24000, 12.5)]
    streams = [codec.encoder_stream(sample_rate=s, frame_rate=f) for s, f in rates]
    parts = [[streams[0].push_latents(WAV[:7000])], [], []]
    starts = [7000, 0, 0]
    for size in (5000, 0, 9000, 3000):
        chunks = [WAV[start : start + size + 100 * i] for i, start in enumerate(starts)]
        starts = [start + chunk.size for start, chunk in zip(starts, chunks, strict=True)]
        for part, latents in zip(parts, codec.push_latents_many(streams, chunks), strict=True):
            part.append(latents)
    for (s, f), stream, part, end in zip(rates, streams, parts, starts, strict=True):
        got = np.concatenate([*part, stream.flush_latents()])
        assert_same(codec, got, codec.encode_latents(WAV[:end], s, frame_rate=f))
        stream.close()


def test_codes_of_many_streams_together(codec):
    pieces = [WAV[:30000], WAV[::-1][:30000], WAV[5000:35000]]
    streams = [codec.encoder_stream(sample_rate=rate) for rate in (24000, 24000, 16000)]
    steps = [codec.push_many(streams, [p[i : i + 3000] for p in pieces]) for i in range(0, 30000, 3000)]
    for i, (stream, piece) in enumerate(zip(streams, pieces, strict=True)):
        got = np.concatenate([*(step[i] for step in steps), stream.flush()], axis=1)
        assert_same(codec, got, codec.encode(piece, stream.sample_rate))
        stream.close()


def test_batches_refused(codec):
    a, b, decoder = codec.encoder_stream(), codec.encoder_stream(frame_rate=10.0), codec.decoder_stream()
    with pytest.raises(ValueError, match="different codecs or directions"):
        codec.push_many([a, decoder], [WAV, WAV])
    with pytest.raises(ValueError, match="latents come from encoder streams only"):
        codec.push_latents_many([decoder], [np.zeros((8, 1), np.int32)])
    with pytest.raises(StreamError, match="codes come at"):
        codec.push_many([a, b], [WAV, WAV])
    with pytest.raises(AudioError, match="not a finite number"):
        codec.push_latents_many([a, b], [WAV, np.full(3, np.nan, np.float32)])
    assert codec.push_many([], []) == []
    assert_same(codec, a.finish(WAV), codec.encode(WAV, 24000))  # what was refused left no trace
    for stream in (a, b, decoder):
        stream.close()


def test_long_streams_hold_no_more_than_short_ones(fixtures):
    """A minute each way, at other rates, in pushes of many sizes, in a process of its own."""
    code = (
        "import sys, numpy as np\n"
        "from vocoder_plugin import Codec\n"
        "rng = np.random.default_rng(0)\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "codec = Codec.load(sys.argv[1], sliding_window=20, n_threads=2)\n"
        "codes, samples = rng.integers(0, 32, (8, 80)), rng.normal(0, 0.3, 102400).astype(np.float32)\n"
        "decoder = codec.decoder_stream()\n"
        "encoder = codec.encoder_stream(sample_rate=16000, frame_rate=10.0)\n"
        "cuts = [0, 1, 3, 10, 13, 30, 33, 60, 80]\n"
        "def turn():\n"
        "    for a, b in zip(cuts, cuts[1:]):\n"
        "        decoder.push(codes[:, a:b]); encoder.push_latents(samples[a * 1280 : b * 1280])\n"
        "    return {**vars(codec.memory['CPU']), 'graphs': len(codec._session._graphs), 'resident': resident()}\n"
        "turns = [turn() for _ in range(9)]\n"
        "print([{k: t[k] - turns[2][k] for k in t} for t in turns[3:]])\n"
    )
    path = str(fixtures / "codec_cpp_mimi_hf_f32.gguf")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for grown in ast.literal_eval(done.stdout):
        assert grown.pop("resident") < 1 << 20
        assert set(grown.values()) == {0}, grown
