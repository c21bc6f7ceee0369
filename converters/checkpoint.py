"""Reading torch and safetensors checkpoints as NumPy arrays, without torch.

Work and memory are bounded by the size of the file, whatever it says.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vocoder_plugin.errors import ConversionError
from vocoder_plugin.files import open_regular

from .torch_pickle import PickleError, StorageType, unpickled
from .wording import described, listed, plain, shown

SAFETENSORS_TYPES = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "bf16", "I64": "<i8", "I32": "<i4", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip
MOST_BYTES = 1 << 33  # four times the largest training checkpoint
MOST_TEXT = 1 << 22  # bytes of a pickle, a header or a configuration: ten times those of the largest
MOST_TENSORS = 1 << 14


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
            raise ConversionError(f"holds {len(found)} safetensors files, expected one", path=path)
        path = found[0]
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise ConversionError(f"has {size} bytes, more than the {MOST_BYTES} of any checkpoint", path=path)
            if path.suffix == ".safetensors":
                checkpoint = Checkpoint(path, _safetensors(path, file, size), _config(path.with_name("config.json")))
            elif zipfile.is_zipfile(file):
                checkpoint = _torch(path, file, size)
            else:
                known = "neither a safetensors file nor a torch checkpoint (of torch 1.6 or newer)"
                raise ConversionError(known, path=path)
    except FileNotFoundError:
        raise ConversionError("there is no such file", path=path) from None
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror or error}", path=path) from None
    except MemoryError:
        raise ConversionError("needs more memory than there is", path=path) from None
    if len(checkpoint.tensors) > MOST_TENSORS:
        raise ConversionError(f"has {len(checkpoint.tensors)} tensors, more than {MOST_TENSORS}", path=path)
    held = sum(values.size for values in checkpoint.tensors.values())
    if held > size:  # tensors may share a storage, as tied weights do, but not without end
        raise ConversionError(f"its tensors have {held} values, in a file of {size} bytes", path=path)
    return checkpoint


def _safetensors(path: Path, file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    import safetensors

    header = int.from_bytes(file.read(8), "little")
    if not 0 < header <= min(size - 8, MOST_TEXT):
        raise ConversionError(f"not a safetensors file: its header would have {header} bytes", path=path)
    file.seek(0)
    tensors = {}
    try:
        entries = safetensors.deserialize(file.read())
        for name, entry in sorted(entries, key=lambda pair: pair[0]):  # they come in any order
            if entry["dtype"] not in SAFETENSORS_TYPES:
                raise ConversionError(
                    f"tensor {shown(name)} has type {entry['dtype']}, which is not supported", path=path, tensor=name
                )
            tensors[name] = _values(entry["data"], SAFETENSORS_TYPES[entry["dtype"]]).reshape(entry["shape"])
    except safetensors.SafetensorError as error:
        raise ConversionError(plain(str(error)), path=path) from None
    except (ValueError, OverflowError):
        raise ConversionError(f"tensor {shown(name)} has an impossible shape", path=path, tensor=name) from None
    return tensors


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"not valid JSON: {error}", path=path) from None
    if not isinstance(config, dict):
        raise ConversionError(f"holds a {type(config).__name__}, expected a dictionary", path=path)
    return config


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """A text file of at most so many bytes. Raises OSError and UnicodeDecodeError."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ConversionError(f"has more than the {most} bytes of any configuration", path=path)
    return content.decode("utf-8")


def _values(data: bytes | bytearray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, kind)


