"""Streaming is exact: however a stream is cut, it gives the offline result, bit for bit on the native lowering."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_dac import SIZES, write_random_dac

from vocoder_plugin import Codec, CodesError, StreamError, kernels
from vocoder_plugin.streams.format import Format

BEST = next(iter(kernels.available()), None)
RNG = np.random.default_rng(11)
FRAMES = 130  # more than one chunk of offline decoding, so that offline too is first, middle and last
CODES = RNG.integers(0, 1024, (2, FRAMES)).astype(np.int32)
WAV = (RNG.standard_normal(FRAMES * 320 - 100) * 0.2).astype(np.float32)
LOWERINGS = dict.fromkeys(kernels.available(), 0.0) | {"off": 1e-6}  # allowed relative error


@pytest.fixture(scope="module", params=LOWERINGS)
def codec(request, small_dac_file):
    with Codec.load(small_dac_file, kernels=request.param, n_threads=2) as codec:
        codec.allowed = LOWERINGS[request.param]
        codec.whole = codec.decode(CODES)
        codec.encoded = codec.encode(WAV, 24000)
        yield codec


@pytest.fixture(scope="module", params=[(size, *how) for size in SIZES for how in (
    (BEST, "float32"), (BEST, "int16"), (BEST, "int8"), ("off", "float32")
)], ids="-".join)  # fmt: skip
def sized(request, tmp_path_factory):
    """Every published size, narrower, with codes and samples of its own; wide enough for every kernel."""
    size, lowering, precision = request.param
    path = tmp_path_factory.mktemp("sized") / f"{size}.gguf"
    narrow = dict(decoder_dim=32, encoder_dim=4) if lowering == "off" else {}
    write_random_dac(path, size, **narrow)
    with Codec.load(path, kernels=lowering, precision=precision, n_threads=2) as codec:
        rng = np.random.default_rng(5)
        codec.allowed = LOWERINGS[lowering]
        codec.codes = rng.integers(0, codec.codebook_size, (codec.n_codebooks, 70))
        codec.wav = (rng.standard_normal(70 * codec.hop_length - 100) * 0.2).astype(np.float32)
        codec.whole = codec.decode(codec.codes)
        codec.encoded = codec.encode(codec.wav, codec.sample_rate)
        yield codec


def assert_same(got: np.ndarray, expected: np.ndarray, allowed: float) -> None:
    assert got.shape == expected.shape
    if allowed == 0.0:
        np.testing.assert_array_equal(got, expected)
    else:
        assert np.linalg.norm(got - expected) <= allowed * np.linalg.norm(expected)


def cuts(total: int, smallest: int):
    """Sizes of pushes that add up to ``total``."""
    return st.lists(st.integers(smallest, total // 2), min_size=0, max_size=30).map(
        lambda sizes: np.diff(np.unique(np.clip([0, *np.cumsum(sizes), total], 0, total))).tolist()
    )


@settings(max_examples=25)
@given(sizes=cuts(FRAMES, 0))
def test_any_cut_decodes_to_the_offline_samples(codec, sizes):
    edges = np.cumsum([0, *sizes])
    with codec.decoder_stream() as stream:
        parts = [stream.push(CODES[:, a:b]) for a, b in pairwise(edges)]
        parts.append(stream.flush())
    assert_same(np.concatenate(parts), codec.whole, codec.allowed)


@settings(max_examples=15)
@given(sizes=cuts(WAV.size, 0))
def test_any_cut_encodes_to_the_offline_codes(codec, sizes):
    edges = np.cumsum([0, *sizes])
    with codec.encoder_stream() as stream:
        parts = [stream.push(WAV[a:b]) for a, b in pairwise(edges)]
        parts.append(stream.flush())
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), codec.encoded)


@settings(max_examples=8)
@given(data=st.data())
def test_any_cut_of_every_size(sized, data):
    edges = np.cumsum([0, *data.draw(cuts(sized.codes.shape[1], 1))])
    with sized.decoder_stream() as stream:
        parts = [stream.push(sized.codes[:, a:b]) for a, b in pairwise(edges)]
        assert_same(np.concatenate([*parts, stream.flush()]), sized.whole, sized.allowed)
    edges = np.cumsum([0, *data.draw(cuts(sized.wav.size, 1))])
    with sized.encoder_stream() as stream:
        codes = [stream.push(sized.wav[a:b]) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate([*codes, stream.flush()], axis=1), sized.encoded)


def test_every_size_frame_by_frame(sized):
    with sized.decoder_stream() as stream:
        parts = [stream.push(sized.codes[:, t : t + 1]) for t in range(sized.codes.shape[1])]
        assert_same(np.concatenate([*parts, stream.flush()]), sized.whole, sized.allowed)


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 11, 12, 60])
def test_frame_by_frame_and_at_once(codec, frames):
    codes = CODES[:, :frames]
    whole = codec.decode(codes)
    with codec.decoder_stream() as stream:
        single = [stream.push(codes[:, i : i + 1]) for i in range(frames)]
        assert_same(np.concatenate([*single, stream.flush()]), whole, codec.allowed)
        stream.reset()
        assert_same(np.concatenate([stream.push(codes), stream.flush()]), whole, codec.allowed)
        stream.reset()
        assert_same(stream.finish(codes), whole, codec.allowed)


def test_chunk_size_changes_nothing(small_dac_file, monkeypatch):
    """Offline decoding in one piece, and in pieces of other sizes."""
    results = []
    for seconds in (0.2, 0.32, 10.0):
        monkeypatch.setattr("vocoder_plugin.codecs.model.CHUNK_SECONDS", seconds)
        with Codec.load(small_dac_file, n_threads=2) as codec:
            results.append((codec.decode(CODES), codec.encode(WAV, 24000)))
    for audio, codes in results[1:]:
        np.testing.assert_array_equal(audio, results[0][0])
        np.testing.assert_array_equal(codes, results[0][1])


def test_samples_come_as_soon_as_they_can(codec):
    """After n > lookahead_frames frames, all but the decoder's reach are out."""
    with codec.decoder_stream() as stream:
        assert stream.exact
        assert stream.lookahead_frames == 10
        out = 0
        for n in range(1, 30):
            out += stream.push(CODES[:, n - 1 : n]).size
            assert out == max(0, 320 * n - 3141)


