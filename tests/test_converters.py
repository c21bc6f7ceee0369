"""Conversion of DAC checkpoints: fidelity to the original implementations, and what is refused without being run."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from measures import snr
from safetensors.numpy import load_file, save_file
from torch_files import Call, Global, Persistent, pickle_file, stored, tensor, write_zip

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac
from vocoder_plugin.converters.checkpoint import Checkpoint, Tensors, load_checkpoint
from vocoder_plugin.converters.gguf_output import atomic_output, encode_tensor
from vocoder_plugin.errors import ConversionError
from vocoder_plugin.gguf_file import GGUFFile

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = FIXTURES / "small_dac.pth"
DECODER_BIAS = "decoder.model.0.bias"


@dataclass
class Weights:
    """A .pth file as values to change."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.metadata["metadata"]["kwargs"]

    def save(self, path: Path) -> Path:
        entries, storages = stored(self.tensors)
        return write_zip(path, pickle_file({"state_dict": entries, **self.metadata}), storages)


@pytest.fixture
def weights() -> Weights:
    checkpoint = load_checkpoint(SMALL)
    kwargs = dict(checkpoint.metadata["metadata"]["kwargs"])
    return Weights(dict(checkpoint.tensors), {"metadata": {"kwargs": kwargs}})


def converted(source: Path, target: Path, **options: Any) -> GGUFFile:
    dac.convert(source, target, **options)
    return GGUFFile(target)


def refuses(source: Path, message: str, **options: Any) -> str:
    """Converting fails with that message, naming a file, and leaves nothing behind."""
    folder = source.parent / "out"
    folder.mkdir()
    with pytest.raises(ConversionError, match=re.escape(message)) as caught:
        dac.convert(source, folder / "out.gguf", **options)
    assert list(folder.iterdir()) == []
    return str(caught.value)


# Fidelity


# dB of decoding, by type of the weights. F32: rounding of the activations alone, at 24 bits. From F16 to BF16 three
# bits are lost, 18 dB; Q8_0 has 8 bits of its block's largest weight, about as many as BF16 of each. The transformers
# model's random weights amplify any rounding by 14 dB more than the other's. 4 dB and more are left for other CPUs.
LEAST_SNR = {
    "tiny_dac.pth": {"f32": 103, "f16": 48, "bf16": 30, "q8_0": 28},
    "tiny_dac_hf": {"f32": 90, "f16": 34, "bf16": 18, "q8_0": 15},
    "tiny_dac_hf/model.safetensors": {"f32": 90, "f16": 34, "bf16": 18, "q8_0": 15},
    "small_dac.pth": {"f32": 112, "f16": 56, "bf16": 38, "q8_0": 32},
}
REFERENCE = {"tiny_dac.pth": "tiny_dac_pth_ref.npz", "small_dac.pth": "small_dac_ref.npz"}
LEAST_SAME_CODES = {"f32": 1.0, "f16": 0.95, "bf16": 0.85, "q8_0": 0.85}  # the rest are near ties that rounding tips
CASES = [(source, kind) for source, kinds in LEAST_SNR.items() for kind in kinds]


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_converted_codecs_match_their_originals(tmp_path, source, kind):
    dac.convert(FIXTURES / source, tmp_path / "codec.gguf", type=kind)
    with np.load(FIXTURES / REFERENCE.get(source, "tiny_dac_hf_ref.npz")) as reference:
        codes, audio, wav, encoded = (reference[name] for name in ("codes", "audio", "wav", "encoded"))
    with Codec.load(tmp_path / "codec.gguf", n_threads=1) as codec:
        assert codec.sample_rate == 24000
        decoded = codec.decode(codes)
        assert decoded.shape == audio.shape
        assert snr(decoded, audio) >= LEAST_SNR[source][kind]
        assert np.mean(codec.encode(wav, 24000) == encoded) >= LEAST_SAME_CODES[kind]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_types_layouts_and_sizes(tmp_path, kind):
    file = converted(FIXTURES / "tiny_dac.pth", tmp_path / "codec.gguf", type=kind)
    convolutions = {n: t for n, t in file.tensors.items() if n.endswith(".weight") and "codebook" not in n}
    rest = {t.type for n, t in file.tensors.items() if n not in convolutions}
    assert rest == {"F32"}
    if kind == "q8_0":  # only rows of whole blocks; the rest keep more bits
        assert {t.type for t in convolutions.values()} == {"Q8_0", "F16"}
        assert all((t.shape[2] % 32 == 0) == (t.type == "Q8_0") for t in convolutions.values())
        assert file.info("dec.model.0.weight").shape == (7, 128, 96)
    else:
        assert {t.type for t in convolutions.values()} == {kind.upper()}
        assert file.info("dec.model.0.weight").shape == (96, 128, 7)


