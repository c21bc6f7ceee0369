"""Large pages for ggml's memory on the CPU, which Linux often gives only to those who ask.

A stream that decodes frame by frame reads every weight for each frame: with pages of 4 KiB, half of
that time goes to finding pages.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from .ggml import Library

SMALLEST = 4 << 20  # bytes; a large page has 2 MiB


def advise(lib: Library, buffer: int) -> None:
    """Ask for large pages under a buffer that was not written yet. Does nothing where there is none to ask."""
    if not sys.platform.startswith("linux") or not lib.ggml_backend_buffer_is_host(buffer):
        return
    size = lib.ggml_backend_buffer_get_size(buffer)
    if size < SMALLEST:
        return
    base = lib.ggml_backend_buffer_get_base(buffer)
    start = -(-base // mmap.PAGESIZE) * mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(start, (base + size - start) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
