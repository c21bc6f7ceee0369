#!/usr/bin/env python3
"""What every codec computes, as digests: one line ``SHA-256  label`` for each result of each way to run it.

Every fixture, converted where it is a checkpoint, is decoded and encoded offline and in a seeded partition, with every
variant of the kernels that this CPU runs and every precision; THOROUGH ones in all the ways there are. Two versions of
the package agree if the lines of the native kernels are the same. Results of the portable lowering need to agree to
TOLERANCE only, so they are compared themselves:

    python benchmarks/digests.py --portable before.npz > before.txt             # with the one version
    python benchmarks/digests.py --portable before.npz --against before.txt     # with the other: 0 if they agree

Digests hold for one CPU and one build of ggml: record both sides on the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vocoder_plugin
from vocoder_plugin import Codec, VocoderError, kernels
from vocoder_plugin.converters import dac, mimi, wavtokenizer

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
PRECISIONS = ("float32", "int16", "int8")
SECONDS = 2.2  # more than a chunk of every codec's streams, and more positions than the small Mimi's attention sees
TOLERANCE = 1e-6  # of the portable lowering, relative to the largest value
MOST_LISTED = 40  # differences that are printed one by one
THOROUGH = ("codec_cpp_dac_hf_f32.gguf", "small_dac.pth f32", "small_wavtokenizer.ckpt f32", "tiny_mimi_hf f32")
Results = Iterator[tuple[str, np.ndarray]]  # label, values


@dataclass(frozen=True)
class Source:
    """A codec file, or a checkpoint that becomes one for each type of weights."""

    path: str
    kind: str
    convert: Callable[..., None] | None = None
    options: dict[str, str] = field(default_factory=dict)

    def files(self, folder: Path) -> Iterator[tuple[str, Path | None]]:
        """Labels and files; None for a type that the converter refuses."""
        if not self.convert:
            yield self.path, FIXTURES / self.path
            return
        for type_ in ("f32", "f16", "q8_0"):
            label = " ".join([self.path, *self.options.values(), type_])
            target = folder / (label.replace(" ", "_") + ".gguf")
            try:
                self.convert(FIXTURES / self.path, target, type=type_, **self.options)
            except VocoderError:
                yield label, None
            else:
                yield label, target


SOURCES = (
    *(Source(path.name, "dac") for path in sorted(FIXTURES.glob("codec_cpp_dac_*.gguf"))),
    *(Source(path.name, "mimi") for path in sorted(FIXTURES.glob("codec_cpp_mimi_*.gguf"))),
    Source("small_dac.pth", "dac", dac.convert),
    Source("tiny_dac.pth", "dac", dac.convert),
    Source("tiny_dac_hf", "dac", dac.convert),
    Source("small_wavtokenizer.ckpt", "wavtokenizer", wavtokenizer.convert),
    Source("small_wavtokenizer.ckpt", "wavtokenizer", wavtokenizer.convert, {"dialect": "llama"}),
    Source("tiny_mimi_hf", "mimi", mimi.convert),
)


def test_codes(codec: Codec, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, codec.codebook_size, (codec.n_codebooks, frames)).astype(np.int32)


def test_samples(n: int, sample_rate: float) -> np.ndarray:
    """Harmonics that come and go, and noise."""
    t = np.arange(n) / sample_rate
    voice = sum(np.sin(2 * np.pi * 140 * k * t + k) / k for k in range(1, 10)) * (np.sin(2 * np.pi * 2.5 * t) > 0)
    return (0.2 * voice + 0.01 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)


def cut(x: np.ndarray, seed: int, most: int) -> list[np.ndarray]:
    """The last axis in pieces of random widths, from 0 to ``most``."""
    widths = np.random.default_rng(seed).integers(0, most + 1, 4 * x.shape[-1] // most + 4)
    return np.split(x, [end for end in np.cumsum(widths) if end < x.shape[-1]], axis=-1)


def joined(label: str, parts: list[np.ndarray]) -> Results:
    """A stream's results end to end, and how much came with each push."""
    axis = 0 if parts[0].dtype == np.float32 else -1  # samples [n], latents [n, dim], codes [rows, n]
    yield label, np.concatenate(parts, axis=axis)
    yield f"{label}, lengths", np.array([part.shape[axis] for part in parts])


