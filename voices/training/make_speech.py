#!/usr/bin/env python3
"""Let the teacher speak the corpus: shards of speech with the frames of every sound, on disk and resumable.

``make_speech.py DATA --kind audio`` writes samples and features (for the codec), ``--kind features`` features alone
(for the language model), ``--kind test`` the test sentences. Each shard is a file that appears when it is complete;
a second start goes on after the last one. Several processes may share the work: ``--worker 0/2`` and ``--worker 1/2``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from corpus import Sentence, test_sentences, training_sentences
from symbols import phone_durations, spoken_form
from teacher_model import Teacher

SHARD = 64  # sentences
AUDIO_SENTENCES = 4096  # the first of the corpus are spoken with samples, the others as features
LEVEL = 0.4  # 8 dB down: WavTokenizer's head limits magnitudes, and the teacher is loud


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--kind", choices=("audio", "features", "test"), required=True)
    parser.add_argument("--hours", type=float, default=1e9, help="stop when that much speech of this kind exists")
    parser.add_argument("--worker", default="0/1", help="N/OF: make every OF-th shard")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    options = parser.parse_args()
    worker, workers = map(int, options.worker.split("/"))
    if options.kind == "test":
        sentences = test_sentences()
    else:
        sentences = training_sentences(options.wordnet)
        sentences = sentences[:AUDIO_SENTENCES] if options.kind == "audio" else sentences[AUDIO_SENTENCES:]
    folder = options.data / options.kind
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(options.data, vocoder=options.kind != "features")
    for number in range(worker, -(-len(sentences) // SHARD), workers):
        target = folder / f"{number:05d}.npz"
        if target.exists():
            continue
        if sum(seconds_of(path) for path in folder.glob("*.json")) > options.hours * 3600:
            break
        start = time.process_time()
        seconds = write_shard(target, teacher, sentences[number * SHARD : (number + 1) * SHARD])
        print(f"{target.name}: {seconds:.0f} s, RTF {(time.process_time() - start) / seconds:.3f}", flush=True)


def seconds_of(path: Path) -> float:
    return json.loads(path.read_text(encoding="utf-8"))["seconds"]


def write_shard(target: Path, teacher: Teacher, sentences: list[Sentence]) -> float:
    """Write one shard and, beside it, a JSON file with its words, sounds and durations; returns seconds of speech."""
    features, curves, samples, clips = [], [], [], []
    for sentence in sentences:
        pairs = spoken_form(sentence)
        speech = teacher.speak("".join(symbols for _, symbols in pairs))
        timed = phone_durations(pairs, speech.durations)
        features.append(speech.features.T.astype(np.float16))  # [2F, 512]
        curves.append(np.stack([speech.pitch, speech.energy], axis=1))  # [2F, 2]
        if speech.samples is not None:
            samples.append(np.round(np.clip(speech.samples * LEVEL, -1, 1) * 32767).astype(np.int16))
        clips.append({"words": sentence.words, "marks": sentence.marks, "phones": timed})
    arrays = {"features": np.concatenate(features), "curves": np.concatenate(curves)}
    if samples:
        arrays["samples"] = np.concatenate(samples)
    partial = target.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    seconds = sum(len(part) for part in features) / 80
    facts = json.dumps({"seconds": seconds, "clips": clips})
    target.with_suffix(".json").write_text(facts, encoding="utf-8")
    partial.rename(target)
    return seconds


if __name__ == "__main__":
    main()
