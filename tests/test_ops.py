"""Every operation of the vocabulary, on every lowering, against NumPy in float64; and in any cut, against itself."""

from __future__ import annotations

import numpy as np
import pytest
from measures import relative_error
from op_table import BOUND, OPS, STREAMED, Op, conv_weights, sigmoid
from tiny_pass import LIB, LOWERINGS, signal_in, streamed, tiny_pass, whole

from vocoder_plugin.errors import ArgumentError
from vocoder_plugin.net.ops import Ops, Reflect, Snake
from vocoder_plugin.net.plan import QUERY_TILE, Head
from vocoder_plugin.net.signal import WHOLE
from vocoder_plugin.streams.passes import Pass

FRAMES = 75  # more than twice the longest period
BETWEEN = [name for name in STREAMED if "sliding" not in name and name != "scaled"]  # which know no lag


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", OPS)
def test_against_float64(name, lowering):
    op, rng = OPS[name], np.random.default_rng(0)
    weights = op.random_weights(rng)
    with tiny_pass(lowering, {"y": op.head}, weights, chunk_frames=FRAMES) as pass_:
        assert pass_.plan.whole_clip == op.whole_clip
        for frames in (1, 2, 5, FRAMES):
            inputs = op.random_inputs(rng, frames)
            got, expected = whole(pass_, "y", frames, inputs), op.expected(inputs, weights)
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            assert len(got) == pass_.length("y", frames)
            assert relative_error(got, expected) <= (op.portable_bound if lowering == "portable" else BOUND)


def of_parts(op: Op) -> Head:
    """The operation on halves of signals, whose rows lie apart."""

    def head(net: Ops) -> None:
        halves = [net.split(signal_in(net, 2 * channels, rate), 2)[1] for channels, rate in op.inputs]
        net.rows_out(op.forward(net, *halves))

    return head


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", OPS)
def test_of_parts_of_signals(name, lowering):
    op, rng = OPS[name], np.random.default_rng(1)
    weights = op.random_weights(rng)
    with tiny_pass(lowering, {"y": of_parts(op)}, weights, chunk_frames=FRAMES, threads=1) as pass_:
        inputs = op.random_inputs(rng, 9)
        wide = [np.concatenate([rng.standard_normal(x.shape).astype(np.float32), x], axis=1) for x in inputs]
        got, expected = whole(pass_, "y", 9, wide), op.expected(inputs, weights)
        assert relative_error(got, expected) <= (op.portable_bound if lowering == "portable" else BOUND)


def random_cuts(rng: np.random.Generator, first: int, frames: int) -> list[int]:
    """None, a few, or many; a first chunk has at least so many frames."""
    if first > frames:
        return []
    return sorted(set(rng.integers(first, frames + 1, rng.integers(0, 9)).tolist()))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", STREAMED)
def test_any_cut_and_company_gives_the_same(name, lowering):
    """Several streams that run together, cut at random, against each of them in one piece and alone."""
    op, rng = OPS[name], np.random.default_rng(list(name.encode()))
    weights = op.random_weights(rng)
    with tiny_pass(lowering, {"y": op.head}, weights, chunk_frames=FRAMES, threads=1) as pass_:
        for frames in (FRAMES, *rng.integers(1, FRAMES, 5).tolist()):
            inputs = [op.random_inputs(rng, frames) for _ in range(rng.integers(1, 4))]
            cuts = random_cuts(rng, pass_.plan.first_frames, frames)
            parts = streamed(pass_, "y", frames, inputs, cuts)
            check_parts(pass_, op, lowering, frames, inputs, cuts, parts)


def check_parts(
    pass_: Pass, op: Op, lowering: str, frames: int, inputs: list[list[np.ndarray]], cuts: list[int],
    parts: list[np.ndarray],
) -> None:  # fmt: skip
    """What streams gave against each of them in one piece and alone: to the bit, of the native kernels."""
    for x, part in zip(inputs, parts, strict=True):
        offline = whole(pass_, "y", frames, x)
        assert part.shape == offline.shape
        if lowering == "portable":
            assert relative_error(part, offline) <= op.portable_bound, cuts
        else:
            np.testing.assert_array_equal(part, offline, str(cuts))


def between(op: Op) -> Head:
    """Behind a cropped transposed convolution, whose rows of several streams lie apart, and before one that lags."""

    def head(net: Ops) -> None:
        signals = []
        for i, (channels, rate) in enumerate(op.inputs):
            x = signal_in(net, 3, rate)
            signals.append(net.conv_transpose1d(x, f"in{i}", out=channels, kernel=4, stride=2, padding=1))
        net.rows_out(net.conv1d(op.forward(net, *signals), "out", out=4, kernel=5))

    return head


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", BETWEEN)
def test_any_cut_between_others(name, lowering):
    op, rng = OPS[name], np.random.default_rng(list(name.encode()))
    outputs = op.expected(op.random_inputs(rng, 8), op.random_weights(rng)).shape[1]
    weights = op.random_weights(rng) | conv_weights(rng, "out", 4, outputs, 5, outputs=4)
    for i, (channels, _) in enumerate(op.inputs):
        weights |= conv_weights(rng, f"in{i}", 3, channels, 4, outputs=channels)
    with tiny_pass(lowering, {"y": between(op)}, weights, chunk_frames=FRAMES, threads=1) as pass_:
        for frames in (FRAMES, *rng.integers(1, FRAMES, 5).tolist()):
            shape = [(frames * rate, 3) for _, rate in op.inputs]
            inputs = [[rng.standard_normal(s).astype(np.float32) for s in shape] for _ in range(rng.integers(1, 4))]
            cuts = [*random_cuts(rng, pass_.plan.first_frames, frames)]
            if cuts and rng.random() < 0.5:
                cuts = sorted({*cuts, frames})  # the end comes without a frame
            parts = streamed(pass_, "y", frames, inputs, cuts)
            check_parts(pass_, op, lowering, frames, inputs, cuts, parts)


