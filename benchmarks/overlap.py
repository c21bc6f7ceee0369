#!/usr/bin/env python3
"""What decoding costs a running generation: one after the other, inline, and on a worker thread.

    python benchmarks/overlap.py --codec dac.gguf [--model llm.gguf] [--seconds 10]

Every mode lets the LLM write the same tokens (a logits processor dictates them) and decodes them with
the same schedule. Without --model a Llama with random weights is built, --width and --layers large;
without --codec the small DAC of the tests is used, whose decoding costs next to nothing.
"Inline" and "worker" give each side all threads, "worker, split" half of them. "Bound" is
max(generate alone, decode alone) + first chunk: what perfect overlap on two devices would take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

from vocoder_plugin import AudioVocabulary, Codec, SpeechStream
from vocoder_plugin.converters import dac

ROOT = Path(__file__).parents[1]
PROMPT = [0, 1, 2, 3]


class Bench:
    """One LLM and codecs with all and with half of the threads, and the tokens of some audio."""

    def __init__(self, model: Path, codec_file: Path, *, seconds: float, threads: int, device: str | None) -> None:
        self.threads, self.half = threads, max(1, threads // 2)
        self.codecs = {
            n: Codec.load(codec_file, device=device, n_threads=n) for n in dict.fromkeys([threads, self.half])
        }
        codec = self.codecs[threads]
        frames = round(seconds * codec.frame_rate)
        self.llm = llama_cpp.Llama(
            str(model), n_ctx=frames * codec.n_codebooks + 64, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        vocabulary = AudioVocabulary.from_llm(self.llm, codec)
        ids = {place_code: token for token, place_code in vocabulary.codes.items()}
        self.codes = np.random.default_rng(0).integers(0, codec.codebook_size, (codec.n_codebooks, frames))
        self.tokens = [ids[q, int(code)] for column in self.codes.T for q, code in enumerate(column)]

    def use_threads(self, n: int) -> None:
        llama_cpp.llama_set_n_threads(self.llm.ctx, n, n)

    def generation(self):
        wanted = iter(self.tokens)

        def dictate(_input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            only = np.full_like(scores, -np.inf)
            only[next(wanted)] = 0
            return only

        generator = self.llm.generate(PROMPT, logits_processor=llama_cpp.LogitsProcessorList([dictate]), temp=0)
        for _, token in zip(self.tokens, generator, strict=False):
            yield token

    def generate_alone(self) -> tuple[float, float]:
        self.use_threads(self.threads)
        start = time.perf_counter()
        for _ in self.generation():
            pass
        return time.perf_counter() - start, 0.0

    def decode_alone(self) -> tuple[float, float]:
        start, first = time.perf_counter(), 0.0
        with SpeechStream(self.llm, self.codecs[self.threads], overlap=False) as stream:
            for token in self.tokens:
                before = time.perf_counter()
                if list(stream.push(token)) and not first:
                    first = time.perf_counter() - before
            stream.flush()
        return time.perf_counter() - start, first

    def both(self, *, overlap: bool, split: bool = False) -> tuple[float, float]:
        threads = self.half if split else self.threads
        self.use_threads(threads)
        start, first = time.perf_counter(), 0.0
        with SpeechStream(self.llm, self.codecs[threads], overlap=overlap) as stream:
            for token in self.generation():
                if list(stream.push(token)) and not first:
                    first = time.perf_counter() - start
            stream.flush()
        return time.perf_counter() - start, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="speech LLM, GGUF")
    parser.add_argument("--codec", type=Path, help="codec, GGUF")
    parser.add_argument("--device", help="the codec's device (default: CPU)")
    parser.add_argument("--seconds", type=float, default=10, help="of audio (default: 10)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    parser.add_argument("--repeat", type=int, default=3, help="interleaved repetitions after a warm-up (default: 3)")
    parser.add_argument("--width", type=int, default=512, help="of the random Llama (default: 512)")
    parser.add_argument("--layers", type=int, default=8, help="of the random Llama (default: 8)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, codec_file = arguments.model, arguments.codec
        if model is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from tiny_llm import outetts_1_tokens, write_tiny_llm

            model = Path(folder) / "llm.gguf"
            write_tiny_llm(model, outetts_1_tokens(), width=arguments.width, layers=arguments.layers, context=32768)
        if codec_file is None:
            codec_file = Path(folder) / "dac.gguf"
            dac.convert(ROOT / "tests/fixtures/small_dac.pth", codec_file, type="f32")
        bench = Bench(model, codec_file, seconds=arguments.seconds, threads=arguments.threads, device=arguments.device)
        modes = {
            "generate alone": bench.generate_alone,
            "decode alone": bench.decode_alone,
            "inline": lambda: bench.both(overlap=False),
            "worker": lambda: bench.both(overlap=True),
            "worker, split": lambda: bench.both(overlap=True, split=True),
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
        for repetition in range(arguments.repeat + 1):
            for name, mode in modes.items():
                result = mode()
                if repetition:
                    runs[name].append(result)
    total = {name: statistics.median(seconds for seconds, _ in results) for name, results in runs.items()}
    first = {name: statistics.median(first for _, first in results) for name, results in runs.items()}
    bound = max(total["generate alone"], total["decode alone"]) + first["decode alone"]
    codec = bench.codecs[bench.threads]
    where = f"{codec.device.name}, {codec.lowering}"
    table = Table(title=f"{arguments.seconds:g} s of audio, {arguments.threads} threads, codec on {where}")
    for column in ("", "s", "relative to the bound", "first samples after, s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in total.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / bound:.2f}", f"{first[name]:.3f}" if first[name] else "–")
    table.add_row("bound", f"{bound:.2f}", "1.00", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
