"""Attention over a sliding window with keys and values in rings, called as ggml calls it, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocoder_plugin import kernels
from vocoder_plugin.net.plan import WHOLE, Signal
from vocoder_plugin.net.window_ops import Attention, WindowNative
from vocoder_plugin.runtime import ggml
from vocoder_plugin.runtime.graph import Graph, Session

LIB = ggml.library()
VARIANTS = kernels.available()


class Streams:
    """Several streams side by side through one attention layer."""

    def __init__(self, variant: str, sizes: Attention, layer: int, count: int, threads: int) -> None:
        self.sizes, self.layer = sizes, layer
        self.lowering = WindowNative(LIB, LIB.device(), kernels.load(LIB, variant))
        self.session = Session(LIB, LIB.device(), n_threads=threads)
        self.rings = [np.full(sizes.ring_floats, np.nan, np.float32) for _ in range(count)]  # what is not written
        self.position = 0

    def push(self, qkv: np.ndarray) -> np.ndarray:
        """Float32 [B, T, 3 C] -> [B, T, C]."""
        sizes, (batch, n, channels) = self.sizes, qkv.shape

        def build(graph: Graph) -> None:
            net = self.lowering.ops(phase=WHOLE, frames=n, graph=graph, weights={}, regions={}, batch=batch)
            net.declare(sizes, n)
            x = Signal(graph.input("F32", channels, n, batch), channels, n, 1, 0)
            y = net.attention(x, "a", sizes=sizes, layer=self.layer)
            graph.output(y.tensor, "F32", batch, n, channels // 3)

        turns = np.stack([sizes.turns(self.position, n)] * batch)
        past = min(self.position, sizes.window - 1)
        rows = [
            (address & 0xFFFFFFFF, address >> 32, self.position % sizes.capacity, past)
            for address in (ring.ctypes.data for ring in self.rings)
        ]
        self.position += n
        return self.session.run((n, batch), build, [np.array(rows, np.uint32).view(np.int32), turns, qkv])[0]


def reference(qkv: np.ndarray, sizes: Attention) -> np.ndarray:
    """One stream [T, 3 C] -> [T, C] in float64, position by position."""
    q, k, v = (part.reshape(len(qkv), sizes.heads, -1) for part in np.split(qkv.astype(np.float64), 3, axis=1))
    cosine, sine = (part[:, np.newaxis] for part in np.split(sizes.turns(0, len(qkv)).astype(np.float64), 2, axis=1))
    rotated = []
    for x in (q, k):
        a, b = np.split(x, 2, axis=2)
        rotated.append(np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=2))
    q, k = rotated
    y = np.empty_like(v)
    for t in range(len(qkv)):
        first = max(0, t - sizes.window + 1)
        scores = np.einsum("hd,jhd->hj", q[t], k[first : t + 1]) / np.sqrt(sizes.head_dim)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        y[t] = np.einsum("hj,jhd->hd", shares / shares.sum(axis=1, keepdims=True), v[first : t + 1])
    return y.reshape(len(qkv), -1)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25)
@given(
    heads=st.integers(1, 5), half=st.integers(1, 40), window=st.integers(1, 70), chunk=st.integers(1, 20),
    layer=st.integers(0, 1), batch=st.integers(1, 3), length=st.integers(1, 160), seed=st.integers(0, 999),
    data=st.data(),
)  # fmt: skip
def test_any_cut_gives_the_same_bits(variant, heads, half, window, chunk, layer, batch, length, seed, data):
    sizes = Attention(heads, 2 * half, layers=2, window=window, theta=100.0, chunk=chunk)
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((batch, length, 6 * heads * half)).astype(np.float32)
    outputs = []
    for threads in (1, 3):
        streams = Streams(variant, sizes, layer, batch, threads)
        parts, first = [], 0
        while first < length:
            n = min(data.draw(st.integers(1, chunk)), length - first)
            parts.append(streams.push(np.ascontiguousarray(qkv[:, first : first + n])))
            first += n
        outputs.append(np.concatenate(parts, axis=1))
        others = [np.split(ring, 2)[1 - layer] for ring in streams.rings]
        assert np.isnan(others).all()  # the other layer's part is untouched
        streams.session.close()
    np.testing.assert_array_equal(*outputs)
    expected = np.stack([reference(x, sizes) for x in qkv])
    assert np.linalg.norm(outputs[0] - expected) <= 2e-6 * np.linalg.norm(expected)
