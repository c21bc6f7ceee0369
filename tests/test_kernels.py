"""The native kernels, called as ggml calls them, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import call
from measures import relative_error
from tiny_pass import LIB, LOWERINGS, VARIANTS, tiny_pass

from vocoder_plugin import kernels
from vocoder_plugin.errors import DeviceError
from vocoder_plugin.net.ops import Snake
from vocoder_plugin.net.packing import Packing
from vocoder_plugin.net.weights import ConvSpec
from vocoder_plugin.runtime.graph import Session

PRECISIONS = ("float32", "int16", "int8")


def run(name: str, forward, x: np.ndarray, weights: dict[str, np.ndarray], *, threads: int = 2, precision="float32"):
    """A forward pass of one signal x [C, T] as a whole stream on one lowering -> [C', T']."""
    heads = {"y": lambda net: net.rows_out(forward(net, net.rows_in(len(x))))}
    with tiny_pass(name, heads, weights, threads=threads, precision=precision) as pass_:
        return pass_.run_clip("y", x.shape[1], [np.ascontiguousarray(x.T, np.float32)])[0][0].T


def random_conv(rng, n_out: int, n_in: int, kernel: int, *, transposed: bool = False) -> dict[str, np.ndarray]:
    shape = (n_in, n_out, kernel) if transposed else (n_out, n_in, kernel)
    return {
        "c.weight": (rng.standard_normal(shape) / math.sqrt(n_in * kernel)).astype(np.float32),
        "c.bias": rng.standard_normal(n_out).astype(np.float32),
        "s.alpha": np.exp(rng.standard_normal(n_in) * 0.5).astype(np.float32),
    }


def error_of_random_sums(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative to what was expected, and to no less than a spread of 1, as random_conv's sums have: few may cancel."""
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), math.sqrt(expected.size)))


def test_compiled_here():
    """The test command of the README needs a C compiler, so a lack of kernels is a failure, not a skip."""
    assert "baseline" in VARIANTS
    assert kernels.load(LIB).name == VARIANTS[0]
    assert kernels.load(LIB, "no such variant") is None


@pytest.mark.parametrize("name", LOWERINGS)
def test_by_hand(name):
    """y[t] = 1 + 2 x[t-1] + 3 x[t] + 4 x[t+1]."""
    weights = {"c.weight": np.array([[[2.0, 3.0, 4.0]]]), "c.bias": np.array([1.0])}
    y = run(name, lambda net, x: net.conv1d(x, "c", out=1, kernel=3), np.array([[1.0, 10.0, 100.0]]), weights)
    np.testing.assert_array_equal(y, [[1 + 3 + 40, 1 + 2 + 30 + 400, 1 + 20 + 300]])


@pytest.mark.parametrize("name", LOWERINGS)
def test_transposed_by_hand(name):
    """Stride 2, kernel 4, cropped by 1: each input adds w to outputs 2t-1 … 2t+2."""
    weights = {"c.weight": np.array([[[1.0, 2.0, 3.0, 4.0]]]), "c.bias": np.array([0.5])}
    forward = lambda net, x: net.conv_transpose1d(x, "c", out=1, kernel=4, stride=2, padding=1)  # noqa: E731
    y = run(name, forward, np.array([[1.0, 10.0]]), weights)
    np.testing.assert_array_equal(y, [[2.5, 13.5, 24.5, 30.5]])


