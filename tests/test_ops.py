"""Operations over whole clips against NumPy in float64, on every lowering."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from measures import relative_error
from op_calls import LIB, LOWERINGS, run

from vocoder_plugin.net.ops import ELU, Reflect
from vocoder_plugin.net.plan import QUERY_TILE


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

    def forward(net, x):
        return net.layer_norm(net.depthwise(x, "d", kernel=7) if depthwise else x, "n", epsilon=1e-6)

    (got,) = run(name, forward, x, weights=w)
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

    def forward(net, x):
        normal = net.group_norm(x, "n", groups=groups, epsilon=1e-6)
        return net.swish(normal) if swish else normal

    for threads in (1, 3):
        (got,) = run(name, forward, x, weights=w, threads=threads)
        assert relative_error(got, expected) < 2e-6


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(name, tanh):
    x = np.linspace(-9, 9, 66).reshape(3, 22)
    exact = np.vectorize(math.erf)(x / math.sqrt(2))
    approximate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    (got,) = run(name, lambda net, x: net.gelu(x, tanh=tanh), x)
    coarse = name == "portable" and tanh  # by a table of half precision
    np.testing.assert_allclose(got, x / 2 * (1 + (approximate if tanh else exact)), atol=5e-3 if coarse else 2e-6)


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("channels", "frames"), [(8, 1), (40, 31), (64, 100), (16, QUERY_TILE + 3)])
def test_attention(name, heads, channels, frames):
    rng = np.random.default_rng(frames)
    q, k, v = (rng.standard_normal((heads, channels // heads, frames)) * 2 for _ in range(3))
    scores = q.transpose(0, 2, 1) @ k / math.sqrt(channels // heads)
    p = np.exp(scores - scores.max(2, keepdims=True))
    expected = v @ (p / p.sum(2, keepdims=True)).transpose(0, 2, 1)
    forward = lambda net, q, k, v: net.attention(q, k, v, "a", heads=heads)  # noqa: E731
    for threads in (1, 2):
        (got,) = run(name, forward, *(x.reshape(channels, frames) for x in (q, k, v)), threads=threads)
        assert relative_error(got, expected.reshape(channels, frames)) < 2e-6


def test_portable_attention_takes_few_queries_at_a_time(monkeypatch):
    """Memory is that of so many rows of scores."""
    steps, real = [], LIB.ggml_soft_max_ext
    monkeypatch.setattr(
        LIB, "ggml_soft_max_ext", lambda c, x, *args: steps.append(x.contents.ne[1]) or real(c, x, *args)
    )
    q, k, v = (np.random.default_rng(i).standard_normal((8, 2 * QUERY_TILE + 9)) for i in range(3))
    run("portable", lambda net, q, k, v: net.attention(q, k, v, "a", heads=1), q, k, v)
    assert steps == [QUERY_TILE, QUERY_TILE, 9]


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("elu", [False, True])
@pytest.mark.parametrize(("frames", "kernel", "stride"), [(9, 7, 1), (4, 6, 1), (1, 7, 1), (2, 5, 1), (21, 8, 4)])
def test_reflected_convolution(name, elu, frames, kernel, stride):
    """As EnCodec reflects, which continues a clip that is too short with zeros first."""
    rng = np.random.default_rng(frames)
    x = rng.standard_normal((5, frames))
    weights = {"c.weight": rng.standard_normal((3, 5, kernel)), "c.bias": rng.standard_normal(3)}
    right = (kernel - stride) // 2 + -frames % stride
    left = kernel - stride - (kernel - stride) // 2
    y = np.where(x > 0, x, np.expm1(np.minimum(x, 0))) if elu else x
    y = np.pad(y, ((0, 0), (0, max(0, max(left, right) + 1 - frames))))
    y = np.pad(y, ((0, 0), (left, right)), mode="reflect")[:, : left + frames + right]

    def forward(net, x):
        how = dict(padding=Reflect(), activation=ELU if elu else None)
        return net.conv1d(x, "c", out=3, kernel=kernel, stride=stride, **how)

    (got,) = run(name, forward, x, weights=weights, rate=stride)
    expected = reference.conv1d(y, weights["c.weight"], weights["c.bias"], stride=stride)
    assert got.shape == (3, -(-frames // stride))
    assert relative_error(got, expected) < 1e-6


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
    got, after = run(name, lambda net, x, s: net.lstm(x, "l", 0, s), x, weights=w, carried=state, threads=threads)
    assert relative_error(got, np.stack(expected, 1)) < 1e-6
    assert relative_error(after.T, np.stack([h, c])) < 1e-6
