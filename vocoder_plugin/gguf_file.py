"""Reading GGUF model files that nobody has vouched for.

Every count, length, offset, shape and type is checked against the file before it is used, so that
a truncated or hostile file raises ``ModelFileError`` naming the key or tensor, and nothing larger
than the file is ever allocated on its word. Tensors stay in the file until they are read, which the file must
not change until then. (They are read, not mapped: a mapped file that shrinks ends the process by a signal.)

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import reprlib
import struct
import threading
import weakref
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelFileError
from .files import open_regular

MOST_ENTRIES = 1 << 16  # keys, and tensors; the largest codecs have about a thousand
MOST_NAME = 1 << 10
MOST_VALUES = 1 << 20  # bytes of a string, values of an array
MOST_LISTED = 1 << 21  # values of all arrays together, and bytes / 32 of all texts: lists of them take far more memory
MOST_ALIGNMENT = 1 << 16

SCALARS = {  # GGUF value type -> struct format
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9

# ggml type -> (name, values a block, bytes a block)
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file; ``shape`` in numpy's order (ggml's ne reversed)."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GGUFFile:
    """Metadata and tensors of a GGUF file.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    metadata : dict
        Key -> bool, int, float, str or list of them.
    tensors : dict
        Name -> TensorInfo.

    Raises
    ------
    ModelFileError
        For a file that cannot be read or is not a well-formed GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open_regular(self.path)
        except OSError as error:
            raise ModelFileError(f"cannot be read: {error.strerror}", path=self.path) from None
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)
        self._identity = self._stat()
        self._size = self._identity[0]
        if not self._size:
            raise ModelFileError("the file is empty", path=self.path)
        cursor = _Cursor(self.path, self._file, self._size)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        n_tensors, n_keys = self._read_header(cursor)
        self._read_metadata(cursor, n_keys)
        self._read_tensor_infos(cursor, n_tensors)

    def _fail(self, message: str, *, key: str | None = None, tensor: str | None = None) -> ModelFileError:
        return ModelFileError(message, path=self.path, key=key, tensor=tensor)

    def _read_header(self, cursor: _Cursor) -> tuple[int, int]:
        magic = cursor.take(4, "the magic number")
        if magic != b"GGUF":
            raise self._fail(f"not a GGUF file (starts with {bytes(magic)!r}, expected b'GGUF')")
        version = cursor.scalar("<I", "the version")
        if version not in (2, 3):
            raise self._fail(f"GGUF version {version} is not supported (expected 2 or 3, little-endian)")
        n_tensors = cursor.scalar("<Q", "the tensor count")
        n_keys = cursor.scalar("<Q", "the key count")
        for what, count in (("tensors", n_tensors), ("keys", n_keys)):
            if count > MOST_ENTRIES:
                raise self._fail(f"claims {count} {what}, more than the {MOST_ENTRIES} allowed")
        return n_tensors, n_keys

    def _read_metadata(self, cursor: _Cursor, n_keys: int) -> None:
        for index in range(n_keys):
            key = cursor.text(f"key {index}", most=MOST_NAME)
            if key in self.metadata:
                raise self._fail(f"key {key!r} occurs twice")
            kind = cursor.scalar("<I", f"the type of key {key!r}")
            self.metadata[key] = cursor.value(kind, f"key {key!r}")

    def _read_tensor_infos(self, cursor: _Cursor, n_tensors: int) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
            shown = reprlib.repr(alignment)
            raise self._fail(f"key 'general.alignment' is {shown}, expected a power of two from 8 to {MOST_ALIGNMENT}")
        found = []
        for index in range(n_tensors):
            name = cursor.text(f"the name of tensor {index}", most=MOST_NAME)
            what = f"tensor {name!r}"
            n_dims = cursor.scalar("<I", what)
            if not 1 <= n_dims <= 4:
                raise self._fail(f"{what} has {n_dims} dimensions, expected 1 to 4")
            ne = [cursor.scalar("<Q", what) for _ in range(n_dims)]
            kind = cursor.scalar("<I", what)
            offset = cursor.scalar("<Q", what)
            found.append((name, ne, kind, offset))
        start = -(-cursor.position // alignment) * alignment
        checked: dict[str, TensorInfo] = {}
        end_before, last = 0, "the header"
        for name, ne, kind, offset in sorted(found, key=lambda entry: entry[3]):
            if name in checked:
                raise self._fail(f"tensor {name!r} occurs twice")
            info = checked[name] = self._checked_tensor(name, ne, kind, offset, start, alignment)
            if info.offset - start < end_before:
                raise self._fail(f"tensor {name!r} overlaps {last!r}")
            end_before, last = info.offset - start + info.nbytes, name
        for name, *_ in found:
            self.tensors[name] = checked[name]

    def _checked_tensor(
        self, name: str, ne: list[int], kind: int, offset: int, start: int, alignment: int
    ) -> TensorInfo:
        if kind not in TENSOR_TYPES:
            raise self._fail(f"tensor {name!r} has type {kind}, which is unknown or not supported")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        count = 1
        for dimension in ne:
            count *= dimension
        if not 0 < count <= self._size * 8:
            raise self._fail(f"tensor {name!r} has an impossible shape {ne}")
        if ne[0] % block:
            raise self._fail(
                f"tensor {name!r}: rows of {ne[0]} values do not divide into {type_name} blocks of {block}"
            )
        nbytes = count // block * block_bytes
        if offset % alignment:
            raise self._fail(f"tensor {name!r} lies at offset {offset}, not a multiple of {alignment}")
        if start + offset + nbytes > self._size:
            raise self._fail(
                f"tensor {name!r} needs bytes up to {start + offset + nbytes}, "
                f"but the file ends at {self._size}: is it truncated?"
            )
        return TensorInfo(name, type_name, tuple(reversed(ne)), start + offset, nbytes)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A metadata value of that type (int, float, bool or str); ModelFileError if absent or of another."""
        value = self.metadata.get(key, default)
        if value is None:
            raise self._fail(f"key {key!r} is missing", key=key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._fail(f"key {key!r} is {reprlib.repr(value)}, expected {kind.__name__}", key=key)
        return value

    def info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise self._fail(f"tensor {name!r} is missing", tensor=name) from None

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32 in numpy's order; ModelFileError if the file has changed since it was opened."""
        info = self.info(name)
        raw = np.empty(info.nbytes, np.uint8)
        try:
            got = self._read_at(info.offset, raw.data)
            same = got == info.nbytes and self._stat() == self._identity
        except OSError as error:
            raise self._fail(f"tensor {name!r} cannot be read: {error.strerror}", tensor=name) from None
        if not same:
            raise self._fail("the file has changed since it was opened; load it again", tensor=name)
        return dequantize(raw, info.type).reshape(info.shape)

    def _stat(self) -> tuple[int, int]:
        """What changes when the file does: its size, and when it was written to."""
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _read_at(self, offset: int, target: memoryview) -> int:
        """Fill ``target`` from the file; the bytes that there were."""
        done = 0
        while done < len(target):
            if hasattr(os, "preadv"):
                count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            else:
                with self._lock:
                    self._file.seek(offset + done)
                    count = self._file.readinto(target[done:])
            if not count:
                break
            done += count
        return done


class _Cursor:
    """Reads forward through a file, never past its end."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self.path, self.file, self.size, self.position = path, file, size, 0
        self.listed = 0

    def take(self, size: int, what: str) -> bytes:
        if size > self.size - self.position:
            raise ModelFileError(f"the file ends inside {what}: is it truncated?", path=self.path)
        self.position += size
        data = self.file.read(size)
        if len(data) != size:
            raise ModelFileError("the file has changed while it was read", path=self.path)
        return data

    def count_listed(self, values: int, what: str) -> None:
        """Count values that will be kept in lists, and refuse more than memory should hold."""
        self.listed += values
        if self.listed > MOST_LISTED:
            raise ModelFileError(f"{what} brings the arrays and texts beyond what is allowed", path=self.path)

    def scalar(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str, *, most: int = MOST_VALUES) -> str:
        length = self.scalar("<Q", what)
        if length > most:
            raise ModelFileError(f"{what} is {length} bytes long, more than the {most} allowed", path=self.path)
        self.count_listed(length >> 5, what)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFileError(f"{what} is not UTF-8", path=self.path) from None

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._array(what)
        if kind not in SCALARS:
            raise ModelFileError(f"{what} has value type {kind}, which is unknown", path=self.path)
        value = self.scalar(SCALARS[kind], what)
        return bool(value) if kind == BOOL else value

    def _array(self, what: str) -> list[Any]:
        kind = self.scalar("<I", what)
        count = self.scalar("<Q", what)
        if count > MOST_VALUES:
            raise ModelFileError(f"{what} claims {count} values, more than the {MOST_VALUES} allowed", path=self.path)
        self.count_listed(count, what)
        if kind == STRING:
            return [self.text(what) for _ in range(count)]
        if kind not in SCALARS:
            raise ModelFileError(f"{what} is an array of value type {kind}, which is unknown or nested", path=self.path)
        form = SCALARS[kind]
        values = np.frombuffer(self.take(count * struct.calcsize(form), what), form)
        return [bool(v) for v in values] if kind == BOOL else values.tolist()


def dequantize(raw: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of a tensor -> its values as flat float32."""
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        return (blocks[:, 2:].view(np.int8) * scales).reshape(-1)
    import gguf  # knows the rarer types; imported only for them, as it takes as long as all the rest

    quantization = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(raw.reshape(1, -1), quantization).reshape(-1).astype(np.float32, copy=False)
