"""Kernels called as ggml calls them, on arrays: without graphs, sessions or lowerings."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vocoder_plugin import kernels
from vocoder_plugin.runtime import ggml

LIB = ggml.library()
VARIANTS = kernels.available()


def tensor(array: np.ndarray) -> Any:
    """The array's memory as ggml sees it: axes in reverse order, any strides."""
    made = LIB.bindings["ggml_tensor"]()
    missing = 4 - array.ndim
    made.data = array.ctypes.data
    made.ne[:] = [*array.shape[::-1], *[1] * missing]
    made.nb[:] = [*array.strides[::-1], *[array.nbytes] * missing]
    return made


def call(
    variant: str, name: str, params: ctypes.Structure, shape: tuple[int, ...], *sources: np.ndarray, threads: int = 1
) -> np.ndarray:
    """One operation, by as many threads at once -> float32 of the shape; what it leaves unwritten is NaN."""
    loaded = kernels.load(LIB, variant)
    assert loaded is not None
    out = np.full(shape, np.nan, np.float32)
    target, tensors = tensor(out), [tensor(source) for source in sources]
    for i, source in enumerate(tensors):
        target.src[i] = ctypes.pointer(source)
    function = getattr(loaded, name)
    with ThreadPoolExecutor(threads) as pool:
        runs = [
            pool.submit(function, ctypes.byref(target), i, threads, ctypes.addressof(params)) for i in range(threads)
        ]
    for run in runs:
        run.result()
    return out


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)
