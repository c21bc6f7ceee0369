"""Models that many tests share, converted or written once a session."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_sounddevice import Loudspeaker
from hypothesis import HealthCheck, settings
from speaking_llm import endless_script, silent_script, word_script, write_speaking_llm
from tiny_llm import outetts_1_tokens, write_tiny_llm

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac, wavtokenizer

FIXTURES = Path(__file__).parent / "fixtures"
settings.register_profile("plain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plain")
logging.getLogger("vocoder_plugin").setLevel(logging.DEBUG)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and so its children


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def small_dac_file(tmp_path_factory) -> Path:
    """OuteTTS's DAC in miniature, F32."""
    path = tmp_path_factory.mktemp("codec") / "small_dac.gguf"
    dac.convert(FIXTURES / "small_dac.pth", path, type="f32")
    return path


@pytest.fixture(scope="session")
def small_dac(small_dac_file):
    with Codec.load(small_dac_file, n_threads=2) as codec:
        yield codec


@pytest.fixture(scope="session")
def small_reference() -> dict[str, np.ndarray]:
    """codes -> audio and wav -> encoded, by descript-audio-codec."""
    with np.load(FIXTURES / "small_dac_ref.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="session")
def speaker() -> dict[str, np.ndarray]:
    """Words and codes of OuteTTS's published default speaker."""
    with np.load(FIXTURES / "speaker.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="session")
def llm_file(tmp_path_factory) -> Path:
    """A small Llama with OuteTTS 1.0's tokens."""
    path = tmp_path_factory.mktemp("llm") / "tiny_llm.gguf"
    write_tiny_llm(path, outetts_1_tokens())
    return path


@pytest.fixture(scope="session")
def llm(llm_file):
    import llama_cpp

    model = llama_cpp.Llama(str(llm_file), n_ctx=4096, n_threads=2, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="session")
def speaking_files(tmp_path_factory) -> dict[str, Path]:
    """Llamas that say a word, nothing, frames for ever."""
    folder = tmp_path_factory.mktemp("speaking")
    scripts = {"word": word_script(), "silent": silent_script(), "endless": endless_script()}
    for name, script in scripts.items():
        write_speaking_llm(folder / f"{name}.gguf", script)
    return {name: folder / f"{name}.gguf" for name in scripts}


@pytest.fixture
def no_thread_left():
    """Fails where a test leaves a thread running."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def loudspeaker(monkeypatch) -> Loudspeaker:
    """Stands in for sounddevice."""
    module = Loudspeaker()
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.fixture(scope="session")
def small_wavtokenizer_file(tmp_path_factory) -> Path:
    """A WavTokenizer in miniature, F32, in codec.cpp's dialect."""
    path = tmp_path_factory.mktemp("codec") / "small_wavtokenizer.gguf"
    wavtokenizer.convert(FIXTURES / "small_wavtokenizer.ckpt", path, type="f32")
    return path


@pytest.fixture(scope="session")
def wavtokenizer_reference() -> dict[str, np.ndarray]:
    """codes -> head, audio and wav -> encoded, by the original code."""
    with np.load(FIXTURES / "small_wavtokenizer_ref.npz") as archive:
        return dict(archive)