@st.composite
def conv_cases(draw):
    kernel = draw(st.integers(1, 16))
    stride = draw(st.integers(1, 8))
    dilation = draw(st.integers(1, 9)) if stride == 1 else 1
    span = (kernel - 1) * dilation + 1
    padding = draw(st.integers(0, span // 2))
    length = draw(st.integers(max(1, span - 2 * padding), span + 70))
    channels = st.one_of(st.integers(1, 70), st.sampled_from([96, 127, 192, 384, 513, 1024, 1536]))
    n_in, n_out = draw(channels), draw(channels)
    if n_in * n_out * kernel > 400_000:
        n_out = max(1, 400_000 // (n_in * kernel))
    return dict(
        kernel=kernel, stride=stride, dilation=dilation, padding=padding, length=length, n_in=n_in, n_out=n_out,
        snake=draw(st.booleans()), seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip


@pytest.mark.parametrize("name", LOWERINGS)
@settings(max_examples=60)
@given(case=conv_cases())
def test_conv1d(name, case):
    rng = np.random.default_rng(case["seed"])
    weights = random_conv(rng, case["n_out"], case["n_in"], case["kernel"])
    x = rng.standard_normal((case["n_in"], case["length"])).astype(np.float32)

    def forward(net, x):
        return net.conv1d(
            x, "c", out=case["n_out"], kernel=case["kernel"], stride=case["stride"], dilation=case["dilation"],
            padding=case["padding"], activation=Snake("s") if case["snake"] else None,
        )  # fmt: skip

    wide = {n: w.astype(np.float64) for n, w in weights.items()}
    expected = reference.snake(x.astype(np.float64), wide["s.alpha"]) if case["snake"] else x.astype(np.float64)
    expected = reference.conv1d(
        expected, wide["c.weight"], wide["c.bias"],
        stride=case["stride"], dilation=case["dilation"], padding=case["padding"],
    )  # fmt: skip
    got = run(name, forward, x, weights)
    assert error_of_random_sums(got, expected) <= 2e-6


@st.composite
def transposed_cases(draw):
    stride = draw(st.integers(1, 8))
    kernel = draw(st.integers(stride, 16))
    padding = draw(st.integers(0, kernel // 2))
    length = draw(st.integers(1 + 2 * padding // stride, 50))
    return stride, kernel, padding, length, draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.integers(0, 99))


@pytest.mark.parametrize("name", LOWERINGS)
@settings(max_examples=40)
@given(case=transposed_cases())
def test_conv_transpose1d(name, case):
    stride, kernel, padding, length, n_in, n_out, seed = case
    rng = np.random.default_rng(seed)
    weights = random_conv(rng, n_out, n_in, kernel, transposed=True)
    x = rng.standard_normal((n_in, length)).astype(np.float32)

    def forward(net, x):
        return net.conv_transpose1d(
            x, "c", out=n_out, kernel=kernel, stride=stride, padding=padding, activation=Snake("s")
        )

    wide = {n: w.astype(np.float64) for n, w in weights.items()}
    expected = reference.snake(x.astype(np.float64), wide["s.alpha"])
    expected = reference.conv_transpose1d(expected, wide["c.weight"], wide["c.bias"], stride=stride, padding=padding)
    got = run(name, forward, x, weights)
    assert error_of_random_sums(got, expected) <= 2e-6


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=40)
@given(case=conv_cases())
def test_int16(name, case):
    """Within what the largest values of rows leave for the small ones; F(2,7) loses a little more."""
    rng = np.random.default_rng(case["seed"])
    weights = random_conv(rng, case["n_out"], case["n_in"], case["kernel"])
    x = rng.standard_normal((case["n_in"], case["length"])).astype(np.float32)
    how = {k: case[k] for k in ("kernel", "stride", "dilation", "padding")}
    wide = {n: w.astype(np.float64) for n, w in weights.items()}
    expected = reference.conv1d(
        x.astype(np.float64), wide["c.weight"], wide["c.bias"],
        stride=case["stride"], dilation=case["dilation"], padding=case["padding"],
    )  # fmt: skip
    got = run(name, lambda net, x: net.conv1d(x, "c", out=case["n_out"], **how), x, weights, precision="int16")
    assert error_of_random_sums(got, expected) <= 2e-3


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("n_in", "n_out", "kernel", "stride"), [(512, 300, 1, 1), (301, 130, 4, 2), (256, 512, 2, 1)])
def test_int8_weights(name, n_in, n_out, kernel, stride):
    """Weights of 8 bits, inputs of 16: as near as the largest weight of an output leaves for the others."""
    rng = np.random.default_rng(n_in)
    weights = random_conv(rng, n_out, n_in, kernel)
    x = rng.standard_normal((n_in, 40)).astype(np.float32)
    wide = {n: w.astype(np.float64) for n, w in weights.items()}
    steps = np.abs(wide["c.weight"]).max(axis=1, keepdims=True) / 127
    coarse = np.round(wide["c.weight"] / steps) * steps
    expected, rounded = (
        reference.conv1d(x.astype(np.float64), w, wide["c.bias"], stride=stride, dilation=1, padding=0)
        for w in (wide["c.weight"], coarse)
    )
    forward = lambda net, x: net.conv1d(x, "c", out=n_out, kernel=kernel, stride=stride, padding=0)  # noqa: E731
    got = run(name, forward, x, weights, precision="int8")
    assert relative_error(got, rounded) <= 5e-4
    assert 1e-3 <= relative_error(got, expected) <= 2e-2


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ConvSpec("c", 256, 2048, 1), {"float32": 4, "int16": 2, "int8": 1}),
        (ConvSpec("c", 256, 2048, 1, search=True), {"float32": 4, "int16": 2, "int8": 2}),
        (ConvSpec("c", 256, 256, 7), {"float32": 4, "int16": 2, "int8": 2}),  # F(2,7)
        (ConvSpec("c", 32, 32, 3), {"float32": 4, "int16": 2, "int8": 2}),
        (ConvSpec("c", 1, 64, 7), {"float32": 4, "int16": 4, "int8": 4}),
        (ConvSpec("c", 64, 1, 7), {"float32": 4, "int16": 4, "int8": 4}),
    ],
)
def test_bytes_of_a_weight(spec, expected):
    loaded = kernels.load(LIB, VARIANTS[0])
    assert {precision: Packing(spec, loaded, precision).weight_bytes for precision in PRECISIONS} == expected


@pytest.mark.parametrize("precision", ["int16", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_integers_cannot_overflow(name, precision):
    """The worst inputs: every product at its largest, and of one sign."""
    for n_in, kernel in ((192, 1), (768, 1), (1000, 3), (64, 7)):
        weights = {"c.weight": np.full((40, n_in, kernel), 3.0), "c.bias": np.zeros(40)}
        x = np.full((n_in, 50), 1e3, np.float32)
        forward = lambda net, x, k=kernel: net.conv1d(x, "c", out=40, kernel=k, padding=0)  # noqa: E731
        got = run(name, forward, x, weights, precision=precision)
        np.testing.assert_allclose(got, 3e3 * n_in * kernel, rtol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_instruction_sets_agree(precision):
    """AVX2 and AVX-512 fuse alike: the same sums of integers, floats that differ by the order of a block at most."""
    rng = np.random.default_rng(8)
    weights = random_conv(rng, 96, 96, 7)
    x = rng.standard_normal((96, 300)).astype(np.float32)
    forward = lambda net, x: net.conv1d(x, "c", out=96, kernel=7, dilation=3, activation=Snake("s"))  # noqa: E731
    results = [run(name, forward, x, weights, precision=precision) for name in VARIANTS]
    for other in results[1:]:
        assert relative_error(other, results[0]) <= (2e-6 if precision == "float32" else 1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_threads_change_nothing(name, precision):
    rng = np.random.default_rng(5)
    for n_in, n_out, kernel, length in ((96, 96, 7, 1000), (384, 768, 7, 40), (40, 1, 7, 500), (512, 300, 2, 3)):
        weights = random_conv(rng, n_out, n_in, kernel)
        x = rng.standard_normal((n_in, length)).astype(np.float32)
        forward = lambda net, x, n=n_out, k=kernel: net.conv1d(x, "c", out=n, kernel=k, activation=Snake("s"))  # noqa: E731
        one, *others = (run(name, forward, x, weights, threads=n, precision=precision) for n in (1, 2, 3, 5))
        for other in others:
            np.testing.assert_array_equal(one, other)


def native_snake(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """Snake alone, through a convolution that copies: float32, exactly what the kernel computed."""
    weights = {
        "c.weight": np.ones((1, 1, 1)),
        "c.bias": np.zeros(1),
        "s.alpha": np.array([alpha]),
    }
    return run(name, lambda net, x: net.conv1d(x, "c", out=1, kernel=1, activation=Snake("s")), x[np.newaxis], weights)[
        0
    ]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("limit", [4.0, 100.0, 1e4, 1e5, 1e7, 3e38])
def test_sine_is_accurate(name, limit):
    """Within 2 ulp of |sin x|; the baseline, which may lack fused multiply-add, within 2 ulp + 2e-10.

    Snake of 2^-100 x with alpha 2^100 and 1 / alpha set to 2^120 is sin^2 x alone, whose square and sum
    round by an ulp of the sine together.
    """
    x = np.random.default_rng(1).uniform(-limit, limit, (40_000, 1)).astype(np.float32)
    weight = np.zeros(2 * kernels.load(LIB, name).lanes, np.float32)  # a panel
    weight[0] = 1
    absent = dict.fromkeys(kernels.SOURCES, -1)
    params = kernels.Conv1dParams(
        **absent | dict(weight=0, bias=1, chunk=2, alpha=3, inverse=4),
        taps=1, dilation=1, stride=1, vectors=2, block=1, together=1, weight_bytes=4,
        activation=kernels.Activation.SNAKE,
    )  # fmt: skip
    power = lambda n: np.array([2.0**n], np.float32)  # noqa: E731
    y = call(name, "conv1d", params, x.shape, weight, np.zeros(1, np.float32), x * power(-100), power(100), power(120))
    exact = np.abs(np.sin(x.astype(np.float64)))
    slack = 2e-10 if name == "baseline" else 0.0
    error = np.abs(np.sqrt(y * 2.0**-120) - exact)
    assert (error <= 3 * np.spacing(exact.astype(np.float32)) + slack).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_snake_of_odd_values(name):
    x = np.array([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 44999.0, 45001.0], np.float32)
    got = native_snake(name, x, 2.0)
    expected = reference.snake(x[np.newaxis].astype(np.float64), np.array([2.0]))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.isnan(native_snake(name, np.array([np.nan, np.inf, 1.0], np.float32), 1.0)[:2]).all()


def test_session_refuses_a_failing_device(monkeypatch):
    device = LIB.device()
    monkeypatch.setattr(LIB, "ggml_backend_dev_init", lambda *_: None)
    with pytest.raises(DeviceError, match="could not be initialised"):
        Session(LIB, device, n_threads=1)


def test_layout_offsets_come_from_the_bindings():
    tensor = LIB.bindings["ggml_tensor"]
    assert tensor.data.offset > tensor.src.offset > tensor.nb.offset > tensor.ne.offset