SIZE, DIM, PER_FRAME = 11, 6, 3
TABLE = np.random.default_rng(7).standard_normal((SIZE, DIM)).astype(np.float32)


def searches(net: Ops) -> None:
    z = signal_in(net, DIM, 2)
    nearest = net.nearest(z, "table", size=SIZE)
    net.rows_out(net.embed_nearest(nearest, z, "table", size=SIZE, dim=DIM))
    net.codes_out(nearest, z)
    net.codes_out(net.argmax(z), z)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_searches_in_tables(lowering, batch):
    z = np.random.default_rng(batch).standard_normal((batch, 2 * FRAMES, DIM)).astype(np.float32)
    scores = z.astype(np.float64) @ TABLE.T.astype(np.float64)
    with tiny_pass(lowering, {"y": searches}, {"table": TABLE}, chunk_frames=FRAMES, threads=1) as pass_:
        states = [pass_.new_state() for _ in range(batch)]
        rows, nearest, largest = pass_.run("y", states, WHOLE, FRAMES, [z])
        for state in states:
            state.memory.close()
    assert nearest.dtype == largest.dtype == np.int32
    assert nearest.shape == largest.shape == (batch * 2 * FRAMES,)
    np.testing.assert_array_equal(nearest, scores.argmax(2).ravel())
    np.testing.assert_array_equal(largest, z.argmax(2).ravel())
    np.testing.assert_array_equal(rows, TABLE[scores.argmax(2)])


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("frames", [1, 4])
def test_embed(lowering, frames):
    def head(net: Ops) -> None:
        ids = net.codes_in(PER_FRAME)
        net.rows_out(net.embed(ids, "table", size=SIZE, dim=DIM, per_frame=PER_FRAME))

    ids = np.random.default_rng(frames).integers(0, SIZE, 2 * frames * PER_FRAME).astype(np.int32)
    with tiny_pass(lowering, {"y": head}, {"table": TABLE}, threads=1) as pass_:
        states = [pass_.new_state() for _ in range(2)]
        (got,) = pass_.run("y", states, WHOLE, frames, [ids])
        for state in states:
            state.memory.close()
    np.testing.assert_array_equal(got, TABLE[ids].reshape(2, frames, PER_FRAME * DIM))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("units", [5, 32, 33])
def test_lstm(lowering, threads, units):
    """In one piece, and in two with the state carried from the one to the other."""

    def head(net: Ops) -> None:
        y, after = net.lstm(net.rows_in(units), "l", 1, net.carried_in(units, 2))
        net.rows_out(y)
        net.rows_out(after)

    rng = np.random.default_rng(units)
    w = conv_weights(rng, "l.ih_l1", 4 * units, units, 1, outputs=4 * units)
    w |= {"l.hh_l1.weight": rng.standard_normal((4 * units, units)) / np.sqrt(units)}
    w = {name: array.astype(np.float32) for name, array in w.items()}
    x, state = (rng.standard_normal(shape).astype(np.float32) * 0.7 for shape in ((20, units), (2, units)))
    h, c = state.astype(np.float64)
    expected = []
    for row in x:
        gates = w["l.ih_l1.weight"][:, :, 0].astype(np.float64) @ row + w["l.ih_l1.bias"]
        i, f, g, o = (gates + w["l.hh_l1.weight"].astype(np.float64) @ h).reshape(4, units)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    with tiny_pass(lowering, {"y": head}, w, threads=threads) as pass_:
        y, after = pass_.run_clip("y", 20, [x, state])
        first, between_ = pass_.run_clip("y", 7, [x[:7], state])
        second, end = pass_.run_clip("y", 13, [x[7:], between_[0]])
    assert relative_error(y[0], np.array(expected)) <= BOUND
    assert relative_error(after[0], np.stack([h, c])) <= BOUND
    cut = np.concatenate([first[0], second[0]])
    if lowering == "portable":
        assert relative_error(cut, y[0].astype(np.float64)) <= BOUND
    else:
        np.testing.assert_array_equal(cut, y[0])
        np.testing.assert_array_equal(end, after)


def test_portable_attention_takes_few_queries_at_a_time(monkeypatch):
    """Memory is that of so many rows of scores, however long the clip."""
    op, rng, frames = OPS["full attention of 4 heads"], np.random.default_rng(0), 2 * QUERY_TILE + 9
    steps, real = [], LIB.ggml_soft_max_ext
    monkeypatch.setattr(LIB, "ggml_soft_max_ext", lambda c, x, *a: steps.append(x.contents.ne[1]) or real(c, x, *a))
    with tiny_pass("portable", {"y": op.head}, chunk_frames=frames) as pass_:
        inputs = op.random_inputs(rng, frames)
        assert relative_error(whole(pass_, "y", frames, inputs), op.expected(inputs, {})) <= BOUND
    assert steps == [QUERY_TILE, QUERY_TILE, 9]


def test_refusals():
    """What the vocabulary cannot do is refused in words when a pass is made, before anything is read."""
    for head, words in (
        (lambda net: net.conv1d(net.rows_in(3), "c", out=3, kernel=3, padding=Reflect(), activation=Snake("s")), "ELU"),
        (lambda net: net.attention(*[net.rows_in(8)] * 3, "a", heads=2, causal=True), "'a'"),
        (lambda net: net.attention(*[net.rows_in(8)] * 3, "a", heads=2, window=4), "'a'"),
    ):
        with pytest.raises(ArgumentError, match=words), tiny_pass(LOWERINGS[0], {"y": head}):
            pass
