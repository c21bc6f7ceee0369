"""Operations over whole clips against NumPy in float64, on every lowering."""

from __future__ import annotations

import math

import numpy as np
import pytest
from measures import relative_error

from vocoder_plugin import kernels
from vocoder_plugin.net.clip_ops import QUERY_TILE, ClipNative, ClipPlan, ClipPortable
from vocoder_plugin.net.plan import WHOLE, Signal
from vocoder_plugin.net.weights import Stored
from vocoder_plugin.runtime import ggml
from vocoder_plugin.runtime.graph import Graph, Session

LIB = ggml.library()
VARIANTS = kernels.available()
LOWERINGS = [*VARIANTS, "portable"]


def run(name: str, forward, *signals: np.ndarray, weights=None, state=None, threads: int = 2) -> list[np.ndarray]:
    """A forward pass of signals [C, T] over a clip -> its outputs, signals as [C, T]."""
    device = LIB.device()
    low = ClipPortable(LIB, device) if name == "portable" else ClipNative(LIB, device, kernels.load(LIB, name))
    weights = weights or {}
    plan = ClipPlan()
    extra = (None,) if state is not None else ()
    forward(plan, *(Signal(None, *x.shape, 1, 0) for x in signals), *extra)
    stored = {n: Stored(w.shape, lambda w=w: w.astype(np.float32)) for n, w in weights.items()}
    buffer = low.load(plan.specs, stored.__getitem__)
    session = Session(LIB, device, n_threads=threads)
    native = name != "portable"

    def build(graph: Graph) -> None:
        tensors = buffer.tensors
        ops = low.ops(phase=WHOLE, frames=1, graph=graph, weights=tensors, regions={}, position=tensors.get("position"))
        inputs = [Signal(graph.input("F32", *low.input_shape(*x.shape), 1), *x.shape, 1, 0) for x in signals]
        extra = (graph.input("F32", *state.shape[::-1]),) if state is not None else ()
        y = forward(ops, *inputs, *extra)
        if state is not None:
            y, after = y
        shape = (y.length, y.channels) if native else (y.channels, y.length)
        graph.output(y.tensor, "F32", *shape)
        if state is not None:
            graph.output(after, "F32", *state.shape)

    arrays = [np.ascontiguousarray(x.T if native else x, np.float32) for x in signals]
    y, *rest = session.run("test", build, [*arrays, *([state.astype(np.float32)] if state is not None else [])])
    session.close()
    buffer.close()
    return [y.T if native else y, *rest]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize(("channels", "frames"), [(8, 1), (33, 3), (64, 50)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_layer_norm(name, channels, frames, depthwise):
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((channels, frames)) * 3 + 1
    w = {"n.weight": rng.standard_normal(channels), "n.bias": rng.standard_normal(channels)}
    w |= {"d.weight": rng.standard_normal((channels, 1, 7)), "d.bias": rng.standard_normal(channels)}
    y = x
    if depthwise:
        padded = np.pad(x, ((0, 0), (3, 3)))
        y = sum(w["d.weight"][:, 0, j, None] * padded[:, j : j + frames] for j in range(7)) + w["d.bias"][:, None]
    expected = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-6) * w["n.weight"][:, None] + w["n.bias"][:, None]
    (got,) = run(
        name, lambda net, x: net.layer_norm(x, "n", epsilon=1e-6, depthwise="d" if depthwise else None), x, weights=w
    )
    assert relative_error(got, expected) < 1e-6


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize(("channels", "groups", "frames"), [(64, 32, 1), (96, 32, 300), (12, 1, 7)])
@pytest.mark.parametrize("swish", [False, True])
def test_group_norm(name, channels, groups, frames, swish):
    rng = np.random.default_rng(frames)
    x = rng.standard_normal((channels, frames)) * 2 + 5
    w = {"n.weight": rng.standard_normal(channels), "n.bias": rng.standard_normal(channels)}
    parts = x.reshape(groups, -1)
    y = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-6)
    y = y.reshape(x.shape) * w["n.weight"][:, None] + w["n.bias"][:, None]
    expected = y * sigmoid(y) if swish else y
    for threads in (1, 3):
        (got,) = run(
            name, lambda net, x: net.group_norm(x, "n", groups=groups, epsilon=1e-6, swish=swish), x, weights=w,
            threads=threads,
        )  # fmt: skip
        assert relative_error(got, expected) < 2e-6


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize(("channels", "frames"), [(8, 1), (40, 31), (64, 100), (16, QUERY_TILE + 3)])
def test_attention(name, channels, frames):
    rng = np.random.default_rng(frames)
    q, k, v = (rng.standard_normal((channels, frames)) * 2 for _ in range(3))
    scores = q.T @ k / math.sqrt(channels)
    p = np.exp(scores - scores.max(1, keepdims=True))
    expected = v @ (p / p.sum(1, keepdims=True)).T
    for threads in (1, 2):
        (got,) = run(name, lambda net, q, k, v: net.attention(q, k, v), q, k, v, threads=threads)
        assert relative_error(got, expected) < 2e-6


