"""What the dry run of a pass promises of its graphs: their size, and when chunks may be cut."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
import pytest
from op_table import OPS, conv
from tiny_pass import LIB, VARIANTS, lowering, tiny_pass

from vocoder_plugin.codecs.model import Model
from vocoder_plugin.codecs.registry import read_model
from vocoder_plugin.errors import DeviceError
from vocoder_plugin.gguf_file import GGUFFile
from vocoder_plugin.net.ops import Causal, Ops
from vocoder_plugin.net.plan import Plan
from vocoder_plugin.net.signal import FIRST, LAST, MIDDLE, WHOLE, Signal
from vocoder_plugin.runtime.graph import MOST_TENSORS, Graph, Session
from vocoder_plugin.streams import passes
from vocoder_plugin.streams.passes import Pass

ROOM = 4  # times the tensors that a plan promises: ggml ends the process where a graph has more than it made room for
KINDS = (VARIANTS[0], "portable")
NAMES = ("small DAC", "tiny DAC", "WavTokenizer", "Mimi")


class RoomyGraph(Graph):
    """Made with more room than was asked for, so that too many tensors can be counted."""

    def __init__(self, lib: Any, tensors: int) -> None:
        super().__init__(lib, ROOM * tensors)
        self.promised = tensors

    @property
    def made(self) -> int:
        count, tensor = 0, LIB.bindings["ggml_get_first_tensor"](self.c)
        while tensor:
            count, tensor = count + 1, LIB.bindings["ggml_get_next_tensor"](self.c, tensor)
        return count


class Counting(Session):
    """Builds graphs and computes none."""

    def __init__(self) -> None:
        super().__init__(LIB, LIB.device(), n_threads=1)
        self.seen: list[tuple[Hashable, int, int, int]] = []  # key, tensors promised, made, nodes

    def run(self, key: Hashable, build: Callable[[], Graph], inputs: Any, moment: Any = None) -> list[np.ndarray]:
        graph = build()
        assert isinstance(graph, RoomyGraph)
        self.seen.append((key, graph.promised, graph.made, len(graph.nodes)))
        return []


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(passes, "Graph", RoomyGraph)
    session = Counting()
    yield session
    session.close()


@pytest.fixture(scope="module")
def models(fixtures, small_dac_file, small_wavtokenizer_file) -> dict[str, Model]:
    files = (
        small_dac_file,
        fixtures / "codec_cpp_dac_hf_f32.gguf",
        small_wavtokenizer_file,
        fixtures / "codec_cpp_mimi_hf_f32.gguf",
    )
    return {name: read_model(GGUFFile(file)) for name, file in zip(NAMES, files, strict=True)}


def build_all(pass_: Pass) -> None:
    """Every head, phase, and several lengths and numbers of streams, of which none runs."""
    for head in pass_.heads:
        lengths = (1, 2, 3, pass_.chunk_frames, 300)  # above the limit for streams too, which only clips can be
        if pass_.plan.whole_clip or pass_.name == "recurrent":
            for frames in lengths:
                pass_.run_clip(head, frames, [])
            continue
        for batch in (1, 5):
            states = [pass_.new_state() for _ in range(batch)]
            for frames in sorted({*lengths[:-1], pass_.plan.first_frames}):
                pass_.run(head, states, WHOLE, frames, [])
                if frames >= pass_.plan.first_frames:
                    pass_.run(head, states, FIRST, frames, [])
                pass_.run(head, states, MIDDLE, frames, [])
                pass_.run(head, states, LAST, frames, [])
            if pass_.plan.lags:
                pass_.run(head, states, LAST, 0, [])


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_has_more_tensors_than_its_plan_promised(counting, models, name):
    """Nor so few, in the lowering that makes more of them, that describing them would take the memory."""
    model, nodes = models[name], {}
    for kind in KINDS:
        for pass_name, heads in model.passes().items():
            pass_ = Pass(pass_name, counting, lowering(kind), heads, model.file.find, chunk_frames=model.chunk_frames)
            build_all(pass_)
            pass_.close()
    for key, promised, made, count in counting.seen:
        assert made <= promised, key
        nodes[key] = max(nodes.get(key, 0), count)
    assert len(nodes) >= 20
    for key, promised, _, _ in counting.seen:
        assert promised <= 40 * nodes[key], key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPS)
def test_nor_has_a_graph_of_one_operation(counting, name, kind):
    """Where no other operation's room makes up for what is missing; with many streams and channels to pad."""
    op = OPS[name]
    with tiny_pass(kind, {"y": op.head}, op.random_weights(np.random.default_rng(0))) as pass_:
        pass_.session, session = counting, pass_.session
        build_all(pass_)
        session.close()
    for key, promised, made, _ in counting.seen:
        assert made <= promised, key


