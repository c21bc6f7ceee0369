"""Writing GGUF files: types, layouts, and a target that appears only when it is complete and can be loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from vocoder_plugin.codecs.registry import read_model
from vocoder_plugin.errors import ArgumentError, ConversionError, ModelFileError
from vocoder_plugin.files import complete_path
from vocoder_plugin.gguf_file import GGUFFile, TensorInfo

from .wording import shown

TYPES = ("f32", "f16", "bf16", "q8_0")
LARGEST = {  # weights that do not become infinite
    "f32": 3.4028234e38, "bf16": 3.3895314e38, "f16": 65504.0, "q8_0": 127 * 65504.0,
}  # fmt: skip
MOST_HOP = 1 << 16  # samples
Progress = Callable[[int, int], None]  # tensors done, tensors in all


@contextmanager
def atomic_output(target: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """A path beside ``target`` to write to; it takes the target's place only if nothing raised."""
    target = Path(target)
    if target.exists() and not force:
        raise ConversionError("exists already; use --force to overwrite it", path=target)
    if not target.parent.is_dir():
        raise ConversionError("there is no such folder", path=target.parent)
    try:
        with complete_path(target) as partial:
            yield partial
    except OSError as error:  # numpy's do not say why
        reason = error.strerror or f"{error}: is the disk full?"
        raise ConversionError(f"cannot be written: {reason}", path=target) from None


def check_hop(path: Path, rates: Sequence[int]) -> int:
    """The hop length of strides, or ConversionError for one that no codec has."""
    hop = math.prod(rates)
    if not 1 <= hop <= MOST_HOP:
        raise ConversionError(
            f"strides of {list(rates)} give a hop of {shown(hop)}, expected 1 to {MOST_HOP}", path=path
        )
    return hop


def encode_tensor(
    name: str, values: np.ndarray, kind: str, *, source: Path | None = None
) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """Values in one of TYPES. What Q8_0's blocks of 32 do not divide becomes F16."""
    if kind == "q8_0" and values.shape[-1] % 32:
        kind = "f16"
    quantization = {
        "f32": gguf.GGMLQuantizationType.F32,
        "f16": gguf.GGMLQuantizationType.F16,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[kind]
    largest = np.abs(values).max(initial=0)
    if not largest <= LARGEST[kind]:
        remedy = "; use bf16 or f32" if largest <= LARGEST["bf16"] else ""
        message = f"tensor {name!r} has a weight of {largest:g}, too large for {kind}{remedy}"
        raise ConversionError(message, path=source, tensor=name)
    return gguf.quants.quantize(np.ascontiguousarray(values, np.float32), quantization), quantization


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConversionError(f"{what} {value!r} is unknown, expected one of {', '.join(known)}")


def write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Mapping[str, np.ndarray],
    kind_of: Callable[[str, np.ndarray], str],
    progress: Progress | None,
    *,
    source: Path,
    **options: Any,
) -> set[str]:
    """Encode every tensor in the type that ``kind_of`` says, write and close the file, and read it back.

    Parameters
    ----------
    source : Path
        The checkpoint, which errors name.
    **options
        Of loading.

    Returns
    -------
    set of str
        Tensors that loading did not ask for.
    """
    try:
        for done, (name, values) in enumerate(tensors.items()):
            data, kind = encode_tensor(name, values, kind_of(name, values), source=source)
            writer.add_tensor(name, data, raw_dtype=kind)
            if progress:
                progress(done + 1, len(tensors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    finally:
        with suppress(OSError):  # of what is still in a buffer, on a disk that is full
            writer.close()
    path = writer.path
    assert path is not None  # as it was written
    try:
        return verify(path, **options)
    except (ModelFileError, ArgumentError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ConversionError(
            f"gives no codec that could be loaded: {reason}", path=source, key=error.key, tensor=error.tensor
        ) from None


class _Watched(GGUFFile):
    """Remembers the tensors that were asked for."""

    def __init__(self, path: Path) -> None:
        self.asked: set[str] = set()
        super().__init__(path)

    def info(self, name: str) -> TensorInfo:
        self.asked.add(name)
        return super().info(name)


def verify(path: Path, **options: Any) -> set[str]:
    """Check a codec file as loading does, keys and shapes; the names of tensors that it has no use for."""
    file = _Watched(path)
    read_model(file, **options).check()
    return set(file.tensors) - file.asked
