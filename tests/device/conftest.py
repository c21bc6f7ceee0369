"""Fixtures of the device tier, which needs a libggml with Vulkan and one device.

    GGML_VK_VISIBLE_DEVICES=0 pytest tests/device --override-ini addopts=-q

A run without such a device fails; nothing is skipped.
"""

from __future__ import annotations

import numpy as np
import pytest
from speaking_llm import word_script, write_speaking_llm

from vocoder_plugin import Codec
from vocoder_plugin.runtime import ggml

DEVICE = "Vulkan0"


@pytest.fixture(scope="session", autouse=True)
def device() -> ggml.Device:
    """The device under test."""
    return ggml.library().device(DEVICE)


@pytest.fixture(scope="session")
def files(small_dac_file, small_wavtokenizer_file, fixtures) -> dict:
    """A small model of each kind."""
    return {
        "dac": small_dac_file,
        "wavtokenizer": small_wavtokenizer_file,
        "mimi": fixtures / "codec_cpp_mimi_hf_f32.gguf",
    }


@pytest.fixture(params=["dac", "wavtokenizer", "mimi"])
def pair(request, files):
    """The same codec on the device and on the CPU."""
    path = files[request.param]
    with Codec.load(path, device=DEVICE) as there, Codec.load(path, n_threads=2) as here:
        yield there, here


@pytest.fixture(scope="session")
def offloaded(tmp_path_factory):
    """A small Llama with all its layers on the device, that says one word."""
    import llama_cpp

    path = tmp_path_factory.mktemp("llm") / "speaking.gguf"
    write_speaking_llm(path, word_script())
    model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, n_gpu_layers=-1, verbose=False)
    yield model
    model.close()


def some_codes(codec: Codec, frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, codec.codebook_size, (codec.n_codebooks, frames))