@pytest.mark.parametrize(
    ("source", "twin"), [("tiny_dac.pth", "codec_cpp_dac_pth_f32"), ("tiny_dac_hf", "codec_cpp_dac_hf_f32")]
)
def test_names_and_values_are_those_of_codec_cpp(tmp_path, source, twin):
    ours = converted(FIXTURES / source, tmp_path / "codec.gguf", type="f32")
    theirs = GGUFFile(FIXTURES / f"{twin}.gguf")
    assert set(ours.tensors) == set(theirs.tensors)
    for name in ours.tensors:
        a, b = ours.read(name), theirs.read(name)
        if a.shape != b.shape:
            b = b.transpose(2, 1, 0)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)
    keys = {key for key in theirs.metadata if key.startswith("codec.")}
    assert {key: ours.metadata[key] for key in keys} == {key: theirs.metadata[key] for key in keys}


def test_weight_normalisation_by_hand():
    v = np.array([[[3, 4]], [[0, -2]], [[1, 0]]], np.float32)
    g = np.array([[[10]], [[3]], [[-1]]], np.float32)
    expected = np.array([[[6, 8]], [[0, -3]], [[-1, 0]]], np.float32)
    for names in (("c.weight_g", "c.weight_v"), [f"c.parametrizations.weight.original{i}" for i in (0, 1)]):
        tensors = Tensors(Checkpoint(Path("x"), dict(zip(names, (g, v), strict=True)), {}))
        np.testing.assert_array_equal(tensors.take_conv("c"), expected)
        tensors.finish()


def test_weight_normalisation_of_every_layer(tmp_path, weights):
    file = converted(SMALL, tmp_path / "codec.gguf", type="f32")
    for source, target in (
        ("decoder.model.1.block.1", "dec.model.1.block.conv_t1"),
        ("encoder.block.2.block.1.block.3", "enc.block.2.block.res_unit2.conv2"),
        ("decoder.model.3.block.4.block.1", "dec.model.3.block.res_unit3.conv1"),
        ("quantizer.quantizers.1.out_proj", "vq.q1.out_proj"),
    ):
        g, v = weights.tensors[f"{source}.weight_g"], weights.tensors[f"{source}.weight_v"]
        expected = [[float(g[i, 0, 0]) / math.sqrt(math.fsum(float(x) ** 2 for x in v[i].flat))] for i in range(len(v))]
        expected = v.astype(np.float64) * np.array(expected)[:, :, np.newaxis]
        np.testing.assert_allclose(file.read(f"{target}.weight"), expected, rtol=1e-6, err_msg=target)


def rename(names: dict[str, Any], changes: dict[str, str]) -> dict[str, Any]:
    renamed = {}
    for name, value in names.items():
        for old, new in changes.items():
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed


def test_parametrizations_and_plain_weights_convert_to_the_same(tmp_path, weights):
    expected = converted(SMALL, tmp_path / "expected.gguf", type="f32")
    prefix = ".parametrizations.weight.original"
    weights.tensors = rename(weights.tensors, {r"\.weight_g$": f"{prefix}0", r"\.weight_v$": f"{prefix}1"})
    assert sum(prefix in name for name in weights.tensors) > 50
    converted(weights.save(tmp_path / "new.pth"), tmp_path / "new.gguf", type="f32")
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()

    folded = Tensors(Checkpoint(SMALL, weights.tensors, {}))
    stems = {name.split(".parametrizations")[0] for name in weights.tensors if prefix in name}
    weights.tensors = {name: values for name, values in weights.tensors.items() if prefix not in name}
    weights.tensors.update({f"{stem}.weight": folded.take_conv(stem) for stem in stems})
    plain = converted(weights.save(tmp_path / "plain.pth"), tmp_path / "plain.gguf", type="f32")
    assert list(plain.tensors) == list(expected.tensors)
    for name in plain.tensors:
        np.testing.assert_array_equal(plain.read(name), expected.read(name))


