"""Full-size WavTokenizer with seeded random weights against the original code, and against libllama itself."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import wavtokenizer_oracle as oracle
from measures import relative_error
from oracles import speech_like

from vocoder_plugin import Codec
from vocoder_plugin.converters import wavtokenizer


def random_codes(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, oracle.BINS, (1, frames)).astype(np.int32)


@pytest.fixture(scope="module", params=["75", "40"])
def published(request, tmp_path_factory):
    """(model, checkpoint, F32 file) of a published size."""
    folder = tmp_path_factory.mktemp("wavtokenizer")
    model = oracle.wavtokenizer(request.param)
    oracle.save_checkpoint(model, folder / "model.ckpt")
    oracle.save_yaml(oracle.SIZES[request.param], folder / "model.yaml")
    wavtokenizer.convert(folder / "model.ckpt", folder / "f32.gguf", type="f32")
    yield model, folder / "model.ckpt", folder / "f32.gguf"
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_decode(published, seconds):
    model, _, file = published
    with Codec.load(file, n_threads=2) as codec:
        codes = random_codes(round(seconds * codec.frame_rate))
        expected = oracle.decode(model, codes)
        got = codec.decode(codes)
        assert got.shape == expected.shape == (codec.hop_length * codes.shape[1],)
        assert 0.1 < expected.std() < 0.4  # the weights keep signals in a speech-like range
        assert relative_error(got, expected) <= 1e-5
    gc.collect()


def test_decode_portable(published):
    model, _, file = published
    codes = random_codes(300)
    with Codec.load(file, n_threads=2, kernels="off") as codec:
        assert relative_error(codec.decode(codes), oracle.decode(model, codes)) <= 1e-5


def test_decode_int16(published):
    """The fastest precision keeps 40 dB and more."""
    model, _, file = published
    codes = random_codes(225)
    with Codec.load(file, n_threads=2, precision="int16") as codec:
        assert -20 * np.log10(relative_error(codec.decode(codes), oracle.decode(model, codes))) >= 50


@pytest.mark.parametrize("kernels", [None, "off"])
def test_encode(published, kernels):
    """Codes equal except at ties, of equal latents."""
    model, _, file = published
    with Codec.load(file, n_threads=2, kernels=kernels) as codec:
        samples = speech_like(24000 * 5 - 77, 24000, seed=5)
        expected, gaps = oracle.encode(model, samples)
        got = codec.encode(samples, 24000)
        assert got.shape == expected.shape
        tie = gaps < 1e-5
        np.testing.assert_array_equal(got[~tie], expected[~tie])
        assert tie.mean() < 0.01
        assert len(np.unique(expected)) > 50
        assert relative_error(codec.encode_latents(samples), oracle.latents(model, samples).T) <= 1e-5


def test_outetts_split_files(published, tmp_path):
    """The two files that outetts downloads make the same codec, together and the decoder alone."""
    model, _, file = published
    oracle.save_split(model, tmp_path / "split")
    wavtokenizer.convert(tmp_path / "split", tmp_path / "both.gguf", type="f32")
    wavtokenizer.convert(tmp_path / "split/decoder/decoder_model.pt", tmp_path / "decoder.gguf", type="f32")
    codes = random_codes(40)
    samples = speech_like(24000, 24000, seed=2)
    with Codec.load(file) as a, Codec.load(tmp_path / "both.gguf") as b, Codec.load(tmp_path / "decoder.gguf") as c:
        np.testing.assert_array_equal(a.decode(codes), b.decode(codes))
        np.testing.assert_array_equal(a.decode(codes), c.decode(codes))
        np.testing.assert_array_equal(a.encode(samples, 24000), b.encode(samples, 24000))
        assert not c.has_encoder


def libllama_embeddings(file, codes: np.ndarray, width: int) -> np.ndarray:
    """What libllama computes for a clip before its ISTFT, float32 [n, width]."""
    import llama_cpp

    n = codes.shape[1]
    llm = llama_cpp.Llama(
        str(file), embedding=True, n_ctx=512, n_batch=512, n_ubatch=512, n_threads=2, n_threads_batch=2, verbose=False
    )
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i in range(n):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(codes[0, i]), i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_encode(llm.ctx, batch) == 0
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_ith(llm.ctx, i), (width,)) for i in range(n)]
    result = np.array(rows)
    llama_cpp.llama_batch_free(batch)
    llm.close()
    return result


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_against_libllama(published, tmp_path, kind):
    """libllama rounds convolutions' inputs to F16 and computes GELU by tanh from a table: 3e-4 in all."""
    _, checkpoint, _ = published
    file = tmp_path / "llama.gguf"
    wavtokenizer.convert(checkpoint, file, type=kind, dialect="llama", gelu="tanh")
    codes = random_codes(120)
    with Codec.load(file, n_threads=2) as codec:
        got = codec._passes["decoder"].run_clip("spectrum", codes.shape[1], [codes[0]])[0][0]
    assert relative_error(got, libllama_embeddings(file, codes, got.shape[1])) <= 1e-3


def test_small_fixture_is_what_the_script_makes(fixtures):
    """The committed reference outputs are the original code's on the committed weights."""
    model = oracle.build(oracle.SIZES["small"])
    state = torch.load(fixtures / "small_wavtokenizer.ckpt")["state_dict"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert sorted(unexpected) == [
        "melspec_loss.mel_spec.spectrogram.window",
        "multiperioddisc.discriminators.0.convs.0.weight_g",
    ]
    with np.load(fixtures / "small_wavtokenizer_ref.npz") as archive:
        assert relative_error(archive["audio"], oracle.decode(model, archive["codes"])) < 1e-6
        np.testing.assert_array_equal(archive["encoded"], oracle.encode(model, archive["wav"])[0])
