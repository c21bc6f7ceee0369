#!/usr/bin/env python3
"""The main job: a llama_cpp model writes OuteTTS tokens, the plugin turns them into a wav file.

    python examples/generate_wav.py speech.wav --model OuteTTS-1.0-0.6B-Q8_0.gguf --codec dac.gguf --prompt-file p.txt

Without --model it runs on what the repository carries: a small Llama with OuteTTS's vocabulary, made
to say the first words of OuteTTS's published default speaker, and a small DAC with random weights.
That shows every step working; it does not sound like speech.
"""

from __future__ import annotations

import numpy as np
import soundfile
from demo import models, parse

from vocoder_plugin import SpeechStream
from vocoder_plugin.llm import generate_tokens


def main() -> None:
    arguments = parse(__doc__)
    with models(arguments) as (llm, codec, prompt, processors), SpeechStream(llm, codec) as stream:
        parts = []
        end = stream.vocabulary.end
        for token in generate_tokens(llm, prompt, end=end, max_tokens=4000, logits_processor=processors):
            parts.extend(stream.push(token))
        samples = np.concatenate([*parts, stream.flush()])
        soundfile.write(arguments.out, samples, codec.sample_rate)
        seconds = samples.size / codec.sample_rate
        print(f"{arguments.out}: {seconds:.2f} s from {stream.report.frames} frames, by {codec!r}")


if __name__ == "__main__":
    main()