def test_storage_types_and_strides(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    storages = {
        "f32": (values.tobytes(), "FloatStorage"),
        "f64": (values.astype("<f8").tobytes(), "DoubleStorage"),
        "f16": (values.astype("<f2").tobytes(), "HalfStorage"),
        "bf16": ((values.view(np.uint32) >> 16).astype("<u2").tobytes(), "BFloat16Storage"),
        "i64": (values.astype("<i8").tobytes(), "LongStorage"),
    }
    entries: dict[str, Any] = {
        key: tensor(key, 12, (3, 4), (4, 1), kind=Global("torch", kind)) for key, (_, kind) in storages.items()
    }
    entries["transposed"] = tensor("f32", 12, (4, 3), (1, 4))
    entries["part"] = tensor("f32", 12, (2, 2), (4, 1), offset=5)
    entries["row"] = tensor("f32", 12, (3,), (0,), offset=11)
    entries["parameter"] = Call(Global("torch._utils", "_rebuild_parameter"), (entries["f32"], True, {}))
    entries["number"] = 3
    path = write_zip(tmp_path / "w.pth", pickle_file(entries), {key: data for key, (data, _) in storages.items()})
    tensors = load_checkpoint(path).tensors
    assert set(tensors) == set(entries) - {"number"}
    for name in (*storages, "parameter"):
        np.testing.assert_array_equal(tensors[name], values)
    np.testing.assert_array_equal(tensors["transposed"], values.T)
    np.testing.assert_array_equal(tensors["part"], values[1:, 1:3])
    np.testing.assert_array_equal(tensors["row"], [6, 6, 6])


def test_progress_counts_every_tensor(tmp_path):
    seen = []
    file = converted(SMALL, tmp_path / "codec.gguf", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(file.tensors)) for i in range(len(file.tensors))]
    assert len(seen) > 150


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_alone_converts(tmp_path, weights, side):
    weights.tensors = {n: v for n, v in weights.tensors.items() if n.startswith((side, "quantizer"))}
    dac.convert(weights.save(tmp_path / "half.pth"), tmp_path / "half.gguf")
    with Codec.load(tmp_path / "half.gguf", n_threads=1) as codec:
        assert (codec.has_encoder, codec.has_decoder) == (side == "encoder", side == "decoder")


def test_sample_rate_comes_from_argument_checkpoint_or_config(tmp_path, weights):
    assert converted(SMALL, tmp_path / "1.gguf").metadata["codec.sample_rate"] == 24000
    assert converted(SMALL, tmp_path / "2.gguf", sample_rate=16000).metadata["codec.sample_rate"] == 16000
    del weights.kwargs["sample_rate"]
    path = weights.save(tmp_path / "silent.pth")
    refuses(path, f"{path}: does not say its sample rate; give it with --sample-rate")
    assert converted(path, tmp_path / "3.gguf", sample_rate=44100).metadata["codec.sample_rate"] == 44100
    path = weights.save(tmp_path / "bare.pth")
    weights.metadata = {}
    assert converted(weights.save(path), tmp_path / "4.gguf", sample_rate=8000).metadata["codec.sample_rate"] == 8000


@pytest.mark.parametrize("rate", [0, -24000, 999, 400_001, 2**40, 24000.0, "24000", True])
def test_impossible_sample_rates_are_refused(tmp_path, weights, rate):
    weights.kwargs["sample_rate"] = rate
    path = weights.save(tmp_path / "w.pth")
    refuses(path, f"{path}: sample rate is {rate!r}, expected 1000 to 400000 Hz")
    (tmp_path / "out").rmdir()
    refuses(path, f"{path}: sample rate is {rate!r}", sample_rate=rate)


# Checkpoints that contradict themselves


Change = Callable[[Weights], Any]


def kwarg(name: str, value: Any) -> Change:
    return lambda weights: weights.kwargs.update({name: value})


def removed(name: str) -> Change:
    return lambda weights: weights.tensors.pop(name)


def replaced(name: str, values: Any) -> Change:
    return lambda weights: weights.tensors.update({name: np.asarray(values)})


def with_value(name: str, value: float) -> Change:
    def change(weights: Weights) -> None:
        values = weights.tensors[name].copy()
        values.flat[-1] = value
        weights.tensors[name] = values

    return change


def nothing_but_quantizers(weights: Weights) -> None:
    weights.tensors = {n: v for n, v in weights.tensors.items() if n.startswith("quantizer.")}


def many_leftovers(weights: Weights) -> None:
    weights.tensors.update({f"discriminator.{i}": np.ones(1, np.float32) for i in range(7)})


