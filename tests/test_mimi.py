"""Mimi against transformers' results for a tiny model, and its streams against offline results."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import relative_error

from vocoder_plugin import Codec, CodesError, ModelFileError, StreamError
from vocoder_plugin.gguf_file import GGUFFile
from vocoder_plugin.net.ops import Rotary

WINDOW = 20  # of the tiny model, which codec.cpp's files do not say


def load(fixtures, kind: str = "f32", **options) -> Codec:
    return Codec.load(
        fixtures / f"codec_cpp_mimi_hf_{kind}.gguf", **{"sliding_window": WINDOW, "n_threads": 2, **options}
    )


@pytest.fixture(scope="module")
def tiny(fixtures):
    with load(fixtures) as codec:
        yield codec


@pytest.fixture(scope="module")
def reference(fixtures) -> dict[str, np.ndarray]:
    with np.load(fixtures / "tiny_mimi_hf_ref.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 2e-6), ("f16", 1e-3)])
@pytest.mark.parametrize("kernels", [None, "off"])
def test_codec_cpp_files_give_the_reference(fixtures, reference, kind, tolerance, kernels):
    with load(fixtures, kind, kernels=kernels) as codec:
        assert relative_error(codec.decode(reference["codes"]), reference["audio"]) < tolerance
        assert np.array_equal(codec.encode(reference["wav"], 24000), reference["encoded"])


def test_what_the_codec_says_of_itself(tiny):
    assert (tiny.sample_rate, tiny.hop_length, tiny.frame_rate) == (24000, 1920, 12.5)
    assert (tiny.n_codebooks, tiny.codebook_size, tiny.latent_dim) == (8, 32, 32)
    assert tiny.has_encoder and tiny.has_decoder


@pytest.mark.parametrize("kernels", [None, "off"])
@settings(max_examples=4)
@given(cuts=st.lists(st.integers(0, 24), max_size=4), seed=st.integers(0, 99))
def test_any_partition_of_codes_gives_the_offline_samples(fixtures, kernels, cuts, seed):
    codes = np.random.default_rng(seed).integers(0, 32, (8, 24))
    codec = cached(fixtures, kernels)
    whole = codec.decode(codes)
    with codec.decoder_stream() as stream:
        assert stream.lookahead_frames == 0
        parts = [stream.push(part) for part in np.split(codes, sorted(cuts), axis=1)]
        assert [part.size for part in parts] == [1920 * p.shape[1] for p in np.split(codes, sorted(cuts), axis=1)]
        joined = np.concatenate([*parts, stream.flush()])
    if kernels is None:
        assert np.array_equal(joined, whole)
    else:
        assert relative_error(joined, whole) < 2e-6


@pytest.mark.parametrize("kernels", [None, "off"])
@settings(max_examples=4)
@given(cuts=st.lists(st.integers(0, 50000), max_size=4), seed=st.integers(0, 99))
def test_any_partition_of_samples_gives_the_offline_latents_and_codes(fixtures, kernels, cuts, seed):
    samples = np.random.default_rng(seed).normal(0, 0.3, 50000).astype(np.float32)
    codec = cached(fixtures, kernels)
    latents, codes = codec.encode_latents(samples), codec.encode(samples, 24000)
    assert latents.shape == (27, 32) and codes.shape == (8, 27)
    pieces = np.split(samples, sorted(cuts))
    with codec.encoder_stream() as stream:
        parts = [stream.push_latents(piece) for piece in pieces]
        streamed = np.concatenate([*parts, stream.flush_latents()])
        stream.reset()
        parts = [stream.push(piece) for piece in pieces]
        streamed_codes = np.concatenate([*parts, stream.flush()], axis=1)
    if kernels is None:
        assert np.array_equal(streamed, latents)
        assert np.array_equal(streamed_codes, codes)
    else:
        assert relative_error(streamed, latents) < 2e-6
        assert (streamed_codes == codes).mean() > 0.99  # a near tie may fall either way


CODECS: dict[object, Codec] = {}


def cached(fixtures, kernels) -> Codec:
    if kernels not in CODECS:
        CODECS[kernels] = load(fixtures, kernels=kernels)
    return CODECS[kernels]


def test_portable_agrees_with_native(fixtures, tiny, reference):
    portable = cached(fixtures, "off")
    assert relative_error(portable.decode(reference["codes"]), tiny.decode(reference["codes"])) < 2e-6
    assert relative_error(portable.encode_latents(reference["wav"]), tiny.encode_latents(reference["wav"])) < 5e-6


def test_the_window_bites(fixtures, tiny, reference):
    """A wider window changes what comes after it, and nothing before."""
    with load(fixtures, sliding_window=250) as wide:
        a, b = tiny.decode(reference["codes"]), wide.decode(reference["codes"])
    positions = 1920 // 2
    assert np.array_equal(a[: WINDOW * positions], b[: WINDOW * positions])
    assert relative_error(a[-1920 * 10 :], b[-1920 * 10 :]) > 1e-5


def test_latents_and_codes_may_be_asked_for_in_turn(tiny, reference):
    latents, codes = tiny.encode_latents(reference["wav"]), reference["encoded"]
    with tiny.encoder_stream() as stream:
        assert np.array_equal(stream.push(reference["wav"][: 1920 * 5]), codes[:, :5])
        assert np.array_equal(stream.push_latents(reference["wav"][1920 * 5 : 1920 * 9]), latents[5:9])
        assert np.array_equal(stream.push(reference["wav"][1920 * 9 :]), codes[:, 9:])


def test_reset_forgets_everything(tiny, reference):
    with tiny.decoder_stream() as stream:
        first = stream.push(reference["codes"][:, :25])
        stream.reset()
        assert np.array_equal(stream.push(reference["codes"][:, :25]), first)
        stream.flush()
        with pytest.raises(StreamError, match="has ended"):
            stream.push(reference["codes"])


def test_streams_of_one_codec_do_not_disturb_each_other(tiny, reference):
    codes = reference["codes"]
    alone = [tiny.decode(codes), tiny.decode(codes[:, ::-1])]
    with tiny.decoder_stream() as a, tiny.decoder_stream() as b:
        a.push(codes[:, :0])
        outputs = [tiny.push_many([a, b], [codes[:, i : i + 4], codes[:, ::-1][:, i : i + 4]]) for i in range(0, 40, 4)]
    for i in range(2):
        assert np.array_equal(np.concatenate([output[i] for output in outputs]), alone[i])


def test_batched_streams_at_different_positions(tiny, reference):
    codes = reference["codes"]
    whole = tiny.decode(codes)
    with tiny.decoder_stream() as a, tiny.decoder_stream() as b:
        head = a.push(codes[:, :13])
        first, second = tiny.push_many([a, b], [codes[:, 13:20], codes[:, :7]])
        third, fourth = tiny.push_many([a, b], [codes[:, 20:24], codes[:, 7:11]])
    assert np.array_equal(np.concatenate([head, first, third]), whole[: 24 * 1920])
    assert np.array_equal(np.concatenate([second, fourth]), whole[: 11 * 1920])


def test_fewer_codebooks(fixtures, reference):
    with load(fixtures, n_codebooks=4) as few, load(fixtures) as all_:
        codes = few.encode(reference["wav"], 24000)
        assert np.array_equal(codes, reference["encoded"][:4])
        assert np.array_equal(all_.encode(reference["wav"], 24000, n_codebooks=3), reference["encoded"][:3])
        assert relative_error(all_.decode(codes), few.decode(codes)) < 2e-6
        with pytest.raises(CodesError, match=r"expected \(1 to 4, n_frames\)"):
            few.decode(reference["codes"])
        with pytest.raises(ValueError, match="expected 1 to 4"):
            few.encode(reference["wav"], 24000, n_codebooks=5)
    with pytest.raises(ValueError, match="expected 1 to 8"):
        load(fixtures, n_codebooks=9)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((9, 3), np.int32), r"shape \(9, 3\)"),
        (np.zeros((8, 3)), "type float64"),
        (np.full((8, 2), 32), "code 32 of codebook 0"),
        (np.full((8, 2), -1), "code -1 of codebook 0"),
    ],
)
def test_wrong_codes(tiny, codes, message):
    with pytest.raises(CodesError, match=message):
        tiny.decode(codes)


def test_a_long_stream_keeps_its_memory_and_its_accuracy(tiny):
    """Positions count on for ever: far from the start, once the window has passed, codes give what they gave."""
    codes = np.random.default_rng(1).integers(0, 32, (8, 50))
    with tiny.decoder_stream() as stream:
        for _ in range(2):
            near = stream.push(codes)
        compute = tiny.memory
        stream._state.frames += 10**7  # nine days
        for _ in range(2):
            far = stream.push(codes)
        assert tiny.memory == compute
    assert relative_error(far, near) < 1e-5


def test_turns_by_hand():
    turns = Rotary(theta=100.0).turns(2, 1, 4)[0]
    np.testing.assert_allclose(turns, [np.cos(2), np.cos(0.2), np.sin(2), np.sin(0.2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codec.latent_dim", 64, r"has shape|is 16, expected 32"),
        ("codec.num_hidden_layers", 65, "is 65, expected 1 to 64"),
    ],
)
def test_a_key_that_contradicts_the_tensors_or_sense(fixtures, tmp_path, key, value, message):
    data = (fixtures / "codec_cpp_mimi_hf_f32.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    at = data.index(key.encode()) + len(key) + 4
    bad.write_bytes(data[:at] + value.to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ModelFileError, match=message):
        Codec.load(bad)


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("dtr.l0.attn.q_proj.w", (16, 32), r"'dtr.l0.attn.q_proj.w' has shape \(16, 32\), expected \(32, 32\)"),
        ("dtr.l0.attn.k_proj.w", (32, 34), r"'dtr.l0.attn.k_proj.w' has shape \(32, 34\), expected \(32, 32\)"),
        ("q.a.op.w", (512,), r"'q.a.op.w' has shape \(512,\), expected"),
    ],
)
def test_parts_that_are_joined_must_fit(fixtures, tmp_path, tensor, shape, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        Codec.load(rewritten(fixtures, tmp_path, tensors={tensor: np.zeros(shape, np.float32)}))
    assert caught.value.tensor == tensor


def test_more_semantic_codebooks_than_there_are(fixtures, tmp_path):
    with pytest.raises(ModelFileError, match="number of semantic codebooks is 1, expected 9"):
        Codec.load(rewritten(fixtures, tmp_path, keys={"codec.num_semantic_quantizers": 9}))


def rewritten(fixtures, tmp_path, *, tensors=None, keys=None):
    """The fixture with other tensors or whole numbers."""
    source, path = GGUFFile(fixtures / "codec_cpp_mimi_hf_f32.gguf"), tmp_path / "changed.gguf"
    writer = gguf.GGUFWriter(path, "mimi")
    for key, value in {**source.metadata, **(keys or {})}.items():
        if key != "general.architecture":
            writers = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            writers[type(value)](key, value)
    for name in source.tensors:
        writer.add_tensor(name, (tensors or {}).get(name, source.read(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
