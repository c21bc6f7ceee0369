"""The C interface of the kernels that whole-clip codecs need beside convolutions."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..runtime.ggml import Library
from . import Kernels

KINDS = ("gelu", "tanh_gelu", "elu", "exp", "sin", "cos", "tanh", "sigmoid")  # the order of clip.c


class ClipParams(ctypes.Structure):
    """struct vp_clip of clip.c."""

    _fields_ = [("epsilon", ctypes.c_float)] + [
        (name, ctypes.c_int32) for name in ("groups", "mode", "left", "right", "taps")
    ]


class AttentionParams(ctypes.Structure):
    """struct vp_attention of attention.c."""

    _fields_ = [("scale", ctypes.c_float), ("keys", ctypes.c_int32)]


class LstmParams(ctypes.Structure):
    """struct vp_lstm of lstm.c: where its threads meet."""

    _fields_ = [("arrived", ctypes.c_int32), ("left", ctypes.c_int32)]


class ClipKernels:
    """Kernels of one loaded variant as ggml custom operations."""

    def __init__(self, lib: Library, kernels: Kernels) -> None:
        self._handle = kernels._handle
        self.panel = kernels.lanes * kernels.most_vectors
        self.lanes = kernels.lanes
        for name in ("layer_norm", "group_norm", "gelu", "pad", "polar", "pack_attention", "attention", "lstm"):
            setattr(self, name, ctypes.cast(getattr(self._handle, f"vp_{name}"), lib.bindings["ggml_custom_op_t"]))

    def __getattr__(self, name: str) -> Any:  # declared for the type checker; never reached for an operation
        raise AttributeError(name)

    def lstm_floats(self, size: int) -> int:
        return -(-size // self.lanes) * self.lanes * size * 4

    def pack_lstm(self, target: int, weight: np.ndarray) -> None:
        """Pack recurrent weights [4 * size, size] to the address ``target``."""
        weight = np.ascontiguousarray(weight, np.float32)
        self._handle.vp_pack_lstm(
            ctypes.c_void_p(target), ctypes.c_void_p(weight.ctypes.data), ctypes.c_int64(weight.shape[1])
        )

    def map(self, kind: str, x: np.ndarray) -> np.ndarray:
        """One of KINDS applied to float32 values, a multiple of 16 of them: for measuring the functions."""
        assert x.dtype == np.float32 and x.size % 16 == 0
        out = np.empty_like(x)
        self._handle.vp_map(
            ctypes.c_void_p(out.ctypes.data), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size),
            ctypes.c_int32(KINDS.index(kind)),
        )  # fmt: skip
        return out
