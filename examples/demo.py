"""What the examples run on when no model is given: small models that the repository carries."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llama_cpp

from vocoder_plugin import Codec
from vocoder_plugin.converters import dac

ROOT = Path(__file__).parents[1]
PROMPT = "<|im_start|>\n<|text_start|>The cat watched<|text_end|>\n<|audio_start|>\n"


def demonstration(folder: Path) -> tuple[Path, Path, str, llama_cpp.LogitsProcessorList]:
    """Small model files, a prompt, and a logits processor that dictates the speaker's tokens."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_llm import dictate, outetts_1_tokens, speaker_script, write_tiny_llm

    tokens = write_tiny_llm(folder / "llm.gguf", outetts_1_tokens())
    dac.convert(ROOT / "tests/fixtures/small_dac.pth", folder / "dac.gguf", type="f32")
    script = speaker_script(ROOT / "tests/fixtures/speaker.npz")
    return folder / "llm.gguf", folder / "dac.gguf", PROMPT, dictate(tokens, script)


def parse(description: str | None) -> argparse.Namespace:
    """The arguments that every example takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="wav file to write")
    parser.add_argument("--model", type=Path, help="speech LLM, GGUF")
    parser.add_argument("--codec", type=Path, help="codec, GGUF")
    parser.add_argument("--prompt-file", type=Path, help="prompt in the model's format")
    arguments = parser.parse_args()
    given = [arguments.model, arguments.codec, arguments.prompt_file]
    if any(given) and not all(given):
        parser.error("--model, --codec and --prompt-file go together")
    return arguments


@contextlib.contextmanager
def models(
    arguments: argparse.Namespace,
) -> Iterator[tuple[llama_cpp.Llama, Codec, str, llama_cpp.LogitsProcessorList]]:
    """The models that the arguments name, or the demonstration's; a prompt; logits processors, none for real models."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model:
            model, codec_file = arguments.model, arguments.codec
            prompt = arguments.prompt_file.read_text(encoding="utf-8")
            processors = llama_cpp.LogitsProcessorList()
        else:
            model, codec_file, prompt, processors = demonstration(Path(folder))
        llm = llama_cpp.Llama(str(model), n_ctx=8192, verbose=False)
        with contextlib.closing(llm), Codec.load(codec_file, llm=llm) as codec:
            yield llm, codec, prompt, processors
