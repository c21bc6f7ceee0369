"""The command ``convert wavtokenizer``, for cli.py to register."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("wavtokenizer")
@click.argument("source", type=click.Path())
@click.argument("out", type=click.Path())
@click.option(
    "--type", "kind", type=click.Choice(["f32", "f16", "bf16", "q8_0"]), default="f16", show_default=True,
    help="Type of convolution and linear weights. f32 is exact; f16 is half the size.",
)  # fmt: skip
@click.option(
    "--dialect", type=click.Choice(["codec.cpp", "llama"]), default="codec.cpp", show_default=True,
    help="Names of tensors and keys. llama writes the decoder alone, as a file that libllama loads too.",
)  # fmt: skip
@click.option("--config", type=click.Path(), help="The model's yaml, if it is not the only one beside SOURCE.")
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
def convert_wavtokenizer(source: str, out: str, kind: str, dialect: str, config: str | None, force: bool) -> None:
    """Convert SOURCE, a WavTokenizer, to OUT.

    SOURCE is a training checkpoint (.ckpt, such as those of novateur/WavTokenizer-large-speech-75token), one of
    outetts' encoder_model.pt and decoder_model.pt, or the folder that holds encoder/ and decoder/ with both.
    """
    from rich.console import Console
    from rich.progress import Progress

    from vocoder_plugin.converters import wavtokenizer

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(f"converting to {kind}", total=None)
        wavtokenizer.convert(
            source, out, type=kind, dialect=dialect, config=config, force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    click.echo(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB", err=True)