def no_stride(weights: Weights) -> None:
    del weights.kwargs["decoder_rates"]
    name = "decoder.model.2.block.1.weight_v"
    weights.tensors[name] = weights.tensors[name][:, :, :1]


ALPHA, CODEBOOK = "decoder.model.1.block.0.alpha", "quantizer.quantizers.1.codebook.weight"
CONTRADICTIONS = [
    (kwarg("decoder_rates", [8, 5, 4, 4]), "says decoder_rates is [8, 5, 4, 4], but its tensors say [8, 5, 4, 2]"),
    (kwarg("encoder_rates", (2, 4)), "says encoder_rates is (2, 4), but its tensors say [2, 4, 5, 8]"),
    (kwarg("n_codebooks", 9), "says n_codebooks is 9, but its tensors say 2"),
    (kwarg("codebook_size", 512), "says codebook_size is 512, but its tensors say 1024"),
    (kwarg("codebook_dim", "8"), "says codebook_dim is '8', but its tensors say 8"),
    (kwarg("latent_dim", 1024), "says latent_dim is 1024, but its tensors say 48"),
    (kwarg("decoder_dim", 1536), "says decoder_dim is 1536, but its tensors say 32"),
    (kwarg("decoder_dim", tensor("0", 4, (4,), (1,))), "says decoder_dim is "),
    (no_stride, "strides of [8, 0, 4, 2] give a hop of 0, expected 1 to 65536"),
    (kwarg("attention", True), "has model arguments that DAC does not know: attention"),
    (kwarg("zeal", 1), "does not know: zeal"),
    (lambda weights: weights.metadata.update(metadata={"kwargs": [1]}), "its metadata.kwargs is a list"),
    (removed("decoder.model.2.block.1.weight_v"), "tensor 'decoder.model.2.block.1.weight_v' is missing"),
    (removed("decoder.model.6.bias"), "tensor 'decoder.model.6.bias' is missing"),
    (removed(ALPHA), f"tensor '{ALPHA}' is missing"),
    (removed("encoder.block.1.block.2.block.1.bias"), "tensor 'encoder.block.1.block.2.block.1.bias' is missing"),
    (removed("quantizer.quantizers.0.codebook.weight"), "tensor 'quantizer.quantizers.0.codebook.weight' is missing"),
    (removed("quantizer.quantizers.1.in_proj.bias"), "tensor 'quantizer.quantizers.1.in_proj.bias' is missing"),
    (removed(DECODER_BIAS), "tensors left over: decoder.model.0.weight_g, decoder.model.0.weight_v, "),
    (nothing_but_quantizers, "tensors of neither an encoder nor a decoder of DAC"),
    (replaced("extra.thing", np.ones(3, np.float32)), "tensors left over: extra.thing"),
    (replaced("decoder.model.0.weight", np.ones((32, 48, 7), np.float32)), "left over: decoder.model.0.weight"),
    (many_leftovers, "tensors left over: discriminator.0, discriminator.1, discriminator.2, discriminator.3, "
     "discriminator.4 and 2 more"),
    (with_value(ALPHA, np.nan), f"tensor '{ALPHA}' has values that are not finite"),
    (with_value(CODEBOOK, np.inf), f"tensor '{CODEBOOK}' has values that are not finite"),
    (with_value("decoder.model.0.weight_v", -np.inf), "tensor 'decoder.model.0.weight_v' has values that are not"),
    (replaced(DECODER_BIAS, np.full(32, 1e300)), f"tensor '{DECODER_BIAS}' has values that are not finite in float32"),
    (replaced(DECODER_BIAS, np.ones(32, np.int64)), f"tensor '{DECODER_BIAS}' has type int64, expected floating"),
    (replaced("decoder.model.0.weight_v", np.zeros((32, 48, 7), np.float32)),
     "tensor 'decoder.model.0.weight_v' cannot be normalised by 'decoder.model.0.weight_g'"),
    (replaced("decoder.model.0.weight_g", np.ones((31, 1, 1), np.float32)),
     "tensor 'decoder.model.0.weight_v' cannot be normalised by 'decoder.model.0.weight_g'"),
    (replaced(CODEBOOK, np.ones(1024, np.float32)), f"tensor '{CODEBOOK}' has shape (1024,), expected 2 dimensions"),
    (with_value("decoder.model.0.weight_g", 1e6), "tensor 'dec.model.0.weight' has a weight of "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS, ids=[message[:50] for _, message in CONTRADICTIONS])
def test_contradictions_are_named(tmp_path, weights, change, message):
    change(weights)
    assert refuses(weights.save(tmp_path / "w.pth"), message).startswith(f"{tmp_path / 'w.pth'}: ")


def test_agreeing_arguments_are_accepted_in_other_words(tmp_path, weights):
    weights.kwargs.update(encoder_rates=(2, 4, 5, 8), latent_dim=None, quantizer_dropout=0.5)
    file = converted(weights.save(tmp_path / "w.pth"), tmp_path / "w.gguf")
    assert file.metadata["codec.latent_dim"] == 48


def test_two_dimensional_convolutions_are_refused(tmp_path, weights):
    for part in ("g", "v"):
        name = f"decoder.model.0.weight_{part}"
        weights.tensors[name] = weights.tensors[name].reshape(32, -1)
    refuses(weights.save(tmp_path / "w.pth"), "'decoder.model.0.weight_v' has shape (32, 336), expected 3 dim")


def test_weights_too_large_for_a_type():
    with pytest.raises(ConversionError, match=r"tensor 'w' has a weight of 70000, too large for f16; use bf16 or f32"):
        encode_tensor("w", np.array([1, -70000], np.float32), "f16")
    with pytest.raises(ConversionError, match="tensor 'w' has a weight of 1e\\+09, too large for q8_0"):
        encode_tensor("w", np.full(32, 1e9, np.float32), "q8_0")
    for kind in ("f32", "bf16"):
        data, quantization = encode_tensor("w", np.full(32, 1e9, np.float32), kind)
        assert np.isfinite(gguf.quants.dequantize(data, quantization)).all()


def test_unknown_type_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="type 'q4_k' is unknown, expected one of f32, f16, bf16, q8_0"):
        dac.convert(SMALL, tmp_path / "x.gguf", type="q4_k")


