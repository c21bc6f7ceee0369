"""WavTokenizer against the original code's own outputs, in both dialects; streams, speech, and bad input."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import relative_error
from tiny_llm import outetts_0_tokens, write_tiny_llm

from vocoder_plugin import AudioError, Codec, CodesError, SpeechStream, StreamError, TokenReport, VocoderError, kernels
from vocoder_plugin.codecs import layers
from vocoder_plugin.converters import wavtokenizer

LOWERINGS = [*kernels.available(), "off"]
HOP = 20


@pytest.fixture(scope="module")
def codec(small_wavtokenizer_file):
    with Codec.load(small_wavtokenizer_file, n_threads=2) as codec:
        yield codec


@pytest.fixture(scope="module")
def llama_file(fixtures, tmp_path_factory):
    """The same decoder in llama.cpp's dialect."""
    path = tmp_path_factory.mktemp("codec") / "llama.gguf"
    wavtokenizer.convert(fixtures / "small_wavtokenizer.ckpt", path, type="f32", dialect="llama")
    return path


# Fidelity


def spectrum(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Log magnitudes and phases before the ISTFT."""
    return codec._passes["decoder"].run_clip("spectrum", codes.shape[1], [codes[0].astype(np.int32)])[0][0]


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_against_the_original(small_wavtokenizer_file, wavtokenizer_reference, lowering):
    r = wavtokenizer_reference
    with Codec.load(small_wavtokenizer_file, n_threads=2, kernels=lowering) as codec:
        assert relative_error(spectrum(codec, r["codes"]), r["head"]) < 1e-6
        audio = codec.decode(r["codes"])
        assert audio.dtype == np.float32
        assert audio.shape == r["audio"].shape
        assert relative_error(audio, r["audio"]) < 2e-6
        np.testing.assert_array_equal(codec.encode(r["wav"], 24000), r["encoded"])
    assert len(np.unique(r["encoded"])) > 20


def test_what_a_file_says(codec):
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (24000, HOP, 1200)
    assert (codec.n_codebooks, codec.codebook_size, codec.has_encoder, codec.has_decoder) == (1, 64, True, True)
    assert "WavTokenizer" in codec.name
    codec.decode(np.zeros((1, 3), int))
    assert codec.memory["CPU"].weights > 100_000


def test_llama_dialect_decodes_the_same(codec, llama_file, wavtokenizer_reference):
    codes = wavtokenizer_reference["codes"]
    with Codec.load(llama_file, n_threads=2) as other:
        assert (other.sample_rate, other.hop_length, other.codebook_size) == (24000, HOP, 64)
        np.testing.assert_array_equal(other.decode(codes), codec.decode(codes))
        with pytest.raises(VocoderError, match="has no encoder"):
            other.encode(np.zeros(100, np.float32), 24000)


def test_gelu_by_tanh_only_if_the_file_says_so(fixtures, codec, tmp_path, wavtokenizer_reference):
    r = wavtokenizer_reference
    wavtokenizer.convert(fixtures / "small_wavtokenizer.ckpt", tmp_path / "tanh.gguf", type="f32", gelu="tanh")
    with Codec.load(tmp_path / "tanh.gguf") as tanh:
        difference = relative_error(spectrum(tanh, r["codes"]), r["head"])
    assert 1e-5 < difference < 1e-2
    assert relative_error(spectrum(codec, r["codes"]), r["head"]) < 1e-6


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 33, 90])
def test_lengths_by_formula(codec, frames):
    codes = np.arange(frames)[np.newaxis] % 64
    assert codec.decode(codes).shape == (HOP * frames,)
    assert codec.decoded_length(frames) == HOP * frames


@pytest.mark.parametrize("samples", [1, 2, 6, 19, 20, 21, 39, 40, 41, 1000, 3001])
def test_encoded_lengths_by_formula(codec, samples):
    codes = codec.encode(np.full(samples, 0.1, np.float32), 24000)
    assert codes.shape == (1, -(-samples // HOP))
    assert codes.dtype == np.int32


def test_results_do_not_depend_on_threads(small_wavtokenizer_file, wavtokenizer_reference):
    r, results = wavtokenizer_reference, []
    for threads in (1, 2, 3):
        with Codec.load(small_wavtokenizer_file, n_threads=threads) as codec:
            results.append((codec.decode(r["codes"]), codec.encode(r["wav"], 24000)))
    for audio, codes in results[1:]:
        np.testing.assert_array_equal(audio, results[0][0])
        np.testing.assert_array_equal(codes, results[0][1])


def test_window_envelope_by_hand():
    """Four periodic Hann windows add up to 1.5 squared; fewer reach the ends."""
    gain = layers.envelope_gain(10, 80, HOP).astype(np.float64)
    np.testing.assert_allclose(gain[30:170], 1 / 1.5, rtol=1e-6)
    square = layers.hann(80) ** 2
    np.testing.assert_allclose(
        1 / gain[0], square[30] + square[10], rtol=1e-6
    )  # frames 0 and 1 at sample 30 of frame 0


@pytest.mark.parametrize("frames", [1, 3, 7, 8, 9, 40])
def test_window_envelope_of_any_length(frames):
    square = layers.hann(80) ** 2
    total = sum(np.pad(square, (HOP * i, HOP * (frames - 1 - i))) for i in range(frames))
    np.testing.assert_allclose(layers.envelope_gain(frames, 80, HOP), 1 / total[30:-30], rtol=1e-6)


def test_inverse_dft_is_numpys():
    n = 80
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal(n // 2 + 1) + 1j * rng.standard_normal(n // 2 + 1)
    parts = np.concatenate([spectrum.real, spectrum.imag])
    got = parts @ layers.istft_weight(n)[:, 0].astype(np.float64)
    np.testing.assert_allclose(got, np.fft.irfft(spectrum) * layers.hann(n), atol=1e-7)


# Streams


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_any_partition_of_samples_encodes_the_same(codec, wavtokenizer_reference, cuts):
    wav = wavtokenizer_reference["wav"][:3000]
    edges = [0, *sorted(cuts), wav.size]
    with codec.encoder_stream() as stream:
        assert stream.exact
        parts = [stream.push(wav[a:b]) for a, b in pairwise(edges)]
        codes = np.concatenate([*parts, stream.flush()], axis=1)
    np.testing.assert_array_equal(codes, codec.encode(wav, 24000))


def test_any_rate_encodes_as_offline(codec, wavtokenizer_reference):
    wav = wavtokenizer_reference["wav"][:3000]
    streams = [codec.encoder_stream(sample_rate=rate) for rate in (16000, 24000)]
    steps = [codec.push_many(streams, [part, part]) for part in np.array_split(wav, 3)]
    for i, stream in enumerate(streams):
        codes = np.concatenate([*(step[i] for step in steps), stream.flush()], axis=1)
        np.testing.assert_array_equal(codes, codec.encode(wav, stream.sample_rate))


def test_long_audio_is_encoded_in_chunks(codec):
    """A chunk's frames are those of the whole clip: 3 chunks against one pass over everything."""
    wav = np.random.default_rng(1).standard_normal(int(24000 * 4.3)).astype(np.float32) * 0.1
    passes = codec._passes
    front = passes["front"].run_clip("front", wav.size, [wav])[0][0]
    state = [np.zeros((2, front.shape[1]), np.float32)] * 2
    rows = passes["recurrent"].run_clip("recurrent", len(front), [front, *state])[0][0]
    codes = passes["tail"].run_clip("encode", len(rows), [rows])[0]
    np.testing.assert_array_equal(codec.encode(wav, 24000)[0], codes)


def test_windowed_stream(codec, wavtokenizer_reference):
    codes = wavtokenizer_reference["codes"]
    offline = codec.decode(codes)
    with codec.decoder_stream(lookahead_frames=20, context_frames=60) as stream:
        assert not stream.exact
        assert (stream.lookahead_frames, stream.context_frames) == (20, 60)
        parts = [stream.push(codes[:, i : i + 10]) for i in range(0, 90, 10)]
        assert [p.size // HOP for p in parts] == [0, 0, 10, 10, 10, 10, 10, 10, 10]
        samples = np.concatenate([*parts, stream.flush()])
        assert samples.shape == offline.shape
        assert 1e-2 < relative_error(samples, offline) < 0.4  # 0.24 seen
        stream.reset()
        np.testing.assert_array_equal(stream.finish(codes), offline)  # all frames at once: one window


def test_streams_refuse_misuse(codec):
    with pytest.raises(ValueError, match="lookahead_frames is -1, expected at least 0"):
        codec.decoder_stream(lookahead_frames=-1)
    stream = codec.decoder_stream()
    with pytest.raises(CodesError, match="code 64 of codebook 0, frame 1, is out of range"):
        stream.push(np.array([[0, 64]]))
    assert stream.push(np.zeros((1, 0), int)).size == 0
    stream.flush()
    with pytest.raises(StreamError, match="has ended"):
        stream.push(np.zeros((1, 1), int))
    stream.close()
    with pytest.raises(StreamError, match="closed"):
        stream.reset()
    with codec.encoder_stream() as encoder:
        with pytest.raises(AudioError):
            encoder.push(np.zeros((3, 3), np.float32))
        assert encoder.flush().shape == (1, 0)


def test_pushing_many_streams(codec, wavtokenizer_reference):
    codes = wavtokenizer_reference["codes"]
    streams = [codec.decoder_stream(lookahead_frames=0) for _ in range(2)]
    pushed = codec.push_many(streams, [codes[:, :5], codes[:, 5:12]])
    np.testing.assert_array_equal(pushed[0], codec.decode(codes[:, :5]))
    np.testing.assert_array_equal(pushed[1], codec.decode(codes[:, 5:12]))
    with pytest.raises(ValueError, match="expected one each"):
        codec.push_many(streams, [codes])


def test_no_codes_and_a_closed_codec(small_wavtokenizer_file):
    codec = Codec.load(small_wavtokenizer_file)
    with pytest.raises(CodesError, match="no codes"):
        codec.decode(np.zeros((1, 0), int))
    with pytest.raises(AudioError, match="no samples"):
        codec.encode(np.zeros(0, np.float32), 24000)
    codec.close()
    with pytest.raises(VocoderError, match="closed"):
        codec.decode(np.zeros((1, 4), int))


def test_graphs_are_reused(codec):
    for _ in range(3):
        codec.decode(np.zeros((1, 17), int))
    before = len(codec._session._graphs)
    tracemalloc.start()
    codec.decode(np.ones((1, 17), int))
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(codec._session._graphs) == before
    assert size < 100_000


@pytest.mark.parametrize("lowering", [None, "off"])
def test_memory_grows_with_length_not_its_square(small_wavtokenizer_file, lowering):
    """The scores of all frames against all would take 64 MB and 576 MB."""
    sizes = []
    for frames in (4000, 12000):
        with Codec.load(small_wavtokenizer_file, n_threads=2, kernels=lowering) as codec:
            codec.decode(np.zeros((1, frames), int))
            sizes.append(codec.memory["CPU"].compute)
    assert sizes[0] < 24e6
    assert sizes[1] < 3.2 * sizes[0]


# Speech


@pytest.fixture(scope="module")
def llm_0(tmp_path_factory):
    import llama_cpp

    path = tmp_path_factory.mktemp("llm") / "outetts_0.gguf"
    tokens = write_tiny_llm(path, outetts_0_tokens())
    model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=2, verbose=False)
    yield model, {text: i for i, text in enumerate(tokens)}
    model.close()


def test_speech_stream(codec, llm_0, wavtokenizer_reference):
    """Tokens of OuteTTS 0.1 to 0.3 become samples; ids that no codebook has cost their own frame and no other."""
    llm, ids = llm_0
    codes = wavtokenizer_reference["codes"]
    with SpeechStream(llm, codec) as stream:
        assert stream.vocabulary.layout.name == "OuteTTS 0.1 to 0.3"
        parts = []
        for i, code in enumerate(codes[0]):
            parts += stream.push(ids[f"<|{code}|>"])
            if i % 30 == 7:
                parts += stream.push(ids[f"<|{4096 + i % 4}|>"])
        parts += stream.push(ids["<|audio_end|>"])
        assert stream.finished
        samples = np.concatenate([*parts, stream.flush()])
        assert (stream.report.frames, stream.report.invalid_tokens, stream.report.damaged_frames) == (90, 3, 3)
    np.testing.assert_array_equal(samples, codec.decode(codes))  # 90 frames are less than the lookahead


def test_speech_for_a_file_is_offline_speech(codec, llm_0):
    """With a lookahead beyond the end all frames are decoded at once."""
    llm, ids = llm_0
    codes = np.random.default_rng(8).integers(0, 64, (1, 400))
    with SpeechStream(llm, codec, lookahead_frames=1 << 30) as stream:
        assert [pcm for code in codes[0] for pcm in stream.push(ids[f"<|{code}|>"])] == []
        np.testing.assert_array_equal(stream.flush(), codec.decode(codes))


def test_generation(codec, llm_0):
    """A real generation, decoded as it goes: the model chooses among the codes that the small codebook has."""
    from vocoder_plugin.llm import generate_tokens

    llm, ids = llm_0
    barred = np.array([i for text, i in ids.items() if text not in {f"<|{code}|>" for code in range(64)}])

    def choose(_input_ids, logits):
        logits[barred] = -np.inf
        return logits

    with SpeechStream(llm, codec, schedule=(20,)) as stream:
        prompt = "<|im_start|>\n<|text_start|>hello<|text_end|>\n<|audio_start|>\n"
        pieces = []
        for token in generate_tokens(llm, prompt, end=stream.vocabulary.end, max_tokens=300, logits_processor=[choose]):
            pieces += stream.push(token)
        assert len(pieces) > 3
        pieces.append(stream.flush())
        assert stream.report == TokenReport(frames=300)
    assert sum(map(len, pieces)) == HOP * 300
