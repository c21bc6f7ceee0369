#!/usr/bin/env python3
"""Where the time of a decode goes: every node of one steady chunk's graph, timed on its own.

python benchmarks/node_times.py dac_f32.gguf --frames 48 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import numpy as np
from rich.console import Console
from rich.table import Table

from vocoder_plugin import Codec
from vocoder_plugin.graph import upload
from vocoder_plugin.plan import MIDDLE


def label(lib, node) -> str:
    """What a node does, with the shapes that say where in the decoder it lies."""
    ne = node.contents.ne
    op = lib.bindings["ggml_op_desc"](node).decode()
    shape = f"{ne[0]} x {ne[1]}"
    if "CUSTOM" not in op.upper():
        return f"{op.lower()} {shape}"
    window = next(s for s in node.contents.src if s and s.contents.ne[1] > 1)
    return f"convolution {window.contents.ne[0]} -> {shape}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("--frames", type=int, default=48, help="frames in the chunk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--all", action="store_true", help="every node, not sums over like ones")
    arguments = parser.parse_args()
    with Codec.load(arguments.codec, n_threads=arguments.threads, precision=arguments.precision) as codec:
        codes = np.random.default_rng(0).integers(0, codec.codebook_size, (codec.n_codebooks, 3 * arguments.frames))
        codec._chunk_frames = arguments.frames
        with codec.decoder_stream() as stream:
            stream.push(codes)
        session, lib = codec._session, codec._session.lib
        graph = session._graphs["decode", MIDDLE, arguments.frames, 1]
        nodes = [lib.bindings["ggml_graph_node"](graph.handle, i) for i in range(graph.nodes)]
        context = lib.ggml_init(lib.bindings["ggml_init_params"](1 << 24, None, True))
        singles = []
        for node in nodes:
            singles.append(lib.ggml_new_graph_custom(context, 8, False))
            lib.bindings["ggml_graph_add_node"](singles[-1], node)
        times: list[list[float]] = [[] for _ in nodes]
        for _ in range(arguments.repeat):  # in order: nodes overwrite the inputs of those before them
            for tensor, dtype, size in graph._inputs:
                upload(lib, tensor, np.zeros(size, dtype))
            for i, single in enumerate(singles):
                start = time.perf_counter()
                lib.ggml_backend_graph_compute(session._backend, single)
                times[i].append(time.perf_counter() - start)
        seconds = [statistics.median(t) for t in times]
        lib.ggml_free(context)
    rows: dict[str, list[float]] = defaultdict(list)
    for i, node in enumerate(nodes):
        rows[f"{i} {label(lib, node)}" if arguments.all else label(lib, node)].append(seconds[i])
    total = sum(seconds)
    table = Table(title=f"decode, {arguments.frames} frames, {codec.lowering}: {total * 1e3:.1f} ms")
    for column in ("node", "times", "ms", "share"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, row in sorted(rows.items(), key=lambda item: -sum(item[1])):
        table.add_row(name, str(len(row)), f"{sum(row) * 1e3:.2f}", f"{sum(row) / total:.1%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