def test_padding_of_many_wide_streams(counting):
    """The portable lowering makes zeros of several pieces where there are more than it has in one."""
    op = conv(600, 4, 7, dilation=16)
    with tiny_pass("portable", {"y": op.head}, op.random_weights(np.random.default_rng(0))) as pass_:
        pass_.session, session = counting, pass_.session
        states = [pass_.new_state() for _ in range(32)]
        for phase in (WHOLE, FIRST, MIDDLE, LAST):
            pass_.run("y", states, phase, pass_.plan.first_frames, [])
        session.close()
    for key, promised, made, _ in counting.seen:
        assert made <= promised, key


def test_period():
    """Minimal filtering goes by pairs of outputs that lie a dilation apart."""

    def head(net: Ops, dilations: tuple[int, ...]) -> None:
        x = net.rows_in(4)
        for i, dilation in enumerate(dilations):
            x = net.conv1d(x, f"c{i}", out=4, kernel=3, dilation=dilation)
        net.rows_out(x)

    for dilations, period in (((1,), 2), ((1, 3, 9), 18), ((16,), 32), ((2, 3, 16), 96)):
        assert Plan.of([partial(head, dilations=dilations)], rings=False, most_frames=8).period == period


def test_what_is_left_at_the_end():
    """A plan says whether a stream's last chunk gives something even without a frame."""

    def left(forward: Callable[[Ops, Signal], Signal]) -> bool:
        plan = Plan.of([lambda net: net.rows_out(forward(net, net.rows_in(4)))], rings=False, most_frames=8)
        return plan.lags

    assert left(lambda net, x: net.conv1d(x, "c", out=4, kernel=3))
    assert left(lambda net, x: net.conv_transpose1d(x, "c", out=4, kernel=4, stride=2))
    assert not left(lambda net, x: net.conv1d(x, "c", out=4, kernel=3, padding=Causal()))
    assert not left(lambda net, x: net.conv1d(x, "c", out=4, kernel=3, padding=0))
    assert not left(lambda net, x: net.tanh(x))


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_layers(kind):
    """Deep enough for C's stack to matter, as ggml walks a graph by recursion."""
    layers = 5000

    def head(net: Ops) -> None:
        x = net.rows_in(2)
        for _ in range(layers):
            x = net.conv1d(x, "c", out=2, kernel=1)
        net.rows_out(x)

    weights = {"c.weight": np.array([[[0.0], [1.0]], [[1.0], [0.0]]]), "c.bias": np.array([0.5, -0.5])}
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    with tiny_pass(kind, {"y": head}, weights, threads=1) as pass_:
        got = pass_.run_clip("y", 3, [x])[0][0]
    np.testing.assert_allclose(got, x, atol=1e-3)  # channels change places and lose what they got


@pytest.mark.parametrize("kind", KINDS)
def test_more_layers_than_a_graph_holds_are_refused(kind):
    def head(net: Ops) -> None:
        x = net.rows_in(2)
        for _ in range(MOST_TENSORS // 30):
            x = net.tanh(x)
        net.rows_out(x)

    refused = pytest.raises(DeviceError, match=f"needs a graph of [0-9]+ tensors, more than {MOST_TENSORS}")
    with tiny_pass(kind, {"y": head}, {}, threads=1) as pass_, refused:
        pass_.run_clip("y", 1, [np.zeros((1, 2), np.float32)])
