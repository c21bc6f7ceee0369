"""Norms, activations, padding, spectra and the LSTM: their kernels against NumPy in float64, far inputs included."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from kernel_calls import LIB, VARIANTS, call, floats
from measures import relative_error

from vocoder_plugin import kernels
from vocoder_plugin.kernels import LstmParams, NormParams

WIDTH = 32  # a whole number of vectors of any variant


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


EXACT = {
    "gelu": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
    "tanh_gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}


def evaluate(variant: str, kind: str, x: np.ndarray) -> np.ndarray:
    """One of EXACT as the kernels compute it, by a kernel whose other steps are exact."""
    x = x.astype(np.float32).reshape(-1, WIDTH)
    if kind in ("gelu", "tanh_gelu", "elu"):
        name = "pad" if kind == "elu" else "gelu"
        return call(variant, name, NormParams(mode=int(kind != "gelu")), x.shape, x).ravel()
    rest = np.zeros_like(x)
    if kind in ("exp", "sin", "cos"):  # of x as a log magnitude, or as a phase
        both = np.hstack([x, rest] if kind == "exp" else [rest, x])
        y = call(variant, "polar", NormParams(), both.shape, both)
        return y[:, WIDTH:].ravel() if kind == "sin" else y[:, :WIDTH].ravel()
    far = np.full_like(x, 100)  # of which tanh and sigmoid are 1
    i, g = (far, x) if kind == "tanh" else (x, far)
    return run_lstm(variant, np.hstack([part.reshape(1, -1) for part in (i, rest, g, rest)]))[1][1]


def run_lstm(variant: str, gates: np.ndarray, weight=None, state=None, threads: int = 1):
    """Input gates [T, 4 H] in the order i, f, g, o -> outputs [T, H]; outputs and cells after the last step [2, H]."""
    loaded, size = kernels.load(LIB, variant), gates.shape[1] // 4
    packed = np.zeros(loaded.lstm_floats(size), np.float32)
    if weight is not None:
        loaded.pack_lstm(packed.ctypes.data, weight)
    state = np.zeros((2, size), np.float32) if state is None else state
    params = LstmParams()
    y = call(variant, "lstm", params, (len(gates) + 1, size), gates, packed, state, threads=threads)
    assert (params.arrived, params.left) == (0, 0)  # ready for the next run
    return y[:-1], y[-2:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", EXACT)
def test_functions(variant, kind):
    x = np.linspace(-20, 4.6 if kind == "exp" else 20, 1 << (12 if kind in ("tanh", "sigmoid") else 14))
    got, expected = evaluate(variant, kind, x), EXACT[kind](x.astype(np.float32).astype(np.float64))
    bound = 3e-7 * (expected if kind == "exp" else np.maximum(np.abs(expected), 1.0))
    assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_functions_far_out(variant):
    far = np.resize(np.array([-1e30, -1e4, -200, -88, 88, 200, 1e4, 1e30]), WIDTH)
    np.testing.assert_array_equal(evaluate(variant, "gelu", far), np.where(far > 0, far.astype(np.float32), 0))
    np.testing.assert_array_equal(evaluate(variant, "tanh", far), np.sign(far))
    np.testing.assert_allclose(evaluate(variant, "sigmoid", far), far > 0, atol=1e-37)
    np.testing.assert_array_equal(evaluate(variant, "elu", far), np.where(far > 0, far.astype(np.float32), -1))
    np.testing.assert_array_equal(evaluate(variant, "exp", far), np.where(far > 0, 100, 0))  # polar's limit
    phases = np.resize(np.array([1e5, -3e6, 12345.5]), WIDTH)
    np.testing.assert_allclose(evaluate(variant, "sin", phases), np.sin(phases), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("channels", "rows", "taps"), [(8, 1, 0), (33, 3, 7), (64, 50, 7), (40, 9, 0), (5, 4, 3)])
def test_layer_norm(variant, channels, rows, taps):
    rng = np.random.default_rng(channels)
    x, weight, bias, kernel_bias = floats(rng, rows, channels) * 3 + 1, *(floats(rng, channels) for _ in range(3))
    kernel = floats(rng, max(taps, 1), channels)
    y = x.astype(np.float64)
    if taps:
        padded = np.pad(y, ((taps // 2, taps // 2), (0, 0)))
        y = sum(kernel[j] * padded[j : j + rows] for j in range(taps)) + kernel_bias
    expected = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6) * weight + bias
    sources = (x, weight, bias, *((kernel, kernel_bias) if taps else ()))
    one, three = (
        call(variant, "layer_norm", NormParams(epsilon=1e-6, taps=taps), x.shape, *sources, threads=n) for n in (1, 3)
    )
    assert relative_error(one, expected) < 1e-6
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("channels", "groups", "rows"), [(64, 32, 1), (96, 32, 300), (12, 1, 7), (30, 2, 129)])
@pytest.mark.parametrize("swish", [0, 1])
def test_group_norm(variant, channels, groups, rows, swish):
    rng = np.random.default_rng(rows)
    x, weight, bias = floats(rng, rows, channels) * 2 + 5, floats(rng, channels), floats(rng, channels)
    parts = x.astype(np.float64).reshape(rows, groups, -1)
    y = (parts - parts.mean((0, 2), keepdims=True)) / np.sqrt(parts.var((0, 2), keepdims=True) + 1e-6)
    y = y.reshape(x.shape) * weight + bias
    params = NormParams(epsilon=1e-6, groups=groups, mode=swish)
    one, three = (call(variant, "group_norm", params, x.shape, x, weight, bias, threads=n) for n in (1, 3))
    assert relative_error(one, y * sigmoid(y) if swish else y) < 2e-6
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("elu", [0, 1])
@pytest.mark.parametrize(("rows", "left", "right"), [(9, 3, 3), (4, 3, 2), (1, 3, 3), (2, 0, 4), (20, 0, 0)])
def test_reflection(variant, elu, rows, left, right):
    """As EnCodec reflects, which continues a clip that is too short with zeros first."""
    x = floats(np.random.default_rng(rows), rows, 5)
    y = EXACT["elu"](x.astype(np.float64)) if elu else x
    missing = max(0, max(left, right) + 1 - rows)
    expected = np.pad(np.pad(y, ((0, missing), (0, 0))), ((left, right), (0, 0)), mode="reflect")[: left + rows + right]
    params = NormParams(left=left, right=right, mode=elu)
    for threads in (1, 2):
        got = call(variant, "pad", params, expected.shape, x, threads=threads)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 if elu else 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_polar(variant):
    rng = np.random.default_rng(0)
    log, phase = floats(rng, 6, 41) * 4, floats(rng, 6, 41) * 20
    size = np.minimum(np.exp(log.astype(np.float64)), 100)
    got = call(variant, "polar", NormParams(), (6, 82), np.hstack([log, phase]), threads=2)
    assert relative_error(got, np.hstack([size * np.cos(phase), size * np.sin(phase)])) < 1e-6
    assert (size == 100).any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("units", "steps"), [(5, 1), (32, 20), (33, 7)])
def test_lstm(variant, threads, units, steps):
    rng = np.random.default_rng(units)
    gates, weight, state = floats(rng, steps, 4 * units), floats(rng, 4 * units, units) / 6, floats(rng, 2, units)
    h, c = state.astype(np.float64)
    expected = []
    for x in gates:
        i, f, g, o = (x + weight.astype(np.float64) @ h).reshape(4, units)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    outputs, after = run_lstm(variant, gates, weight, state, threads)
    assert relative_error(outputs, np.array(expected)) < 1e-6
    assert relative_error(after, np.stack([h, c])) < 1e-6


STRUCTURES = {
    "vp_conv1d": kernels.Conv1dParams,
    "vp_norm": NormParams,
    "vp_attention": kernels.AttentionParams,
    "vp_sliding_attention": kernels.SlidingAttentionParams,
    "vp_lstm": LstmParams,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_lie_where_c_has_them(variant):
    """The library is asked: a stale build, or a field in one language only, shows here."""
    ask = ctypes.CDLL(str(kernels.load(LIB, variant).path)).vp_layout_of
    for name, mirror in STRUCTURES.items():
        assert ask(name.encode()) == ctypes.sizeof(mirror)
        for field, *_ in mirror._fields_:
            assert ask(f"{name}.{field}".encode()) == getattr(mirror, field).offset, (name, field)
    for activation in kernels.Activation:
        assert ask(f"VP_{activation.name}".encode()) == activation
    assert ask(b"vp_norm.nonsense") == -1
