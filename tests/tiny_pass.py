"""Passes over heads given as functions, with weights from a dictionary: a codec's streams without a codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from vocoder_plugin import kernels
from vocoder_plugin.net.lowering import Lowering
from vocoder_plugin.net.native import Native
from vocoder_plugin.net.ops import Ops
from vocoder_plugin.net.plan import Head
from vocoder_plugin.net.portable import Portable
from vocoder_plugin.net.signal import FIRST, LAST, MIDDLE, WHOLE, Signal
from vocoder_plugin.net.weights import Shape, Stored
from vocoder_plugin.runtime import ggml
from vocoder_plugin.runtime.graph import Session
from vocoder_plugin.streams.passes import Pass

LIB = ggml.library()
VARIANTS = kernels.available()
LOWERINGS = [*VARIANTS, "portable"]


def lowering(name: str, *, precision: str = "float32") -> Lowering:
    """``portable``, or native with a variant of the kernels."""
    device = LIB.device()
    if name == "portable":
        return Portable(LIB, device)
    loaded = kernels.load(LIB, name)
    assert loaded is not None
    return Native(LIB, device, loaded, precision=precision)


@contextmanager
def tiny_pass(
    name: str,
    heads: Mapping[str, Head],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    chunk_frames: int = 24,
    threads: int = 2,
    precision: str = "float32",
) -> Iterator[Pass]:
    """A pass on one lowering; weights in torch's layouts."""

    def find(tensor: str, shape: Shape) -> Stored:
        array = (weights or {})[tensor]
        assert array.shape == shape, (tensor, array.shape, shape)
        return Stored(shape, lambda: array.astype(np.float32))

    session = Session(LIB, LIB.device(), n_threads=threads)
    pass_ = Pass("tiny", session, lowering(name, precision=precision), heads, find, chunk_frames=chunk_frames)
    try:
        yield pass_
    finally:
        session.close()
        pass_.close()


def signal_in(net: Ops, channels: int, rate: int) -> Signal:
    """An input of several channels and samples a frame, such as no codec has but every layer may."""
    return net._rows_input(channels, net.frames * rate, rate)


def whole(pass_: Pass, head: str, frames: int, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The first output of a clip, [T, C]; inputs are [rows, C]."""
    return streamed(pass_, head, frames, [inputs], [])[0]


def streamed(
    pass_: Pass, head: str, frames: int, inputs: Sequence[Sequence[np.ndarray]], cuts: Sequence[int]
) -> list[np.ndarray]:
    """The first output of equally long streams that run together, [T, C] each; cut after those frames.

    Parameters
    ----------
    inputs : for each stream, its inputs [rows, C]
        A frame has the same number of rows in all of its chunks.
    cuts : increasing, from ``plan.first_frames`` to ``frames``
    """
    states = [pass_.new_state() for _ in inputs]
    edges, parts = [0, *cuts, frames], []
    lags = pass_.plan.lags or not cuts
    for first, end in pairwise(edges):
        start, last = first == 0, end == frames and first == edges[-2] and lags
        phase = WHOLE if start and last else FIRST if start else LAST if last else MIDDLE
        if end == first and not last:
            continue
        chunks = []
        for of_streams in zip(*inputs, strict=True) if end > first else ():
            rows = len(of_streams[0]) // frames
            chunks.append(np.concatenate([x[first * rows : end * rows] for x in of_streams]))
        parts.append(pass_.run(head, states, phase, end - first, chunks)[0])
    for state in states:
        state.memory.close()
    return list(np.concatenate(parts, axis=1))
