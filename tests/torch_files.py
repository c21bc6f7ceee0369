"""Torch's checkpoints put together by hand: the real ones need torch to be made."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: tuple


class Persistent(NamedTuple):
    value: tuple


class Raw(NamedTuple):
    opcodes: bytes


def pickled(value: Any) -> bytes:
    """Pickle opcodes that leave this value on the stack."""
    if isinstance(value, Raw):
        return value.opcodes
    if isinstance(value, Global):
        return b"c%s\n%s\n" % (value.module.encode(), value.name.encode())
    if isinstance(value, Call):
        return pickled(value.function) + pickled(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return pickled(value.value) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(k) + pickled(v) for k, v in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def pickle_file(value: Any) -> bytes:
    return b"\x80\x02" + pickled(value) + b"."


FLOAT = Global("torch", "FloatStorage")


def tensor(key: str, count: int, size: tuple, stride: tuple, *, offset: int = 0, kind: Any = FLOAT) -> Call:
    storage = Persistent(("storage", kind, key, "cpu", count))
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, False, hooks))


def legacy_file(content: Any, storages: dict[str, bytes]) -> bytes:
    """As torch before 1.6 wrote: pickles one after the other, then each storage after its number of values."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = b"".join(struct.pack("<q", len(values) // 4) + values for values in storages.values())
    return head + pickle_file(content) + pickle.dumps(list(storages), 2) + tail


def write_zip(path: Path, data_pkl: bytes, storages: dict[str, bytes], *, folder: str = "archive/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}data.pkl", data_pkl)
        for key, content in storages.items():
            archive.writestr(f"{folder}data/{key}", content)
    return path


def stored(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Call], dict[str, bytes]]:
    """A state dict's entries, and the storages that they refer to."""
    kinds = {"f": FLOAT, "d": Global("torch", "DoubleStorage"), "l": Global("torch", "LongStorage")}
    entries, storages = {}, {}
    for key, (name, values) in enumerate(tensors.items()):
        stride = tuple(math.prod(values.shape[axis + 1 :]) for axis in range(values.ndim))
        entries[name] = tensor(str(key), values.size, values.shape, stride, kind=kinds[values.dtype.char])
        storages[str(key)] = values.tobytes()
    return entries, storages
