#!/usr/bin/env python3
"""Mimi's speed: whole clips against torch, and the 80 ms step in both directions.

    python benchmarks/mimi.py mimi.gguf [--torch]

``--torch`` times transformers' MimiModel of the same sizes (other weights) in the same process.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from vocoder_plugin import Codec

HOP, SECONDS = 1920, 10


def best(function, repeats: int = 5) -> float:  # type: ignore[no-untyped-def]
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def steps(push, inputs) -> str:  # type: ignore[no-untyped-def]
    times = []
    for item in inputs:
        start = time.perf_counter()
        push(item)
        times.append((time.perf_counter() - start) * 1000)
    times = times[len(times) // 4 :]
    return f"median {np.median(times):.2f} ms, p99 {np.percentile(times, 99):.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    frames = int(SECONDS * 12.5)
    samples = rng.normal(0, 0.1, frames * HOP).astype(np.float32)
    for precision in ("float32", "int16"):
        with Codec.load(arguments.model, n_threads=arguments.threads, precision=precision) as codec:
            codes = rng.integers(0, codec.codebook_size, (codec.n_codebooks, frames))
            decode, encode = best(lambda: codec.decode(codes)), best(lambda: codec.encode(samples, 24000))  # noqa: B023
            print(f"{precision}: RTF decode {decode / SECONDS:.4f}, encode {encode / SECONDS:.4f}")
            with codec.decoder_stream() as stream:
                print(f"  decode step: {steps(stream.push, [codes[:, i % frames, None] for i in range(400)])}")
            with codec.encoder_stream() as encoder:
                chunks = [samples[i % frames * HOP :][:HOP] for i in range(400)]
                print(f"  encode step: {steps(encoder.push, chunks)}")
            print(f"  memory: {codec.memory}")
    if arguments.torch:
        import torch
        import transformers

        torch.set_num_threads(arguments.threads)
        model = transformers.MimiModel(transformers.MimiConfig(num_quantizers=8)).eval()
        with torch.no_grad():
            ids, wave = torch.from_numpy(codes)[None], torch.from_numpy(samples)[None, None]
            decode, encode = best(lambda: model.decode(ids)), best(lambda: model.encode(wave))
        print(f"torch: RTF decode {decode / SECONDS:.4f}, encode {encode / SECONDS:.4f}")


if __name__ == "__main__":
    main()
