#!/usr/bin/env python3
"""Where the time goes: every node of every graph that a call runs, timed on its own.

python benchmarks/node_times.py dac_f32.gguf --do decode --seconds 10 --threads 2
python benchmarks/node_times.py mimi.gguf --do encode --step
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vocoder_plugin import Codec
from vocoder_plugin.runtime.graph import Graph, Session, upload


def label(lib: Any, node: Any) -> str:
    """What a node does, with the shapes that say where in the codec it lies."""
    ne = node.contents.ne
    op = lib.bindings["ggml_op_desc"](node).decode().lower()
    sources = " ".join(f"{s.contents.ne[0]}x{s.contents.ne[1]}" for s in node.contents.src if s)
    return f"{op} {sources} -> {ne[0]}x{ne[1]}"


def call(codec: Codec, *, do: str, seconds: float, step: bool) -> None:
    """One call of the kind to look at, or, with ``step``, that many seconds frame by frame."""
    rng = np.random.default_rng(0)
    frames = round(seconds * codec.frame_rate)
    codes = rng.integers(0, codec.codebook_size, (codec.n_codebooks, frames))
    samples = rng.normal(0, 0.1, frames * codec.hop_length).astype(np.float32)
    if not step:
        codec.decode(codes) if do == "decode" else codec.encode(samples, codec.sample_rate)
    elif do == "decode":
        with codec.decoder_stream() as decoder:
            for i in range(frames):
                decoder.push(codes[:, i : i + 1])
    else:
        with codec.encoder_stream() as encoder:
            for chunk in samples.reshape(frames, -1):
                encoder.push(chunk)


def timed_nodes(
    session: Session, work: Callable[[], None], repeat: int
) -> dict[Any, tuple[int, list[tuple[str, float]]]]:
    """Key of each graph that ``work`` runs -> (how often, times of its nodes).

    Work is done twice: nodes are timed right after the last run of their graph in the second round, when a
    stream's window is full and all that they point to exists.
    """
    counts: Counter[Any] = Counter()
    session.on_run = lambda key, _graph, _inputs, _outputs: counts.update([key])
    work()
    left, times = counts.copy(), {}

    def time_last(key: Any, graph: Graph, inputs: list[np.ndarray], _outputs: list[np.ndarray]) -> None:
        left[key] -= 1
        if left[key] == 0:
            times[key] = counts[key], node_seconds(session, graph, inputs, repeat)

    session.on_run = time_last
    work()
    session.on_run = None
    return times


def node_seconds(session: Session, graph: Graph, inputs: list[np.ndarray], repeat: int) -> list[tuple[str, float]]:
    """Median time of each node, less that of a graph without work."""
    lib = session.lib
    nodes = graph.nodes
    context = lib.ggml_init(lib.bindings["ggml_init_params"](1 << 25, None, True))
    singles = []
    for node in nodes:
        singles.append(lib.ggml_new_graph_custom(context, 8, False))
        lib.bindings["ggml_graph_add_node"](singles[-1], node)
    times: list[list[float]] = [[] for _ in nodes]
    for _ in range(repeat):  # in order: nodes overwrite the inputs of those before them
        for (tensor, *_), array in zip(graph.inputs, inputs, strict=True):
            if tensor.contents.buffer:  # an input that no node reads has no memory
                upload(lib, tensor, array)
        for i, single in enumerate(singles):
            start = time.perf_counter()
            lib.ggml_backend_graph_compute(session._backend, single)
            times[i].append(time.perf_counter() - start)
    lib.ggml_free(context)
    seconds = [statistics.median(t) for t in times]
    overhead = min(seconds)
    return [(label(lib, node), s - overhead) for node, s in zip(nodes, seconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("--do", choices=["decode", "encode"], default="decode")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--step", action="store_true", help="frame by frame, as a stream")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--rows", type=int, default=30)
    arguments = parser.parse_args()
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    with Codec.load(arguments.codec, n_threads=arguments.threads, precision=arguments.precision) as codec:
        runs = timed_nodes(
            codec._session,
            lambda: call(codec, do=arguments.do, seconds=arguments.seconds, step=arguments.step),
            arguments.repeat,
        )
        for n, nodes in runs.values():
            for name, seconds in nodes:
                rows[name][0] += n
                rows[name][1] += n * seconds
        title = f"{arguments.do}, {arguments.seconds:g} s, {codec.lowering}, {codec.precision}"
    total = sum(seconds for _, seconds in rows.values())
    table = Table(title=f"{title}: {total * 1e3:.1f} ms in nodes, {sum(n for n, _ in runs.values())} graph runs")
    for column in ("node", "times", "ms", "share"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, (times, seconds) in sorted(rows.items(), key=lambda item: -item[1][1])[: arguments.rows]:
        table.add_row(name, str(int(times)), f"{seconds * 1e3:.2f}", f"{seconds / total:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
