#!/usr/bin/env python3
"""Damages checkpoints of every converter: each must give a codec that loads and runs, or be refused in words.

python tests/fuzz_checkpoints.py --seed 1 --count 20000

Damage knows the structure: tensors, what a checkpoint says of itself, pickles, zip archives, safetensors headers, YAML;
then bytes. A case may take 5 s of processor time, and 10 times its files' size and 200 MB of memory; a refusal is a
VocoderError that leaves nothing behind. The number printed last is the case that ended the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import re
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch_files import FLOAT, Call, Global, Raw, legacy_file, pickle_file, tensor

from vocoder_plugin import Codec, VocoderError
from vocoder_plugin.converters import dac, mimi, wavtokenizer
from vocoder_plugin.converters.checkpoint import load_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
MOST_SECONDS, MOST_TIMES, MOST_BYTES = 5.0, 10, 200 << 20
HANG_SECONDS = 60  # after which a case is taken to wait for something
Rng = np.random.Generator


@dataclass
class Case:
    """A checkpoint as values to damage, and how to convert it."""

    convert: Callable[..., None]
    options: dict[str, Any]
    tensors: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # config.json beside it
    yaml: str | None = None


def moshi_name(name: str) -> str:
    for pattern, new in (
        (r"(enc|dec)oder\.layers\.(\d+)\.", r"\1oder.model.\2."),
        (r"(model\.\d+\.(?:block\.\d\.)?conv)\.", r"\1.conv."),
        (r"(enc|dec)oder_transformer\.layers", r"\1oder_transformer.transformer.layers"),
        (r"quantizer\.semantic\w+?quantizer\.", "quantizer.rvq_first."),
        (r"quantizer\.acoustic\w+?quantizer\.", "quantizer.rvq_rest."),
        (r"(rvq_\w+)\.layers\.(\d+)\.codebook\.embed_sum", r"\1.vq.layers.\2._codebook.embedding_sum"),
        (r"(rvq_\w+)\.layers\.(\d+)\.codebook", r"\1.vq.layers.\2._codebook"),
        (r"mlp\.fc", "linear"), (r"input_layernorm", "norm1"), (r"post_attention_layernorm", "norm2"),
        (r"self_attn_layer_scale", "layer_scale_1"), (r"mlp_layer_scale", "layer_scale_2"),
        (r"self_attn\.o_proj", "self_attn.out_proj"), (r"^downsample\.conv", "downsample.conv.conv.conv"),
        (r"^upsample\.conv", "upsample.convtr.convtr.convtr"),
        (r"decoder\.model\.(2|5|8|11)\.conv\.conv", r"decoder.model.\1.convtr.convtr"),
    ):  # fmt: skip
        name = re.sub(pattern, new, name)
    return name


def as_moshi(tensors: dict[str, Any]) -> dict[str, Any]:
    named = {moshi_name(name): values for name, values in tensors.items()}
    for name in [name for name in named if name.endswith("q_proj.weight")]:
        parts = [named.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        named[name.replace("q_proj.weight", "in_proj_weight")] = np.concatenate(parts)
    return named


def sources() -> dict[str, Callable[[Rng], Case]]:
    """What each converter takes. A codec joins by its line here."""
    paths = ("small_dac.pth", "tiny_dac_hf", "tiny_mimi_hf", "small_wavtokenizer.ckpt")
    pth, hf, kyutai, wav = (load_checkpoint(FIXTURES / path) for path in paths)
    text = (FIXTURES / "small_wavtokenizer.yaml").read_text()
    kwargs = {"metadata": {"kwargs": dict(pth.metadata["metadata"]["kwargs"])}}

    def one(rng: Rng) -> dict[str, Any]:
        return {"type": str(rng.choice(dac.TYPES))}

    def dialect(rng: Rng) -> dict[str, Any]:
        return {**one(rng), "dialect": str(rng.choice(wavtokenizer.DIALECTS)), "gelu": str(rng.choice(["erf", "tanh"]))}

    return {
        "dac": lambda rng: Case(dac.convert, one(rng), dict(pth.tensors), metadata=deepcopy(kwargs)),
        "dac of transformers": lambda rng: Case(dac.convert, one(rng), dict(hf.tensors), config=deepcopy(hf.metadata)),
        "mimi": lambda rng: Case(mimi.convert, one(rng), dict(kyutai.tensors), config=deepcopy(kyutai.metadata)),
        "mimi of moshi": lambda rng: Case(
            mimi.convert, one(rng), as_moshi(kyutai.tensors), config=deepcopy(kyutai.metadata)
        ),
        "wavtokenizer": lambda rng: Case(wavtokenizer.convert, dialect(rng), dict(wav.tensors), yaml=text),
    }


# Values that no checkpoint should say


def nested(depth: int, kind: type, width: int = 2) -> Any:
    value: Any = kind([1])
    for _ in range(depth):
        value = kind([value] * width)
    return value


def hostile(rng: Rng, *, plain: bool) -> Any:
    """A value for a key; ``plain`` ones can be written as JSON and YAML."""
    values: list[Any] = [
        None, True, False, 0, 1, -1, 2, 7, 1 << 31, 1 << 63, -(1 << 70), 10**4000, 0.5, -0.0, 1e300, float("nan"),
        float("inf"), "", "24000", "\x1b[31m", "é" * 3000, [], {}, [8, 5, 4, 4], ["8"], [[8], 5], nested(6, list),
        {"a": {"b": 1}}, int(rng.integers(0, 1 << 20)), float(rng.normal()),
    ]  # fmt: skip
    if not plain:
        values += [
            10**5000, (8, 5), Raw(dags(rng)), tensor("0", 4, (4,), (1,)),
            Call(Global("collections", "OrderedDict"), ()), Raw(bytes(rng.integers(0, 256, 9, np.uint8))),
            Global("torch", "FloatStorage"), b"bytes",
        ]  # fmt: skip
    return values[rng.integers(len(values))]


def dags(rng: Rng) -> bytes:
    """Tuples of tuples of the same, doubling forty times, as value or as key."""
    make = b")q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(40))
    return (make, b"}" + make + b"Ns", b"](" + make + b"h\x28e", make + make)[rng.integers(4)]


# Damage to tensors and to what a checkpoint says


def pick(rng: Rng, items: Any) -> Any:
    items = list(items)
    return items[rng.integers(len(items))] if items else None


def drop(case: Case, rng: Rng) -> None:
    case.tensors.pop(pick(rng, case.tensors), None)


def drop_many(case: Case, rng: Rng) -> None:
    word = pick(rng, re.findall(r"[a-z_]{3,}", pick(rng, case.tensors)))
    case.tensors = {name: values for name, values in case.tensors.items() if str(word) not in name}


def rename(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    new = re.sub(r"\d+", lambda m: str(pick(rng, (int(m[0]) + 1, 99, "٣", -1, 10**30))), name, count=1)
    case.tensors[new if new != name else name + str(pick(rng, ("", ".x", "\x1b[2J", "é" * 400)))] = case.tensors.pop(
        name
    )


def copy(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    case.tensors[re.sub(r"\d+", lambda m: str(int(m[0]) + 1), name)] = case.tensors[name]


def many(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    for i in range(int(rng.integers(1, 300))):
        case.tensors[re.sub(r"\d+", str(i), name)] = case.tensors[name]


def reshape(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    values = case.tensors[name]
    shape = values.shape
    change = rng.integers(8)
    if change == 0:
        values = values.reshape(-1)
    elif change == 1:
        values = values.T
    elif change == 2:
        values = values[np.newaxis]
    elif change == 3 and values.ndim:
        axis = int(rng.integers(values.ndim))
        values = np.take(values, range(max(0, shape[axis] - int(rng.integers(1, 4)))), axis)
    elif change == 4 and values.ndim:
        values = np.concatenate([values, values], int(rng.integers(values.ndim)))
    elif change == 5:
        values = values.reshape(shape + (1,) * (int(rng.integers(1, 64)) - values.ndim))
    elif change == 6 and values.size:
        values = values.reshape(-1)[: int(rng.integers(0, min(8, values.size)))]
    elif change == 7 and values.size:
        values = values.reshape(-1)[0]
    case.tensors[name] = np.asarray(values)


def narrow(case: Case, rng: Rng) -> None:
    """One size everywhere: some of it may fit together again."""
    old = pick(rng, {n for values in case.tensors.values() for n in values.shape if n > 1})
    new = int(pick(rng, (1, 2, old // 2, old - 1, old + 1)) or 0)
    for name, values in case.tensors.items():
        for axis, n in enumerate(values.shape):
            if n == old:
                values = np.take(values, np.arange(new) % n, axis)
        case.tensors[name] = values


def trade(case: Case, rng: Rng) -> None:
    """Rows of one tensor go to another of the same shape: what joins them sees the same sum."""
    by_shape: dict[Any, list[str]] = {}
    for name, values in case.tensors.items():
        by_shape.setdefault(values.shape, []).append(name)
    alike = pick(rng, [names for shape, names in by_shape.items() if len(names) > 1 and shape and shape[0] > 1])
    if alike:
        at = int(rng.integers(len(alike) - 1))
        first, second = case.tensors[alike[at]], case.tensors[alike[at + 1]]
        rows = int(rng.integers(1, len(first)))
        case.tensors[alike[at]] = first[rows:]
        case.tensors[alike[at + 1]] = np.concatenate([second, first[:rows]])


def revalue(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    values = np.array(case.tensors[name])
    extreme = pick(rng, (np.nan, np.inf, -np.inf, 3.4e38, 7e4, 1e-45, 0, 1e300))
    with np.errstate(over="ignore"):
        if values.size and rng.random() < 0.5:
            values.reshape(-1)[int(rng.integers(values.size))] = extreme
        else:
            values = np.full(values.shape, extreme, values.dtype)
    case.tensors[name] = values


def retype(case: Case, rng: Rng) -> None:
    name = pick(rng, case.tensors)
    with np.errstate(all="ignore"):
        case.tensors[name] = case.tensors[name].astype(pick(rng, ("<f8", "<f4", "<i8", "<f2")))


def contradict(case: Case, rng: Rng) -> None:
    for said, plain in ((case.metadata, False), (case.config, True)):
        if said is None or (not said and rng.random() < 0.5):
            continue
        target, key = said, pick(rng, said)
        while isinstance(target.get(key), dict) and target[key] and rng.random() < 0.8:
            target = target[key]
            key = pick(rng, target)
        change = rng.integers(4)
        if change == 0:
            target.pop(key, None)
        elif change == 1:
            target[str(hostile(rng, plain=True))[:500]] = hostile(rng, plain=plain)
        else:
            target[key if key is not None else "metadata"] = hostile(rng, plain=plain)


LINES = [
    '!!int ""', "!!bool x", "2001-99-99", "!!float ''", "!!timestamp x", "!!binary x", "!!set {}", "!!omap 1",
    "!!python/object:os.system x", "!!pairs [1]", "*a", "&x [*x]", "&a &b 1", "{<<: 1}", "? [1]", ".nan", "~", "\x07",
    "&a [1]\n" + "\n".join(f"x{i}: &b{i} [*a, *a]" for i in range(5)), "[" * 5000, "{" * 99, "9" * 5000,
    "0x" + "f" * 9000, "1:" * 900,
]  # fmt: skip


def reword(case: Case, rng: Rng) -> None:
    if case.yaml is None:
        return
    lines = case.yaml.splitlines()
    at = int(rng.integers(len(lines)))
    new = str(pick(rng, [*LINES, hostile(rng, plain=True)]))
    change = rng.integers(4)
    if change == 0:
        lines[at] = lines[at].split(":")[0] + ": " + new
    elif change == 1:
        del lines[at]
    elif change == 2:
        lines[at] = " " * int(rng.integers(9)) + lines[at].strip()
    else:
        lines.insert(at, new)
    case.yaml = "\n".join(lines) * int(pick(rng, (1, 1, 1, 2, 300)))


STRUCTURAL = [
    drop,
    drop_many,
    rename,
    copy,
    many,
    reshape,
    reshape,
    narrow,
    revalue,
    retype,
    contradict,
    contradict,
    reword,
]


# Damage to the encoding


def entries_of(case: Case, rng: Rng, *, damage: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A state dict's calls and storages; damaged ones share, exceed or misname their storages."""
    kinds = {"f": "Float", "d": "Double", "e": "Half", "l": "Long", "B": "Byte", "b": "Char", "?": "Bool", "i": "Int"}
    calls, storages = {}, {}
    shared = damage and rng.random() < 0.2
    bad = pick(rng, case.tensors) if damage else None
    for i, (name, values) in enumerate(case.tensors.items()):
        key = "0" if shared else str(i)
        kind = Global("torch", f"{kinds[values.dtype.char]}Storage")
        arguments = {
            "count": values.size, "size": values.shape, "offset": 0,
            "stride": tuple(s // values.itemsize for s in np.ascontiguousarray(values).strides),
        }  # fmt: skip
        if name == bad:
            said = pick(rng, arguments)
            numbers = (0, 1, -1, 1 << 31, 1 << 62, 1 << 64, 1.5, None, "x", True)
            arguments[said] = tuple(pick(rng, numbers) for _ in range(rng.integers(1, 70)))
            if said in ("count", "offset") and rng.random() < 0.9:
                arguments[said] = arguments[said][0]
            kind = pick(rng, (kind, kind, FLOAT, Global("torch", "BFloat16Storage"), "FloatStorage"))
        calls[name] = tensor(key, **arguments, kind=kind)
        storages.setdefault(key, values.tobytes() * (40 if shared else 1))
    return calls, storages


OPCODES = [
    b"r\0\0\0\x08", b"j\0\0\0\x08", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"(", b")",
    b"}", b"]", b"2", b"0", b"1", b"N", b"\x88", b"t", b"u", b"e", b"s", b"a", b"R", b"b", b"\x81", b"Q", b"\x85",
    b"\x86", b"\x87", b"h\x00", b"q\x00", b".", b"\x94", b"\x93", b"\x97", b"K\x05", b"\x8c\x01a", b"J\xff\xff\xff\xff",
    b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x0c__defaults__)sb", b"ccollections\nOrderedDict\n)R}\x8c\x05itemsNsb",
    b"\x8a\xff" + b"\xff" * 255, b"I9" + b"9" * 5000 + b"\n",
]  # fmt: skip


