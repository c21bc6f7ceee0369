"""Options that commands share: each group reaches its command as one argument, a frozen dataclass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from ..codec import MOST_THREADS, PRECISIONS

F = TypeVar("F", bound=Callable[..., Any])
MOST_CONTEXT = 1 << 20  # tokens
LARGEST_SEED = 2**32 - 2  # the next one means "at random" to llama.cpp


class FiniteRange(click.FloatRange):
    """A range without nan, which is neither below nor above anything, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def grouped(name: str, kind: type, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Options, and arguments beside them, that fill the fields of ``kind``, which the command takes as ``name``."""
    members = [field.name for field in fields(kind)]

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            values = {member: given.pop(member) for member in members if member in given}
            return command(**given, **{name: kind(**values)})

        for option in reversed(options):
            called = option(called)
        return called

    return decorate


@dataclass(frozen=True)
class CodecOptions:
    """Which codec to load, and how."""

    codec_file: str
    device: str | None
    threads: int | None
    precision: str
    offline: bool


def codec_options(*, llm: bool = False, required: bool = True) -> Callable[[F], F]:
    """--codec and how it is run, as ``codec: CodecOptions``; ``llm`` where the command runs an LLM too."""
    return grouped(
        "codec",
        CodecOptions,
        click.option(
            "--codec", "-mv", "--model-vocoder", "codec_file", required=required, type=click.Path(),
            help="Codec GGUF file (see `convert`), or owner/repo/file.gguf on the hub.",
        ),
        click.option(
            "--device",
            help="Device of the codec, such as CPU or Vulkan0; see `doctor`. "
            f"[default: {'that of the LLM’s last layer' if llm else 'CPU'}]",
        ),
        click.option(
            "--threads", type=click.IntRange(1, MOST_THREADS),
            help=f"Threads on a CPU{', of the LLM too' * llm}. [default: {'half of all' if llm else 'usable'} cores]",
        ),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True,
            help="Of the codec's convolutions, on the CPU: int16 is faster, at about 50 dB from float32; int8 reads "
            "weights faster still, which short pushes feel, at about 30 dB.",
        ),
        click.option("--offline", is_flag=True, help="Take hub files from the cache only."),
    )  # fmt: skip


@dataclass(frozen=True)
class LLMOptions:
    """How to run a language model."""

    temperature: float
    seed: int | None
    n_ctx: int
    n_gpu_layers: int


llm_options = grouped(
    "llm",
    LLMOptions,
    click.option(
        "--temperature", type=FiniteRange(0), default=0.4, show_default=True,
        help="Of the sampler; 0 always takes the likeliest token.",
    ),
    click.option("--seed", type=click.IntRange(0, LARGEST_SEED), help="Of the sampler, for the same speech again."),
    click.option(
        "--n-ctx", "-c", type=click.IntRange(64, MOST_CONTEXT), default=8192, show_default=True,
        help="The LLM's context, in tokens.",
    ),
    click.option(
        "--n-gpu-layers", "-ngl", type=int, default=0, show_default=True, help="LLM layers on the GPU; -1 for all."
    ),
)  # fmt: skip

codebooks_option = click.option(
    "--codebooks", type=click.IntRange(1), metavar="N", help="Use the first N codebooks, where the codec can."
)

force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")


@dataclass(frozen=True)
class SoundOptions:
    """Where sound goes, and whether while it is being made."""

    out: str | None
    force: bool
    raw: bool = False
    play: bool = False
    streaming: bool = False


raw_option = click.option(
    "--raw", is_flag=True, help="To standard output (-): 16-bit little-endian mono samples as they come, no header."
)

play_option = click.option("--play", is_flag=True, help="Play it as it comes; needs sounddevice.")

out_option = click.option(
    "-o", "--out", "--output", "out", type=click.Path(),
    help="Sound file to write: .wav, .flac, .ogg, or - for wav on standard output. Not needed with --play.",
)  # fmt: skip


def sound_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Those of ``options`` that the command has, and --force, as ``sound: SoundOptions``."""
    return grouped("sound", SoundOptions, *options, force_option)
