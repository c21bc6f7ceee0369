"""The commands ``encode`` and ``decode``: sound to codes and back."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from ..audio.samples import standard_input
from ..codec import Codec
from ..errors import VocoderError
from . import console
from .console import (
    Progress,
    audio_output,
    check_output,
    check_sound_output,
    check_there,
    codec_kind,
    load_codec,
    output_file,
    say,
    sound_pieces,
)
from .options import (
    CodecOptions,
    SoundOptions,
    codebooks_option,
    codec_options,
    force_option,
    raw_option,
    sound_options,
)

STREAMING_FRAMES = 48  # of a chunk that `decode --streaming` writes


@click.command(short_help="Encode a sound file to codes.")
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@codec_options()
@codebooks_option
@click.option("--streaming", is_flag=True, help="Read AUDIO piece by piece, in little memory; the codes are the same.")
@force_option
def encode(audio: str, out: str, codec: CodecOptions, codebooks: int | None, streaming: bool, force: bool) -> None:
    """Encode AUDIO (any sound file, any rate; - for standard input) to codes in OUT (.npz).

    OUT holds audio_codes [1, codebooks, frames], sample_rate, num_codebooks, num_frames, and the codec by its kind
    and name, as numpy.load reads them; `decode` takes it back to sound.

    \b
    The first 32 codebooks:  vocoder-plugin encode in.wav codes.npz --codec codec.gguf --codebooks 32
    Hours of sound:          vocoder-plugin encode long.flac codes.npz --codec codec.gguf --streaming
    """
    check_output(out, force=force, inputs=[audio, codec.codec_file])
    with load_codec(codec, codebooks=codebooks) as loaded:
        rows = loaded.format.rows_given(codebooks)
        with (
            sound_pieces(audio, streaming=streaming) as (rate, pieces),
            loaded.encoder_stream(sample_rate=rate) as stream,
        ):
            codes = np.concatenate([*map(stream.push, pieces), stream.flush()], axis=1)[:rows]
        if codes.shape[1] == 0:
            raise VocoderError("there are no samples to encode")
        with output_file(out, force=force) as file:
            np.savez_compressed(
                file, audio_codes=codes[np.newaxis], sample_rate=loaded.sample_rate, num_codebooks=codes.shape[0],
                num_frames=codes.shape[1], codec=codec_kind(loaded.path), codec_name=loaded.name,
            )  # fmt: skip
        say(f"{codes.shape[1]} frames of {codes.shape[0]} codebooks, {codes.shape[1] / loaded.frame_rate:.2f} s")


@click.command(short_help="Decode codes to a sound file.")
@click.argument("codes", type=click.Path())
@click.argument("out", type=click.Path())
@codec_options()
@codebooks_option
@sound_options(
    click.option("--streaming", is_flag=True, help="Let OUT grow chunk by chunk, in little memory; Ctrl-C keeps it."),
    raw_option,
)
def decode(codes: str, codec: CodecOptions, codebooks: int | None, sound: SoundOptions) -> None:
    """Decode the codes in CODES (.npz, as `encode` writes it; - for standard input) to OUT.

    OUT is a .wav, .flac or .ogg file, or - for wav on standard output. It appears when it is
    complete, or with --streaming grows from the start; the samples of codecs with exact streams are the same.
    Without --codebooks, all codebooks of CODES are used.

    \b
    Play without a file:  vocoder-plugin decode codes.npz - --codec codec.gguf --raw | aplay -f S16_LE -r 24000
    """
    check_sound_output(sound)
    archive = read_codes(codes)
    array = archive["audio_codes"][0]
    if codebooks is not None and codebooks > len(array):
        raise VocoderError(f"{codes}: has {len(array)} codebooks, fewer than --codebooks {codebooks}")
    array = array[:codebooks]
    with load_codec(codec, codebooks=len(array)) as loaded:
        check_origin(archive, loaded, codes)
        loaded.format.checked(array)
        seconds = length = 0.0
        with audio_output(sound, loaded) as write, Progress() as progress:
            for samples, spent in decoded_chunks(loaded, array, chunk_frames(loaded, sound)):
                write(samples)
                seconds += spent
                length += samples.size / loaded.sample_rate
                progress.show(f"{length:.1f} of {array.shape[1] / loaded.frame_rate:.1f} s of audio")
        rtf = f"RTF {seconds / length:.2f} on {loaded.device.name}, {loaded.lowering}"
        say(f"{length:.2f} s of audio in {seconds:.2f} s ({rtf})")


def check_origin(archive: dict[str, np.ndarray], codec: Codec, path: str) -> None:
    """Refuse codes that another kind of codec made, as far as the file tells: they would decode to noise."""
    here = {"codec": codec_kind(codec.path), "sample_rate": codec.sample_rate}
    there = {name: archive[name].item() if archive.get(name, np.empty(0)).size == 1 else here[name] for name in here}
    if here != there:
        raise VocoderError(
            f"{path}: these are codes of a {there['codec']!r} codec at {there['sample_rate']} Hz, "
            f"but {codec.path} is {here['codec']!r} at {here['sample_rate']} Hz"
        )


def chunk_frames(codec: Codec, sound: SoundOptions) -> int | None:
    """Frames to decode at a time: few for a stream, else what progress is told by; None where pieces change samples."""
    if sound.streaming or sound.raw:
        return STREAMING_FRAMES
    return round(console.PIECE_SECONDS * codec.frame_rate) if codec.exact_streams else None


def decoded_chunks(codec: Codec, codes: np.ndarray, frames: int | None) -> Iterator[tuple[np.ndarray, float]]:
    """Samples of codes [n_codebooks, n], so many frames at a time or at once, with the seconds that each took."""
    n = codes.shape[1]
    if frames is None or n <= frames:
        start = time.perf_counter()
        yield codec.decode(codes), time.perf_counter() - start
        return
    with codec.decoder_stream() as stream:
        for first in range(0, n, frames):
            chunk = codes[:, first : first + frames]
            start = time.perf_counter()
            samples = stream.push(chunk) if first + frames < n else stream.finish(chunk)
            yield samples, time.perf_counter() - start


def read_codes(path: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file (- for standard input), among them audio_codes [1, K, T]."""
    if path != "-":
        check_there(path)
    source: Any = io.BytesIO(standard_input()) if path == "-" else path
    if not zipfile.is_zipfile(source):
        raise VocoderError(f"{path}: not an npz file; `vocoder-plugin encode` writes such files")
    if path == "-":
        source.seek(0)
    try:
        with np.load(source, allow_pickle=False) as file:
            names = [name for name in ("audio_codes", "codec", "sample_rate") if name in file]
            arrays = {name: file[name] for name in names}
    except Exception as error:  # zipfile and zlib have errors of their own
        raise VocoderError(f"{path}: a damaged npz file ({error})") from None
    codes = arrays.get("audio_codes")
    if not isinstance(codes, np.ndarray):
        raise VocoderError(f"{path}: has no array 'audio_codes'; `vocoder-plugin encode` writes such files")
    if codes.ndim != 3 or codes.shape[0] != 1:
        raise VocoderError(f"{path}: audio_codes has shape {codes.shape}, expected (1, codebooks, frames)")
    return arrays
