"""WavTokenizer's files: what the converter writes, refuses and consumes, and model files nobody vouched for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from measures import snr
from torch_files import pickle_file, stored, write_zip

from vocoder_plugin import Codec, ConversionError, ModelFileError
from vocoder_plugin.codecs.wavtokenizer import llama_name
from vocoder_plugin.converters import wavtokenizer
from vocoder_plugin.converters.checkpoint import load_checkpoint
from vocoder_plugin.gguf_file import GGUFFile

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "small_wavtokenizer.ckpt"


def save(path: Path, tensors: dict[str, np.ndarray], *, under: str | None = "state_dict", beside: Any = None) -> Path:
    """A torch checkpoint of float32 tensors, made without torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries, storages = stored({name: values.astype(np.float32) for name, values in tensors.items()})
    content = {under: entries, **(beside or {})} if under else entries
    return write_zip(path, pickle_file(content), storages)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return dict(load_checkpoint(CHECKPOINT).tensors)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "small_wavtokenizer_ref.npz") as archive:
        return dict(archive)


def decoded(file: Path, codes: np.ndarray) -> np.ndarray:
    with Codec.load(file, n_threads=2) as codec:
        return codec.decode(codes)


# The converter


@pytest.mark.parametrize("dialect", wavtokenizer.DIALECTS)
@pytest.mark.parametrize(("kind", "floor"), [("f32", 116), ("f16", 59), ("bf16", 41), ("q8_0", 38)])
def test_types(tmp_path, reference, dialect, kind, floor):
    wavtokenizer.convert(CHECKPOINT, tmp_path / "out.gguf", type=kind, dialect=dialect)
    assert snr(decoded(tmp_path / "out.gguf", reference["codes"]), reference["audio"]) >= floor
    kinds = {
        info.type for name, info in GGUFFile(tmp_path / "out.gguf").tensors.items() if "pw" in name and "weight" in name
    }
    assert kinds == {kind.upper()}
    small = [
        info.type for name, info in GGUFFile(tmp_path / "out.gguf").tensors.items() if "bias" in name or "norm" in name
    ]
    assert set(small) == {"F32"}


