"""Writing GGUF files: types, layouts, and a target that appears only when it is complete."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np

from vocoder_plugin.errors import ConversionError
from vocoder_plugin.files import complete_path

TYPES = ("f32", "f16", "bf16", "q8_0")
LARGEST = {"f16": 65504.0, "q8_0": 127 * 65504.0}  # weights that do not become infinite
MOST_HOP = 1 << 16  # samples
Progress = Callable[[int, int], None]  # tensors done, tensors in all


@contextmanager
def atomic_output(target: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """A path beside ``target`` to write to; it takes the target's place only if nothing raised."""
    target = Path(target)
    if target.exists() and not force:
        raise ConversionError(f"{target} exists already; use --force to overwrite it")
    if not target.parent.is_dir():
        raise ConversionError(f"{target.parent}: there is no such folder")
    with complete_path(target) as partial:
        yield partial


def check_hop(path: Path, rates: Sequence[int]) -> int:
    """The hop length of strides, or ConversionError for one that no codec has."""
    hop = math.prod(rates)
    if not 1 <= hop <= MOST_HOP:
        raise ConversionError(f"{path}: strides of {list(rates)} give a hop of {hop}, expected 1 to {MOST_HOP}")
    return hop


def encode_tensor(name: str, values: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
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
    if largest > LARGEST.get(kind, np.inf):
        raise ConversionError(f"tensor {name!r} has a weight of {largest:g}, too large for {kind}; use bf16 or f32")
    return gguf.quants.quantize(np.ascontiguousarray(values, np.float32), quantization), quantization


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConversionError(f"{what} {value!r} is unknown, expected one of {', '.join(known)}")


def write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Mapping[str, np.ndarray],
    kind_of: Callable[[str, np.ndarray], str],
    progress: Progress | None,
) -> None:
    """Encode every tensor in the type that ``kind_of`` says, then write and close the file."""
    for done, (name, values) in enumerate(tensors.items()):
        data, kind = encode_tensor(name, values, kind_of(name, values))
        writer.add_tensor(name, data, raw_dtype=kind)
        if progress:
            progress(done + 1, len(tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
