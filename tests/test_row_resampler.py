"""Rows resampled as they come, against numpy's interpolation and against themselves in other cuts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocoder_plugin.streams.row_resampler import RowResampler


def pushed(rows: np.ndarray, cuts: list[int], rate: float) -> np.ndarray:
    resampler = RowResampler(12.5, rate, rows.shape[1])
    parts = [resampler.push(part) for part in np.split(rows, sorted(cuts))]
    return np.concatenate([*parts, resampler.push(rows[:0], last=True)])


@pytest.mark.parametrize("rate", [10.0, 12.5, 25.0, 50.0, 8.0, 7.3, 1.0])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 50])
def test_interpolation_by_hand(rate, n):
    rows = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    out = pushed(rows, [], rate)
    count = -(-n * Fraction(rate) // Fraction(12.5))
    assert out.shape == (count, 3) and out.dtype == np.float32
    if n:
        at = np.arange(count) * 12.5 / rate  # numpy holds the last value beyond the end
        expected = np.stack([np.interp(at, np.arange(n), rows[:, i]) for i in range(3)], axis=1)
        np.testing.assert_allclose(out, expected, atol=1e-6)


@given(cuts=st.lists(st.integers(0, 40), max_size=8), rate=st.floats(0.5, 100))
def test_any_cut_gives_the_same(cuts, rate):
    rows = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    np.testing.assert_array_equal(pushed(rows, cuts, rate), pushed(rows, [], rate))


def test_an_output_waits_for_its_own_rows_only():
    """At 10 of 12.5 rows a second, outputs stand at rows 0, 1.25, 2.5, 3.75 and 5."""
    resampler = RowResampler(12.5, 10.0, 1)
    ready = [len(resampler.push(np.zeros((1, 1), np.float32))) for _ in range(11)]
    assert ready == [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1]


def test_memory_is_bounded_and_positions_stay_exact():
    resampler = RowResampler(12.5, 10.0, 1)
    resampler._dropped, resampler._made = 5 * 10**15, 4 * 10**15  # as after ten million years
    out = [resampler.push(np.array([[i]], np.float32)) for i in range(1000)]
    np.testing.assert_array_equal(np.concatenate(out)[:, 0], np.arange(800) * np.float32(1.25))
    assert len(resampler._rows) <= 2