def streamed(label: str, stream: Any, pieces: list[np.ndarray], of: str = "") -> Results:
    """Pieces pushed one by one, then ``flush``; ``of`` is the suffix of methods for other results than the usual."""
    with stream:
        parts = [getattr(stream, f"push{of}")(piece) for piece in pieces]
        yield from joined(label, [*parts, getattr(stream, f"flush{of}")()])


def together(label: str, push_many: Callable[..., list], streams: list[Any], x: np.ndarray, of: str = "") -> Results:
    """Three streams in the same calls, each with a cut of its own."""
    cuts = [cut(x, 31 + i, x.shape[-1] // 3) for i in range(len(streams))]
    parts: list[list[np.ndarray]] = [[] for _ in streams]
    for step in range(max(map(len, cuts))):
        pieces = [pieces[step] if step < len(pieces) else x[..., :0] for pieces in cuts]
        for part, new in zip(parts, push_many(streams, pieces), strict=True):
            part.append(new)
    for i, (stream, part) in enumerate(zip(streams, parts, strict=True)):
        yield from joined(f"{label} {i}", [*part, getattr(stream, f"flush{of}")()])
        stream.close()


def decoded(codec: Codec, kind: str, *, brief: bool) -> Results:
    """Codes to samples, in all the ways there are; ``brief``: offline and in one partition."""
    codes = test_codes(codec, round(SECONDS * codec.frame_rate))
    yield "decode", codec.decode(codes)
    yield from streamed("decode, pushes", codec.decoder_stream(), cut(codes, 1, codes.shape[1] // 4))
    if brief:
        return
    yield "decode, 1 frame", codec.decode(codes[:, :1])
    for k in (1, 3) if kind == "mimi" else ():
        yield f"decode, {k} codebooks", codec.decode(codes[:k])
        yield from streamed(f"decode, {k} codebooks, pushes", codec.decoder_stream(), cut(codes[:k], k, 9))
    with codec.decoder_stream() as stream:
        yield "decode, finish", stream.finish(codes)
    yield from together("decode, streams", codec.push_many, [codec.decoder_stream() for _ in range(3)], codes)
    frames = np.split(codes[:, :25], 25, axis=1)
    options = {"lookahead_frames": 3, "context_frames": 20} if kind == "wavtokenizer" else {}
    yield from streamed("decode, pushes of a frame", codec.decoder_stream(**options), frames)
    if kind == "dac":
        yield from streamed("decode, lookahead 1", codec.decoder_stream(lookahead_frames=1), cut(codes[:, :50], 2, 5))


def encoded(codec: Codec, kind: str, *, brief: bool) -> Results:
    """Samples to codes and to latents, as ``decoded`` does."""
    hop, rate = codec.hop_length, codec.sample_rate
    n = round(SECONDS * rate)
    samples = test_samples(n, rate)
    slow = test_samples(round(SECONDS * 16000), 16000)
    yield "encode", codec.encode(samples, rate)
    yield from streamed("encode, pushes", codec.encoder_stream(), cut(samples, 6, n // 4))
    if hasattr(codec, "encode_latents"):
        yield "latents", codec.encode_latents(samples, rate)
    if brief:
        return
    yield "encode, 100 samples", codec.encode(samples[:100], rate)
    yield "encode, 16 kHz", codec.encode(slow, 16000)
    yield from streamed("encode, pushes of a frame", codec.encoder_stream(), cut(samples[: 20 * hop], 5, 2 * hop))
    yield from streamed("encode, 16 kHz, pushes", codec.encoder_stream(sample_rate=16000), cut(slow, 7, 9000))
    yield from together("encode, streams", codec.push_many, [codec.encoder_stream() for _ in range(3)], samples)
    if kind == "mimi":
        yield "latents, 50 Hz", codec.encode_latents(samples, rate, frame_rate=50.0)
        yield from streamed("latents, pushes", codec.encoder_stream(), cut(samples, 8, n // 4), "_latents")
        stream = codec.encoder_stream(frame_rate=50.0)
        yield from streamed("latents, 50 Hz, pushes", stream, cut(samples, 9, n // 4), "_latents")
        streams = [codec.encoder_stream() for _ in range(3)]
        yield from together("latents, streams", codec.push_latents_many, streams, samples, "_latents")


def computed(path: Path, kind: str, options: dict[str, Any], *, brief: bool) -> Results:
    with Codec.load(path, **options) as codec:
        if codec.has_decoder:
            yield from decoded(codec, kind, brief=brief)
        if codec.has_encoder:
            yield from encoded(codec, kind, brief=brief)
    if kind == "mimi" and not brief:
        with Codec.load(path, n_codebooks=1, sliding_window=11, **options) as codec:
            yield "decode, loaded with 1 codebook", codec.decode(test_codes(codec, 25))
            yield "encode, loaded with 1 codebook", codec.encode(test_samples(40_000, 24_000), 24_000)


def all_results(only: str) -> Results:
    """Everything, labelled ``file | kernels | precision | threads | result``."""
    variants = kernels.available()
    ways = [(variant, precision, 1) for variant in variants for precision in PRECISIONS] + [("off", "float32", 1)]
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            for name, path in source.files(Path(folder)):
                if path is None and only in name:
                    yield f"{name} | refused", np.empty(0)
                if path is None:
                    continue
                two_threads = [(variants[0], "float32", 2)] if variants and name in THOROUGH else []
                for variant, precision, threads in ways + two_threads:
                    label = f"{name} | {variant} | {precision} | {threads}"
                    if only not in label:
                        continue
                    options = {"kernels": variant, "precision": precision, "n_threads": threads}
                    brief = name not in THOROUGH or threads == 2 or precision == "int8"
                    for result, values in computed(path, source.kind, options, brief=brief):
                        yield f"{label} | {result}", values


def digest(values: np.ndarray) -> str:
    """Of the values with their type and shape."""
    head = f"{values.dtype.str} {values.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def is_portable(label: str) -> bool:
    return "| off |" in label


def relative_difference(new: np.ndarray, old: np.ndarray) -> float:
    """The largest difference by the largest value; of integers and of other shapes, infinity for any difference."""
    if new.shape != old.shape or new.dtype != old.dtype:
        return float("inf")
    if new.dtype.kind != "f":
        return 0.0 if np.array_equal(new, old) else float("inf")
    return float(np.abs(new - old).max(initial=0) / max(np.abs(old).max(initial=0), np.finfo(np.float32).tiny))


def compare(only: str, before: Path, portable: Path | None) -> bool:
    """Compute everything again and tell what is not as it was."""
    lines = [line.split("  ", 1) for line in before.read_text().splitlines()]
    old = {label: value for value, label in lines if only in label.rsplit(" | ", 1)[0]}
    archive = np.load(portable) if portable else None
    compared, furthest, wrong, new = 0, (0.0, ""), [], []
    for label, values in all_results(only):
        expected = old.pop(label, None)
        compared += expected is not None
        if expected is None:
            new.append(label)
        elif is_portable(label) and archive is not None:
            difference = relative_difference(values, archive[label])
            furthest = max(furthest, (difference, label))
            if not difference <= TOLERANCE:
                wrong.append(f"differs by {difference:.2g}: {label}")
        elif digest(values) != expected:
            wrong.append(f"differs: {label}")
    wrong += [f"missing: {label}" for label in old]
    for line in wrong[:MOST_LISTED]:
        print(line)
    if len(wrong) > MOST_LISTED:
        print(f"… and {len(wrong) - MOST_LISTED} more")
    print(f"{compared} results compared, {len(wrong)} are not as they were, {len(new)} are new")
    if archive is not None:
        print("portable results differ by {:.2g} at most ({})".format(*furthest))
    return not wrong


def record(only: str, portable: Path | None) -> None:
    kept = {}
    for label, values in all_results(only):
        print(f"{digest(values)}  {label}", flush=True)
        if is_portable(label):
            kept[label] = values
    if portable:
        np.savez_compressed(portable, **kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FILE", help="digests recorded before, to compare with")
    parser.add_argument("--portable", type=Path, metavar="FILE.npz", help="results of the portable lowering themselves")
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in the first part of its label")
    arguments = parser.parse_args()
    print(f"{vocoder_plugin.__file__}; kernels: {', '.join(kernels.available()) or 'none'}", file=sys.stderr)
    if arguments.against:
        return 0 if compare(arguments.only, arguments.against, arguments.portable) else 1
    record(arguments.only, arguments.portable)
    return 0


if __name__ == "__main__":
    sys.exit(main())
