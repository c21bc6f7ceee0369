"""GGUF files, well-formed and hostile: what is read from the former, and the words that refuse the latter."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from vocoder_plugin import Codec
from vocoder_plugin.converters import wavtokenizer
from vocoder_plugin.errors import ModelFileError
from vocoder_plugin.gguf_file import TENSOR_TYPES, GGUFFile

FIXTURES = Path(__file__).parent / "fixtures"
CODEC_CPP = sorted(FIXTURES.glob("codec_cpp_dac_*.gguf"))
U8, U32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
F32, F16, Q8_0 = 0, 1, 8


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + items


def packed(value: Any) -> tuple[int, bytes]:
    """A Python value as GGUF value type and bytes."""
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, int):
        return (U32, u32(value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return F32_VALUE, struct.pack("<f", value)
    if isinstance(value, list):
        return ARRAY, array(U32, len(value), b"".join(u32(item) for item in value))
    return STRING, text(value)


class Packer:
    """A GGUF file put together by hand, so that every field of it can lie."""

    def __init__(self, *, magic: bytes = b"GGUF", version: int = 3, n_tensors: int = -1, n_keys: int = -1) -> None:
        self.magic, self.version, self.n_tensors, self.n_keys = magic, version, n_tensors, n_keys
        self.keys: list[bytes] = []
        self.infos: list[bytes] = []
        self.data = bytearray()

    def key(self, name: str | bytes, kind: int, payload: bytes) -> Packer:
        return self.raw_key(text(name) + u32(kind) + payload)

    def raw_key(self, entry: bytes) -> Packer:
        self.keys.append(entry)
        return self

    def tensor(
        self,
        name: str | bytes,
        ne: Iterable[int],
        *,
        kind: int = F32,
        data: bytes | None = None,
        offset: int | None = None,
        n_dims: int | None = None,
    ) -> Packer:
        ne = list(ne)
        if data is None:
            data = bytes(4 * int(np.prod(ne)))
        offset = len(self.data) if offset is None else offset
        n_dims = len(ne) if n_dims is None else n_dims
        self.infos.append(text(name) + u32(n_dims) + b"".join(map(u64, ne)) + u32(kind) + u64(offset))
        self.data += data + bytes(-len(data) % 32)
        return self

    def pack(self) -> bytes:
        counts = [
            len(entries) if claim < 0 else claim
            for claim, entries in ((self.n_tensors, self.infos), (self.n_keys, self.keys))
        ]
        head = self.magic + u32(self.version) + b"".join(map(u64, counts)) + b"".join(self.keys + self.infos)
        return head + bytes(-len(head) % 32) + self.data


def minimal(**header: Any) -> Packer:
    """A few keys of different kinds, and room for more."""
    return (
        Packer(**header)
        .key("a.text", STRING, text("hello"))
        .key("a.number", U32, u32(7))
        .key("a.list", ARRAY, array(U32, 2, u32(1) + u32(2)))
    )


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@dataclass
class Model:
    """A codec file as values to change: what GGUFFile would read, read by the gguf package."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Model:
        reader = gguf.GGUFReader(path)
        metadata = {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")}
        return cls(metadata, {tensor.name: np.array(tensor.data) for tensor in reader.tensors})

    def copy(self) -> Model:
        return Model(dict(self.metadata), dict(self.tensors))

    def pack(self) -> bytes:
        packer = Packer()
        for key, value in self.metadata.items():
            packer.key(key, *packed(value))
        for name, values in self.tensors.items():
            packer.tensor(name, reversed(values.shape), data=np.ascontiguousarray(values, "<f4").tobytes())
        return packer.pack()


@pytest.fixture(scope="module")
def model(small_dac_file) -> Model:
    return Model.read(small_dac_file)


# Well-formed files


@pytest.mark.parametrize(
    ("kind", "form", "values"),
    [
        (0, "<B", [0, 255]),
        (1, "<b", [-128, 127]),
        (2, "<H", [0, 65535]),
        (3, "<h", [-32768, 32767]),
        (4, "<I", [0, 2**32 - 1]),
        (5, "<i", [-(2**31), 2**31 - 1]),
        (6, "<f", [0.5, float("-inf")]),
        (7, "<?", [False, True]),
        (10, "<Q", [0, 2**64 - 1]),
        (11, "<q", [-(2**63), 2**63 - 1]),
        (12, "<d", [0.1, -1e300]),
    ],
)
def test_scalars_and_their_arrays(tmp_path, kind, form, values):
    items = [struct.pack(form, value) for value in values]
    packer = Packer().key("low", kind, items[0]).key("high", kind, items[1])
    packer.key("both", ARRAY, array(kind, 2, b"".join(items))).key("none", ARRAY, array(kind, 0))
    metadata = GGUFFile(written(tmp_path, packer.pack())).metadata
    assert metadata == {"low": values[0], "high": values[1], "both": values, "none": []}
    assert [type(value) for value in (metadata["low"], *metadata["both"])] == [type(values[0])] * 3


def test_strings_and_their_arrays(tmp_path):
    packer = Packer().key("s", STRING, text("käse")).key("empty", STRING, text(""))
    packer.key("list", ARRAY, array(STRING, 3, text("a") + text("") + text("ü")))
    file = GGUFFile(written(tmp_path, packer.pack()))
    assert file.metadata == {"s": "käse", "empty": "", "list": ["a", "", "ü"]}
    assert file.tensors == {}


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_every_tensor_type_is_read_as_the_gguf_package_reads_it(tmp_path, kind):
    name, block, block_bytes = TENSOR_TYPES[kind]
    columns = max(block, 4) * 2
    raw = np.random.default_rng(kind).integers(0, 256, (3, columns // block * block_bytes), np.uint8)
    packer = Packer().tensor("before", [5]).tensor("t", [columns, 3], kind=kind, data=raw.tobytes())
    file = GGUFFile(written(tmp_path, packer.pack()))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
        values = file.read("t")
    assert gguf.GGMLQuantizationType(kind).name == name == file.info("t").type
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("path", CODEC_CPP, ids=lambda path: path.stem)
def test_codec_cpp_files(path):
    file, expected = GGUFFile(path), gguf.GGUFReader(path)
    assert len(file.tensors) == len(expected.tensors) > 150
    for tensor in expected.tensors:
        info = file.info(tensor.name)
        assert (info.type, info.shape) == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
        np.testing.assert_array_equal(file.read(tensor.name), values)
    names = [name for name in expected.fields if not name.startswith("GGUF.")]
    assert file.metadata == {name: expected.fields[name].contents() for name in names}


def test_values_are_given_by_type(tmp_path):
    packer = Packer().key("int", U32, u32(1)).key("bool", BOOL, b"\x01").key("text", STRING, text("x"))
    file = GGUFFile(written(tmp_path, packer.pack()))
    assert (file.get("int", int), file.get("int", float), file.get("bool", bool)) == (1, 1.0, True)
    assert (file.get("text", str), file.get("absent", int, 5)) == ("x", 5)
    for key, kind in (("bool", int), ("bool", float), ("int", bool), ("int", str), ("text", int)):
        with pytest.raises(ModelFileError, match=f"key '{key}' is .*, expected {kind.__name__}"):
            file.get(key, kind)
    with pytest.raises(ModelFileError, match="key 'absent' is missing"):
        file.get("absent", int)
    with pytest.raises(ModelFileError, match="tensor 'absent' is missing"):
        file.read("absent")


def test_a_long_value_is_not_repeated_in_full(tmp_path):
    packer = Packer().key("k", ARRAY, array(U32, 10_000, u32(1) * 10_000))
    with pytest.raises(ModelFileError, match=r"key 'k' is \[1, 1, .*expected int") as caught:
        GGUFFile(written(tmp_path, packer.pack())).get("k", int)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


# Hostile files: each maker takes a value, and the table says which is refused, and which its neighbour is not


def magic(value: bytes) -> bytes:
    return minimal(magic=value).pack()


def version(value: int) -> bytes:
    return minimal(version=value).pack()


def tensor_count(value: int) -> bytes:
    return minimal(n_tensors=value).tensor("t", [4]).pack()


def key_count(value: int) -> bytes:
    return minimal(n_keys=value).pack()


def key_name(entry: bytes) -> bytes:
    return minimal().raw_key(entry + u32(U32) + u32(1)).pack()


def value_type(value: int) -> bytes:
    return minimal().key("k", value, bytes(16)).pack()


def string_value(entry: bytes) -> bytes:
    return minimal().key("k", STRING, entry).pack()


def array_value(entry: bytes) -> bytes:
    return minimal().key("k", ARRAY, entry).pack()


def second_key(name: str) -> bytes:
    return minimal().key(name, U32, u32(1)).pack()


def alignment(value: tuple[int, bytes]) -> bytes:
    return minimal().key("general.alignment", *value).tensor("t", [4]).pack() + bytes(1 << 16)


def tensor_name(entry: bytes) -> bytes:
    packer = minimal().tensor("", [4])
    packer.infos[0] = entry + packer.infos[0][8:]
    return packer.pack()


def second_tensor(name: str) -> bytes:
    return minimal().tensor("t", [4]).tensor(name, [4]).pack()


def n_dims(value: int) -> bytes:
    return minimal().tensor("t", [2] * value, data=bytes(128)).pack()


def dims(ne: list[int]) -> bytes:
    return minimal().tensor("t", ne, data=bytes(1024)).pack()


def tensor_type(kind: int) -> bytes:
    return minimal().tensor("t", [256], kind=kind, data=bytes(1024)).pack()


def q8_0_row(n: int) -> bytes:
    return minimal().tensor("t", [n, 32], kind=Q8_0, data=bytes(32 * 34 * 2)).pack()


def offset(value: int) -> bytes:
    return minimal().tensor("before", [4]).tensor("t", [4], offset=value).pack()


def neighbour_size(n: int) -> bytes:
    return minimal().tensor("big", [n], data=bytes(32)).tensor("t", [4]).pack()


def shortened(by: int) -> bytes:
    packer = minimal().tensor("t", [8])
    return packer.pack()[: -by or None]


def byte_order(order: str) -> bytes:
    return b"GGUF" + struct.pack(order + "IQQ", 3, 0, 3) + minimal().pack()[24:]


def refused(make: Callable[[Any], bytes], hostile: Any, legal: Any, message: str) -> Any:
    return pytest.param(make, hostile, legal, message, id=f"{make.__name__}-{str(hostile)[:24]}")


HOSTILE = [
    refused(magic, b"GGUG", b"GGUF", "not a GGUF file (starts with b'GGUG'"),
    refused(magic, b"GGML", b"GGUF", "not a GGUF file"),
    refused(magic, b"PK\x03\x04", b"GGUF", "not a GGUF file"),
    refused(magic, b"FUGG", b"GGUF", "not a GGUF file"),
    refused(byte_order, ">", "<", "GGUF version 50331648 is not supported"),
    refused(version, 0, 3, "GGUF version 0 is not supported"),
    refused(version, 1, 2, "GGUF version 1 is not supported"),
    refused(version, 4, 3, "GGUF version 4 is not supported"),
    refused(version, 2**32 - 1, 3, "GGUF version 4294967295 is not supported"),
    refused(tensor_count, 2, 1, "tensor '' has 0 dimensions"),
    refused(tensor_count, 65537, 1, "claims 65537 tensors, more than the 65536 allowed"),
    refused(tensor_count, 2**64 - 1, 1, "claims 18446744073709551615 tensors"),
    refused(key_count, 65537, 3, "claims 65537 keys, more than the 65536 allowed"),
    refused(key_count, 2**63, 3, "claims 9223372036854775808 keys"),
    refused(key_count, 5, 3, "the file ends inside"),
    refused(key_name, u64(2**63) + b"k", text("k"), "key 3 is 9223372036854775808 bytes long, more than the 1024"),
    refused(key_name, u64(2**64 - 1) + b"k", text("k"), "key 3 is 18446744073709551615 bytes long"),
    refused(key_name, text("k" * 1025), text("k" * 1024), "key 3 is 1025 bytes long"),
    refused(key_name, u64(1000) + b"k", text("k"), "the file ends inside key 3"),
    refused(key_name, text(b"k\xff"), text("ÿ"), "key 3 is not UTF-8"),
    refused(key_name, text(b"\xc3"), text(b"\xc3\xa9"), "key 3 is not UTF-8"),
    refused(value_type, 13, U32, "key 'k' has value type 13, which is unknown"),
    refused(value_type, 2**32 - 1, U32, "key 'k' has value type 4294967295"),
    refused(string_value, u64(1 << 20) + b"x", text("x"), "the file ends inside key 'k'"),
    refused(string_value, u64(2**63) + b"x", text("x"), "key 'k' is 9223372036854775808 bytes long"),
    refused(string_value, u64(2**64 - 1) + b"x", text("x"), "key 'k' is 18446744073709551615 bytes long"),
    refused(string_value, text(b"\xf5ok"), text("ok"), "key 'k' is not UTF-8"),
    refused(string_value, text(b"\xed\xa0\x80"), text("\ud7ff"), "key 'k' is not UTF-8"),
    refused(array_value, array(U32, 1000), array(U32, 0), "the file ends inside key 'k'"),
    refused(array_value, array(U64, 2**61 + 1, u64(0)), array(U64, 1, u64(0)), "key 'k' claims 2305843009213693953"),
    refused(array_value, array(U8, 2**64 - 1), array(U8, 0), "key 'k' claims 18446744073709551615"),
    refused(array_value, array(STRING, 2**60), array(STRING, 0), "key 'k' claims 1152921504606846976"),
    refused(array_value, array(STRING, 100), array(STRING, 0), "the file ends inside key 'k'"),
    refused(array_value, array(STRING, 1, u64(99)), array(STRING, 1, text("x")), "the file ends inside key 'k'"),
    refused(array_value, array(STRING, 1, text(b"\x80")), array(STRING, 1, text("x")), "key 'k' is not UTF-8"),
    refused(array_value, array(ARRAY, 1, array(U8, 1, b"x")), array(U8, 1, b"x"), "'k' is an array of value type 9"),
    refused(array_value, array(13, 1, u64(0)), array(U64, 1, u64(0)), "key 'k' is an array of value type 13"),
    refused(second_key, "a.number", "b", "key 'a.number' occurs twice"),
    refused(alignment, (U32, u32(0)), (U32, u32(32)), "key 'general.alignment' is 0"),
    refused(alignment, (U32, u32(3)), (U32, u32(8)), "key 'general.alignment' is 3"),
    refused(alignment, (U32, u32(48)), (U32, u32(64)), "key 'general.alignment' is 48"),
    refused(alignment, (U32, u32(1 << 31)), (U32, u32(1 << 16)), "key 'general.alignment' is 2147483648"),
    refused(alignment, (5, struct.pack("<i", -32)), (5, struct.pack("<i", 32)), "key 'general.alignment' is -32"),
    refused(alignment, (STRING, text("32")), (U64, u64(32)), "key 'general.alignment' is '32'"),
    refused(alignment, (F32_VALUE, struct.pack("<f", 32)), (U8, b"\x20"), "key 'general.alignment' is 32.0"),
    refused(alignment, (BOOL, b"\x01"), (U8, b"\x20"), "key 'general.alignment' is True"),
    refused(tensor_name, u64(2**63), text("t"), "the name of tensor 0 is 9223372036854775808 bytes long"),
    refused(tensor_name, text("t" * 1025), text("t" * 1024), "the name of tensor 0 is 1025 bytes long"),
    refused(tensor_name, text(b"\xfe"), text("þ"), "the name of tensor 0 is not UTF-8"),
    refused(second_tensor, "t", "u", "tensor 't' occurs twice"),
    refused(n_dims, 0, 1, "tensor 't' has 0 dimensions"),
    refused(n_dims, 5, 4, "tensor 't' has 5 dimensions"),
    refused(dims, [0], [1], "tensor 't' has an impossible shape [0]"),
    refused(dims, [8, 0], [8, 1], "tensor 't' has an impossible shape [8, 0]"),
    refused(dims, [2**32, 2**32], [16, 16], "tensor 't' has an impossible shape"),
    refused(dims, [2**63, 2, 2, 2], [2, 2, 2, 2], "tensor 't' has an impossible shape"),
    refused(dims, [2**64 - 1, 2**64 - 1], [1, 1], "tensor 't' has an impossible shape"),
    refused(dims, [2**62], [256], "tensor 't' has an impossible shape"),
    refused(dims, [257], [256], "tensor 't' needs bytes up to"),
    refused(tensor_type, 4, F32, "tensor 't' has type 4, which is unknown or not supported"),
    refused(tensor_type, 31, 30, "tensor 't' has type 31"),
    refused(tensor_type, 26, F16, "tensor 't' has type 26"),
    refused(tensor_type, 2**32 - 1, 12, "tensor 't' has type 4294967295"),
    refused(q8_0_row, 33, 32, "tensor 't': rows of 33 values do not divide into Q8_0 blocks of 32"),
    refused(q8_0_row, 1, 64, "tensor 't': rows of 1 values"),
    refused(offset, 33, 32, "tensor 't' lies at offset 33, not a multiple of 32"),
    refused(offset, 48, 32, "tensor 't' lies at offset 48"),
    refused(offset, 64, 32, "tensor 't' needs bytes up to"),
    refused(offset, 2**63, 32, "tensor 't' needs bytes up to"),
    refused(offset, 2**64 - 32, 32, "tensor 't' needs bytes up to 18446744073709"),
    refused(offset, 0, 32, "overlaps"),
    refused(neighbour_size, 9, 8, "tensor 't' overlaps 'big'"),
    refused(shortened, 1, 0, "tensor 't' needs bytes up to"),
    refused(shortened, 32, 0, "tensor 't' needs bytes up to"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "hostile", "legal", "message"), HOSTILE)
def test_hostile_files_are_refused_and_their_neighbours_read(tmp_path, make, hostile, legal, message):
    file = GGUFFile(written(tmp_path, make(legal)))
    assert (file.metadata["a.text"], file.metadata["a.number"], file.metadata["a.list"]) == ("hello", 7, [1, 2])
    path = written(tmp_path, make(hostile))
    with pytest.raises(ModelFileError, match=re.escape(message)) as caught:
        GGUFFile(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_every_prefix_of_a_file_is_refused(tmp_path):
    packer = minimal().key("k", ARRAY, array(STRING, 2, text("ab") + text("c")))
    content = packer.tensor("t", [4, 2], kind=F16, data=bytes(16)).tensor("u", [8]).pack()
    assert set(GGUFFile(written(tmp_path, content)).tensors) == {"t", "u"}
    for size in range(len(content)):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(content[:size])
        with pytest.raises(ModelFileError, match=r"truncated|is empty") as caught:
            GGUFFile(path)
        assert str(path) in str(caught.value)


PARTS = [
    (b"GGUF", "the magic number"),
    (u32(3), "the version"),
    (u64(1), "the tensor count"),
    (u64(2), "the key count"),
    (text("a.key"), "key 0"),
    (u32(STRING), "the type of key 'a.key'"),
    (text("value"), "key 'a.key'"),
    (text("a.list"), "key 1"),
    (u32(ARRAY), "the type of key 'a.list'"),
    (u32(U32), "key 'a.list'"),
    (u64(2), "key 'a.list'"),
    (u64(0), "key 'a.list'"),
    (text("t"), "the name of tensor 0"),
    (u32(1), "tensor 't'"),
    (u64(8), "tensor 't'"),
    (u32(F32), "tensor 't'"),
    (u64(0), "tensor 't'"),
]


@pytest.mark.parametrize("index", range(len(PARTS)))
def test_what_a_truncated_file_lacks_is_named(tmp_path, index):
    before = b"".join(part for part, _ in PARTS[:index])
    part, message = PARTS[index]
    with pytest.raises(ModelFileError, match=f"the file ends inside {re.escape(message)}: is it truncated"):
        GGUFFile(written(tmp_path, before + part[:-1]))


def test_what_is_no_file_is_refused(tmp_path):
    empty = written(tmp_path, b"")
    with pytest.raises(ModelFileError, match=f"{re.escape(str(empty))}: the file is empty"):
        GGUFFile(empty)
    with pytest.raises(ModelFileError, match=f"{re.escape(str(tmp_path))}: cannot be read"):
        GGUFFile(tmp_path)
    with pytest.raises(ModelFileError, match=r"missing\.gguf: cannot be read: No such file"):
        Codec.load(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="cannot be read"):
        GGUFFile("nul\0byte")


def huge_u8_array() -> Packer:
    return minimal().key("k", ARRAY, array(U8, 63 << 20))


def huge_bool_array() -> Packer:
    return minimal().key("k", ARRAY, array(BOOL, 63 << 20))


def huge_string_array() -> Packer:
    return minimal().key("k", ARRAY, array(STRING, 7 << 20))


def huge_string() -> Packer:
    return minimal().key("k", STRING, u64(63 << 20))


def many_keys() -> Packer:
    return minimal(n_keys=65536)


def many_tensors() -> Packer:
    return minimal(n_tensors=65536)


def huge_tensor() -> Packer:
    return minimal().tensor("k", [1 << 32], data=bytes(32))


def huge_overflowing_tensor() -> Packer:
    return minimal().tensor("k", [1 << 63, 1 << 63], data=bytes(32))


@pytest.mark.parametrize(
    "make",
    [
        huge_u8_array,
        huge_bool_array,
        huge_string_array,
        huge_string,
        many_keys,
        many_tensors,
        huge_tensor,
        huge_overflowing_tensor,
    ],
)
def test_headers_cannot_make_the_reader_allocate(tmp_path, make):
    path = written(tmp_path, make().pack())
    with open(path, "r+b") as file:
        file.truncate(64 << 20)  # a hole: costs nothing on disk, but the counts fit the file's size
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=r"'k'|key|tensor") as caught:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < len(str(path)) + 300


# Well-formed GGUF files that lie about the codec


Change = Callable[[Model], None]
CONV_T1, OUT_PROJ_1 = "dec.model.1.block.conv_t1.weight", "vq.q1.out_proj"


def named(change: Change, name: str) -> Change:
    change.__name__ = name
    return change


def key(name: str, value: Any) -> Change:
    return named(lambda model: model.metadata.update({name: value}), f"{name}={str(value)[:20]}")


def no_key(name: str) -> Change:
    return named(lambda model: model.metadata.pop(name), f"no {name}")


def no_tensor(name: str) -> Change:
    return named(lambda model: model.tensors.pop(name), f"no {name}")


def shape(name: str, *sizes: int) -> Change:
    return named(lambda model: model.tensors.update({name: np.zeros(sizes, np.float32)}), f"{name}={sizes}")


def all_of(*changes: Change) -> Change:
    def change(model: Model) -> None:
        for one in changes:
            one(model)

    return named(change, ", ".join(one.__name__ for one in changes))


def decoder_only(model: Model) -> None:
    model.tensors = {k: v for k, v in model.tensors.items() if not k.startswith("enc.") and ".in_proj." not in k}
    model.metadata["codec.has_encoder"] = False


def encoder_only(model: Model) -> None:
    model.tensors = {k: v for k, v in model.tensors.items() if not k.startswith("dec.")}
    model.metadata["codec.has_decoder"] = False


def neither(model: Model) -> None:
    decoder_only(model)
    encoder_only(model)


def reversed_layout(model: Model) -> None:
    for name, values in model.tensors.items():
        if name.endswith(".weight") and values.ndim == 3:
            model.tensors[name] = values.transpose(2, 1, 0)


def half_reversed_layout(model: Model) -> None:
    straight = model.tensors[CONV_T1]
    reversed_layout(model)
    model.tensors[CONV_T1] = straight


def flat_alphas(model: Model) -> None:
    for name, values in model.tensors.items():
        if name.endswith(".alpha"):
            model.tensors[name] = values.reshape(-1)


def strides(*sizes: int) -> Change:
    def change(model: Model) -> None:
        del model.metadata["codec.hop_size"]
        for i, size in enumerate(sizes, 1):
            model.tensors[f"dec.model.{i}.block.conv_t1.weight"] = np.zeros((64 >> i, 32 >> i, 2 * size), np.float32)
            model.tensors[f"enc.block.{i}.block.conv1.weight"] = np.zeros((4 << i, 2 << i, 2 * size), np.float32)

    return named(change, f"strides {sizes}")


def nine_blocks(model: Model) -> None:
    for i in range(5, 10):
        model.tensors[f"dec.model.{i}.block.conv_t1.weight"] = np.zeros((2, 1, 4), np.float32)


def wide_decoder(model: Model) -> None:
    model.tensors["dec.model.0.weight"] = np.zeros((1 << 15, 1, 7), np.float32)
    model.tensors["dec.model.0.bias"] = np.zeros(1 << 15, np.float32)


def wide_encoder(model: Model) -> None:
    model.tensors["enc.block.0.weight"] = np.zeros((1 << 11, 1, 7), np.float32)
    model.tensors["enc.block.0.bias"] = np.zeros(1 << 11, np.float32)


LIES = [
    (no_key("general.architecture"), "key 'general.architecture' is missing"),
    (key("general.architecture", "encodec"), "architecture 'encodec' is not supported"),
    (key("general.architecture", 3), "key 'general.architecture' is 3, expected str"),
    (key("general.name", [1, 2]), "key 'general.name' is [1, 2], expected str"),
    (no_key("codec.sample_rate"), "key 'codec.sample_rate' is missing"),
    (key("codec.sample_rate", "24000"), "key 'codec.sample_rate' is '24000', expected int"),
    (key("codec.sample_rate", True), "key 'codec.sample_rate' is True, expected int"),
    (key("codec.sample_rate", 24000.0), "key 'codec.sample_rate' is 24000.0, expected int"),
    (key("codec.sample_rate", [24000]), "key 'codec.sample_rate' is [24000], expected int"),
    (key("codec.sample_rate", 0), "key 'codec.sample_rate' is 0, expected 1000 to 400000"),
    (key("codec.sample_rate", 2**31), "key 'codec.sample_rate' is 2147483648, expected 1000 to 400000"),
    (key("codec.sample_rate", -24000), "key 'codec.sample_rate' is -24000, expected 1000 to 400000"),
    (no_key("codec.n_q"), "key 'codec.n_q' is missing"),
    (key("codec.n_q", 0), "key 'codec.n_q' is 0, expected 1 to 64"),
    (key("codec.n_q", 2**32 - 1), "key 'codec.n_q' is 4294967295, expected 1 to 64"),
    (key("codec.n_q", 3), "tensor 'vq.q2.codebook.weight' is missing"),
    (key("codec.n_q", 1), "key 'codec.n_q' is 1, but there is a tensor 'vq.q1.codebook.weight'"),
    (no_key("codec.codebook_size"), "key 'codec.codebook_size' is missing"),
    (key("codec.codebook_size", 1023), "key 'codec.codebook_size' is 1023, expected 1024, as the tensors say"),
    (key("codec.codebook_size", 2**31), "key 'codec.codebook_size' is 2147483648, expected 1024"),
    (key("codec.codebook_dim", 16), "key 'codec.codebook_dim' is 16, expected 8, as the tensors say"),
    (key("codec.latent_dim", 1024), "key 'codec.latent_dim' is 1024, expected 48, as the tensors say"),
    (key("codec.hop_size", 640), "key 'codec.hop_size' is 640, expected 320, as the tensors say"),
    (key("codec.has_encoder", 1), "key 'codec.has_encoder' is 1, expected bool"),
    (all_of(decoder_only, key("codec.has_encoder", True)), "tensor 'enc.block.1.block.conv1.weight' is missing"),
    (all_of(encoder_only, key("codec.has_decoder", True)), "tensor 'dec.model.0.weight' is missing"),
    (neither, "holds neither an encoder nor a decoder"),
    (no_tensor("dec.model.0.weight"), "tensor 'dec.model.0.weight' is missing"),
    (no_tensor("dec.model.0.bias"), "tensor 'dec.model.0.bias' is missing"),
    (no_tensor("dec.model.2.block.res_unit2.conv1.weight"),
     "tensor 'dec.model.2.block.res_unit2.conv1.weight' is missing"),
    (no_tensor("dec.model.4.block.conv_t1.bias"), "tensor 'dec.model.4.block.conv_t1.bias' is missing"),
    (no_tensor("dec.model.3.block.res_unit1.snake2.alpha"),
     "tensor 'dec.model.3.block.res_unit1.snake2.alpha' is missing"),
    (no_tensor("dec.model.5.alpha"), "tensor 'dec.model.5.alpha' is missing"),
    (no_tensor(CONV_T1), f"tensor '{CONV_T1}' is missing"),
    (no_tensor("enc.block.6.bias"), "tensor 'enc.block.6.bias' is missing"),
    (no_tensor("vq.q0.codebook.weight"), "tensor 'vq.q0.codebook.weight' is missing"),
    (no_tensor("vq.q1.codebook.weight"), "tensor 'vq.q1.codebook.weight' is missing"),
    (no_tensor("vq.q0.in_proj.weight"), "tensor 'vq.q0.in_proj.weight' is missing"),
    (no_tensor("vq.q1.in_proj.bias"), "tensor 'vq.q1.in_proj.bias' is missing"),
    (no_tensor("vq.q1.out_proj.bias"), "tensor 'vq.q1.out_proj.bias' is missing"),
    (shape("dec.model.2.block.res_unit1.conv1.weight", 8, 8, 9),
     "tensor 'dec.model.2.block.res_unit1.conv1.weight' has shape (8, 8, 9), expected (8, 8, 7)"),
    (shape("dec.model.2.block.res_unit1.conv2.bias", 9),
     "tensor 'dec.model.2.block.res_unit1.conv2.bias' has shape (9,), expected (8,)"),
    (shape("dec.model.5.alpha", 1, 3, 1), "tensor 'dec.model.5.alpha' has shape (3,), expected (2,)"),
    (shape("dec.model.6.weight", 2, 2, 7), "tensor 'dec.model.6.weight' has shape (2, 2, 7), expected (1, 2, 7)"),
    (shape("enc.block.0.weight", 4, 2, 7), "tensor 'enc.block.0.weight' has shape (4, 2, 7), expected (4, 1, 7)"),
    (shape("enc.block.3.block.conv1.weight", 32, 15, 10),
     "tensor 'enc.block.3.block.conv1.weight' has shape (32, 15, 10)"),
    (shape("vq.q1.codebook.weight", 1024, 7), "tensor 'vq.q1.codebook.weight' has shape (1024, 7), expected (1024, 8)"),
    (shape("vq.q1.codebook.weight", 512, 16), "tensor 'vq.q1.codebook.weight' has shape (512, 16)"),
    (shape("vq.q0.codebook.weight", 8192), "key 'codec.codebook_size' is 1024, expected 8192"),
    (shape("vq.q0.in_proj.weight", 8, 47, 1), "key 'codec.latent_dim' is 48, expected 47"),
    (shape("vq.q1.in_proj.weight", 8, 47, 1),
     "tensor 'vq.q1.in_proj.weight' has shape (8, 47, 1), expected (8, 48, 1)"),
    (shape(OUT_PROJ_1 + ".weight", 47, 8, 1),
     f"tensor '{OUT_PROJ_1}.weight' has shape (47, 8, 1), expected (48, 8, 1)"),
    (shape(OUT_PROJ_1 + ".weight", 48, 8, 3), f"tensor '{OUT_PROJ_1}.weight' has shape (48, 8, 3)"),
    (shape(OUT_PROJ_1 + ".bias", 47), f"tensor '{OUT_PROJ_1}.bias' has shape (47,), expected (48,)"),
    (all_of(decoder_only, shape("vq.q0.out_proj.weight", 48, 7, 1), shape(OUT_PROJ_1 + ".weight", 48, 9, 1)),
     "tensor 'vq.q0.out_proj.weight' has shape (48, 7, 1), expected (48, 8, 1)"),
    (shape("dec.model.1.block.res_unit1.conv2.weight", 2, 8, 16, 1),
     "tensor 'dec.model.1.block.res_unit1.conv2.weight' has shape (2, 8, 16, 1), expected 3 dimensions"),
    (shape("dec.model.1.block.res_unit1.conv2.weight", 16, 16),
     "tensor 'dec.model.1.block.res_unit1.conv2.weight' has shape (1, 16, 16), expected (16, 16, 1)"),
    (shape("dec.model.0.weight", 32, 336), "tensor 'dec.model.0.weight' has shape (32, 336)"),
    (shape("dec.model.0.weight", 32, 48, 5), "tensor 'dec.model.0.weight' has shape (32, 48, 5)"),
    (shape("dec.model.0.weight", 32, 47, 7), "tensor 'dec.model.0.weight' has shape (32, 47, 7), expected (32, 48, 7)"),
    (shape(CONV_T1, 32, 16, 15), f"tensor '{CONV_T1}' has kernel 15, expected twice a stride"),
    (shape(CONV_T1, 32, 16, 66), f"tensor '{CONV_T1}' has kernel 66, expected twice a stride"),
    (shape(CONV_T1, 32, 16, 2), f"tensor '{CONV_T1}' has kernel 2, expected twice a stride"),
    (shape("enc.block.4.block.conv1.weight", 64, 32, 1), "tensor 'enc.block.4.block.conv1.weight' has kernel 1"),
    (all_of(no_key("codec.hop_size"), shape(CONV_T1, 32, 16, 8)),
     "encoder rates (2, 4, 5, 8) and decoder rates (4, 5, 4, 2) differ in product"),
    (strides(32, 32, 32, 32), "a frame has 1048576 samples, more than 65536"),
    (half_reversed_layout, "key 'codec.hop_size' is 320, expected 640"),
    (nine_blocks, "9 strided convolutions, expected 1 to 8"),
    (wide_decoder, "the decoder has 32768 channels, more than 16384"),
    (wide_encoder, "the encoder has 32768 channels, more than 16384"),
    (all_of(shape("dec.model.0.weight", 40, 48, 7), shape("dec.model.0.bias", 40)),
     "40 decoder channels cannot be halved 4 times"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), LIES, ids=[change.__name__ for change, _ in LIES])
def test_codec_files_that_lie_are_refused(tmp_path, model, change, message):
    lying = model.copy()
    change(lying)
    path = written(tmp_path, lying.pack())
    GGUFFile(path)
    with pytest.raises(ModelFileError, match=re.escape(message)) as caught:
        Codec.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "change",
    [
        no_key("general.name"),
        key("general.name", ""),
        no_key("codec.codebook_dim"),
        no_key("codec.latent_dim"),
        no_key("codec.hop_size"),
        no_key("codec.has_encoder"),
        no_key("codec.has_decoder"),
        key("codec.sample_rate", 16000),
        key("something.else", [1, 2, 3]),
        shape("something.else", 3),
        decoder_only,
        encoder_only,
        reversed_layout,
        flat_alphas,
    ],
    ids=lambda change: change.__name__,
)
def test_legal_variants_give_the_same(tmp_path, model, small_dac, change):
    legal = model.copy()
    change(legal)
    codes = np.arange(12).reshape(2, 6) * 80
    audio = np.sin(np.arange(960) / 9, dtype=np.float32)
    with Codec.load(written(tmp_path, legal.pack()), n_threads=1) as codec:
        assert (codec.has_encoder, codec.has_decoder) == (change is not decoder_only, change is not encoder_only)
        assert codec.name in ("DAC", "DAC 24 kHz")
        if codec.has_decoder:
            np.testing.assert_allclose(codec.decode(codes), small_dac.decode(codes), atol=1e-6)
        if codec.has_encoder:
            np.testing.assert_array_equal(codec.encode(audio, codec.sample_rate), small_dac.encode(audio, 24000))


def huge_scales(model: Model) -> None:
    for name, values in model.tensors.items():
        model.tensors[name] = np.full_like(values, 3e38)


def not_a_number(model: Model) -> None:
    for name, values in model.tensors.items():
        model.tensors[name] = np.full_like(values, np.nan)


def zeros(model: Model) -> None:
    for name, values in model.tensors.items():
        model.tensors[name] = np.zeros_like(values)


@pytest.mark.parametrize("kernels", [None, "off"])
@pytest.mark.parametrize("change", [huge_scales, zeros])
def test_no_weight_crashes_a_pass(tmp_path, model, change, kernels):
    odd = model.copy()
    change(odd)
    with (
        Codec.load(written(tmp_path, odd.pack()), n_threads=1, kernels=kernels) as codec,
        np.errstate(all="ignore"),
    ):
        assert codec.decode(np.zeros((2, 2), int)).size == codec.decoded_length(2)
        codes = codec.encode(np.ones(640, np.float32), codec.sample_rate)
        assert codes.shape == (2, 2)
        assert codes.min() >= 0
        assert codes.max() < codec.codebook_size


@pytest.mark.parametrize("precision", ["float32", "int16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, model, precision, value):
    """Integers would make sound of them, and floats silence without a word."""
    odd = model.copy()
    odd.tensors["dec.model.0.weight"] = odd.tensors["dec.model.0.weight"].copy()
    odd.tensors["dec.model.0.weight"][0, 0, 0] = value
    with Codec.load(written(tmp_path, odd.pack()), n_threads=1, precision=precision) as codec:
        with pytest.raises(ModelFileError, match="not finite") as caught:
            codec.decode(np.zeros((2, 2), int))
        assert caught.value.tensor == "dec.model.0.weight"
        assert caught.value.path is not None


CHANGES = {
    "shorter": "os.truncate(path, 100)",
    "overwritten": "open(path, 'r+b').write(b'x' * 1000)",
    "gone": "os.remove(path)",
    "replaced": "os.replace(shutil.copy(path, path + '2'), path)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_under_its_codec(tmp_path, change):
    """Weights are read when they are first needed: a file that has changed by then is refused, without a signal."""
    path = shutil.copy(FIXTURES / "codec_cpp_dac_hf_f32.gguf", tmp_path / "model.gguf")
    code = (
        "import os, shutil, sys, numpy as np\n"
        "from vocoder_plugin import Codec, ModelFileError\n"
        "path = sys.argv[1]\n"
        "codec = Codec.load(path, n_threads=2)\n"
        f"{CHANGES[change]}\n"
        "try: print('decoded', codec.decode(np.zeros((2, 4), int)).size)\n"
        "except ModelFileError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    still_there = change in ("gone", "replaced")  # the open file is the one that was loaded
    assert ("decoded 1272" if still_there else "has changed since it was opened") in done.stdout


def test_random_damage_is_refused_or_survived(tmp_path, small_dac_file, small_wavtokenizer_file):
    """Of every codec and dialect; see the script for longer runs."""
    llama = tmp_path / "llama.gguf"
    wavtokenizer.convert(FIXTURES / "small_wavtokenizer.ckpt", llama, dialect="llama")
    sources = [small_dac_file, small_wavtokenizer_file, llama, FIXTURES / "codec_cpp_mimi_hf_f16.gguf"]
    script = Path(__file__).with_name("fuzz_gguf.py")
    done = subprocess.run(
        [sys.executable, script, "--seed", "1", "--count", "300", *sources], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (files|refused|loaded)", done.stdout)}
    assert counts["files"] == 1200 == counts["refused"] + counts["loaded"]
    assert counts["refused"] > 600
    assert counts["loaded"] > 100
