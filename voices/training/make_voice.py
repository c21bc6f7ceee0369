#!/usr/bin/env python3
"""Everything, from nothing to the files of the voice: ``make_voice.py WORK``.

Each stage is a program of its own that goes on where it was stopped, so this one can be stopped at any minute and
started again. What is already complete takes no time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "kumo" / "vocoder_voice_kumo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a folder for speech, checkpoints and results: some gigabytes")
    parser.add_argument("--audio-hours", default="0.75", help="of the teacher's speech for the codec")
    parser.add_argument("--feature-hours", default="12", help="of the teacher's features for the language model")
    parser.add_argument("--codec-steps", default="6000")
    parser.add_argument("--encoder-steps", default="2000")
    parser.add_argument("--llama-steps", default="8000")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    data, codec, llama, results = (options.work / name for name in ("data", "codec", "llama", "results"))
    stage("make_speech.py", data, "--kind", "test")
    stage("make_speech.py", data, "--kind", "audio", "--hours", options.audio_hours)
    stage("make_speech.py", data, "--kind", "features", "--hours", options.feature_hours)
    stage("train_codec.py", data, codec, "--steps", options.codec_steps, "--threads", options.threads)
    stage("fit_encoder.py", data, codec, "--steps", options.encoder_steps)
    stage("encode_speech.py", data, codec)
    stage("train_llama.py", codec, llama, "--steps", options.llama_steps, "--threads", options.threads)
    stage("export_codec.py", codec, PACKAGE / "codec.gguf")
    stage("export_llama.py", llama, PACKAGE / "llama.gguf")
    stage("evaluate.py", data, results, "--what", "teacher")
    stage("evaluate.py", data, results, "--what", "codec", "--codec", codec)
    stage("evaluate.py", data, results, "--what", "llama", "--codec", codec, "--llama", llama)


def stage(program: str, *arguments: object) -> None:
    print(f"-- {program} {' '.join(map(str, arguments))}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, HERE / program, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