def _torch(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    """A zip archive with a pickle inside, and the storages of its tensors, which torch does not compress."""
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ConversionError("unpacks to more than its own size; save it with torch again", path=path)
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ConversionError("a zip archive, but not a torch checkpoint", path=path)
            if pickles[0].file_size > MOST_TEXT:
                raise ConversionError(f"its pickle has more than {MOST_TEXT} bytes", path=path)
            folder = pickles[0].filename.removesuffix("data.pkl")
            content = unpickled(archive.read(pickles[0]), _Storages(archive, folder))
    except PickleError as error:
        raise ConversionError(str(error), path=path) from None
    except (ConversionError, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged archive can raise almost anything
        raise ConversionError(f"a damaged checkpoint: {described(error)}", path=path) from None
    if not isinstance(content, dict):
        raise ConversionError(f"holds a {type(content).__name__}, expected a dictionary", path=path)
    nested = content.get("state_dict", content.get("model_state_dict", content))
    if not isinstance(nested, dict):
        raise ConversionError(f"its state_dict is a {type(nested).__name__}, expected a dictionary", path=path)
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise ConversionError("holds no tensors", path=path)
    metadata = {str(k): v for k, v in content.items() if k != "state_dict"} if nested is not content else {}
    return Checkpoint(path, tensors, metadata)


class _Storages:
    """What torch's persistent ids stand for, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[str, tuple[StorageType, np.ndarray]] = {}

    def __call__(self, pid: Any) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], StorageType)):
            raise PickleError(f"has a reference {shown(pid)} that is not a tensor's storage")
        _, storage, key, _, count = pid
        if not isinstance(key, str):
            raise PickleError(f"has a storage {shown(key)}, expected a name")
        if key not in self._read:
            self._read[key] = storage, _values(self._archive.read(f"{self._folder}data/{key}"), storage.kind)
        read_as, values = self._read[key]
        if read_as != storage:
            raise PickleError(f"storage {shown(key)} is of two types")
        if values.size != count:
            raise PickleError(f"storage {shown(key)} has {values.size} values, expected {shown(count)}")
        return values


class Tensors:
    """Tensors to be taken one by one, as float32; what is left at the end is an error.

    ``take_conv`` folds weight normalisation, w = g v / ||v|| with the norm over all axes but the
    first (Salimans and Kingma 2016, as torch's ``weight_norm`` does it), in float64.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self._left = dict(checkpoint.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *, ndim: int | None = None) -> np.ndarray:
        values = self._stored(name).astype(np.float32, copy=False)
        if ndim not in (None, values.ndim):
            raise self._refusal(name, f"has shape {values.shape}, expected {ndim} dimensions")
        return values

    def take_conv(self, name: str) -> np.ndarray:
        weight = f"{name}.weight"
        for g_name, v_name in (
            (f"{weight}_g", f"{weight}_v"),
            (f"{name}.parametrizations.weight.original0", f"{name}.parametrizations.weight.original1"),
        ):
            if g_name in self:
                g, v = (self._stored(n).astype(np.float64) for n in (g_name, v_name))
                if v.ndim != 3:
                    raise self._refusal(v_name, f"has shape {v.shape}, expected 3 dimensions")
                norm = np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
                if not (norm > 0).all() or g.shape != norm.shape:
                    raise self._refusal(v_name, f"cannot be normalised by {g_name!r}")
                with np.errstate(over="ignore"):
                    return (g * v / norm).astype(np.float32)
        return self.take(weight, ndim=3)

    def conv(self, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
        """Weight and bias of a convolution under its name in the file."""
        yield f"{target}.weight", self.take_conv(source)
        yield f"{target}.bias", self.take(f"{source}.bias")

    def finish(self) -> None:
        if self._left:
            raise ConversionError(f"tensors left over: {listed(self._left)}", path=self.path)

    def _stored(self, name: str) -> np.ndarray:
        if name not in self._left:
            raise self._refusal(name, "is missing")
        values = self._left.pop(name)
        if values.dtype.kind != "f":
            raise self._refusal(name, f"has type {values.dtype}, expected floating point")
        if values.size == 0:
            raise self._refusal(name, f"has shape {values.shape}, which holds nothing")
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(np.float32, copy=False)).all():
                raise self._refusal(name, "has values that are not finite in float32")
        return values

    def _refusal(self, name: str, message: str) -> ConversionError:
        return ConversionError(f"tensor {name!r} {message}", path=self.path, tensor=name)
