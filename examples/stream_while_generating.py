#!/usr/bin/env python3
"""Sound while the model is still talking: every chunk goes to the wav file as soon as it is decoded.

    python examples/stream_while_generating.py speech.wav --model llm.gguf --codec dac.gguf --prompt-file p.txt

The file can be played while it grows. Together the chunks are sample for sample what decoding all
codes at the end would give. Without --model it runs on what the repository carries (see demo.py).
"""

from __future__ import annotations

import time

import numpy as np
from demo import models, parse

from vocoder_plugin import SpeechStream
from vocoder_plugin.audio.output import GrowingFile
from vocoder_plugin.llm import SAMPLING


def main() -> None:
    arguments = parse(__doc__)
    with (
        models(arguments) as (llm, codec, prompt, processors),
        GrowingFile(arguments.out, codec.sample_rate, format="WAV") as file,
        SpeechStream(llm, codec) as stream,
    ):
        start = time.perf_counter()

        def play(pcm: np.ndarray) -> None:  # a sound card would do as well: vocoder_plugin.audio.output.Player
            file.write(pcm)
            spent, seconds = time.perf_counter() - start, file.n_samples / codec.sample_rate
            print(f"{spent:6.2f} s: {stream.report.frames:4} frames written, {seconds:.2f} s of audio out")

        tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)
        for token in llm.generate(tokens, logits_processor=processors, **SAMPLING):
            for pcm in stream.push(token):
                play(pcm)
            if stream.finished:
                break
        play(stream.flush())
        print(f"{arguments.out}: {file.n_samples / codec.sample_rate:.2f} s")


if __name__ == "__main__":
    main()
