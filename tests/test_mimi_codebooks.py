"""Mimi with 1 to 32 codebooks, chosen on load and per call, against the residual search written out in NumPy."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vocoder_plugin import Codec, CodesError
from vocoder_plugin.converters import mimi

MOST, SIZE = 32, 32
QUANTISER = "quantizer.{}_residual_vector_quantizer"
COUNTS = (1, 2, 8, 9, 31, 32)


@pytest.fixture(scope="module")
def checkpoint(fixtures, tmp_path_factory):
    """tiny_mimi_hf with 24 acoustic codebooks more, ever finer; the folder and its tensors."""
    folder = tmp_path_factory.mktemp("mimi32")
    tensors = load_file(fixtures / "tiny_mimi_hf" / "model.safetensors")
    layers = QUANTISER.format("acoustic") + ".layers.{}.codebook.{}"
    rng = np.random.default_rng(0)
    spread = np.std(tensors[layers.format(6, "embed_sum")] / tensors[layers.format(6, "cluster_usage")][:, np.newaxis])
    for q in range(7, MOST - 1):
        entries = rng.normal(0, spread * 0.9 ** (q - 6), (SIZE, 16)).astype(np.float32)
        tensors[layers.format(q, "embed_sum")] = entries
        tensors[layers.format(q, "cluster_usage")] = np.ones(SIZE, np.float32)
        tensors[layers.format(q, "initialized")] = np.ones(1, np.float32)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((fixtures / "tiny_mimi_hf" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_quantizers": MOST}))
    mimi.convert(folder, folder / "mimi.gguf", type="f32")
    return folder, tensors


def load(checkpoint, **options) -> Codec:
    return Codec.load(checkpoint[0] / "mimi.gguf", n_threads=2, **options)


@pytest.fixture(scope="module")
def all_codebooks(checkpoint):
    with load(checkpoint, n_codebooks=MOST) as codec:
        yield codec


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.3, 1920 * 20).astype(np.float32)


def searched(tensors, latents: np.ndarray) -> np.ndarray:
    """Codes [32, n] of latents [n, dim]: the semantic codebook beside 31 acoustic ones, each after the residual."""
    codes = []
    for kind, count in (("semantic", 1), ("acoustic", MOST - 1)):
        prefix = QUANTISER.format(kind)
        residual = latents.astype(np.float64) @ tensors[f"{prefix}.input_proj.weight"][:, :, 0].T
        for q in range(count):
            book = f"{prefix}.layers.{q}.codebook"
            usage = np.maximum(tensors[f"{book}.cluster_usage"], 1e-5)
            entries = tensors[f"{book}.embed_sum"] / usage[:, np.newaxis]
            codes.append(((residual[:, np.newaxis] - entries) ** 2).sum(-1).argmin(1))
            residual = residual - entries[codes[-1]]
    return np.array(codes)


def test_all_32_are_searched(checkpoint, all_codebooks, samples):
    expected = searched(checkpoint[1], all_codebooks.encode_latents(samples))
    codes = all_codebooks.encode(samples, 24000)
    assert codes.shape == (MOST, 20)
    np.testing.assert_array_equal(codes, expected)
    assert all(len(set(row)) > 1 for row in codes)


@pytest.mark.parametrize("n", COUNTS)
def test_any_number_on_load_and_per_call(checkpoint, all_codebooks, samples, n):
    whole = all_codebooks.encode(samples, 24000)
    with load(checkpoint, n_codebooks=n) as codec:
        assert codec.n_codebooks == n
        np.testing.assert_array_equal(codec.encode(samples, 24000), whole[:n])
        np.testing.assert_array_equal(all_codebooks.encode(samples, 24000, n_codebooks=n), whole[:n])
        got, expected = all_codebooks.decode(whole[:n]), codec.decode(whole[:n])
        assert got.shape == expected.shape
        assert np.linalg.norm(got - expected) < 2e-6 * np.linalg.norm(expected)
        with codec.decoder_stream() as stream:
            np.testing.assert_array_equal(stream.finish(whole[:n]), expected)


def test_every_codebook_counts(all_codebooks, samples):
    """Each one more changes the samples."""
    codes = all_codebooks.encode(samples, 24000)
    decoded = [all_codebooks.decode(codes[:n]) for n in COUNTS]
    assert all(not np.array_equal(a, b) for a, b in pairwise(decoded))


def test_eight_unless_asked(checkpoint, all_codebooks):
    with load(checkpoint) as codec:
        assert codec.n_codebooks == 8
        with pytest.raises(CodesError, match=r"shape \(9, 2\), expected \(1 to 8, n_frames\)"):
            codec.decode(np.zeros((9, 2), int))


@pytest.mark.parametrize("n", [0, -1, 33])
def test_counts_refused(checkpoint, all_codebooks, samples, n):
    with pytest.raises(ValueError, match=rf"n_codebooks is {n}, expected 1 to 32"):
        load(checkpoint, n_codebooks=n)
    with pytest.raises(ValueError, match=rf"n_codebooks is {n}, expected 1 to 32"):
        all_codebooks.encode(samples, 24000, n_codebooks=n)
