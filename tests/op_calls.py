"""Operations of forward passes, on arrays: a small pass over a whole clip, by any lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vocoder_plugin import kernels
from vocoder_plugin.net.lowering import Lowering
from vocoder_plugin.net.native import Native
from vocoder_plugin.net.ops import Ops
from vocoder_plugin.net.portable import Portable
from vocoder_plugin.net.weights import Shape, Stored
from vocoder_plugin.runtime import ggml
from vocoder_plugin.runtime.graph import Session
from vocoder_plugin.streams.passes import Pass

LIB = ggml.library()
VARIANTS = kernels.available()
LOWERINGS = [*VARIANTS, "portable"]


def lowering(name: str, precision: str = "float32") -> Lowering:
    if name == "portable":
        return Portable(LIB, LIB.device())
    loaded = kernels.load(LIB, name)
    assert loaded is not None
    return Native(LIB, LIB.device(), loaded, precision=precision)


def run(
    name: str,
    forward: Callable[..., Any],
    *signals: np.ndarray,
    weights: Mapping[str, np.ndarray] | None = None,
    carried: np.ndarray | None = None,
    rate: int = 1,
    threads: int = 2,
    precision: str = "float32",
) -> list[np.ndarray]:
    """``forward(net, *signals)`` of signals [C, T] with ``rate`` samples a frame -> its results, [C', T'] each.

    ``carried``, rows that an earlier chunk gave, are another argument.
    """

    if weights is None:  # there is no memory of no size
        weights = {"unused.weight": np.zeros((1, len(signals[0]), 1)), "unused.bias": np.zeros(1)}

    def head(net: Ops) -> None:
        inputs: list[Any] = [replace(net.rows_in(len(x)), rate=rate) for x in signals]
        if "unused.bias" in weights:
            net.conv1d(inputs[0], "unused", out=1, kernel=1)
        if carried is not None:
            inputs.append(net.carried_in(carried.shape[1], carried.shape[0]))
        results = forward(net, *inputs)
        for y in results if isinstance(results, tuple) else [results]:
            net.rows_out(y)

    def find(key: str, shape: Shape) -> Stored:
        array = weights[key]
        assert array.shape == shape, key
        return Stored(shape, lambda: array.astype(np.float32))

    session = Session(LIB, LIB.device(), n_threads=threads)
    made = Pass("test", session, lowering(name, precision), {"x": head}, find, chunk_frames=1)
    arrays = [np.ascontiguousarray(x.T, np.float32) for x in signals]
    arrays += [] if carried is None else [carried.astype(np.float32)]
    results = made.run_clip("x", signals[0].shape[1], arrays)
    made.close()
    session.close()
    return [y[0].T for y in results]
