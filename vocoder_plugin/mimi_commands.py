"""The command ``features``, for cli.py to register."""

from __future__ import annotations

import click
import numpy as np

from .errors import VocoderError
from .options import force_option, precision_option


@click.command()
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--codec", "codec_file", required=True, type=click.Path(), help="Mimi GGUF file; see `convert mimi`.")
@click.option("--device", help="Device to run on, such as CPU or Vulkan0; see `doctor`. [default: CPU]")
@click.option("--threads", type=click.IntRange(1), help="Threads on a CPU device. [default: usable cores]")
@precision_option
@force_option
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
