"""The native kernels: which of the compiled variants this CPU can run, and their C interface.

The libraries lie beside this file, one an instruction set, built by setup.py where there is a C
compiler. Without them, or when switched off, the portable lowering serves.
"""

from __future__ import annotations

import ctypes
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


def winograd_kernel() -> np.ndarray:
    """G of minimal filtering F(2,7), [8, 7]: a kernel's values at POINTS over Lagrange's denominators."""
    rows = [[x**i / math.prod(x - other for other in POINTS if other != x) for i in range(len(POINTS))] for x in POINTS]
    return np.array([*rows, [0.0] * (len(POINTS) - 1) + [1.0]])


class Conv1dParams(ctypes.Structure):
    """struct vp_conv1d of conv1d.c."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "taps",
            "dilation",
            "stride",
            "vectors",
            "block",
            "together",
            "weight_bytes",
            "elu",
            "zeros",
            "skip_zeros",
            "skip_first",
            "rate",
            "delay",
            *SOURCES,
        )
    ]


class Kernels:
    """One variant, loaded. Stateless apart from per-thread scratch memory; may be shared."""

    def __init__(self, path: Path, lib: Library) -> None:
        self.path = path
        self.name = path.stem
        self._handle = ctypes.CDLL(str(path))
        tensor = lib.bindings["ggml_tensor"]
        offsets = [getattr(tensor, field).offset for field in ("data", "ne", "nb", "src")]
        self._handle.vp_set_layout(Four(*offsets))
        self.lanes, self.most_vectors = int(self._handle.vp_lanes()), int(self._handle.vp_vectors())
        self.conv1d = ctypes.cast(self._handle.vp_conv1d, lib.bindings["ggml_custom_op_t"])
        self.conv1d_single = ctypes.cast(self._handle.vp_conv1d_single, lib.bindings["ggml_custom_op_t"])
        self.conv1d_winograd = ctypes.cast(self._handle.vp_conv1d_winograd, lib.bindings["ggml_custom_op_t"])

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
        """The same as integers of 2 or 1 bytes, with their scales to the address ``scale``; see int16.c."""
        sizes = map(ctypes.c_int32, (vectors * self.lanes, block, weight_bytes))
        arguments = [*_shape_and_strides(weight), *sizes]
        self._handle.vp_pack_integers(ctypes.c_void_p(target), ctypes.c_void_p(scale), *arguments)

    def sine_magnitude(self, out: np.ndarray, x: np.ndarray) -> None:
        """The sine that Snake uses, up to its sign; float32 arrays of a multiple of 16 values."""
        assert x.dtype == out.dtype == np.float32 and x.size == out.size and x.size % 16 == 0
        self._handle.vp_sine_magnitude(
            ctypes.c_void_p(out.ctypes.data), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size)
        )


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
    name = variant if variant in names else next(iter(names), None) if variant is None else None
    return Kernels(FOLDER / f"{name}{SUFFIX}", lib) if name else None
