"""The C interface of sliding-window attention (window.c)."""

from __future__ import annotations

import ctypes

from ..runtime.ggml import Library
from . import Kernels


class WindowParams(ctypes.Structure):
    """struct vp_window_attention of window.c."""

    _fields_ = [(name, ctypes.c_int32) for name in ("heads", "window", "capacity", "layer")]


class WindowKernels:
    """Kernels of one loaded variant as ggml custom operations."""

    def __init__(self, lib: Library, kernels: Kernels) -> None:
        custom = lib.bindings["ggml_custom_op_t"]
        self.attention = ctypes.cast(kernels._handle.vp_window_attention, custom)