def zipped(case: Case, rng: Rng, path: Path, *, damage: bool) -> None:
    calls, storages = entries_of(case, rng, damage=damage and rng.random() < 0.5)
    content: Any = {str(pick(rng, ("state_dict", "state_dict", "model_state_dict"))): calls, **case.metadata}
    data = bytearray(pickle_file(content if case.metadata or rng.random() < 0.5 else calls))
    if damage and rng.random() < 0.5:
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(2, len(data)))
            new = (
                dags(rng)
                if rng.random() < 0.2
                else OPCODES[rng.integers(len(OPCODES))] * int(pick(rng, (1, 1, 1, 2000)))
            )
            data[at : at + int(rng.integers(0, 4))] = new
    method = zipfile.ZIP_DEFLATED if damage and rng.random() < 0.1 else zipfile.ZIP_STORED
    odd = rng.integers(30) if damage else -1
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", bytes(data))
        for key, values in storages.items():
            if odd != 0 or rng.random() < 0.99:
                archive.writestr(f"archive/data/{key}", values[:-3] if odd == 1 and rng.random() < 0.01 else values)
        if odd == 2:
            archive.writestr("other/data.pkl", bytes(data))
        elif odd == 3:
            archive.writestr("archive/data/more", bytes(1 << 22), zipfile.ZIP_DEFLATED)
        elif odd == 4:
            archive.comment = bytes(rng.integers(0, 256, 3000, np.uint8))
        elif odd == 5:
            for i in range(3000):
                archive.writestr(f"{i}", b"")