@pytest.mark.parametrize("lookahead", range(11))
def test_shorter_lookahead(small_dac, lookahead):
    """Samples come sooner, as many in all, and the nearer to exact the longer the lookahead."""
    whole = small_dac.decode(CODES)
    with small_dac.decoder_stream(lookahead_frames=lookahead) as stream:
        assert stream.exact == (lookahead == 10)
        parts, out = [], 0
        for n in range(1, FRAMES + 1):
            parts.append(stream.push(CODES[:, n - 1 : n]))
            out += parts[-1].size
            if not stream.exact:
                assert out == max(0, min((n - lookahead) * 320, 320 * n - 8))
        got = np.concatenate([*parts, stream.flush()])
    assert got.shape == whole.shape
    snr = 10 * np.log10(np.sum(whole**2) / max(1e-30, np.sum((got - whole) ** 2)))
    floors = {0: 1, 1: 2, 2: 4, 3: 7, 4: 11, 5: 16, 6: 22, 7: 30, 8: 45, 9: 75, 10: 290}  # measured, rounded down
    assert snr >= floors[lookahead]


def test_shorter_lookahead_within_larger_pushes(small_dac):
    """Only the last frames of a push are estimates; what came before is exact."""
    whole = small_dac.decode(CODES)
    with small_dac.decoder_stream(lookahead_frames=3) as stream:
        first = stream.push(CODES[:, :60])
        np.testing.assert_array_equal(first[: 60 * 320 - 3141], whole[: 60 * 320 - 3141])
        rest = [stream.push(CODES[:, 60:61]), stream.push(CODES[:, 61:]), stream.flush()]
    assert first.size + sum(part.size for part in rest) == whole.size
    np.testing.assert_array_equal(rest[-1][-320:], whole[-320:])
    with pytest.raises(ValueError, match="lookahead_frames is 11, expected 0 to 10"):
        small_dac.decoder_stream(lookahead_frames=11)


