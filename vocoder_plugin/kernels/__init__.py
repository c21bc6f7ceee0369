"""The native kernels: which of the compiled variants this CPU can run, and their C interface.

The libraries lie beside this file, one an instruction set, built by setup.py where there is a C
compiler. Without them, or when switched off, the portable lowering serves.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.ggml import Library

Four = ctypes.c_int64 * 4
FOLDER = Path(__file__).parent
SUFFIX = ".dll" if sys.platform == "win32" else ".so"
VARIANTS = ("avx512vnni", "avx512", "avx2", "baseline")  # best first
SOURCES = ("weight", "scale", "bias", "chunk", "history", "alpha", "inverse", "skip_chunk", "skip_history", "position")
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity: where winograd.c evaluates kernels of 7
BLOCK_TERMS = 384  # products summed before they join the total: short sums round less, and stay in L1
NARROW_COST = 1.06  # of an output in panels of 2 vectors, against 3
INTEGER_BLOCK_TERMS = 192  # of integers: the more, the coarser they must be for sums to fit 32 bits


class Activation(enum.IntEnum):
    """What a convolution applies to its input; the enum of params.h."""

    NONE, SNAKE, ELU = range(3)


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names]


class Conv1dParams(ctypes.Structure):
    """Of conv1d, conv1d_single and conv1d_winograd; see params.h for this and the others."""

    _fields_ = _integers(
        "taps", "dilation", "stride", "vectors", "block", "together", "weight_bytes", "activation", "zeros",
        "skip_zeros", "skip_first", "rate", "delay", *SOURCES,
    )  # fmt: skip


class NormParams(ctypes.Structure):
    """Of layer_norm, group_norm, gelu, pad and polar."""

    _fields_ = [("epsilon", ctypes.c_float), *_integers("groups", "mode", "left", "right", "taps")]


class AttentionParams(ctypes.Structure):
    """Of pack_attention and attention."""

    _fields_ = [("scale", ctypes.c_float), *_integers("keys", "heads")]


class SlidingAttentionParams(ctypes.Structure):
    """Of sliding_attention; ``offset`` is where this layer's keys begin in a stream's ring, in floats."""

    _fields_ = _integers("heads", "window", "capacity", "offset")


class LstmParams(ctypes.Structure):
    """Of lstm: where its threads meet. Zero before a run and after it."""

    _fields_ = _integers("arrived", "left")


class Kernels:
    """One variant, loaded. Stateless apart from per-thread scratch memory; may be shared.

    The operations are pointers for ``ggml_custom_4d``; the C files say what their sources are.
    """

    conv1d: Any
    conv1d_single: Any
    conv1d_winograd: Any
    layer_norm: Any
    group_norm: Any
    gelu: Any
    pad: Any
    polar: Any
    pack_attention: Any
    attention: Any
    sliding_attention: Any
    lstm: Any

    def __init__(self, path: Path, lib: Library) -> None:
        self.path = path
        self.name = path.stem
        self._handle = ctypes.CDLL(str(path))
        tensor = lib.bindings["ggml_tensor"]
        self._handle.vp_set_layout(Four(*(getattr(tensor, field).offset for field in ("data", "ne", "nb", "src"))))
        self.lanes, self.most_vectors = int(self._handle.vp_lanes()), int(self._handle.vp_vectors())
        self.panel = self.lanes * self.most_vectors
        for name in Kernels.__annotations__:
            setattr(self, name, ctypes.cast(self._handle[f"vp_{name}"], lib.bindings["ggml_custom_op_t"]))

    def block(self, *, together: int, channels: int, integers: bool) -> int:
        """Input channels per block of packed weights: equal blocks of about BLOCK_TERMS products."""
        most = INTEGER_BLOCK_TERMS if integers else max(16, BLOCK_TERMS // together // 8 * 8)
        block = -(-channels // -(-channels // most))
        return -(-block // 8) * 8 if integers else block

    def vectors(self, outputs: int) -> int:
        """Vectors of a panel: as many as the registers hold, unless that leaves much of the last panel empty."""
        wide, narrow = (-(-outputs // (self.lanes * n)) * n for n in (self.most_vectors, 2))
        return 2 if narrow * NARROW_COST < wide else self.most_vectors

    def pack(self, target: int, weight: np.ndarray, *, vectors: int, block: int, together: int) -> None:
        """Pack [phases, out, in, taps] float32 weights to the address ``target``; any strides.

        Output o of phase p becomes output p * out + o. See pack.c for the layout.
        """
        sizes = map(ctypes.c_int32, (vectors * self.lanes, block, together))
        self._handle.vp_pack(ctypes.c_void_p(target), *_shape_and_strides(weight), *sizes)

    def pack_integers(
        self, target: int, scale: int, weight: np.ndarray, *, vectors: int, block: int, weight_bytes: int
    ) -> None:
        """The same as integers of 2 or 1 bytes, with their scales to the address ``scale``; see tile_integers.c."""
        sizes = map(ctypes.c_int32, (vectors * self.lanes, block, weight_bytes))
        targets = ctypes.c_void_p(target), ctypes.c_void_p(scale)
        self._handle.vp_pack_integers(*targets, *_shape_and_strides(weight), *sizes)

    def lstm_floats(self, size: int) -> int:
        """Room for the packed recurrent weights of so many units."""
        return -(-size // self.lanes) * self.lanes * size * 4

    def pack_lstm(self, target: int, weight: np.ndarray) -> None:
        """Pack recurrent weights [4 * size, size] to the address ``target``."""
        weight = np.ascontiguousarray(weight, np.float32)
        source = ctypes.c_void_p(weight.ctypes.data)
        self._handle.vp_pack_lstm(ctypes.c_void_p(target), source, ctypes.c_int64(weight.shape[1]))


def winograd_kernel() -> np.ndarray:
    """G of minimal filtering F(2,7), [8, 7]: a kernel's values at POINTS over Lagrange's denominators."""
    rows = [[x**i / math.prod(x - other for other in POINTS if other != x) for i in range(len(POINTS))] for x in POINTS]
    return np.array([*rows, [0.0] * (len(POINTS) - 1) + [1.0]])


def _shape_and_strides(weight: np.ndarray) -> tuple[Any, ...]:
    assert weight.dtype == np.float32 and weight.ndim == 4
    return ctypes.c_void_p(weight.ctypes.data), Four(*weight.shape), Four(*(stride // 4 for stride in weight.strides))


@functools.cache
def _baseline() -> Any:
    path = FOLDER / f"baseline{SUFFIX}"
    return ctypes.CDLL(str(path)) if path.exists() else None


def available() -> list[str]:
    """Names of the compiled variants that this CPU can run, best first."""
    baseline = _baseline()
    if baseline is None:
        return []
    return [
        name for name in VARIANTS if (FOLDER / f"{name}{SUFFIX}").exists() and baseline.vp_cpu_supports(name.encode())
    ]


@functools.cache
def load(lib: Library, variant: str | None = None) -> Kernels | None:
    """The named variant, by default the best that runs here; None where there is none."""
    names = available()
    if variant is None and names:
        variant = names[0]
    return Kernels(FOLDER / f"{variant}{SUFFIX}", lib) if variant in names else None
