"""How far two signals are apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of what was expected; the shapes must be the same."""
    assert got.shape == expected.shape
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(got - wide) / max(np.linalg.norm(wide), 1e-30))


def snr(got: np.ndarray, expected: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    error = relative_error(got, expected)
    return -20 * math.log10(error) if error else math.inf


@contextmanager
def transfers(codec) -> Iterator[Counter[str]]:
    """Bytes that the block's graphs get as inputs (``up``) and give as outputs (``down``), and the graphs run."""
    counted: Counter[str] = Counter()

    def count(_key, _graph, inputs, outputs):
        counted.update(up=sum(x.nbytes for x in inputs), down=sum(x.nbytes for x in outputs), graphs=1)

    codec._session.on_run = count
    try:
        yield counted
    finally:
        codec._session.on_run = None
