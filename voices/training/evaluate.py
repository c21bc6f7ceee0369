#!/usr/bin/env python3
"""Let Whisper write down the test sentences: ``evaluate.py DATA RESULTS --what teacher|codec|llama|files``.

``teacher`` is the recogniser's floor, ``codec`` the teacher's own codes decoded, ``llama`` the whole pipeline in torch,
and ``files`` the whole pipeline in llama.cpp and vocoder-plugin, from the text on (``--codec`` and ``--llama`` are GGUF
files). Adds one line to ``RESULTS/results.jsonl`` and keeps the texts that were heard and a few clips beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from checkpoints import load
from codec_model import Codec, CodecSize
from encode_speech import END_FRAMES, START_FRAMES, trimmed
from generate import speak_codes
from listening import Listener
from llama_model import Llama, LlamaSize
from periodicity import voiced_periodicity
from shards import Clip, complete_shards, read_clips
from vocoder_voice_kumo.sequence import VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--what", choices=("teacher", "codec", "llama", "files"), required=True)
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--inner", type=int, default=704)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = [clip for path in complete_shards(options.data / "test") for clip in read_clips(path)][: options.sentences]
    record: dict[str, object] = {"what": options.what, "sentences": len(clips), "note": options.note}
    originals = [original(clip) for clip in clips]
    if options.what == "teacher":
        spoken = originals
    elif options.what == "files":
        record |= {"temperature": options.temperature, "top_k": options.top_k}
        spoken, record["rtf"] = spoken_by_files(options, clips)
    else:
        codec, about = Codec(CodecSize()).eval(), {}
        load(options.codec / "codec.pt", about, codec=codec)
        record |= {"codec_steps": about["step"], "codec_minutes": round(about["minutes"], 1)}
        if options.what == "codec":
            codes = [copied_codes(codec, clip) for clip in clips]
        else:
            size = LlamaSize(len(VOCABULARY), dim=options.dim, inner=options.inner, layers=options.layers)
            model, about = Llama(size).eval(), {}
            load(options.llama / "llama.pt", about, model=model)
            record |= {"llama_steps": about["step"], "llama_minutes": round(about["minutes"], 1)}
            record |= {"tokens": about["tokens"], "temperature": options.temperature, "top_k": options.top_k}
            codes = [
                speak_codes(
                    model,
                    [phone for phone, _ in clip.phones],
                    temperature=options.temperature,
                    top_k=options.top_k,
                    seed=i,
                )
                for i, clip in enumerate(clips)
            ]
        spoken = [decoded(codec, row) for row in codes]
    aligned = originals if options.what == "codec" else [None] * len(clips)
    values = [voiced_periodicity(samples, other) for samples, other in zip(spoken, aligned, strict=True)]
    record["periodicity"] = round(float(np.mean(np.concatenate(values))), 3)
    ratios = [len(a) / len(b) for a, b in zip(spoken, originals, strict=True)]
    record["duration_ratio"] = {"mean": float(np.mean(ratios)), "least": min(ratios), "most": max(ratios)}
    heard = Listener(options.data).judge(spoken, [clip.text for clip in clips])
    record |= {"wer": round(heard.wer, 2), "cer": round(heard.cer, 2), "words": heard.words}
    record["at"] = time.strftime("%H:%M")
    options.results.mkdir(parents=True, exist_ok=True)
    with (options.results / "results.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    lines = [f"{clip.text}\n    {text}" for clip, text in zip(clips, heard.texts, strict=True)]
    (options.results / f"heard_{options.what}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for i in range(min(5, len(clips))):
        soundfile.write(options.results / f"{options.what}_{i}.wav", spoken[i], 24000)
    print(json.dumps(record))


def spoken_by_files(options: argparse.Namespace, clips: list[Clip]) -> tuple[list[np.ndarray], float]:
    """Samples, and seconds of work on one thread for a second of speech."""
    import llama_cpp
    from vocoder_voice_kumo.speaking import sentence_codes, text_sounds

    import vocoder_plugin

    llm = llama_cpp.Llama(str(options.llama), n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)
    codec = vocoder_plugin.Codec.load(options.codec, n_threads=1)
    spoken, started = [], time.process_time()
    for i, clip in enumerate(clips):
        sounds = [sound for sentence in text_sounds(clip.written) for sound in sentence]
        codes = list(sentence_codes(llm, sounds, temperature=options.temperature, top_k=options.top_k, seed=i))
        spoken.append(codec.decode(np.array([codes])))
    return spoken, round((time.process_time() - started) * 24000 / sum(len(samples) for samples in spoken), 3)


def original(clip: Clip) -> np.ndarray:
    """The teacher's samples without most of the silence around them."""
    before = max(0, clip.phones[0][1] - START_FRAMES)
    after = max(0, clip.phones[-1][1] - END_FRAMES)
    return clip.samples[600 * before : len(clip.samples) - 600 * after].astype(np.float32) / 32767


@torch.no_grad()
def copied_codes(codec: Codec, clip: Clip) -> list[int]:
    codes = codec.codes(torch.from_numpy(clip.inputs.astype(np.float32))[None])[0].numpy()
    return trimmed(clip.phones, codes)[1].tolist()


@torch.no_grad()
def decoded(codec: Codec, codes: list[int]) -> np.ndarray:
    return codec.decode(codec.codebook.embed[torch.tensor(codes)][None])[0].numpy()


if __name__ == "__main__":
    main()
