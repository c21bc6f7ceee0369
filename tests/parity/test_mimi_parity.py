"""Mimi at full size against transformers' MimiModel and moshi's own streaming, with seeded random weights.

Weights are calibrated: layer scales of 0.3 let attention matter, so that a wrong window is seen, and codebooks
are drawn from a model's own latents, so that every entry is used.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from vocoder_plugin import Codec
from vocoder_plugin.converters import mimi

SECONDS = (1, 9, 60)
HOP = 1920


def relative_error(x: np.ndarray, y: np.ndarray) -> float:
    assert x.shape == y.shape
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Noise with a moving envelope, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    n = int(seconds * 24000)
    noise = np.convolve(rng.standard_normal(n), np.hanning(12), "same")
    return (0.1 * noise * (1 + np.sin(np.arange(n) / 4000.0)) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    torch.set_num_threads(2)
    model = transformers.MimiModel(transformers.MimiConfig(num_quantizers=8)).eval()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("scale"):
                values.fill_(0.3)
            elif "norm" in name:
                values.add_(torch.from_numpy(rng.normal(0, 0.1, values.shape).astype(np.float32)))
        latents = model.encoder(torch.from_numpy(speech_like(20, 1))[None, None]).latents[0]
        for kind in (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        ):
            projected = kind.input_proj(latents[None])[0].T
            spread = projected.std(0).numpy()
            for q, layer in enumerate(kind.layers):
                entries = rng.normal(0, 1, (2048, 256)) * spread * 0.8**q + (projected.mean(0).numpy() if q == 0 else 0)
                layer.codebook.embed_sum.copy_(torch.from_numpy(entries.astype(np.float32)))
                layer.codebook.cluster_usage.fill_(1.0)
    return model


@pytest.fixture(scope="module")
def codec(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(folder / "hf")
    mimi.convert(folder / "hf", folder / "mimi.gguf")
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
        expected = model.quantizer.encode(latents)[:, 0].numpy()
    error = relative_error(codec.encode_latents(samples), latents[0].T.numpy())
    same = (codec.encode(samples, 24000) == expected).mean(axis=1)
    print(f"latents {seconds} s: {error:.2e}; codes that agree {same.min():.4f}")
    assert error <= 1e-5
    assert same[:2].min() >= 0.99  # a near tie may fall either way, and the codes after it with it
    assert same.min() >= 0.97


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
    import safetensors.torch
    from moshi.models import loaders

    torch.manual_seed(8)
    reference = loaders.get_mimi(None, device="cpu", num_codebooks=8).eval()
    with torch.no_grad():
        for name, values in reference.state_dict().items():
            if "layer_scale" in name:
                values.fill_(0.3)
            elif name.endswith(("embedding_sum", "cluster_usage")):
                values.copy_(torch.ones_like(values) if values.ndim == 1 else torch.randn(values.shape) * 0.3)
    for module in reference.modules():  # the codebooks that moshi derived from the sums before
        if hasattr(module, "_embedding"):
            module._embedding = None
    weights = {name: values.contiguous() for name, values in reference.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "moshi.safetensors")
    mimi.convert(tmp_path / "moshi.safetensors", tmp_path / "moshi.gguf")
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
