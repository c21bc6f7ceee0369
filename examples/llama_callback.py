#!/usr/bin/env python3
"""Speech from inside llama_cpp's own calls: as a callback of a completion, and from its text chunks.

    python examples/llama_callback.py speech.wav --model llm.gguf --codec dac.gguf --prompt-file p.txt

Says the same twice, in two ways that programs built on ``create_completion`` can use, and compares
the samples. Without --model it runs on what the repository carries (see demo.py).
"""

from __future__ import annotations

import numpy as np
import soundfile
from demo import models, parse

from vocoder_plugin import SpeechStream, special_tokens_shown

SAMPLING = {"temperature": 0.4, "repeat_penalty": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 1}


def by_callback(llm, codec, prompt, processors) -> np.ndarray:
    """The stream sees each token as a stopping criterion, and stops the completion with the audio."""
    parts: list[np.ndarray] = []
    with SpeechStream(llm, codec) as stream:
        criteria = stream.as_stopping_criteria(on_audio=parts.append, max_tokens=4000)
        llm.create_completion(
            prompt, max_tokens=None, stopping_criteria=criteria, logits_processor=processors, **SAMPLING
        )
        return np.concatenate([*parts, stream.flush()])


def by_text(llm, codec, prompt, processors) -> np.ndarray:
    """The stream finds the tokens in the text that a streaming completion yields."""
    parts: list[np.ndarray] = []
    with SpeechStream(llm, codec) as stream, special_tokens_shown(llm):
        for chunk in llm.create_completion(
            prompt, max_tokens=4000, stream=True, logits_processor=processors, **SAMPLING
        ):
            parts.extend(stream.push_text(chunk["choices"][0]["text"]))
            if stream.finished:
                break
        return np.concatenate([*parts, stream.flush()])


def main() -> None:
    arguments = parse(__doc__)
    results = []
    for way in (by_callback, by_text):
        with models(arguments) as (llm, codec, prompt, processors):
            tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)  # no BOS before it
            results.append(way(llm, codec, tokens, processors or None))
            rate = codec.sample_rate
        print(f"{way.__name__}: {results[-1].size / rate:.2f} s")
    soundfile.write(arguments.out, results[0], rate)
    print(f"{arguments.out}: {'the same samples both ways' if np.array_equal(*results) else 'the samples differ'}")


if __name__ == "__main__":
    main()
