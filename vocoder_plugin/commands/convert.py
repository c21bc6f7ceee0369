"""The command ``convert``: a subcommand for each installed codec that declares a converter."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import hub
from ..codecs.model import Converter
from ..codecs.registry import models
from ..errors import VocoderError
from .console import check_output, check_there, failures_named, on_terminal, say
from .options import force_option


class Converters(click.Group):
    """Subcommands that codecs declare."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name, model in models().items() if model.converter)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        model = models().get(cmd_name)
        return conversion(cmd_name, model.converter) if model and model.converter else None


@click.command(cls=Converters, short_help="Convert a checkpoint to a codec GGUF file.")
def convert() -> None:
    """Convert a checkpoint to a codec GGUF file, without torch."""


def conversion(name: str, converter: Converter) -> click.Command:
    """The subcommand of a converter."""

    @click.command(name, short_help=converter.help, help=f"Convert SOURCE to OUT.\n\n{converter.help}")
    @click.argument("source", type=click.Path())
    @click.argument("out", type=click.Path())
    @click.option(
        "--type",
        "type",
        type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
        default="f16",
        show_default=True,
        help="Type of convolution and linear weights. f32 is exact; f16 is half the size.",
    )
    @force_option
    def command(source: str, out: str, **options: Any) -> None:
        run(converter, source, out, **options)

    for option, declared in converter.options.items():
        kind = click.Choice(declared.kind) if isinstance(declared.kind, tuple) else declared.kind
        command.params.append(
            click.Option(
                [f"--{option.replace('_', '-')}"], type=kind, default=declared.default, help=declared.help,
                show_default=declared.default is not None,
            )
        )  # fmt: skip
    return command


def run(converter: Converter, source: str, out: str, *, type: str, force: bool, **options: Any) -> None:
    """Convert with a progress bar, then tell the file's size."""
    from rich.console import Console
    from rich.progress import Progress

    if out == "-":
        raise click.UsageError("a GGUF file cannot go to standard output: give OUT a name")
    check_output(out, force=force, inputs=[source])
    source = str(hub.local_or_fetch(source, progress=on_terminal()))
    check_there(source)
    function = loaded(converter.function)
    with Progress(console=Console(stderr=True), disable=not on_terminal(), transient=True) as bar, failures_named(out):
        task = bar.add_task(f"converting to {type}", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        function(source, out, type=type, progress=progress, force=force, **options)
    say(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB")


def loaded(reference: str) -> Callable[..., None]:
    """The function that ``module:name`` refers to."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a stranger's module raises
        raise VocoderError(f"the converter {reference} cannot be loaded: {type(error).__name__}: {error}") from None
