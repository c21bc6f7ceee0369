"""Options that commands of several modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
MOST_THREADS = 512  # of ggml


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

codec_option = click.option(
    "--codec", "codec_file", required=True, type=click.Path(), help="Codec GGUF file; see `convert`."
)


def device_options(command: F) -> F:
    """--device, --threads and --precision, as every command that runs a codec takes them."""
    for option in (
        precision_option,
        click.option("--threads", type=click.IntRange(1), help="Threads on a CPU device. [default: usable cores]"),
        click.option("--device", help="Device to run on, such as CPU or Vulkan0; see `doctor`. [default: CPU]"),
    ):
        command = option(command)
    return command
