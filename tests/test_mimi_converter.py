"""Mimi's converter: both packages' names, precision, and checkpoints that are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from vocoder_plugin import Codec, ConversionError
from vocoder_plugin.converters import mimi


@pytest.fixture(scope="module")
def reference(fixtures) -> dict[str, np.ndarray]:
    with np.load(fixtures / "tiny_mimi_hf_ref.npz") as archive:
        return dict(archive)


# 7e-7, 6e-4, 5e-3 and 4e-3 are seen; 100, 100, 97.9 and 91.3 % of the codes
@pytest.mark.parametrize(
    ("kind", "tolerance", "same_codes"),
    [("f32", 2e-6, 1.0), ("f16", 1e-3, 0.99), ("bf16", 7e-3, 0.95), ("q8_0", 6e-3, 0.87)],
)
def test_from_transformers(fixtures, reference, tmp_path, kind, tolerance, same_codes):
    mimi.convert(fixtures / "tiny_mimi_hf", tmp_path / "tiny.gguf", type=kind)
    with Codec.load(tmp_path / "tiny.gguf") as codec:
        audio = codec.decode(reference["codes"])
        error = np.linalg.norm(audio - reference["audio"]) / np.linalg.norm(reference["audio"])
        assert error < tolerance
        assert (codec.encode(reference["wav"], 24000) == reference["encoded"]).mean() >= same_codes


def test_the_same_checkpoint_gives_the_same_file(fixtures, tmp_path):
    for name in ("one.gguf", "other.gguf"):
        mimi.convert(fixtures / "tiny_mimi_hf", tmp_path / name)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_moshis_order_of_queries_and_keys():
    rows = np.arange(8, dtype=np.float32)[:, np.newaxis]
    assert mimi._halves_first(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.model.1.block.3.conv.conv.weight", "enc.l1.block.3.conv.w"),
        ("decoder.model.2.convtr.convtr.bias", "dec.l2.conv.b"),
        ("decoder_transformer.transformer.layers.3.self_attn.in_proj_weight", "dtr.l3.attn.in_proj.w"),
        ("encoder_transformer.transformer.layers.0.self_attn.out_projs.0.weight", "etr.l0.attn.o_proj.w"),
        ("encoder_transformer.layers.0.mlp.fc2.weight", "etr.l0.mlp.fc2.w"),
        ("quantizer.rvq_rest.vq.layers.4._codebook.embedding_sum", "q.a.layers.4.cb.embedding_sum"),
        ("encoder.layers.0.conv.weight", "enc.l0.conv.w"),
        ("something.else", None),
    ],
)
def test_names(name, expected):
    assert mimi._file_name(name) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_causal_conv", False), ("num_residual_layers", 2), ("head_dim", -1), ("head_dim", 0.5),
        ("rope_parameters", [1]), ("sliding_window", float("inf")), ("norm_eps", 1e300),
    ],
)  # fmt: skip
def test_a_config_that_is_not_supported(fixtures, tmp_path, key, value):
    folder = tmp_path / "hf"
    shutil.copytree(fixtures / "tiny_mimi_hf", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConversionError, match=key.removeprefix("sliding_").replace("norm_eps", "epsilon")):
        mimi.convert(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("quantizer.semantic_residual_vector_quantizer.layers.0.codebook.cluster_usage", (32, 1)),
        ("quantizer.semantic_residual_vector_quantizer.output_proj.weight", ()),
        ("encoder.layers.6.conv.weight", (5,)),
        ("encoder_transformer.layers.0.mlp.fc1.weight", (0, 32)),
    ],
)
def test_tensors_of_odd_shapes(fixtures, tmp_path, monkeypatch, name, shape):
    checkpoint = mimi.load_checkpoint(fixtures / "tiny_mimi_hf")
    assert name in checkpoint.tensors
    checkpoint.tensors[name] = np.ones(shape, np.float32)
    monkeypatch.setattr(mimi, "load_checkpoint", lambda _source: checkpoint)
    with pytest.raises(ConversionError, match=r"shape|usage"):
        mimi.convert("x", tmp_path / "x.gguf")


def test_another_models_checkpoint(fixtures, tmp_path):
    with pytest.raises(ConversionError, match="neither an encoder nor a decoder"):
        mimi.convert(fixtures / "tiny_dac.pth", tmp_path / "x.gguf")
