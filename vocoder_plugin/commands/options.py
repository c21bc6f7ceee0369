"""Options that commands of several modules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..codec import MOST_THREADS

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


def keep_precision(context: click.Context, _parameter: click.Parameter, value: str) -> None:
    context.meta["precision"] = value  # where load_codec finds it


precision_option = click.option(
    "--precision", type=click.Choice(["float32", "int16", "int8"]), default="float32", show_default=True,
    expose_value=False, callback=keep_precision,
    help="Of the codec's convolutions, on the CPU: int16 is faster, at about 50 dB from float32; int8 reads weights "
    "faster still, which short pushes feel, at about 30 dB.",
)  # fmt: skip

codebooks_option = click.option(
    "--codebooks", type=click.IntRange(1), metavar="N",
    help="Use the first N codebooks, of Mimi 1 to 32: more cost more and sound better.",
)  # fmt: skip

force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")

raw_option = click.option(
    "--raw", is_flag=True, help="To standard output (-): 16-bit little-endian mono samples as they come, no header."
)

play_option = click.option("--play", is_flag=True, help="Play it as it comes; needs sounddevice.")

codec_option = click.option(
    "--codec", "codec_file", required=True, type=click.Path(), help="Codec GGUF file; see `convert`."
)


def device_options(command: F) -> F:
    """--device, --threads and --precision, as every command that runs a codec takes them."""
    for option in (
        precision_option,
        click.option(
            "--threads", type=click.IntRange(1, MOST_THREADS),
            help="Threads on a CPU, of an LLM too. [default: usable cores; with an LLM half of all cores]",
        ),
        click.option(
            "--device",
            help="Device of the codec, such as CPU or Vulkan0; see `doctor`. "
            "[default: that of the LLM's last layer, without an LLM CPU]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def llm_options(command: F) -> F:
    """--temperature, --seed, --n-ctx and --n-gpu-layers, as every command that runs an LLM takes them."""
    for option in (
        click.option(
            "--n-gpu-layers", "-ngl", type=int, default=0, show_default=True, help="LLM layers on the GPU; -1 for all."
        ),
        click.option(
            "--n-ctx", "-c", type=click.IntRange(64, MOST_CONTEXT), default=8192, show_default=True,
            help="The LLM's context, in tokens.",
        ),
        click.option(
            "--seed", type=click.IntRange(0, LARGEST_SEED), help="Seed of the sampler, for the same speech again."
        ),
        click.option(
            "--temperature", type=FiniteRange(0), default=0.4, show_default=True,
            help="Of the sampler; 0 always takes the likeliest token.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
