"""The command ``features``, for cli.py to register."""

from __future__ import annotations

import click
import numpy as np

from ..errors import VocoderError
from .console import check_output, load_codec, output_file, say, sound_pieces
from .options import FiniteRange, device_options, force_option


@click.command()
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--codec", "codec_file", required=True, type=click.Path(), help="Mimi GGUF file; see `convert mimi`.")
@device_options
@click.option(
    "--frame-rate", type=FiniteRange(0.1, 1000), metavar="HZ",
    help="Features a second, interpolated linearly. [default: Mimi's 12.5]",
)  # fmt: skip
@click.option(
    "--streaming", is_flag=True, help="Read AUDIO piece by piece, in little memory; the features are the same."
)
@force_option
def features(
    audio: str, out: str, codec_file: str, device: str | None, threads: int | None, frame_rate: float | None,
    streaming: bool, force: bool,
) -> None:  # fmt: skip
    """Write Mimi's continuous features of AUDIO (any sound file, any rate; - for standard input) to OUT (.npy).

    OUT holds float32 [frames, 512], as numpy.load reads it: the latents before quantisation, 12.5 a second. They are
    causal: feature i hears nothing after (i + 1) / 12.5 s (but for the few ms that resampling to 24 kHz looks ahead),
    and one of another rate nothing after the second of the two that it lies between.

    \b
    As turn-taking models take them:  vocoder-plugin features in.wav out.npy --codec mimi.gguf --frame-rate 10
    """
    check_output(out, force=force, inputs=[audio, codec_file])
    with load_codec(codec_file, device, threads) as codec:
        if not hasattr(codec, "encode_latents"):
            raise VocoderError(f"{codec_file}: has no continuous features; they are Mimi's")
        with (
            sound_pieces(audio, streaming=streaming) as (rate, pieces),
            codec.encoder_stream(sample_rate=rate, frame_rate=frame_rate) as stream,
        ):
            latents = np.concatenate([*map(stream.push_latents, pieces), stream.flush_latents()])
            per_second = stream.frame_rate
        if len(latents) == 0:
            raise VocoderError("there are no samples to encode")
        with output_file(out, force=force) as file:
            np.save(file, latents)
        say(f"{latents.shape[0]} frames of {latents.shape[1]} values, {per_second:g} a second")
