"""Checkpoints made to hang, to swallow memory or to crash: refused in words, in time, and with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_checkpoints
import numpy as np
import pytest
from fuzz_checkpoints import as_moshi, nested, watched
from safetensors.numpy import save_file
from torch_files import Raw, legacy_file, pickle_file, stored, tensor, write_zip

from vocoder_plugin import Codec, ConversionError
from vocoder_plugin.converters import dac, mimi, torch_pickle, wavtokenizer
from vocoder_plugin.converters.checkpoint import load_checkpoint
from vocoder_plugin.files import complete_path

FIXTURES = Path(__file__).parent / "fixtures"
DOUBLED = b")q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(40))  # 2 ** 40 tuples, were they walked
LISTS = b"(]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40)) + b"t"


def refuses(convert: Callable[..., None], source: Path, message: str, **options: Any) -> str:
    """Refused within the fuzzer's bounds of time and memory, the target's folder as it was."""
    folder = source.parent / "out"
    folder.mkdir(exist_ok=True)
    with watched(source if source.is_dir() else source.parent), pytest.raises(ConversionError) as caught:
        convert(source, folder / "out.gguf", **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert list(folder.iterdir()) == []
    return str(caught.value)


@pytest.fixture
def dac_tensors() -> dict[str, np.ndarray]:
    return dict(load_checkpoint(FIXTURES / "small_dac.pth").tensors)


@pytest.fixture
def mimi_folder(tmp_path) -> Path:
    shutil.copytree(FIXTURES / "tiny_mimi_hf", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def wav_folder(tmp_path) -> Path:
    (tmp_path / "wav").mkdir()
    for name in ("small_wavtokenizer.ckpt", "small_wavtokenizer.yaml"):
        shutil.copy(FIXTURES / name, tmp_path / "wav")
    return tmp_path / "wav"


# Pickles


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"}" + DOUBLED + b"Ns", "has a dictionary with a tuple for a key"),
        (b"}(" + DOUBLED + b"K\x01u", "has a dictionary with a "),
        (
            b"}\x8a\x09" + b"\xff" * 8 + b"\x00Ns",
            "has a dictionary with a int for a key",
        ),  # they could be made to collide
        (b"\x80\x04" + DOUBLED + DOUBLED + b"\x93", "refers to a global by no name"),
        (b"ccollections\nOrderedDict\n" + DOUBLED + b"R", "a damaged checkpoint: TypeError"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + DOUBLED + b"K\x00h\x00h\x00tR", "has a tensor of no storage"),
        (DOUBLED + b"Q", r"has a reference \(\(\(.*is not a tensor's storage"),
        (b"X\xff\xff\xff\x7f", "a damaged checkpoint: ValueError"),
        (b"\x8b\xff\xff\xff\x7f", "a damaged checkpoint: ValueError"),
        (b"\x8b\xd0\x07\x00\x00" + b"\x01" * 2000, "has the pickle opcode LONG4, which torch does not write"),
        (b"\x8f", "has the pickle opcode EMPTY_SET, which torch does not write"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb", "sets attributes of a function"),
        (b"N" * (torch_pickle.MOST_OPCODES + 2), "its pickle has more than 1048576 opcodes"),
        (b"X\xff\xff\x40\x00" + b"x" * 0x40FFFF, "its pickle has more than 4194304 bytes"),
    ],
)
def test_pickles_that_would_hang_or_swallow_memory(tmp_path, opcodes, message):
    path = write_zip(tmp_path / "w.pth", b"\x80\x02" + opcodes + b".", {})
    assert refuses(dac.convert, path, message).startswith(f"{path}: ")


@pytest.mark.parametrize("write", [Path.write_bytes, lambda path, data: write_zip(path, data, {})])
def test_a_memo_of_two_gigabytes(tmp_path, write):
    """LONG_BINPUT 0x8000000: unpicklers keep their memo in an array."""
    path = tmp_path / "w.pth"
    write(path, b"\x80\x02}r\0\0\0\x08.")
    refuses(dac.convert, path, "holds no tensors|neither a safetensors file nor")


def test_an_older_torchs_file(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(legacy_file({"state_dict": Raw(b"}" + DOUBLED + b"Ns")}, {}))
    refuses(dac.convert, path, "nor a torch checkpoint .of torch 1.6 or newer")


def test_refused_pickles_change_nothing(tmp_path, dac_tensors):
    functions = list(torch_pickle.FUNCTIONS.values())
    before = [(function.__defaults__, function.__dict__) for function in functions]
    for name, state in (("__defaults__", ((1, 2),)), ("__kwdefaults__", {}), ("__dict__", {"x": 1})):
        build = pickle_file(
            {"w": Raw(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle_file({name: state})[2:-1] + b"b")}
        )
        refuses(dac.convert, write_zip(tmp_path / "w.pth", build, {}), "sets attributes of a function")
    assert [(function.__defaults__, function.__dict__) for function in functions] == before
    dac.convert(FIXTURES / "small_dac.pth", tmp_path / "out.gguf")


@pytest.mark.parametrize("method", ["items", "keys", "get", "__len__", "__iter__", "__class__"])
def test_methods_of_dictionaries_stay_theirs(tmp_path, method):
    entries = Raw(b"ccollections\nOrderedDict\n)R" + pickle_file({method: None})[2:-1] + b"b")
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries, "metadata": entries}), {})
    refuses(dac.convert, path, "holds no tensors")


def test_many_tensors_of_one_storage(tmp_path, dac_tensors):
    entries, storages = stored(dac_tensors)
    storages["big"] = bytes(5_000_000)
    for q in range(2000):
        entries[f"quantizer.quantizers.{q}.codebook.weight"] = tensor("big", 1_250_000, (156_250, 8), (8, 1))
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries}), storages)
    refuses(dac.convert, path, r"its tensors have 2\d+ values, in a file of \d+ bytes", sample_rate=24000)


def test_tied_tensors_convert(tmp_path, dac_tensors):
    """Two names of one storage are no attack."""
    entries, storages = stored(dac_tensors)
    entries["decoder.model.6.bias"] = tensor("tied", 4, (1,), (1,), offset=2)
    entries["decoder.model.4.block.1.bias"] = tensor("tied", 4, (2,), (1,), offset=1)
    storages["tied"] = np.arange(4, dtype=np.float32).tobytes()
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries}), storages)
    dac.convert(path, tmp_path / "w.gguf", sample_rate=24000)
    with Codec.load(tmp_path / "w.gguf") as codec:
        assert codec.hop_length == 320


@pytest.mark.parametrize(
    "opcodes", [LISTS, DOUBLED, b"\x8a\xff" + b"\x7f" * 255, b"X\x00\x10\x00\x00" + b"\x1b" * 4096]
)
@pytest.mark.parametrize("key", ["encoder_dim", "sample_rate"])
def test_odd_arguments_are_told_in_short(tmp_path, dac_tensors, opcodes, key):
    entries, storages = stored(dac_tensors)
    kwargs = {"sample_rate": 24000, key: Raw(opcodes)}
    data = pickle_file({"metadata": {"kwargs": kwargs}, "state_dict": entries})
    told = refuses(dac.convert, write_zip(tmp_path / "w.pth", data, storages), "says encoder_dim is|sample rate is")
    assert len(told) < 9000 and told.isprintable()


def test_names_do_nothing_to_a_terminal(tmp_path, dac_tensors):
    dac_tensors["\x1b[31mred"] = np.ones(1, np.float32)
    entries, storages = stored(dac_tensors)
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries}), storages)
    assert refuses(dac.convert, path, "tensors left over: ").endswith(r"'\x1b[31mred'")


def test_of_too_many_tensors_none_is_looked_at(tmp_path):
    entries = {f"decoder.model.{i}.weight": Raw(b"h\xc8") for i in range(20_000)}
    one = pickle_file(tensor("0", 100_000, (1,), (1,)))[2:-1]
    data = pickle_file({"x": Raw(one + b"q\xc8"), "state_dict": entries})
    path = write_zip(tmp_path / "w.pth", data, {"0": bytes(4 * 100_000)})
    refuses(dac.convert, path, "has 20000 tensors, more than 16384")


# Safetensors, JSON


def header(path: Path, text: bytes, *, size: int = 0) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ([0, 2**63], 0, "tensor 'w' has an impossible shape"),
        ([1] * 70, 4, "tensor 'w' has an impossible shape"),
        ([2**64, 0], 0, "model.safetensors: "),
        ([2**62, 4], 16, "model.safetensors: "),
    ],
)
def test_shapes_that_numpy_does_not_know(tmp_path, shape, size, message):
    text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    refuses(dac.convert, header(tmp_path / "model.safetensors", text, size=size), message)


def test_a_header_of_many_megabytes(tmp_path):
    text = b'{"w":{"dtype":"F32","shape":[' + b"1," * 3_000_000 + b'1],"data_offsets":[0,4]}}'
    refuses(dac.convert, header(tmp_path / "model.safetensors", text, size=4), "its header would have 6000054 bytes")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_sparse_files(tmp_path, name):
    path = tmp_path / name
    path.touch()
    os.truncate(path, 64 << 30)
    with pytest.raises(ConversionError, match="has 68719476736 bytes, more than the 8589934592 of any checkpoint"):
        dac.convert(path, tmp_path / "x.gguf")
    os.truncate(path, 1 << 30)
    with pytest.raises(ConversionError, match=r"not a safetensors file|neither a safetensors file nor"):
        dac.convert(path, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"sampling_rate": %s}' % ("9" * 5000), "config.json: not valid JSON: Exceeds the limit"),
        ('{"sliding_window": %s}' % ("9" * 4000), "sliding_window|config's window is an integer of 13288 bits"),
        (json.dumps({"pad_mode": nested(12, list)}), r"config's pad_mode is \[\[\[\[\.\.\.\], "),
        ('{"x": "%s"}' % ("x" * (5 << 20)), "config.json: has more than the 4194304 bytes of any configuration"),
    ],
    ids=lambda value: value[:20],
)
def test_odd_configs(mimi_folder, config, message):
    (mimi_folder / "config.json").write_text(config)
    refuses(mimi.convert, mimi_folder, message)


# YAML


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers: 2", "num_layers: *a39", "not valid YAML: YAMLError: it has an alias"),
        ("num_layers: 2", "num_layers: 2001-99-99", "not valid YAML: ValueError: month must be in"),
        ("num_layers: 2", 'num_layers: !!int ""', "not valid YAML: IndexError"),
        ("num_layers: 2", "num_layers: !!bool x", "not valid YAML: KeyError"),
        ("num_layers: 2", "num_layers: " + "9" * 5000, "not valid YAML: ValueError: Exceeds the limit"),
        ("num_layers: 2", "num_layers: 0x" + "f" * 5000, "says num_layers is an integer of 20000 bits"),
        ("num_layers: 2", "num_layers: " + "[" * 5000, "not valid YAML: RecursionError"),
        ("num_layers: 2", "num_layers: 2\n" + "        x: [1, 2, 3]\n" * 150_000, "has more than the 65536 bytes"),
        ("num_layers: 2", "num_layers: 3\n        path: [1]", "wavtokenizer.yaml: says num_layers is 3"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_hostile_yaml(wav_folder, old, new, message):
    path = wav_folder / "small_wavtokenizer.yaml"
    text = path.read_text().replace(old, new)
    path.write_text(BOMB + text if "*a" in new else text)
    refuses(wavtokenizer.convert, wav_folder / "small_wavtokenizer.ckpt", message)


def test_yaml_of_the_greatest_size_takes_no_time(wav_folder):
    path = wav_folder / "small_wavtokenizer.yaml"
    path.write_text(path.read_text() + "".join(f"k{i}: {{a: [1, 2]}}\n" for i in range(3300)))
    assert 60_000 < path.stat().st_size < 1 << 16
    with watched(wav_folder):
        wavtokenizer.convert(wav_folder / "small_wavtokenizer.ckpt", wav_folder / "x.gguf")


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def linked_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("make", [fifo, device, linked_fifo, Path.mkdir])
@pytest.mark.parametrize("place", ["w.pth", "model.safetensors", "config.json", "w.yaml", "decoder/decoder_model.pt"])
def test_what_is_no_file_is_refused(tmp_path, make, place):
    convert, source, folder = dac.convert, tmp_path / "in", tmp_path / "in"
    folder.mkdir()
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    if place == "w.pth":
        source = path
        if make is Path.mkdir:
            pytest.skip("a folder may hold a checkpoint")
    elif place == "config.json":
        shutil.copy(FIXTURES / "tiny_dac_hf" / "model.safetensors", folder)
    elif place == "w.yaml":
        convert, source = wavtokenizer.convert, folder / "w.ckpt"
        shutil.copy(FIXTURES / "small_wavtokenizer.ckpt", source)
    elif place == "decoder/decoder_model.pt":
        convert = wavtokenizer.convert
    make(path)
    with pytest.raises(
        ConversionError, match=rf"{re.escape(str(path))}.*(expected a regular file|holds 0 safetensors)"
    ):
        convert(source, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_path_that_no_file_can_have(tmp_path):
    with pytest.raises(ConversionError, match="cannot be read: embedded null byte"):
        dac.convert("a\0.pth", tmp_path / "out.gguf")


# What would convert, and not load


def save_mimi(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "decoder.model.2.block.2.block.1.bias",
            (9,),
            "'dec.model.2.block.res_unit1.conv1.bias' has shape (9,), expected",
        ),
        ("decoder.model.1.block.0.alpha", (1, 5, 1), "'dec.model.1.block.snake1.alpha' has shape (5,), expected (32,)"),
        ("quantizer.quantizers.1.codebook.weight", (7, 8), "'vq.q1.codebook.weight' has shape (7, 8), expected (1024,"),
    ],
)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_dac_of_shapes_that_do_not_fit(tmp_path, dac_tensors, name, shape, message, kind):
    assert name in dac_tensors
    dac_tensors[name] = np.ones(shape, np.float32)
    entries, storages = stored(dac_tensors)
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries}), storages)
    told = refuses(dac.convert, path, re.escape(message), sample_rate=24000, type=kind)
    assert told.startswith(f"{path}: gives no codec that could be loaded: tensor ")
    assert ".partial" not in told


@pytest.mark.parametrize("dialect", wavtokenizer.DIALECTS)
def test_wavtokenizer_of_shapes_that_do_not_fit(tmp_path, dialect):
    tensors = dict(load_checkpoint(FIXTURES / "small_wavtokenizer.ckpt").tensors)
    tensors["backbone.convnext.1.gamma"] = np.ones(63, np.float32)
    entries, storages = stored(tensors)
    path = write_zip(tmp_path / "w.ckpt", pickle_file({"state_dict": entries}), storages)
    target = tmp_path / "precious.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(ConversionError, match=r"could be loaded: tensor '\w+.* has shape \(63,\), expected"):
        wavtokenizer.convert(path, target, dialect=dialect, force=True)
    assert target.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == [target, path]


def test_the_llama_dialect_keeps_an_unusual_sample_rate(wav_folder):
    path = wav_folder / "small_wavtokenizer.yaml"
    path.write_text(path.read_text().replace("sample_rate: 24000", "sample_rate: 16000"))
    wavtokenizer.convert(wav_folder / "small_wavtokenizer.ckpt", wav_folder / "x.gguf", dialect="llama")
    with Codec.load(wav_folder / "x.gguf") as codec:
        assert codec.sample_rate == 16000


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("encoder.layers.0.conv.bias", "enc.l0.conv.b"),
        ("encoder.layers.4.block.3.conv.weight", "enc.l4.block.3.conv.w"),
        ("decoder.layers.14.conv.weight", "dec.l14.conv.w"),
        ("downsample.conv.weight", "dn.cv.w"),
        ("upsample.conv.weight", "up.cv.w"),
        ("encoder_transformer.layers.1.self_attn.k_proj.weight", "etr.l1.attn.k_proj.w"),
        ("decoder_transformer.layers.0.mlp_layer_scale.scale", "dtr.l0.mlp_ls.scale"),
        ("decoder_transformer.layers.1.post_attention_layernorm.bias", "dtr.l1.paln.b"),
        ("quantizer.acoustic_residual_vector_quantizer.input_proj.weight", "q.a.ip.w"),
        ("quantizer.semantic_residual_vector_quantizer.output_proj.weight", "q.s.op.w"),
    ],
)
def test_mimi_without_a_tensor(mimi_folder, name, missing):
    tensors = dict(load_checkpoint(mimi_folder).tensors)
    del tensors[name]
    refuses(mimi.convert, save_mimi(mimi_folder, tensors), f"model.safetensors: .*'{re.escape(missing)}'")


def test_mimi_without_any_one_tensor(mimi_folder):
    tensors = dict(load_checkpoint(mimi_folder).tensors)
    for name in list(tensors)[::5]:
        if not name.endswith("initialized"):
            save_mimi(mimi_folder, {other: values for other, values in tensors.items() if other != name})
            refuses(mimi.convert, mimi_folder, "model.safetensors: ")


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.99.conv.weight", "decoder.layers.3.block.7.conv.bias", "anything",
        "encoder_transformer.layers.0.mlp.fc1.bias",
        "quantizer.acoustic_residual_vector_quantizer.layers.9.codebook.embed",
    ],
)  # fmt: skip
def test_mimi_with_a_tensor_too_many(mimi_folder, name):
    tensors = dict(load_checkpoint(mimi_folder).tensors)
    tensors[name] = np.ones((2, 2, 2), np.float32)
    refuses(mimi.convert, save_mimi(mimi_folder, tensors), f"tensors left over: {re.escape(name)}$")


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_of_mimi_converts(mimi_folder, side):
    other = ("decoder", "upsample") if side == "encoder" else ("encoder", "downsample")
    tensors = load_checkpoint(mimi_folder).tensors
    save_mimi(mimi_folder, {name: values for name, values in tensors.items() if not name.startswith(other)})
    mimi.convert(mimi_folder, mimi_folder / "x.gguf")
    with Codec.load(mimi_folder / "x.gguf") as codec:
        assert (codec.has_encoder, codec.has_decoder) == (side == "encoder", side == "decoder")


def test_moshis_joined_projections(mimi_folder, tmp_path):
    tensors = as_moshi(load_checkpoint(mimi_folder).tensors)
    mimi.convert(mimi_folder, tmp_path / "transformers.gguf", type="f32")
    moved = dict(tensors)
    for name in [name for name in tensors if name.endswith("in_proj_weight")]:
        q, k, v = np.split(tensors[name], 3)  # moshi rotates neighbours
        order = np.arange(32).reshape(2, 2, 8).transpose(0, 2, 1).reshape(-1)
        moved[name] = np.concatenate([q[order], k[order], v])
    mimi.convert(save_mimi(mimi_folder, moved), tmp_path / "moshi.gguf", type="f32")
    codes = np.arange(16).reshape(8, 2)
    with Codec.load(tmp_path / "transformers.gguf") as one, Codec.load(tmp_path / "moshi.gguf") as other:
        np.testing.assert_array_equal(one.decode(codes), other.decode(codes))
    name = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    for shape in ((95, 32), (96,), (3, 32), (96, 2, 16), (48, 32)):
        wrong = {**tensors, name: np.ones(shape, np.float32)}
        refuses(
            mimi.convert,
            save_mimi(mimi_folder, wrong),
            "in_proj_weight' has shape|could be loaded: tensor .* has shape",
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_mimi_with_weights_that_are_not_finite(mimi_folder, value):
    tensors = dict(load_checkpoint(mimi_folder).tensors)
    for name in (
        "encoder.layers.3.conv.weight",
        "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum",
    ):
        changed = tensors[name].copy()
        changed.reshape(-1)[3] = value
        message = f"tensor '{re.escape(name)}' has values that are not finite"
        refuses(mimi.convert, save_mimi(mimi_folder, {**tensors, name: changed}), message)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_what_folding_makes_infinite(mimi_folder, tmp_path, dac_tensors, kind):
    tensors = dict(load_checkpoint(mimi_folder).tensors)
    stem = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook"
    tensors[f"{stem}.embed_sum"] = np.full((32, 16), 1e38, np.float32)
    tensors[f"{stem}.cluster_usage"] = np.full(32, 1e-4, np.float32)
    refuses(
        mimi.convert, save_mimi(mimi_folder, tensors), "'q.s.layers.0.codebook.embed' has a weight of inf", type=kind
    )
    dac_tensors["decoder.model.0.weight_g"] = np.full((32, 1, 1), 3e38, np.float32)
    dac_tensors["decoder.model.0.weight_v"] = np.zeros((32, 48, 7), np.float32)
    dac_tensors["decoder.model.0.weight_v"][:, 0, 0] = 1e-30
    entries, storages = stored(dac_tensors)
    path = write_zip(tmp_path / "w.pth", pickle_file({"state_dict": entries}), storages)
    if kind == "f32":  # 3e38 is a float, and no larger type
        dac.convert(path, tmp_path / "w.gguf", sample_rate=24000, type=kind)
    elif kind != "bf16":
        refuses(
            dac.convert,
            path,
            "'dec.model.0.weight' has a weight of 3e.38, too large for ",
            sample_rate=24000,
            type=kind,
        )


# What interrupted and failing conversions leave


def test_what_killed_conversions_left_is_removed(tmp_path):
    target = tmp_path / "codec.gguf"
    mine = [tmp_path / f".codec.gguf.abcd_{i:03}.partial" for i in range(3)]
    others = [
        tmp_path / ".other.gguf.abcdefgh.partial",
        tmp_path / ".codec.gguf.abc.partial",
        tmp_path / "codec.gguf.partial",
    ]
    for path in mine + others:
        path.write_bytes(b"half")
    dac.convert(FIXTURES / "small_dac.pth", target)
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


def test_what_a_living_process_writes_is_not_removed(tmp_path):
    target = tmp_path / "x"
    program = f"""
