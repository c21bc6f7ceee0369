"""De-interleaving against outetts' own extraction."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
from tiny_llm import byte_tokens, outetts_0_tokens, outetts_1_tokens, speaker_script

from vocoder_plugin import AudioVocabulary, deinterleave


class StubTokenizer:
    """What outetts asks of a tokenizer: the id of one special token."""

    def __init__(self, texts: list[str]) -> None:
        self._ids = {text: i for i, text in enumerate(texts)}

    def encode(self, text: str, **_options: object) -> list[int]:
        return [self._ids[text]]


@functools.cache
def import_prompt_processors() -> dict[str, types.ModuleType]:
    """outetts' prompt processors by version, without importing the package's models and audio tools."""
    spec = importlib.util.find_spec("outetts")
    package = types.ModuleType("outetts")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["outetts"] = package
    modules = {"package": package}
    for version in ("v1", "v2", "v3"):
        for name in ("outetts.version", f"outetts.version.{version}"):
            stub = types.ModuleType(name)
            stub.__path__ = [f"{package.__path__[0]}/{name.removeprefix('outetts.').replace('.', '/')}"]
            sys.modules[name] = stub
        modules[version] = importlib.import_module(f"outetts.version.{version}.prompt_processor")
    return modules


@pytest.fixture(scope="module")
def prompt_processors():
    return import_prompt_processors()


def test_outetts_1(prompt_processors, fixtures):
    texts = [*byte_tokens(), *outetts_1_tokens()]
    theirs = prompt_processors["v3"].PromptProcessor(None)
    theirs.tokenizer = StubTokenizer(texts)
    theirs.get_audio_token_map()
    vocabulary = AudioVocabulary.from_texts(texts, n_codebooks=2, codebook_size=1024)
    tokens = [texts.index(text) for text in speaker_script(fixtures / "speaker.npz")]
    codes, report = deinterleave(tokens, vocabulary)
    np.testing.assert_array_equal(codes, theirs.extract_audio_from_tokens(tokens))
    assert report.frames == codes.shape[1] == 277
    assert report.damaged_frames == report.stray_tokens == 0


def test_outetts_0(prompt_processors):
    texts = [*byte_tokens(), *outetts_0_tokens()]
    theirs = prompt_processors["v2"].PromptProcessor.__new__(prompt_processors["v2"].PromptProcessor)
    theirs.map_audio_tokens = {texts.index(f"<|{i}|>"): i for i in range(4100)}
    vocabulary = AudioVocabulary.from_texts(texts, n_codebooks=1, codebook_size=4096)
    rng = np.random.default_rng(0)
    tokens = rng.permutation([*(texts.index(f"<|{i}|>") for i in rng.integers(0, 4096, 500)), *range(200)]).tolist()
    codes, _ = deinterleave(tokens, vocabulary)
    assert codes[0].tolist() == theirs.extract_audio_from_tokens(tokens)
