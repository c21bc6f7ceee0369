"""The commands ``convert dac``, ``convert wavtokenizer`` and ``convert mimi``, for cli.py to register."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .console import check_output, on_terminal, say
from .options import force_option

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def convert() -> None:
    """Convert a checkpoint to a codec GGUF file, without torch."""


def common_options(command: F) -> F:
    """SOURCE, OUT, --type and --force, as every conversion takes them."""
    for option in (
        force_option,
        click.option(
            "--type", "type_", type=click.Choice(["f32", "f16", "bf16", "q8_0"]), default="f16", show_default=True,
            help="Type of convolution and linear weights. f32 is exact; f16 is half the size.",
        ),
        click.argument("out", type=click.Path()),
        click.argument("source", type=click.Path()),
    ):  # fmt: skip
        command = option(command)
    return command


def run(converter: Callable[..., None], source: str, out: str, *, type_: str, force: bool, **options: Any) -> None:
    """Convert with a progress bar, then tell the file's size."""
    from rich.console import Console
    from rich.progress import Progress

    if out == "-":
        raise click.UsageError("a GGUF file cannot go to standard output: give OUT a name")
    check_output(out, force=force, inputs=[source])
    with Progress(console=Console(stderr=True), disable=not on_terminal(), transient=True) as bar:
        task = bar.add_task(f"converting to {type_}", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        converter(source, out, type=type_, progress=progress, force=force, **options)
    say(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB")


@convert.command("dac")
@click.option("--sample-rate", type=click.IntRange(1), help="Sample rate in Hz, if the checkpoint does not say it.")
@common_options
def convert_dac(source: str, out: str, **options: Any) -> None:
    """Convert SOURCE, a Descript Audio Codec, to OUT.

    SOURCE is a descript-audio-codec .pth file (OuteTTS 1.0 uses weights_24khz_1.5kbps_v1.0.pth of
    ibm-research/DAC.speech.v1.0), or a Hugging Face DacModel folder or safetensors file.
    """
    from vocoder_plugin.converters import dac

    run(dac.convert, source, out, **options)


@convert.command("wavtokenizer")
@click.option(
    "--dialect", type=click.Choice(["codec.cpp", "llama"]), default="codec.cpp", show_default=True,
    help="Names of tensors and keys. llama writes the decoder alone, as a file that libllama loads too.",
)  # fmt: skip
@click.option("--config", type=click.Path(), help="The model's yaml, if it is not the only one beside SOURCE.")
@common_options
def convert_wavtokenizer(source: str, out: str, **options: Any) -> None:
    """Convert SOURCE, a WavTokenizer, to OUT.

    SOURCE is a training checkpoint (.ckpt, such as those of novateur/WavTokenizer-large-speech-75token), one of
    outetts' encoder_model.pt and decoder_model.pt, or the folder that holds encoder/ and decoder/ with both.
    """
    from vocoder_plugin.converters import wavtokenizer

    run(wavtokenizer.convert, source, out, **options)


@convert.command("mimi")
@common_options
def convert_mimi(source: str, out: str, **options: Any) -> None:
    """Convert SOURCE, a Mimi codec, to OUT.

    SOURCE is a Hugging Face folder (kyutai/mimi), or a safetensors file of transformers or of moshi.
    """
    from vocoder_plugin.converters import mimi

    run(mimi.convert, source, out, **options)