def legacy(case: Case, rng: Rng, path: Path, *, damage: bool) -> None:
    calls, storages = entries_of(case, rng, damage=damage)
    path.write_bytes(legacy_file({"state_dict": calls, **case.metadata}, storages))


def safetensors(case: Case, rng: Rng, path: Path, *, damage: bool) -> None:
    names = {"f": "F32", "d": "F64", "e": "F16", "l": "I64", "B": "U8", "b": "I8", "?": "BOOL", "i": "I32"}
    header, data = {}, bytearray()
    for name, values in case.tensors.items():
        start = len(data)
        data += values.tobytes()
        header[name] = {
            "dtype": names[values.dtype.char], "shape": list(values.shape), "data_offsets": [start, len(data)],
        }  # fmt: skip
    if damage:
        entry = header[pick(rng, header)] if header else {}
        key = pick(rng, ("dtype", "shape", "data_offsets", "more"))
        entry[key] = pick(rng, (
            "BF16", "F8_E4M3", "F4", "X", [0, 1 << 63], [1] * 70, [1 << 64, 0], [-1], [0.5], [], None, [0, 4], [4, 0],
            [1 << 62, 4], [len(data) - 4, len(data)], hostile(rng, plain=True),
        ))  # fmt: skip
    text = json.dumps(header).encode()
    if damage and rng.random() < 0.2:
        text = pick(rng, (b"[" * 9999, text[:-1], b"{}", b"", text + b" " * 999, text.replace(b"F32", b"BF16")))
    length = len(text)
    if damage and rng.random() < 0.1:
        length = int(pick(rng, (0, 1, length - 1, length + 1, 1 << 27, (1 << 63) - 1, (1 << 64) - 1)))
    path.write_bytes(struct.pack("<Q", max(0, length)) + text + data)


