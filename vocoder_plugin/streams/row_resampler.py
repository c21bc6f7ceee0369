"""Rows at one rate to rows at another, as they come, by linear interpolation that waits for the next row at most."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


class RowResampler:
    """Rows [n, dim] at ``source_rate`` to rows at ``target_rate``, however they are cut into pushes.

    Row i stands at i / source_rate seconds, and output k at k / target_rate: with p = k * source_rate / target_rate
    it is row[floor(p)] + (p - floor(p)) * (row[floor(p) + 1] - row[floor(p)]). It is out as soon as the rows that it
    is made of are in. Positions are kept as fractions, so that they are exact however long a stream becomes.

    The end holds the last row: n rows give ceil(n * target_rate / source_rate) outputs in all.
    """

    def __init__(self, source_rate: float, target_rate: float, dim: int) -> None:
        self._step = Fraction(source_rate) / Fraction(target_rate)
        self._dim = dim
        self.reset()

    def reset(self) -> None:
        """Forget everything pushed so far."""
        self._rows = np.empty((0, self._dim), np.float32)  # that are still needed
        self._dropped = 0  # rows before those
        self._made = 0  # outputs so far

    def push(self, rows: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Rows float32 [n, dim] -> the outputs that are ready, float32 [m, dim]; with ``last`` all that remain."""
        self._rows = np.concatenate([self._rows, rows])
        n, step = self._dropped + len(self._rows), self._step
        count = -(-n // step) if last else (n - 1) // step + 1  # positions below n, or up to n - 1
        positions = [k * step for k in range(self._made, count)]
        before = np.array([p // 1 for p in positions], np.int64) - self._dropped
        weight = np.array([float(p % 1) for p in positions], np.float32)[:, np.newaxis]
        after = np.minimum(before + 1, len(self._rows) - 1)  # beyond the end: the last row
        outputs = self._rows[before] + weight * (self._rows[after] - self._rows[before])
        self._made = max(self._made, count)
        drop = min(max(self._made * step // 1 - self._dropped, 0), len(self._rows))
        self._rows, self._dropped = self._rows[drop:], self._dropped + drop
        return outputs