def test_names_keys_and_folding(tmp_path, weights):
    wavtokenizer.convert(CHECKPOINT, tmp_path / "out.gguf", type="f32")
    file = GGUFFile(tmp_path / "out.gguf")
    assert file.metadata["general.architecture"] == "wavtokenizer_large"
    keys = {k: v for k, v in file.metadata.items() if k.startswith("codec.")}
    assert keys == {
        "codec.sample_rate": 24000, "codec.hop_size": 20, "codec.n_q": 1, "codec.codebook_size": 64,
        "codec.n_fft": 80, "codec.has_encoder": True, "codec.has_decoder": True,
    }  # fmt: skip
    v, g = (weights[f"feature_extractor.encodec.encoder.model.0.conv.conv.weight_{part}"] for part in "vg")
    folded = g * v / np.sqrt((v.astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(file.read("enc.model.0.conv.conv.weight"), folded, rtol=1e-6)
    scales = weights["backbone.convnext.1.norm.scale.weight"]  # the first of four conditions is kept
    np.testing.assert_array_equal(file.read("dec.bb.cnx.1.norm.weight"), scales[0])
    assert not np.array_equal(scales[0], scales[1])
    assert not [name for name in file.tensors if "disc" in name or "melspec" in name or "cluster" in name]


def test_llama_dialect_has_libllamas_shapes(tmp_path):
    """ne of what libllama checks, from its own loader."""
    wavtokenizer.convert(CHECKPOINT, tmp_path / "out.gguf", type="f16", dialect="llama")
    file = GGUFFile(tmp_path / "out.gguf")
    expected = {
        "token_embd.weight": (64, 16), "conv1d.weight": (64, 16, 7), "conv1d.bias": (64, 1),
        "posnet.0.norm1.weight": (64, 1), "posnet.4.conv2.weight": (64, 64, 3), "posnet.4.conv2.bias": (64, 1),
        "posnet.2.attn_norm.bias": (64, 1), "posnet.2.attn_q.weight": (64, 64, 1), "posnet.2.attn_output.bias": (64, 1),
        "posnet.5.attn_norm.weight": (64, 1), "token_embd_norm.weight": (64,), "convnext.1.dw.weight": (64, 1, 7),
        "convnext.1.dw.bias": (64, 1), "convnext.1.norm.bias": (64,), "convnext.0.pw1.weight": (96, 64),
        "convnext.0.pw1.bias": (96,), "convnext.0.pw2.weight": (64, 96), "convnext.0.gamma.weight": (64,),
        "output_norm.weight": (64,), "output.weight": (82, 64), "output.bias": (82,),
    }  # fmt: skip
    assert {name: file.info(name).shape for name in expected} == expected
    prefix = "wavtokenizer-dec."
    keys = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    assert keys["embedding_length"] == 82
    assert keys["features_length"] == 16
    assert keys["posnet.block_count"] == 6
    assert keys["convnext.block_count"] == 2
    assert keys["attention.group_norm_groups"] == 32
    assert keys["attention.causal"] is False
    assert not [name for name in file.tensors if name.startswith("enc.")]


def test_names_are_one_to_one():
    assert llama_name("dec.bb.cnx.7.pwconv2.bias") == "convnext.7.pw2.bias"
    with pytest.raises(KeyError):
        llama_name("enc.model.0.conv.conv.weight")


def split(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    """outetts' two files."""
    table = weights["feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"]
    encoder = {n: v for n, v in weights.items() if n.startswith("feature_extractor.")}
    decoder = {n: v for n, v in weights.items() if n.startswith(("backbone.", "head."))} | {"codebook_weights": table}
    save(folder / "encoder" / "encoder_model.pt", encoder, under=None)
    save(folder / "decoder" / "decoder_model.pt", decoder, under="model_state_dict")
    return folder


def test_outetts_split_files(tmp_path, weights, reference):
    source = split(tmp_path / "split", weights)
    wavtokenizer.convert(source, tmp_path / "both.gguf", type="f32")
    wavtokenizer.convert(CHECKPOINT, tmp_path / "one.gguf", type="f32")
    assert (tmp_path / "both.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    wavtokenizer.convert(source / "decoder" / "decoder_model.pt", tmp_path / "decoder.gguf", type="f32")
    assert snr(decoded(tmp_path / "decoder.gguf", reference["codes"]), reference["audio"]) > 110
    wavtokenizer.convert(source / "encoder" / "encoder_model.pt", tmp_path / "encoder.gguf", type="f32")
    with Codec.load(tmp_path / "encoder.gguf") as codec:
        assert not codec.has_decoder
        np.testing.assert_array_equal(codec.encode(reference["wav"], 24000), reference["encoded"])


def refuses(source: Path, message: str, **options: Any) -> None:
    target = source.parent / "refused.gguf"
    with pytest.raises(ConversionError, match=re.escape(message)):
        wavtokenizer.convert(source, target, **options)
    assert not target.exists()


def without(name: str):
    return lambda weights: weights.pop(name)


def changed(name: str, values: np.ndarray):
    return lambda weights: weights.update({name: values.astype(np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("backbone.embed.weight"), "tensor 'backbone.embed.weight' is missing"),
        (without("backbone.convnext.1.gamma"), "tensor 'backbone.convnext.1.gamma' is missing"),
        (without("feature_extractor.encodec.encoder.model.7.lstm.bias_hh_l1"), "lstm.bias_hh_l1' is missing"),
        (without("feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"), "_codebook.embed' is missing"),
        (changed("backbone.extra", np.ones(3)), "tensors left over: backbone.extra"),
        (changed("feature_extractor.encodec.quantizer.vq.layers.1._codebook.embed", np.ones((64, 16))), "left over"),
        (changed("head.out.bias", np.full(82, np.nan)), "'head.out.bias' has values that are not finite"),
        (changed("backbone.embed.weight", np.ones((64, 16))), "expected 3 dimensions"),
        (changed("backbone.norm.scale.weight", np.ones(64)), "expected 2 dimensions"),
        (changed("codebook_weights", np.ones((64, 16))), "encoder and decoder have different codebooks"),
        (changed("head.out.bias", np.ones(98)), "FFT of 96 does not fit the encoder's hop of 20"),
        (lambda w: [w.pop(n) for n in list(w) if "backbone" in n or "encoder" in n], "neither an encoder"),
    ],
)  # fmt: skip
def test_contradictions_are_named(tmp_path, weights, change, message):
    change(weights)
    refuses(save(tmp_path / "w.ckpt", weights), message, type="f32")


def test_the_yaml_must_agree(tmp_path, weights):
    text = (FIXTURES / "small_wavtokenizer.yaml").read_text()
    source = save(tmp_path / "w.ckpt", weights)
    beside = tmp_path / "w.yaml"
    beside.write_text(text.replace("n_fft: 80", "n_fft: 96"))
    refuses(source, "w.yaml: says n_fft is 96, but the tensors say 80")
    other = tmp_path / "elsewhere.txt"
    other.write_text(text.replace("sample_rate: 24000", "sample_rate: 16000"))
    wavtokenizer.convert(source, tmp_path / "out.gguf", config=other)  # rather than the one beside it
    assert GGUFFile(tmp_path / "out.gguf").metadata["codec.sample_rate"] == 16000
    for bad, message in (
        ("model: [", "not valid YAML"),
        ("a: 1", "has no model.init_args"),
        (text.replace("padding: same", "padding: center"), "says padding is 'center'"),
        (text.replace("num_quantizers: 1", "num_quantizers: 4"), "says num_quantizers is 4"),
        (text.replace("sample_rate: 24000", "sample_rate: fast"), "sample rate is 'fast'"),
    ):
        other.write_text(bad)
        refuses(source, message, config=other)
    refuses(source, "cannot be read", config=tmp_path / "missing.yaml")


def test_bad_arguments(tmp_path, weights):
    refuses(CHECKPOINT.parent / "no_such.ckpt", "there is no such file")
    source = save(tmp_path / "w.ckpt", weights)
    refuses(source, "type 'f8' is unknown", type="f8")
    refuses(source, "dialect 'x' is unknown", dialect="x")
    refuses(source, "gelu 'x' is unknown", gelu="x")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "holds neither encoder/encoder_model.pt nor decoder/decoder_model.pt")
    encoder = {n: v for n, v in weights.items() if n.startswith("feature_extractor.")}
    refuses(save(tmp_path / "e.ckpt", encoder), "has no decoder", dialect="llama")


# Model files


def rewrite(source: Path, target: Path, *, tensors=None, keys=None) -> Path:
    """A copy with some tensors and keys replaced, or left out where None."""
    file = GGUFFile(source)
    metadata = {**file.metadata, **(keys or {})}
    writer = gguf.GGUFWriter(target, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture" or value is None:
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    for name, values in {**{n: file.read(n) for n in file.tensors}, **(tensors or {})}.items():
        if values is not None:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_codec_cpps_own_layouts(tmp_path, small_wavtokenizer_file, reference, weights):
    """Its converter keeps all conditions, transposes the LSTM, once reversed convolutions, and adds its own."""
    file = GGUFFile(small_wavtokenizer_file)
    tensors: dict[str, Any] = {}
    for name in file.tensors:
        values = file.read(name)
        if values.ndim == 3:
            tensors[name] = values.transpose(2, 1, 0)
        elif ".lstm.weight" in name:
            tensors[name] = values.T
    for stem in ("dec.bb.norm", "dec.bb.cnx.0.norm", "dec.bb.cnx.1.norm"):
        source = stem.replace("dec.bb", "backbone").replace("cnx", "convnext")
        for part, theirs in (("weight", "scale"), ("bias", "shift")):
            tensors[f"{stem}.{part}"] = None
            tensors[f"{stem}.{theirs}.weight"] = weights[f"{source}.{theirs}.weight"]
    tensors["wt.decode.kernel"] = np.ones((320, 1, 1))
    keys = {"codec.hop_size": 320, "codec.n_q": None, "codec.codebook_size": None, "codec.n_fft": None}
    theirs = rewrite(small_wavtokenizer_file, tmp_path / "theirs.gguf", tensors=tensors, keys=keys)
    with Codec.load(theirs, n_threads=2) as codec, Codec.load(small_wavtokenizer_file, n_threads=2) as ours:
        assert codec.hop_length == 20
        np.testing.assert_array_equal(codec.decode(reference["codes"]), ours.decode(reference["codes"]))
        np.testing.assert_array_equal(codec.encode(reference["wav"], 24000), reference["encoded"])


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({"dec.bb.fln.weight": None}, {}, "tensor 'dec.bb.fln.weight' is missing"),
        ({"dec.bb.cnx.0.gamma": np.ones(63)}, {}, "'dec.bb.cnx.0.gamma' has shape (63,), expected (64,)"),
        ({"dec.bb.pos_net.2.q.weight": np.ones((64, 32, 1))}, {}, "'dec.bb.pos_net.2.q.weight' has shape (64, 32, 1)"),
        ({"dec.bb.embed.weight": np.ones((64, 16, 5))}, {}, "expected (64, in, 7) or its reverse"),
        ({"dec.bb.cnx.1.pwconv1.weight": np.ones(7)}, {}, "has shape (7,), expected (96, 64)"),
        ({"enc.model.7.lstm.weight_hh_l0": np.ones((16, 16))}, {}, "expected (64, 16) or its reverse"),
        ({"enc.model.3.conv.conv.weight": np.ones((8, 4, 9))}, {}, "has kernel 9, expected twice a stride"),
        ({"vq.vq.layers.0._codebook.embed": np.ones(64)}, {}, "the codebook has shape (64,)"),
        ({"dec.head.out.bias": np.ones(92)}, {}, "an FFT of 90 samples does not fit a hop of 20"),
        ({"dec.head.out.bias": np.ones(2)}, {}, "an FFT of 0 samples does not fit"),
        ({"dec.bb.cnx.0.gamma": None}, {}, "the number of ConvNeXt blocks is 0"),
        ({f"dec.bb.cnx.{i}.gamma": np.ones(64) for i in range(257)}, {}, "blocks is 257, expected 1 to 256"),
        ({}, {"codec.hop_size": 300}, "key 'codec.hop_size' is 300, expected 20"),
        ({}, {"codec.n_q": 2}, "key 'codec.n_q' is 2, expected 1"),
        ({}, {"codec.sample_rate": 7}, "expected 1000 to 400000"),
        ({}, {"codec.has_encoder": False, "codec.has_decoder": False}, "neither an encoder nor a decoder"),
        ({}, {"vocoder.gelu": "relu"}, "key 'vocoder.gelu' is 'relu', expected 'erf' or 'tanh'"),
        ({}, {"wavtokenizer-dec.attention.group_norm_groups": 0}, "cannot be normalised in 0 groups"),
        ({}, {"wavtokenizer-dec.attention.layer_norm_epsilon": -1.0}, "layer norms' epsilon is -1.0"),
        ({}, {"general.architecture": "wavtokenizer_medium"}, "is not supported (expected 'dac', "),
    ],
)  # fmt: skip
def test_bad_model_files_are_refused(tmp_path, small_wavtokenizer_file, tensors, keys, message):
    bad = rewrite(small_wavtokenizer_file, tmp_path / "bad.gguf", tensors=tensors, keys=keys)
    with pytest.raises(ModelFileError, match=re.escape(message)):
        Codec.load(bad)


def test_llama_files_without_their_keys(tmp_path, reference):
    """Older files lack some; the known constants fill them."""
    wavtokenizer.convert(CHECKPOINT, tmp_path / "llama.gguf", type="f32", dialect="llama")
    keys = {k: None for k in GGUFFile(tmp_path / "llama.gguf").metadata if k.startswith("wavtokenizer-dec.")}
    bare = rewrite(tmp_path / "llama.gguf", tmp_path / "bare.gguf", keys=keys)
    assert snr(decoded(bare, reference["codes"]), reference["audio"]) > 110
