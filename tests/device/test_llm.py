"""A real Llama and a codec on one device, in one process."""

from __future__ import annotations

import numpy as np
from conftest import DEVICE
from speaking_llm import FRAMES, NEWLINE
from tiny_llm import byte_tokens

from vocoder_plugin import Codec, SpeechStream
from vocoder_plugin.runtime.placement import Offload


def test_one_libggml_one_device(offloaded, files):
    assert Offload.of(offloaded).gpu_layers != 0
    with Codec.load(files["dac"], llm=offloaded) as codec:
        assert codec.device.name == DEVICE
        codec.decode(np.zeros((2, 20), int))
        assert codec._passes["decoder"].weights.kind == DEVICE
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if "libggml-base" in line or "libggml-vulkan" in line}
    assert len([path for path in mapped if "libggml-base" in path]) == 1
    assert len([path for path in mapped if "libggml-vulkan" in path]) == 1


def test_speech_of_an_offloaded_model(offloaded, files, small_dac):
    """Tokens generated on the device and decoded on it give the samples of the CPU."""
    codes = np.array(FRAMES).T
    prompt = [byte_tokens().index(NEWLINE)]
    expected = small_dac.decode(codes)
    with Codec.load(files["dac"], llm=offloaded) as codec, SpeechStream(offloaded, codec) as stream:
        assert stream.overlap
        parts = []
        for token in offloaded.generate(prompt, temp=0.0):
            parts += stream.push(token)
            if stream.finished:
                break
        parts.append(stream.flush())
    audio = np.concatenate(parts)
    assert audio.shape == expected.shape
    assert np.linalg.norm(audio - expected) < 2e-3 * np.linalg.norm(expected)
