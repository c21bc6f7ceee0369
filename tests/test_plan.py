"""What the dry run of a pass promises of its graphs: their size, and when chunks may be cut."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
from tiny_pass import LIB, LOWERINGS, VARIANTS, lowering, streamed, tiny_pass, whole

from vocoder_plugin.codecs.model import Model
from vocoder_plugin.codecs.registry import read_model
from vocoder_plugin.errors import DeviceError
from vocoder_plugin.gguf_file import GGUFFile
from vocoder_plugin.net.ops import Snake
from vocoder_plugin.net.plan import Plan
from vocoder_plugin.net.signal import FIRST, LAST, MIDDLE, WHOLE
from vocoder_plugin.runtime.graph import MOST_TENSORS, Graph, Session
from vocoder_plugin.streams import passes
from vocoder_plugin.streams.passes import Pass

ROOM = 4  # times the tensors that a plan promises: ggml ends the process where a graph has more than it made room for
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
    for kind in (VARIANTS[0], "portable"):
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
    print(max((made/promised,k) for k,promised,made,_ in counting.seen), max((promised/nodes[k],k) for k,promised,made,_ in counting.seen))