@pytest.mark.parametrize("n_streams", [1, 3, 8])
def test_many_streams_in_one_step(sized, n_streams):
    """Streams that are not equally far, with pushes of different sizes, each as if alone."""
    codes = [np.roll(sized.codes, 7 * i, axis=1) for i in range(n_streams)]
    expected = [sized.decode(c) for c in codes]
    streams = [sized.decoder_stream() for _ in codes]
    parts: list[list[np.ndarray]] = [[] for _ in codes]
    places = [0] * n_streams
    for step in range(0, 70, 5):
        chunks = []
        for i, c in enumerate(codes):
            size = 5 if (step + i) % 4 else 3 * (i % 3)
            chunks.append(c[:, places[i] : places[i] + size])
            places[i] += chunks[-1].shape[1]
        for part, samples in zip(parts, sized.push_many(streams, chunks), strict=True):
            part.append(samples)
    for i, stream in enumerate(streams):
        got = np.concatenate([*parts[i], stream.finish(codes[i][:, places[i] :])])
        assert_same(got, expected[i], sized.allowed)
        stream.close()


def test_many_encoders_together(sized):
    wavs = [sized.wav, sized.wav[::-1], sized.wav[: sized.wav.size // 2]]
    expected = [sized.encoded, *(sized.encode(wav, sized.sample_rate) for wav in wavs[1:])]
    streams = [sized.encoder_stream() for _ in wavs]
    edges = np.linspace(0, sized.wav.size, 9).astype(int)
    steps = [sized.push_many(streams, [wav[a:b] for wav in wavs]) for a, b in pairwise(edges)]
    for i, stream in enumerate(streams):
        codes = np.concatenate([*(step[i] for step in steps), stream.flush()], axis=1)
        np.testing.assert_array_equal(codes, expected[i])
        stream.close()


def test_any_rate_encodes_as_offline(codec):
    with codec.encoder_stream(sample_rate=16000) as stream:
        codes = [stream.push(part) for part in np.array_split(WAV, 7)]
        np.testing.assert_array_equal(np.concatenate([*codes, stream.flush()], axis=1), codec.encode(WAV, 16000))


def test_graphs_take_a_limited_number_of_streams(small_dac, monkeypatch):
    """ggml would end the process where a graph has too many nodes."""
    monkeypatch.setattr("vocoder_plugin.streams.exact.MOST_TOGETHER", 3)
    streams = [small_dac.decoder_stream() for _ in range(8)]
    batches, real = [], streams[0]._pass.run
    monkeypatch.setattr(
        streams[0]._pass, "run", lambda head, states, *args: batches.append(len(states)) or real(head, states, *args)
    )
    others = [np.roll(CODES, i, axis=1)[:, :20] for i in range(8)]
    parts = small_dac.push_many(streams, others)
    assert batches == [3, 3, 2]
    for stream, codes, part in zip(streams, others, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([part, stream.flush()]), small_dac.decode(codes))


def test_padding_beyond_the_tensor_of_zeros(small_dac_file, monkeypatch):
    """A wide layer and many streams need more than there are; ggml would end the process."""
    results = []
    for floats in (1 << 18, 1 << 9):
        monkeypatch.setattr("vocoder_plugin.net.portable.ZERO_FLOATS", floats)
        with Codec.load(small_dac_file, kernels="off", n_threads=1) as codec:
            streams = [codec.decoder_stream() for _ in range(5)]
            results.append(codec.push_many(streams, [CODES[:, :20]] * 5))
    np.testing.assert_array_equal(results[1], results[0])


def test_memory_does_not_grow_with_every_number_of_streams(small_dac_file):
    with Codec.load(small_dac_file, n_threads=1) as codec:
        streams = [codec.decoder_stream() for _ in range(12)]
        own = codec.memory["CPU"].state
        for n in range(1, 13):
            codec.push_many(streams[:n], [CODES[:, :11]] * n)
        slots = codec.memory["CPU"].state - own
        assert slots < 32 * 2 * own / 12  # in and out of 1, 2, 4, 8 and 16 streams; 78 pairs of one for each number


def test_many_streams_refused(small_dac, small_dac_file):
    a, b = small_dac.decoder_stream(), small_dac.decoder_stream()
    with pytest.raises(ValueError, match="2 streams for 1 arrays"):
        small_dac.push_many([a, b], [CODES])
    with pytest.raises(ValueError, match="all different"):
        small_dac.push_many([a, a], [CODES, CODES])
    with pytest.raises(ValueError, match="shortened lookahead"):
        small_dac.push_many([a, small_dac.decoder_stream(lookahead_frames=2)], [CODES, CODES])
    with Codec.load(small_dac_file) as other, pytest.raises(ValueError, match="belongs to another codec"):
        other.push_many([a], [CODES])
    with pytest.raises(CodesError):
        small_dac.push_many([a, b], [CODES, CODES + 1024])
    np.testing.assert_array_equal(a.finish(CODES), small_dac.decode(CODES))  # nothing of the refused push stayed


def test_ten_frames_ahead_is_the_whole_reach(codec):
    """A change in a frame does not touch samples more than 10 frames before it."""
    changed = CODES.copy()
    changed[:, 60] = (changed[:, 60] + 1) % 1024
    different = np.flatnonzero(codec.decode(changed) != codec.whole)
    assert different[0] >= (60 - 10) * 320
    assert different[-1] < (60 + 11) * 320


def test_empty_streams(codec):
    with codec.decoder_stream() as stream:
        assert stream.push(np.empty((2, 0), np.int32)).shape == (0,)
        assert stream.flush().shape == (0,)
    with codec.encoder_stream() as stream:
        assert stream.push(np.empty(0, np.float32)).shape == (2, 0)
        assert stream.flush().shape == (2, 0)


def test_a_stream_that_ended_says_so(small_dac):
    with small_dac.decoder_stream() as stream:
        stream.finish(CODES[:, :20])
        with pytest.raises(StreamError, match=r"has ended; call reset\(\)"):
            stream.push(CODES[:, :1])
        stream.reset()
        assert stream.finish(CODES[:, :1]).size == 312
    with pytest.raises(StreamError, match="has ended"):
        stream.push(CODES[:, :1])


def test_bad_codes_leave_the_stream_as_it_was(small_dac):
    with small_dac.decoder_stream() as stream:
        parts = [stream.push(CODES[:, :30])]
        with pytest.raises(CodesError, match="code 1024 of codebook 1, frame 0"):
            stream.push(np.array([[0], [1024]]))
        parts += [stream.push(CODES[:, 30:]), stream.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), small_dac.decode(CODES))


def failing_at(codec, monkeypatch, count):
    """The codec's graphs fail from the ``count``-th on, as if the user had interrupted them."""
    real, runs = codec._session.run, iter(range(1, 1 << 20))

    def run(*args):
        if next(runs) >= count:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(codec._session, "run", run)


@pytest.mark.parametrize("kind", ["small_dac_file", "small_wavtokenizer_file"])
@pytest.mark.parametrize("direction", ["decoder", "encoder"])
def test_a_push_that_fails_ends_the_stream(request, monkeypatch, kind, direction):
    """Some chunks are done and their results lost: to go on would leave a hole."""
    with Codec.load(request.getfixturevalue(kind), n_threads=1) as codec:
        data = np.zeros((codec.n_codebooks, FRAMES), np.int32) if direction == "decoder" else WAV
        whole = codec.decode(data) if direction == "decoder" else codec.encode(data, codec.sample_rate)
        stream = getattr(codec, f"{direction}_stream")()
        with monkeypatch.context() as patch:
            failing_at(codec, patch, 2 if kind == "small_dac_file" or direction == "encoder" else 1)
            with pytest.raises(KeyboardInterrupt):
                stream.push(data)
        for go_on in (stream.flush, lambda: stream.push(data)):
            with pytest.raises(StreamError, match=r"has ended; call reset\(\)"):
                go_on()
        stream.reset()
        np.testing.assert_array_equal(stream.finish(data), whole)


def test_streams_that_fail_together_end_together(small_dac, monkeypatch):
    streams = [small_dac.decoder_stream() for _ in range(2)]
    with streams[0]._claimed(), pytest.raises(StreamError, match="in use by another thread"):
        small_dac.push_many(streams[::-1], [CODES, CODES])  # refused, and nothing has happened yet
    with monkeypatch.context() as patch:
        failing_at(small_dac, patch, 2)
        with pytest.raises(KeyboardInterrupt):
            small_dac.push_many(streams, [CODES, CODES])
    for stream in streams:
        with pytest.raises(StreamError, match="has ended"):
            stream.flush()
        stream.reset()
        np.testing.assert_array_equal(stream.finish(CODES), small_dac.decode(CODES))


def test_estimates_are_made_while_the_stream_is_claimed(small_dac, monkeypatch):
    """Else another thread could push, or free the state, meanwhile."""
    with small_dac.decoder_stream(lookahead_frames=2) as stream:
        real, claimed = stream._pass.run, []
        monkeypatch.setattr(stream._pass, "run", lambda *args: claimed.append(stream._busy.locked()) or real(*args))
        stream.push(CODES[:, :20])
        assert claimed == [True, True]  # exact samples, then the estimate


def test_interleaved_streams_do_not_mix(small_dac):
    others = [np.roll(CODES, 17 * i, axis=1) for i in range(4)]
    streams = [small_dac.decoder_stream() for _ in others]
    parts: list[list[np.ndarray]] = [[] for _ in others]
    for start in range(0, FRAMES, 13):
        for stream, codes, part in zip(streams, others, parts, strict=True):
            part.append(stream.push(codes[:, start : start + 13]))
    for stream, codes, part in zip(streams, others, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([*part, stream.flush()]), small_dac.decode(codes))
        stream.close()


def test_eight_threads_on_one_codec(small_dac):
    others = [np.roll(CODES, 17 * i, axis=1) for i in range(8)]
    expected = [small_dac.decode(codes) for codes in others]
    results: list[np.ndarray | None] = [None] * 8

    def work(i: int) -> None:
        with small_dac.decoder_stream() as stream:
            parts = [stream.push(others[i][:, t : t + 1 + i]) for t in range(0, FRAMES, 1 + i)]
            results[i] = np.concatenate([*parts, stream.flush()])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_two_threads_on_one_stream_are_refused(small_dac, monkeypatch):
    inside, leave = threading.Event(), threading.Event()
    real = Format.table_rows

    def slow(self, codes):
        inside.set()
        leave.wait(30)
        return real(self, codes)

    monkeypatch.setattr(Format, "table_rows", slow)
    with small_dac.decoder_stream() as stream:
        thread = threading.Thread(target=stream.push, args=(CODES[:, :20],))
        thread.start()
        assert inside.wait(30)
        with pytest.raises(StreamError, match="in use by another thread"):
            stream.push(CODES[:, 20:21])
        leave.set()
        thread.join()
        assert stream.push(CODES[:, 20:21]).size == 320


def test_graphs_are_reused(small_dac_file):
    with Codec.load(small_dac_file, n_threads=1) as codec, codec.decoder_stream() as stream:
        built = []
        real = codec._session._build
        codec._session._build = lambda key, build: built.append(key) or real(key, build)
        for turn in range(3):
            for start in range(0, FRAMES, 10):
                stream.push(CODES[:, start : start + 10])
            stream.flush()
            stream.reset()
            if turn == 1:  # in the first turn, a graph that needs a larger buffer drops those before it
                settled = len(built)
        assert len(built) == settled
        # first chunk, middle chunk, and the flush that brings no frames
        assert len(set(built)) == len(codec._session._graphs) == 3


def test_cache_of_graphs_is_bounded(small_dac_file):
    with Codec.load(small_dac_file, n_threads=1) as codec:
        # longest first: a growing compute buffer would empty the cache
        expected = {n: codec.decode(CODES[:, :n]) for n in range(40, 0, -1)}
        assert len(codec._session._graphs) == codec._session.max_graphs
        for n in (1, 20, 40):
            np.testing.assert_array_equal(codec.decode(CODES[:, :n]), expected[n])