def damage_bytes(path: Path, rng: Rng) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 9)):
        ends = len(content) if rng.random() < 0.3 else min(len(content), 40000)  # headers and pickles lie at the start,
        at = int(rng.integers(max(1, ends)))
        if rng.random() < 0.3:
            at = max(0, len(content) - 1 - at % 8000)  # and a zip archive's directory at the end
        change = rng.integers(5)
        if change < 3 and at < len(content):
            content[at] ^= int(rng.integers(1, 256))
        elif change == 3:
            content[at : at + int(rng.integers(9))] = rng.integers(0, 256, rng.integers(9), np.uint8).tobytes()
        elif rng.random() < 0.2:
            del content[at:]
    path.write_bytes(content)


def truncate(path: Path, rng: Rng) -> None:
    with path.open("r+b") as file:  # shorter, or longer by a hole
        file.truncate(int(rng.integers(path.stat().st_size * 2 + 1)))


def write(case: Case, rng: Rng, folder: Path, *, damage: bool) -> Path:
    """The checkpoint in a form of its own or another, and what lies beside it."""
    own = safetensors if case.config is not None else zipped
    form = own if not damage or rng.random() < 0.85 else pick(rng, (safetensors, zipped, legacy))
    path = folder / ("model.safetensors" if form is safetensors else "model.pth")
    form(case, rng, path, damage=damage and rng.random() < 0.4)
    if case.config is not None:
        (folder / "config.json").write_text(json.dumps(case.config))
    if case.yaml is not None:
        (folder / "model.yaml").write_text(case.yaml, encoding="utf-8")
    if damage and rng.random() < 0.2:
        damage_bytes(pick(rng, sorted(folder.iterdir())), rng)
    elif damage and rng.random() < 0.03:
        truncate(pick(rng, sorted(folder.iterdir())), rng)
    return path