# Targets


def test_an_existing_target_needs_force(tmp_path):
    target = tmp_path / "codec.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(ConversionError, match=f"{re.escape(str(target))}: exists already; use --force"):
        dac.convert(SMALL, target)
    assert target.read_bytes() == b"precious"
    dac.convert(SMALL, target, force=True)
    assert GGUFFile(target).metadata["codec.n_q"] == 2
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_in_no_folder_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"nowhere: there is no such folder"):
        dac.convert(SMALL, tmp_path / "nowhere" / "codec.gguf")


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_a_target_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    dac.convert(SMALL, tmp_path / "codec.gguf")
    assert (tmp_path / "codec.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def fail_halfway(target: Path) -> None:
    with atomic_output(target, force=True) as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError


def test_a_failure_leaves_the_old_target(tmp_path):
    target = tmp_path / "codec.gguf"
    target.write_bytes(b"precious")

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dac.convert(SMALL, target, force=True, progress=stop)
    with pytest.raises(ZeroDivisionError):
        fail_halfway(target)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


KILLED = """
import os, signal, sys
import gguf
from vocoder_plugin.converters import dac

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

source, target, when = sys.argv[1:]
if when == "writing":
    gguf.GGUFWriter.write_tensors_to_file = kill
half_way = (lambda done, n: done == n // 2 and kill()) if when == "converting" else None
dac.convert(source, target, force=True, progress=half_way)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("when", ["converting", "writing"])
@pytest.mark.parametrize("old", [None, b"precious"])
def test_a_killed_conversion_does_not_touch_the_target(tmp_path, when, old):
    target = tmp_path / "codec.gguf"
    if old:
        target.write_bytes(old)
    done = subprocess.run([sys.executable, "-c", KILLED, SMALL, target, when], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == old
    assert [path.suffix for path in tmp_path.iterdir() if path != target] == [".partial"]


# Pickles that run code


def shell(sentinel: Path) -> str:
    return f'echo pwned > "{sentinel}"'


def python(sentinel: Path) -> str:
    return f"open({str(sentinel)!r}, 'w').close()"


def imported(module: str, name: str) -> Call:
    return Call(Global("builtins", "getattr"), (Call(Global("importlib", "import_module"), (module,)), name))


LIVE = {  # what plain unpickling would run; each maker gives the value and the global that is refused
    "os.system": lambda path: (Call(Global("os", "system"), (shell(path),)), "os.system"),
    "posix.system": lambda path: (Call(Global(os.name, "system"), (shell(path),)), f"{os.name}.system"),
    "subprocess.check_call": lambda path: (
        Call(Global("subprocess", "check_call"), ((sys.executable, "-c", python(path)),)),
        "subprocess.check_call",
    ),
    "builtins.eval": lambda path: (Call(Global("builtins", "eval"), (python(path),)), "builtins.eval"),
    "builtins.exec": lambda path: (Call(Global("builtins", "exec"), (python(path),)), "builtins.exec"),
    "__builtin__.eval": lambda path: (Call(Global("__builtin__", "eval"), (python(path),)), "__builtin__.eval"),
    "nested": lambda path: (Call(imported("os", "system"), (shell(path),)), "builtins.getattr"),
    "in a tensor's arguments": lambda path: (
        Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            (Call(Global("os", "system"), (shell(path),)), 0, (), (), False, {}),
        ),
        "os.system",
    ),
    "in a storage": lambda path: (
        Persistent(("storage", Call(Global("os", "system"), (shell(path),)), "0", "cpu", 1)),
        "os.system",
    ),
    "in an OrderedDict": lambda path: (
        Call(Global("collections", "OrderedDict"), ((("a", Call(Global("builtins", "eval"), (python(path),))),),)),
        "builtins.eval",
    ),
}


@pytest.mark.parametrize("make", LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("place", ["state_dict", "metadata"])
def test_hostile_pickles_are_refused_without_running(tmp_path, weights, make, place):
    sentinel = tmp_path / "sentinel"
    value, named = make(sentinel)
    content = {"state_dict": {"w": value}, "metadata": {}} if place == "state_dict" else {"metadata": {"x": value}}
    path = write_zip(tmp_path / "evil.pth", pickle_file(content), {"0": bytes(4)})
    refuses(path, f"{path}: refers to {named}, which a plain checkpoint has no use for")
    assert not sentinel.exists()


class Reduced:
    """Pickles itself as a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return eval, (python(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_runs_code(tmp_path, protocol):
    sentinel = tmp_path / "sentinel"
    data = pickle.dumps({"state_dict": {"w": Reduced(sentinel)}}, protocol)
    pickle.loads(data)
    assert sentinel.exists(), "the payload is not live"
    sentinel.unlink()
    path = write_zip(tmp_path / "evil.pth", data, {})
    assert re.search(r"refers to builtins\.eval|__builtin__\.eval|opcode DICT, which", refuses(path, f"{path}: "))
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("opcodes", "named"),
    [
        (b"(ios\nsystem\n.", "has the pickle opcode INST, which torch does not write"),
        (b"(cos\nsystem\nS'%s'\no.", "refers to os.system"),  # OBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'%s'\ntR.", "refers to os.system"),  # STACK_GLOBAL
        (b"\x80\x02cbuiltins\nobject\n(S'%s'\nt\x81.", "refers to builtins.object"),  # NEWOBJ
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "has the pickle opcode NEWOBJ"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0bobject.__eq\x93(S'%s'\ntR.", "refers to builtins.object.__eq"),
        (b"\x80\x02P1\n.", "has the pickle opcode PERSID"),
        (b"\x80\x02\x82\x01.", "has the pickle opcode EXT1"),
    ],
)
def test_no_opcode_finds_a_global(tmp_path, opcodes, named):
    sentinel = tmp_path / "sentinel"
    path = write_zip(tmp_path / "evil.pth", opcodes.replace(b"%s", shell(sentinel).encode()), {})
    refuses(path, f"{path}: {named}")
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "load"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "Size"),
        ("dac.model.dac", "DAC"),
        ("collections", "Counter"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("vocoder_plugin.converters.checkpoint", "pickle"),
    ],
)
def test_globals_beyond_a_handful_are_refused(tmp_path, module, name):
    path = write_zip(tmp_path / "odd.pth", pickle_file({"w": Call(Global(module, name), ())}), {})
    refuses(path, f"{path}: refers to {module}.{name}, ")


# Files that are damaged, or another thing


def zipped(data_pkl: bytes, storages: dict[str, bytes] | None = None) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, data_pkl, storages or {})


