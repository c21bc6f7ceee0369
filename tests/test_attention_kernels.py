"""Attention over a whole clip and over a sliding window: their kernels against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import LIB, VARIANTS, call, floats
from measures import relative_error

from vocoder_plugin import kernels
from vocoder_plugin.kernels import AttentionParams, SlidingAttentionParams

THETA = 100.0


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """softmax(q k / sqrt(D)) v in float64, [H, T, D] each, of the keys that ``seen`` [T, T] allows -> [H, T, D]."""
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    scores = scores if seen is None else np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(2, keepdims=True))
    return shares / shares.sum(2, keepdims=True) @ v


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[T, C] -> float64 [H, T, D]."""
    return x.astype(np.float64).reshape(len(x), heads, -1).transpose(1, 0, 2)


def join(x: np.ndarray) -> np.ndarray:
    """[H, T, D] -> [T, C]."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def full_attention(variant: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, threads: int) -> np.ndarray:
    """[T, C] each, views of anything -> [T, C]."""
    rows, channels = q.shape
    size, panel = channels // heads, kernels.load(LIB, variant).panel
    up = lambda n: -(-n // panel) * panel  # noqa: E731
    how = dict(threads=threads)
    keys = call(variant, "pack_attention", AttentionParams(keys=1, heads=heads), (up(rows), channels), k, **how)
    values = call(variant, "pack_attention", AttentionParams(keys=0, heads=heads), (rows, heads * up(size)), v, **how)
    assert not (np.isnan(keys).any() or np.isnan(values).any())
    params = AttentionParams(scale=size**-0.5, heads=heads)
    return call(variant, "attention", params, q.shape, q, keys, values, **how)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40)
@given(
    heads=st.integers(1, 5), size=st.integers(1, 70), rows=st.one_of(st.integers(1, 120), st.integers(380, 450)),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_full_attention(variant, heads, size, rows, seed):
    """Of any number of heads, threads and steps from row to row, to the bit; near to float64."""
    channels = heads * size
    joint = floats(np.random.default_rng(seed), rows, 3 * channels) * 1.5
    views = np.split(joint, 3, axis=1)
    got = full_attention(variant, *views, heads, 1)
    np.testing.assert_array_equal(got, full_attention(variant, *map(np.ascontiguousarray, views), heads, 3))
    assert relative_error(got, join(attend(*(split(x, heads) for x in views)))) < 2e-6
    last = [np.ascontiguousarray(x[:, -size:]) for x in views]
    np.testing.assert_array_equal(got[:, -size:], full_attention(variant, *last, 1, 2))  # a head is as it is alone


def turns(first: int, positions: int, size: int) -> np.ndarray:
    """What position and channel of a head are turned by, complex [T, D / 2]."""
    speed = THETA ** (-np.arange(size // 2) / (size // 2))
    return np.exp(1j * np.arange(first, first + positions)[:, np.newaxis] * speed)


class Streams:
    """Several streams side by side through one layer of several, whose rings hold NaN where nothing was written."""

    def __init__(self, variant: str, heads: int, size: int, window: int, chunk: int, layer: int, count: int) -> None:
        self.variant, self.size, self.window = variant, size, window
        self.capacity = -(-(window - 1 + chunk) // 16) * 16
        floats_of_layer = heads * 2 * self.capacity * size
        self.params = SlidingAttentionParams(
            heads=heads, window=window, capacity=self.capacity, offset=layer * floats_of_layer
        )
        self.rings = np.full((count, 2, floats_of_layer), np.nan, np.float32)
        self.position = 0

    def push(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, threads: int) -> np.ndarray:
        """[B, T, C] each, views of anything -> [B, T, C]."""
        batch, n, _ = q.shape
        turn = turns(self.position, n, self.size)
        angles = np.repeat(np.concatenate([turn.real, turn.imag], 1)[np.newaxis].astype(np.float32), batch, axis=0)
        slot, past = self.position % self.capacity, min(self.position, self.window - 1)
        addresses = [ring.ctypes.data for ring in self.rings]
        control = np.array([(a & 0xFFFFFFFF, a >> 32, slot, past) for a in addresses], np.uint32)
        self.position += n
        sources = (q, k, v, angles, control)
        return call(self.variant, "sliding_attention", self.params, q.shape, *sources, threads=threads)


def sliding(x: list[np.ndarray], heads: int, window: int) -> np.ndarray:
    """q, k, v [T, C] of one stream -> [T, C], in float64."""
    q, k, v = (split(part, heads) for part in x)
    half, rows = q.shape[2] // 2, q.shape[1]
    turned = [(part[:, :, :half] + 1j * part[:, :, half:]) * turns(0, rows, 2 * half) for part in (q, k)]
    q, k = (np.concatenate([part.real, part.imag], axis=2) for part in turned)
    age = np.arange(rows)[:, np.newaxis] - np.arange(rows)
    return join(attend(q, k, v, (age >= 0) & (age < window)))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25)
@given(
    heads=st.integers(1, 5), half=st.integers(1, 40), window=st.integers(1, 70), chunk=st.integers(1, 20),
    layer=st.integers(0, 1), batch=st.integers(1, 3), length=st.integers(1, 160), seed=st.integers(0, 999),
    data=st.data(),
)  # fmt: skip
def test_any_cut_gives_the_same_bits(variant, heads, half, window, chunk, layer, batch, length, seed, data):
    joint = floats(np.random.default_rng(seed), batch, length, 6 * heads * half)
    outputs = []
    for threads, views in ((1, True), (3, False)):
        streams = Streams(variant, heads, 2 * half, window, chunk, layer, batch)
        parts, first = [], 0
        while first < length:
            n = min(data.draw(st.integers(1, chunk)), length - first)
            x = np.split(joint[:, first : first + n], 3, axis=2)
            parts.append(streams.push(*(x if views else map(np.ascontiguousarray, x)), threads))
            first += n
        outputs.append(np.concatenate(parts, axis=1))
        assert np.isnan(streams.rings[:, 1 - layer]).all()  # the other layer's part is untouched
    np.testing.assert_array_equal(*outputs)
    expected = np.stack([sliding(np.split(x, 3, axis=1), heads, window) for x in joint])
    assert relative_error(outputs[0], expected) <= 2e-6