# One case, watched


def resident(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) << 10


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """AssertionError if the block takes more time or memory than the files of ``folder`` allow for."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    start = time.process_time()
    yield
    seconds = time.process_time() - start
    assert seconds < MOST_SECONDS, f"took {seconds:.1f} s"
    if peak.exists():
        grown = resident("VmHWM") - before
        assert grown < MOST_TIMES * size + MOST_BYTES, f"took {grown >> 20} MiB for {size} bytes"


def converts(case: Case, source: Path, target: Path) -> str:
    """What became of it, in a word; AssertionError for what must not be."""
    with watched(source.parent):
        try:
            case.convert(source, target, **case.options)
        except VocoderError as error:
            text = str(error)
            assert text.isprintable() and len(text) < 4000, text[:4000]
            assert list(target.parent.iterdir()) == [], "something is left"
            return "refused"
    with Codec.load(target, n_threads=1) as codec, np.errstate(all="ignore"):
        if codec.has_decoder:
            codec.decode(np.zeros((codec.n_codebooks, 2), np.int32))
        if codec.has_encoder:
            codec.encode(np.zeros(codec.hop_length, np.float32), codec.sample_rate)
    return "converted"


def run(seed: int, i: int, makers: dict[str, Callable[[Rng], Case]]) -> str:
    """Case ``i``: which converter, and what became of it."""
    rng = np.random.default_rng((seed, i))
    kind = pick(rng, makers)
    case = makers[kind](rng)
    damage = rng.random() < 0.98
    if damage:
        for _ in range(rng.integers(0, 4)):
            if case.tensors:
                pick(rng, STRUCTURAL)(case, rng)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        (Path(folder) / "out").mkdir()
        source = write(case, rng, Path(folder) / "in", damage=damage)
        outcome = converts(case, source, Path(folder) / "out" / "codec.gguf")
        assert damage or outcome == "converted", "an undamaged one is refused"
    return f"{kind}: {outcome}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--go-on", action="store_true", help="print what failed, and go on")
    arguments = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    makers, outcomes = sources(), Counter[str]()
    for i in range(arguments.first, arguments.first + arguments.count):
        print(f"\r{i}", end="", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            outcomes[run(arguments.seed, i, makers)] += 1
        except Exception as error:
            if not arguments.go_on:
                raise
            outcomes["failed"] += 1
            print(f"\n{i}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    print(f"{arguments.count} checkpoints of seed {arguments.seed}: {dict(sorted(outcomes.items()))}")
    sys.exit(bool(outcomes["failed"]))


if __name__ == "__main__":
    main()