def one_tensor(*args: Any, data: bytes = bytes(48), **options: Any) -> Callable[[Path], Path]:
    return zipped(pickle_file({"w": tensor("0", *args, **options)}), {"0": data})


def raw(content: bytes) -> Callable[[Path], Path]:
    return lambda path: path.write_bytes(content) and path


def truncated(path: Path) -> Path:
    path.write_bytes(SMALL.read_bytes()[:-2000])
    return path


def bad_checksum(path: Path) -> Path:
    content = bytearray(SMALL.read_bytes())
    with zipfile.ZipFile(SMALL) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size * entry.filename.split("/")[-1].isdigit())
    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", content, entry.header_offset + 26))
    content[start + entry.file_size // 2] ^= 1
    path.write_bytes(content)
    return path


def missing_storage(path: Path) -> Path:
    with zipfile.ZipFile(SMALL) as archive, zipfile.ZipFile(path, "w") as copy:
        for name in archive.namelist():
            if not name.endswith("data/3"):
                copy.writestr(name, archive.read(name))
    return path


def two_pickles(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle_file({}))
        archive.writestr("b/data.pkl", pickle_file({}))
    return path


LEGACY = b"".join(
    pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"state_dict": {}}, [])
)
DAMAGED = {
    "truncated": (truncated, "neither a safetensors file nor a torch checkpoint"),
    "legacy": (raw(LEGACY), "nor a torch checkpoint (of torch 1.6 or newer)"),
    "bare pickle": (raw(pickle.dumps({"state_dict": {}})), "neither a safetensors file nor"),
    "text": (raw(b"hello"), "neither a safetensors file nor"),
    "empty": (lambda path: path.touch() or path, "neither a safetensors file nor"),
    "missing": (lambda path: path, "there is no such file"),
    "bad checksum": (bad_checksum, "a damaged checkpoint: BadZipFile: Bad CRC-32"),
    "missing storage": (missing_storage, "a damaged checkpoint: KeyError"),
    "two pickles": (two_pickles, "a zip archive, but not a torch checkpoint"),
    "no pickle": (lambda path: write_zip(path, b"", {}, folder="x/y") and path, "a damaged checkpoint: ValueError"),
    "unrelated zip": (
        lambda path: zipfile.ZipFile(path, "w").close() or path,
        "a zip archive, but not a torch checkpoint",
    ),
    "garbage pickle": (zipped(b"\xff\x00garbage"), "a damaged checkpoint: ValueError: at position 0, opcode b"),
    "cut pickle": (zipped(pickle_file({"w": 1})[:-3]), "a damaged checkpoint: "),
    "endless stack": (zipped(b"\x80\x02" + b"(" * 100_000 + b"t."), "expected a dictionary"),
    "list": (zipped(pickle_file([1])), "holds a list, expected a dictionary"),
    "list inside": (zipped(pickle_file({"state_dict": [1]})), "its state_dict is a list, expected a dictionary"),
    "no tensors": (zipped(pickle_file({"epoch": 3})), "holds no tensors"),
    "beyond": (one_tensor(12, (13,), (1,)), "a tensor reaches beyond its storage"),
    "beyond by offset": (one_tensor(12, (3, 4), (4, 1), offset=1), "a tensor reaches beyond its storage"),
    "beyond by stride": (one_tensor(12, (3, 4), (5, 1)), "a tensor reaches beyond its storage"),
    "offset alone": (one_tensor(12, (0,), (1,), offset=13), "a tensor reaches beyond its storage"),
    "stride of 0": (one_tensor(12, (1 << 40,), (0,)), "a tensor reaches beyond its storage"),
    "overflow": (one_tensor(12, (1 << 63, 1 << 63), (1 << 63, 1)), "a tensor reaches beyond its storage"),
    "negative stride": (one_tensor(12, (12,), (-1,), offset=11), "a tensor has an impossible shape"),
    "negative size": (one_tensor(12, (-1,), (1,)), "a tensor has an impossible shape"),
    "negative offset": (one_tensor(12, (1,), (1,), offset=-1), "a tensor has an impossible shape"),
    "ranks differ": (one_tensor(12, (3, 4), (1,)), "a tensor has an impossible shape"),
    "fractional": (one_tensor(12, (1.5,), (1,)), "a tensor has an impossible shape"),
    "short storage": (one_tensor(12, (12,), (1,), data=bytes(44)), "storage '0' has 11 values, expected 12"),
    "long storage": (one_tensor(12, (12,), (1,), data=bytes(52)), "storage '0' has 13 values, expected 12"),
    "odd storage": (one_tensor(12, (12,), (1,), data=bytes(47)), "a damaged checkpoint: ValueError"),
    "storage of no type": (one_tensor(12, (12,), (1,), kind="FloatStorage"), "is not a tensor's storage"),
    "unknown storage": (one_tensor(12, (12,), (1,), kind=Global("torch", "QInt8Storage")), "refers to torch.QInt8"),
    "not a storage": (zipped(pickle_file({"w": Persistent(("module", 1))})), "('module', 1) that is not a tensor's"),
    "storage outside": (zipped(pickle_file({"w": tensor("../../etc", 1, (1,), (1,))})), "damaged checkpoint: KeyError"),
    "tensor of no storage": (
        zipped(pickle_file({"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), (1, 0, (1,), (1,)))})),
        "has a tensor of no storage",
    ),
}


@pytest.mark.parametrize(("make", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_checkpoints_are_refused(tmp_path, make, message):
    path = make(tmp_path / "w.pth")
    assert refuses(path, message).startswith(f"{path}: ")


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    """A megabyte of deflated zeros is a gigabyte of memory."""
    with zipfile.ZipFile(SMALL) as archive, zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
        bomb.writestr("archive/data/zeros", bytes(1 << 20))
    with pytest.raises(ConversionError, match="unpacks to more than its own size"):
        load_checkpoint(tmp_path / "w.pth")


def test_truncation_anywhere_is_refused(tmp_path):
    content = write_zip(tmp_path / "whole.pth", pickle_file({"w": tensor("0", 2, (2,), (1,))}), {"0": bytes(8)})
    whole = content.read_bytes()
    assert list(load_checkpoint(content).tensors) == ["w"]
    path = tmp_path / "cut.pth"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ConversionError, match=re.escape(str(path))):
            load_checkpoint(path)


# Safetensors


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Hugging Face folder to change."""
    path = tmp_path / "hf"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        (path / name).write_bytes((FIXTURES / "tiny_dac_hf" / name).read_bytes())
    return path


def test_safetensors_need_a_sample_rate_from_somewhere(tmp_path, folder):
    (folder / "config.json").unlink()
    refuses(folder, "does not say its sample rate; give it with --sample-rate")
    file = converted(folder / "model.safetensors", tmp_path / "codec.gguf", sample_rate=24000)
    assert file.metadata["codec.sample_rate"] == 24000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json: not valid JSON"),
        (b"\xff\xfe", "config.json: not valid JSON"),
        (b"[" * 100_000, "config.json: not valid JSON"),
        (b"[24000]", "config.json: holds a list, expected a dictionary"),
        (b'"24000"', "config.json: holds a str, expected a dictionary"),
        (b'{"sampling_rate": "24000"}', "sample rate is '24000', expected 1000 to 400000 Hz"),
        (b'{"sampling_rate": 1e400}', "sample rate is inf, expected 1000 to 400000 Hz"),
        (b"{}", "does not say its sample rate"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_configs_are_refused(folder, config, message):
    (folder / "config.json").write_bytes(config)
    assert refuses(folder, message).startswith(str(folder))


def test_a_folder_must_hold_one_safetensors_file(tmp_path, folder):
    (folder / "more.safetensors").write_bytes(b"")
    refuses(folder, f"{folder}: holds 2 safetensors files, expected one")
    empty = tmp_path / "empty" / "folder"
    empty.mkdir(parents=True)
    refuses(empty, f"{empty}: holds 0 safetensors files, expected one")


def header_of(**entries: Any) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header_of(w={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}) + bytes(12),
        header_of(w={"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}) + bytes(16),
        header_of(w={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}) + bytes(16),
        header_of(w={"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}) + bytes(16),
        header_of(w={"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}) + bytes(16),
    ],
)
def test_damaged_safetensors_are_refused(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    assert refuses(folder, "model.safetensors: ").startswith(f"{path}: ")


def test_safetensors_contradictions_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    missing = next(name for name in tensors if "res_unit2.conv1.bias" in name)
    for change, message in (
        (
            {"decoder.conv1.bias": np.full_like(tensors["decoder.conv1.bias"], np.nan)},
            "'decoder.conv1.bias' has values",
        ),
        ({"decoder.conv1.bias": np.ones(96, np.int32)}, "tensor 'decoder.conv1.bias' has type int32"),
        ({"decoder.conv1.bias": np.ones(96, np.uint16)}, "tensor 'decoder.conv1.bias' has type U16"),
        ({"lm_head": np.ones(2, np.float32)}, "tensors left over: lm_head"),
        ({missing: None}, f"tensor '{missing}' is missing"),
    ):
        save_file({name: value for name, value in {**tensors, **change}.items() if value is not None}, path)
        assert str(path) in refuses(folder, message)
        (folder.parent / "out").rmdir()