import sys
from vocoder_plugin.converters.wording import shown
from vocoder_plugin.files import complete_path
with complete_path({str(target)!r}) as path:
    path.write_text("first")
    print(path, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        partial = Path(process.stdout.readline().strip())
        with complete_path(target) as mine:
            mine.write_text("second")
        assert target.read_text() == "second"
        assert partial.read_text() == "first"
        process.stdin.close()
        assert process.wait(60) == 0
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limits")
@pytest.mark.parametrize("most", [0, 1000, 30_000, 150_000])
@pytest.mark.parametrize(
    ("convert", "source"),
    [(dac.convert, "small_dac.pth"), (mimi.convert, "tiny_mimi_hf"), (wavtokenizer.convert, "small_wavtokenizer.ckpt")],
)
def test_a_full_disk(tmp_path, convert, source, most):
    target = tmp_path / "codec.gguf"
    target.write_bytes(b"precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(
            ConversionError, match=r"cannot be written: (File too large|.*: is the disk full)"
        ) as caught:
            convert(FIXTURES / source, target, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{target}: ")
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "closed").mkdir(0o500)
    with pytest.raises(ConversionError, match=r"codec.gguf: cannot be written: Permission denied"):
        dac.convert(FIXTURES / "small_dac.pth", tmp_path / "closed" / "codec.gguf")


# The fuzzer, in short


def test_damaged_checkpoints():
    """Case by case; ``python tests/fuzz_checkpoints.py --count 20000`` runs more."""
    makers, outcomes = fuzz_checkpoints.sources(), []
    start, i = time.monotonic(), 0
    while i < 40 or (i < 200 and time.monotonic() - start < 5):
        outcomes.append(fuzz_checkpoints.run(20261124, i, makers))
        i += 1
    assert {outcome.split(": ")[1] for outcome in outcomes} == {"converted", "refused"}
    assert len({outcome.split(": ")[0] for outcome in outcomes}) == len(makers)
