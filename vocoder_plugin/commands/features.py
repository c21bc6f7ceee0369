"""The command ``features``: a codec's continuous latents of a sound."""

from __future__ import annotations

import click
import numpy as np

from ..errors import VocoderError
from .console import check_output, load_codec, output_file, say, sound_pieces
from .options import CodecOptions, FiniteRange, codec_options, force_option


@click.command(short_help="Write a codec's continuous features of a sound.")
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@codec_options()
@click.option(
    "--frame-rate", type=FiniteRange(0.1, 1000), metavar="HZ",
    help="Features a second, interpolated linearly. [default: the codec's]",
)  # fmt: skip
@click.option(
    "--streaming", is_flag=True, help="Read AUDIO piece by piece, in little memory; the features are the same."
)
@force_option
def features(audio: str, out: str, codec: CodecOptions, frame_rate: float | None, streaming: bool, force: bool) -> None:
    """Write the continuous features of AUDIO (any sound file, any rate; - for standard input) to OUT (.npy).

    OUT holds float32 [frames, values], as numpy.load reads it: the latents of the codec's encoder before
    quantisation, as many a second as it has frames. Of another rate, each lies between two of these.

    \b
    As turn-taking models take them:  vocoder-plugin features in.wav out.npy --codec codec.gguf --frame-rate 10
    """
    check_output(out, force=force, inputs=[audio, codec.codec_file])
    with load_codec(codec) as loaded:
        with (
            sound_pieces(audio, streaming=streaming) as (rate, pieces),
            loaded.encoder_stream(sample_rate=rate, frame_rate=frame_rate) as stream,
        ):
            latents = np.concatenate([*map(stream.push_latents, pieces), stream.flush_latents()])
            per_second = stream.frame_rate
        if len(latents) == 0:
            raise VocoderError("there are no samples to encode")
        with output_file(out, force=force) as file:
            np.save(file, latents)
        say(f"{latents.shape[0]} frames of {latents.shape[1]} values, {per_second:g} a second")
