"""The commands ``convert mimi`` and ``features``, for cli.py to register."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

from .errors import VocoderError
from .options import precision_option


@click.command("mimi")
@click.argument("source", type=click.Path())
@click.argument("out", type=click.Path())
@click.option(
    "--type", "kind", type=click.Choice(["f32", "f16", "bf16", "q8_0"]), default="f16", show_default=True,
    help="Type of the weights. f32 is exact; f16 is half the size.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
def convert_mimi(source: str, out: str, kind: str, force: bool) -> None:
    """Convert SOURCE, a Mimi codec, to OUT.

    SOURCE is a Hugging Face folder (kyutai/mimi), or a safetensors file of transformers or of moshi.
    """
    from rich.console import Console
    from rich.progress import Progress

    from vocoder_plugin.converters import mimi

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(f"converting to {kind}", total=None)
        mimi.convert(
            source, out, type=kind, force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    click.echo(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB", err=True)


@click.command()
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--codec", "codec_file", required=True, type=click.Path(), help="Mimi GGUF file; see `convert mimi`.")
@click.option("--device", help="Device to run on, such as CPU or Vulkan0; see `doctor`. [default: CPU]")
@click.option("--threads", type=click.IntRange(1), help="Threads on a CPU device. [default: usable cores]")
@precision_option
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
def features(audio: str, out: str, codec_file: str, device: str | None, threads: int | None, force: bool) -> None:
    """Write Mimi's continuous features of AUDIO (any sound file, any rate) to OUT (.npy).

    OUT holds float32 [frames, 512]: the latents before quantisation, 12.5 a second.
    """
    from .audio import read_audio
    from .cli import check_output, load_codec, output_file

    check_output(out, force=force)
    with load_codec(codec_file, device, threads) as codec:
        if not hasattr(codec, "encode_latents"):
            raise VocoderError(f"{codec_file}: has no continuous features; they are Mimi's")
        samples, rate = read_audio(audio)
        latents = codec.encode_latents(samples, rate)
        with output_file(out, force=force) as file:
            np.save(file, latents)
        click.echo(f"{latents.shape[0]} frames of {latents.shape[1]} values", err=True)