def test_portable_attention_has_a_limited_number_of_steps(monkeypatch):
    """ggml would end the process where a graph has too many nodes."""
    monkeypatch.setattr("vocoder_plugin.net.clip_ops.QUERY_TILE", 4)
    monkeypatch.setattr("vocoder_plugin.net.clip_ops.MOST_TILES", 3)
    steps, real = [], LIB.ggml_soft_max_ext
    monkeypatch.setattr(
        LIB, "ggml_soft_max_ext", lambda c, x, *args: steps.append(x.contents.ne[1]) or real(c, x, *args)
    )
    q, k, v = (np.random.default_rng(i).standard_normal((8, 31)) for i in range(3))
    scores = np.exp(q.T @ k / math.sqrt(8))
    (got,) = run("portable", lambda net, q, k, v: net.attention(q, k, v), q, k, v)
    assert relative_error(got, v @ (scores / scores.sum(1, keepdims=True)).T) < 2e-6
    assert steps == [11, 11, 9]


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize(("frames", "left", "right"), [(9, 3, 3), (4, 3, 2), (1, 3, 3), (2, 0, 4), (20, 0, 0)])
def test_reflection_with_elu(name, frames, left, right):
    """As EnCodec reflects, which continues a clip that is too short with zeros first."""
    x = np.random.default_rng(frames).standard_normal((5, frames))
    y = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    missing = max(0, max(left, right) + 1 - frames)
    expected = np.pad(np.pad(y, ((0, 0), (0, missing))), ((0, 0), (left, right)), mode="reflect")
    (got,) = run(name, lambda net, x: net.pad_reflect(x, left=left, right=right, elu=True), x)
    np.testing.assert_allclose(got, expected[:, : left + frames + right], atol=1e-6)


@pytest.mark.parametrize("name", LOWERINGS)
def test_polar(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((41, 6)) * 4, rng.standard_normal((41, 6)) * 20])
    size = np.minimum(np.exp(x[:41]), 100)
    (got,) = run(name, lambda net, x: net.polar(x), x)
    assert relative_error(got, np.concatenate([size * np.cos(x[41:]), size * np.sin(x[41:])])) < 1e-6
    assert (size == 100).any()


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("units", "frames"), [(5, 1), (32, 20), (33, 7)])
def test_lstm(name, threads, units, frames):
    rng = np.random.default_rng(units)
    x = rng.standard_normal((units, frames))
    w = {
        "l.ih_l0.weight": rng.standard_normal((4 * units, units, 1)) / math.sqrt(units),
        "l.ih_l0.bias": rng.standard_normal(4 * units) * 0.2,
        "l.hh_l0.weight": rng.standard_normal((4 * units, units)) / math.sqrt(units),
    }
    state = rng.standard_normal((2, units)) * 0.5
    h, c = state
    expected = []
    for t in range(frames):
        gates = w["l.ih_l0.weight"][:, :, 0] @ x[:, t] + w["l.ih_l0.bias"] + w["l.hh_l0.weight"] @ h
        i, f, g, o = gates.reshape(4, units)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    got, after = run(name, lambda net, x, s: net.lstm(x, "l", 0, s), x, weights=w, state=state, threads=threads)
    assert relative_error(got, np.stack(expected, 1)) < 1e-6
    assert relative_error(after, np.stack([h, c])) < 1e-6
