"""Mimi at full size against transformers' MimiModel and moshi's own streaming, with seeded random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measures import relative_error
from mimi_oracle import moshi_mimi, save_moshi, speech_like, transformers_mimi

from vocoder_plugin import Codec
from vocoder_plugin.converters import mimi

SECONDS = (1, 9, 60)
HOP = 1920


@pytest.fixture(scope="module")
def model():
    return transformers_mimi()


@pytest.fixture(scope="module")
def codec(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(folder / "hf")
    mimi.convert(folder / "hf", folder / "mimi.gguf", type="f32")
    with Codec.load(folder / "mimi.gguf", n_threads=2) as codec:
        yield codec


@pytest.mark.parametrize("seconds", SECONDS)
def test_decode_agrees(model, codec, seconds):
    codes = np.random.default_rng(seconds).integers(0, 2048, (8, round(seconds * 12.5)))
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)[None]).audio_values[0, 0].numpy()
    error = relative_error(codec.decode(codes), expected)
    print(f"decode {seconds} s: {error:.2e}")
    assert error <= 1e-5


@pytest.mark.parametrize("seconds", SECONDS)
def test_latents_and_codes_agree(model, codec, seconds):
    samples = speech_like(round(seconds * 12.5) * HOP / 24000, seconds)
    with torch.no_grad():
        latents = model.encoder(torch.from_numpy(samples)[None, None]).latents
        expected = model.quantizer.encode(latents, 8)[:, 0].numpy()
    error = relative_error(codec.encode_latents(samples), latents[0].T.numpy())
    same = (codec.encode(samples, 24000) == expected).mean(axis=1)
    print(f"latents {seconds} s: {error:.2e}; codes that agree {same.min():.4f}")
    assert error <= 1e-5
    assert same[:2].min() >= 0.99  # a near tie may fall either way, and the codes after it with it
    assert same.min() >= 0.97


@pytest.mark.parametrize("n_codebooks", [1, 8, 32])
def test_any_number_of_codebooks(model, codec, n_codebooks):
    """On load and per call, both ways, against transformers with as many."""
    samples = speech_like(50 * HOP / 24000, 11)
    with torch.no_grad():
        latents = model.encoder(torch.from_numpy(samples)[None, None]).latents
        expected = model.quantizer.encode(latents, n_codebooks)[:, 0].numpy()
        audio = model.decode(torch.from_numpy(expected)[None]).audio_values[0, 0].numpy()
    with Codec.load(codec.path, n_threads=2, n_codebooks=32) as every:
        found = every.encode(samples, 24000, n_codebooks=n_codebooks)
        error = relative_error(every.decode(expected), audio)
    with Codec.load(codec.path, n_threads=2, n_codebooks=n_codebooks) as some:
        assert np.array_equal(some.encode(samples, 24000), found)
        error = max(error, relative_error(some.decode(expected), audio))
    same = (found == expected).mean(axis=1)
    print(f"{n_codebooks} codebooks: decode {error:.2e}, codes that agree {same.min():.4f}")
    assert error <= 1e-5
    assert same[:8].min() >= 0.97  # a near tie may fall either way, and the codes after it with it
    assert same.min() >= 0.9


def test_the_window_matters_in_these_weights(model, codec):
    """Else the 60 s clip would not test it."""
    codes = np.random.default_rng(60).integers(0, 2048, (8, 250))
    with Codec.load(codec.path, n_threads=2, sliding_window=600) as wide:
        difference = relative_error(wide.decode(codes)[-HOP * 50 :], codec.decode(codes)[-HOP * 50 :])
    assert difference > 1e-4  # against 1e-6 of agreement


def test_agrees_with_moshi(tmp_path):
    """Offline over 12 s, and step by step until the window is full.

    From then on moshi's steps differ from its own offline results by 1e-3: its ring has room for 250 positions,
    and a step writes two before the first of them looks, so that one sees 249.
    """
    reference = moshi_mimi()
    save_moshi(reference, tmp_path / "moshi.safetensors")
    mimi.convert(tmp_path / "moshi.safetensors", tmp_path / "moshi.gguf", type="f32")
    frames, steps = 150, 124
    codes = np.random.default_rng(3).integers(0, 2048, (8, frames))
    samples = speech_like(frames * HOP / 24000, 5)
    with Codec.load(tmp_path / "moshi.gguf", n_threads=2) as codec, torch.no_grad():
        audio = reference.decode(torch.from_numpy(codes[None]))[0, 0].numpy()
        latents = reference.encode_to_latent(torch.from_numpy(samples)[None, None], quantize=False)[0].T.numpy()
        errors = [
            relative_error(codec.decode(codes), audio),
            relative_error(codec.encode_latents(samples), latents),
        ]
        with codec.decoder_stream() as stream, reference.streaming(1):
            for i in range(steps):
                step = codes[:, i : i + 1]
                theirs = reference.decode(torch.from_numpy(step[None]))[0, 0].numpy()
                errors.append(relative_error(stream.push(step), theirs))
        with codec.encoder_stream() as stream, reference.streaming(1):
            for i in range(steps):
                step = samples[i * HOP : (i + 1) * HOP]
                theirs = reference.encode_to_latent(torch.from_numpy(step)[None, None], quantize=False)[0].T.numpy()
                errors.append(relative_error(stream.push_latents(step), theirs))
    print(f"moshi: decode {errors[0]:.2e}, latents {errors[1]:.2e}; worst step {max(errors[2:]):.2e}")
    assert max(errors) <= 1e-5
