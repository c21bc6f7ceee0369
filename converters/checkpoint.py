"""Reading torch and safetensors checkpoints as NumPy arrays, without torch.

A ``.pth`` file is a zip archive with a pickle inside. Unpickling runs whatever the file names, so
this reader resolves the handful of globals that rebuild tensors and refuses every other.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pickle
import reprlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from vocoder_plugin.errors import ConversionError

STORAGE_TYPES = {
    "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "<u1",
}  # fmt: skip
SAFETENSORS_TYPES = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "bf16", "I64": "<i8", "I32": "<i4", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and whatever else the checkpoint says about itself."""

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def load_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Read a ``.pth``/``.pt``/``.ckpt`` file, a ``.safetensors`` file or a Hugging Face model folder.

    The ``config.json`` beside a safetensors file becomes its metadata.

    Raises
    ------
    ConversionError
        If there is no such file, or it is not a checkpoint, or not one that is safe to read.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ConversionError(f"{path}: holds {len(found)} safetensors files, expected one")
        path = found[0]
    if not path.exists():
        raise ConversionError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        if zipfile.is_zipfile(path):
            return _load_zip(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from None
    raise ConversionError(f"{path}: neither a safetensors file nor a torch checkpoint (of torch 1.6 or newer)")


# -- safetensors


def _load_safetensors(path: Path) -> Checkpoint:
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{path}: {error}") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in SAFETENSORS_TYPES:
            raise ConversionError(f"{path}: tensor {name!r} has type {entry['dtype']}, which is not supported")
        values = _values(bytes(entry["data"]), SAFETENSORS_TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    config = path.with_name("config.json")
    metadata: dict[str, Any] = {}
    if config.exists():
        try:
            metadata = json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConversionError(f"{config}: not valid JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise ConversionError(f"{config}: holds a {type(metadata).__name__}, expected a dictionary")
    return Checkpoint(path, tensors, metadata)


def _values(data: bytes, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, kind)


# -- torch


class _Storage:
    """Stands for torch's typed storage in a persistent id."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    if not (all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)) and len(shape) == len(stride)):
        raise ValueError("a tensor has an impossible shape")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if math.prod(shape) else offset - 1
    if last >= storage.size or math.prod(shape) > storage.size:  # strides of 0 could make any size of one value
        raise ValueError("a tensor reaches beyond its storage")
    itemsize = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [s * itemsize for s in stride], writeable=False)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


class _Unpickler(pickle.Unpickler):
    """Resolves tensors, storages and OrderedDict, and nothing else."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    }

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        super().__init__(stream)
        self._archive, self._folder, self._path = archive, folder, path
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGE_TYPES:
            return _Storage(STORAGE_TYPES[name])
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise ConversionError(
                f"{self._path}: refers to {module}.{name}, which a plain checkpoint has no use for; "
                "it is refused, since loading it could run code"
            ) from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Storage)):
            raise ConversionError(f"{self._path}: has a reference {reprlib.repr(pid)} that is not a tensor's storage")
        _, storage, key, _, count = pid
        if key not in self._storages:
            values = _values(self._archive.read(f"{self._folder}data/{key}"), storage.kind)
            if values.size != count:
                raise ConversionError(f"{self._path}: storage {key!r} has {values.size} values, expected {count}")
            self._storages[key] = values
        return self._storages[key]


def _load_zip(path: Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:  # torch does not compress
                raise ConversionError(f"{path}: unpacks to more than its own size; save it with torch again")
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ConversionError(f"{path}: a zip archive, but not a torch checkpoint")
            with archive.open(pickles[0]) as stream:
                content = _Unpickler(stream, archive, pickles[0].removesuffix("data.pkl"), path).load()
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle or archive can raise almost anything
        raise ConversionError(f"{path}: a damaged checkpoint: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    nested = content.get("state_dict", content.get("model_state_dict", content))
    if not isinstance(nested, dict):
        raise ConversionError(f"{path}: its state_dict is a {type(nested).__name__}, expected a dictionary")
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise ConversionError(f"{path}: holds no tensors")
    metadata = {str(k): v for k, v in content.items() if k != "state_dict"} if nested is not content else {}
    return Checkpoint(path, tensors, metadata)


class Tensors:
    """Tensors to be taken one by one; what is left at the end is an error.

    ``take_conv`` folds weight normalisation, w = g v / ||v|| with the norm over all axes but the
    first (Salimans and Kingma 2016, as torch's ``weight_norm`` does it), in float64.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self._left = dict(checkpoint.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> np.ndarray:
        try:
            values = self._left.pop(name)
        except KeyError:
            raise ConversionError(f"{self.path}: tensor {name!r} is missing") from None
        if values.dtype.kind != "f":
            raise ConversionError(f"{self.path}: tensor {name!r} has type {values.dtype}, expected floating point")
        if values.size == 0:
            raise ConversionError(f"{self.path}: tensor {name!r} has shape {values.shape}, which holds nothing")
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32)).all()
        if not finite:
            raise ConversionError(f"{self.path}: tensor {name!r} has values that are not finite in float32")
        return values

    def take_conv(self, name: str) -> np.ndarray:
        for g_name, v_name in (
            (f"{name}.weight_g", f"{name}.weight_v"),
            (f"{name}.parametrizations.weight.original0", f"{name}.parametrizations.weight.original1"),
        ):
            if g_name in self:
                g, v = (self.take(n).astype(np.float64) for n in (g_name, v_name))
                norm = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
                if not (norm > 0).all() or g.shape != norm.shape:
                    raise ConversionError(f"{self.path}: tensor {v_name!r} cannot be normalised by {g_name!r}")
                return (g * v / norm).astype(np.float32)
        return self.take(f"{name}.weight").astype(np.float32)

    def finish(self) -> None:
        if self._left:
            names = sorted(self._left)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ConversionError(f"{self.path}: tensors left over: {', '.join(names[:5])}{more}")
