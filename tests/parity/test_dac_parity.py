"""Full-size DAC with seeded random weights, in the reference packages' own formats, against those packages."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from measures import relative_error

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac

FRAMES = 60


@pytest.fixture(scope="module", params=oracles.PUBLISHED)
def descript(request, tmp_path_factory):
    """(model, F32 file) of a published size, saved in descript's format and converted."""
    folder = tmp_path_factory.mktemp("descript")
    model = oracles.descript_dac(request.param)
    oracles.save_descript(model, request.param, folder / "weights.pth")
    dac.convert(folder / "weights.pth", folder / "f32.gguf", type="f32")
    yield model, folder / "f32.gguf"
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module", params=oracles.PUBLISHED)
def transformers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    model = oracles.transformers_dac(request.param)
    model.save_pretrained(folder / "model")
    dac.convert(folder / "model", folder / "f32.gguf", type="f32")
    yield model, folder / "f32.gguf"
    (folder / "f32.gguf").unlink()


def random_codes(codec: Codec) -> np.ndarray:
    return np.random.default_rng(3).integers(0, codec.codebook_size, (codec.n_codebooks, FRAMES)).astype(np.int32)


@pytest.mark.parametrize("kernels", [None, "off"])
def test_descript_decode(descript, kernels):
    model, file = descript
    with Codec.load(file, n_threads=2, kernels=kernels) as codec:
        codes = random_codes(codec)
        expected = oracles.descript_decode(model, codes)
        got = codec.decode(codes)
        assert got.shape == expected.shape == (codec.decoded_length(FRAMES),)
        assert 0.1 < expected.std() < 0.6  # the weights keep signals in a speech-like range
        assert relative_error(got, expected) <= 1e-5


def test_descript_encode(descript):
    """Codes equal except at ties. A code that differs changes what later codebooks see: they are not compared there."""
    model, file = descript
    with Codec.load(file, n_threads=2) as codec:
        samples = oracles.speech_like(FRAMES * codec.hop_length - 50, codec.sample_rate)
        expected, gaps = oracles.descript_encode(model, samples)
        got = codec.encode(samples, codec.sample_rate)
        assert got.shape == expected.shape
        tie_before = np.cumsum(gaps < 1e-5, axis=0) > 0
        np.testing.assert_array_equal(got[~tie_before], expected[~tie_before])
        assert tie_before.mean() < 0.01
        assert len(np.unique(expected)) > 50  # the encoder's codes are varied, not one constant


@pytest.mark.parametrize("kernels", [None, "off"])
def test_descript_latents(descript, kernels):
    model, file = descript
    with Codec.load(file, n_threads=2, kernels=kernels) as codec:
        samples = oracles.speech_like(FRAMES * codec.hop_length - 50, codec.sample_rate)
        expected = oracles.descript_latents(model, samples)
        got = codec.encode_latents(samples)
        assert got.shape == expected.shape == (FRAMES, codec.latent_dim)
        assert relative_error(got, expected) <= 1e-5


def test_transformers_decode_and_encode(transformers):
    model, file = transformers
    with Codec.load(file, n_threads=2) as codec, torch.no_grad():
        codes = random_codes(codec)
        expected = model.decode(audio_codes=torch.from_numpy(codes.astype(np.int64))[None]).audio_values[0].numpy()
        got = codec.decode(codes)
        assert got.shape == expected.shape
        assert relative_error(got, expected) <= 1e-5
        samples = oracles.speech_like(FRAMES * codec.hop_length, codec.sample_rate)
        latents = model.encoder(torch.from_numpy(samples)[None, None])[0].T.numpy()
        assert relative_error(codec.encode_latents(samples), latents) <= 1e-5
        encoded = model.encode(torch.from_numpy(samples)[None, None]).audio_codes[0].numpy()
        matches = codec.encode(samples, codec.sample_rate) == encoded
        assert matches.all(axis=0).mean() >= 0.98  # transformers gives no distances to tell ties by


def test_streaming_full_size(descript):
    """Uneven pushes give the offline samples bit for bit at full size too."""
    _, file = descript
    with Codec.load(file, n_threads=2) as codec, codec.decoder_stream() as stream:
        codes = random_codes(codec)
        edges = [0, 1, 3, 20, 21, 22, 50, FRAMES]
        parts = [stream.push(codes[:, a:b]) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate([*parts, stream.flush()]), codec.decode(codes))


def test_small_fixture_is_what_the_script_makes(fixtures):
    """The committed reference outputs are descript-audio-codec's on the committed weights."""
    checkpoint = torch.load(fixtures / "small_dac.pth")
    model = oracles.import_dac().DAC(**checkpoint["metadata"]["kwargs"]).eval()
    model.load_state_dict(checkpoint["state_dict"])
    with np.load(fixtures / "small_dac_ref.npz") as archive:
        assert relative_error(archive["audio"], oracles.descript_decode(model, archive["codes"])) < 1e-6
        np.testing.assert_array_equal(archive["encoded"], oracles.descript_encode(model, archive["wav"])[0])
