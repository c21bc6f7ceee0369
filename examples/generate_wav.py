#!/usr/bin/env python3
"""The main job: a llama_cpp model writes OuteTTS tokens, the plugin turns them into a wav file.

    python examples/generate_wav.py speech.wav --model OuteTTS-1.0-0.6B-Q8_0.gguf --codec dac.gguf --prompt-file p.txt

Without --model it runs on what the repository carries: a small Llama with OuteTTS's vocabulary, made
to say the first words of OuteTTS's published default speaker, and a small DAC with random weights.
That shows every step working; it does not sound like speech.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import soundfile

from vocoder_plugin import Codec, SpeechStream
from vocoder_plugin.llm import generate_tokens

ROOT = Path(__file__).parents[1]


def demonstration(folder: Path) -> tuple[Path, Path, str, llama_cpp.LogitsProcessorList]:
    """Small model files, a prompt, and a logits processor that dictates the speaker's tokens."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_llm import dictate, outetts_1_tokens, speaker_script, write_tiny_llm

    from vocoder_plugin.converters import dac

    tokens = write_tiny_llm(folder / "llm.gguf", outetts_1_tokens())
    dac.convert(ROOT / "tests/fixtures/small_dac.pth", folder / "dac.gguf", type="f32")
    script = speaker_script(ROOT / "tests/fixtures/speaker.npz")
    prompt = "<|im_start|>\n<|text_start|>The cat watched<|text_end|>\n<|audio_start|>\n"
    return folder / "llm.gguf", folder / "dac.gguf", prompt, dictate(tokens, script)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="wav file to write")
    parser.add_argument("--model", type=Path, help="speech LLM, GGUF")
    parser.add_argument("--codec", type=Path, help="codec, GGUF")
    parser.add_argument("--prompt-file", type=Path, help="prompt in the model's format")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {}
        if arguments.model:
            model, codec_file = arguments.model, arguments.codec
            prompt = arguments.prompt_file.read_text(encoding="utf-8")
        else:
            model, codec_file, prompt, options["logits_processor"] = demonstration(Path(folder))
        llm = llama_cpp.Llama(str(model), n_ctx=4096, verbose=False)
        with Codec.load(codec_file, llm=llm) as codec, SpeechStream(llm, codec) as stream:
            parts = []
            for token in generate_tokens(llm, prompt, end=stream.vocabulary.end, max_tokens=4000, **options):
                parts.extend(stream.push(token))
            samples = np.concatenate([*parts, stream.flush()])
            soundfile.write(arguments.out, samples, codec.sample_rate)
            seconds = samples.size / codec.sample_rate
            print(f"{arguments.out}: {seconds:.2f} s from {stream.report.frames} frames, by {codec!r}")


if __name__ == "__main__":
    main()
