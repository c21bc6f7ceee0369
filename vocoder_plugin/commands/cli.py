"""The command line: info, encode, decode, generate and doctor, and the commands of the other modules."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import __version__
from ..audio.samples import standard_input
from ..errors import VocoderError
from .build_llama import build_llama
from .console import (
    PIECE_SECONDS,
    Progress,
    audio_output,
    check_output,
    check_sound_output,
    load_codec,
    load_llm,
    output_file,
    read_text,
    say,
    sound_pieces,
)
from .convert import convert
from .features import features
from .options import codebooks_option, codec_option, device_options, force_option, llm_options, play_option, raw_option
from .speak import create_speaker, speak, speaker

WHOLE_CLIP = 1 << 30  # frames of lookahead
FILE_ERRORS = (VocoderError, OSError)
STREAMING_FRAMES = 48  # of a chunk that `decode --streaming` writes


class OneLineErrors(click.Group):
    """Errors of the package become one line on standard error and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has enough: click ends quietly, with status 1
        except FILE_ERRORS as error:
            raise click.ClickException(" ".join(told(error).split())) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


def told(error: Exception) -> str:
    """What an error says, without the system's number for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn the audio tokens of a speech LLM into sound, on the ggml that llama.cpp uses.

    \b
    Make a codec file once:     vocoder-plugin convert dac weights.pth dac.gguf
    Let a model speak:          vocoder-plugin generate --model llm.gguf --codec dac.gguf --prompt-file p.txt -o out.wav
    Hear it while it speaks:    vocoder-plugin generate --model llm.gguf --codec dac.gguf --prompt-file p.txt --play
    Codes to sound and back:    vocoder-plugin decode codes.npz out.wav --codec dac.gguf
    What is installed here:     vocoder-plugin doctor
    """


for command in (build_llama, convert, create_speaker, features, speak, speaker):
    main.add_command(command)


# -- info


@main.command()
@click.argument("file", type=click.Path())
@click.option("--tensors", is_flag=True, help="List every tensor too.")
def info(file: str, tensors: bool) -> None:
    """Say what the codec FILE holds."""
    from collections import Counter

    from ..codecs import dac_file, mimi_file, wavtokenizer_file
    from ..gguf_file import GGUFFile

    gguf = GGUFFile(file)
    architecture = gguf.get("general.architecture", str)
    click.echo(f"architecture  {architecture}")
    readers = {"dac": dac_file, "mimi": mimi_file, **dict.fromkeys(wavtokenizer_file.ARCHITECTURES, wavtokenizer_file)}
    if architecture in readers:
        c: Any = readers[architecture].Tensors(gguf).config
        n_codebooks = c.n_stored if architecture == "mimi" else c.n_codebooks
        click.echo(f"name          {c.name}")
        frame_rate = c.sample_rate / c.hop_length
        click.echo(f"sample rate   {c.sample_rate} Hz, {c.hop_length} samples a frame, {frame_rate:g} frames/s")
        click.echo(f"codebooks     {n_codebooks} of {c.codebook_size} entries, {c.codebook_dim} values each")
        click.echo(f"encoder       {'rates ' + ' '.join(map(str, c.encoder_rates)) if c.encoder_rates else 'none'}")
        click.echo(f"decoder       {'rates ' + ' '.join(map(str, c.decoder_rates)) if c.decoder_rates else 'none'}")
    kinds = Counter(t.type for t in gguf.tensors.values())
    size = sum(t.nbytes for t in gguf.tensors.values())
    click.echo(f"tensors       {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}; {size / 1e6:.1f} MB")
    if tensors:
        for t in gguf.tensors.values():
            click.echo(f"  {t.name}  {t.type}  {list(t.shape)}")


# -- encode, decode


@main.command()
@click.argument("audio", type=click.Path())
@click.argument("out", type=click.Path())
@codec_option
@device_options
@codebooks_option
@click.option("--streaming", is_flag=True, help="Read AUDIO piece by piece, in little memory; the codes are the same.")
@force_option
def encode(
    audio: str, out: str, codec_file: str, device: str | None, threads: int | None, codebooks: int | None,
    streaming: bool, force: bool,
) -> None:  # fmt: skip
    """Encode AUDIO (any sound file, any rate; - for standard input) to codes in OUT (.npz).

    OUT holds audio_codes [1, codebooks, frames], sample_rate, num_codebooks and num_frames, as numpy.load reads them;
    `decode` takes it back to sound.

    \b
    All 32 codebooks of Mimi:  vocoder-plugin encode in.wav codes.npz --codec mimi.gguf --codebooks 32
    Hours of sound:            vocoder-plugin encode long.flac codes.npz --codec mimi.gguf --streaming
    """
    check_output(out, force=force, inputs=[audio, codec_file])
    with load_codec(codec_file, device, threads, codebooks=codebooks) as codec:
        with (
            sound_pieces(audio, streaming=streaming) as (rate, pieces),
            codec.encoder_stream(sample_rate=rate) as stream,
        ):
            codes = np.concatenate([*map(stream.push, pieces), stream.flush()], axis=1)
        if codes.shape[1] == 0:
            raise VocoderError("there are no samples to encode")
        with output_file(out, force=force) as file:
            np.savez_compressed(
                file, audio_codes=codes[np.newaxis], sample_rate=codec.sample_rate,
                num_codebooks=codes.shape[0], num_frames=codes.shape[1],
            )  # fmt: skip
        say(f"{codes.shape[1]} frames of {codes.shape[0]} codebooks, {codes.shape[1] / codec.frame_rate:.2f} s")


@main.command()
@click.argument("codes", type=click.Path())
@click.argument("out", type=click.Path())
@codec_option
@device_options
@codebooks_option
@click.option("--streaming", is_flag=True, help="Let OUT grow chunk by chunk, in little memory; Ctrl-C keeps it.")
@raw_option
@force_option
def decode(
    codes: str, out: str, codec_file: str, device: str | None, threads: int | None, codebooks: int | None,
    streaming: bool, raw: bool, force: bool,
) -> None:  # fmt: skip
    """Decode the codes in CODES (.npz, as `encode` writes it; - for standard input) to OUT.

    OUT is a .wav, .flac or .ogg file, or - for wav on standard output. It appears when it is
    complete, or with --streaming grows from the start; the samples of exact codecs (DAC, Mimi) are the same.
    Without --codebooks, all codebooks of CODES are used.

    \b
    Play without a file:  vocoder-plugin decode codes.npz - --codec dac.gguf --raw | aplay -f S16_LE -r 24000
    """
    check_sound_output(out, raw=raw, force=force, streaming=streaming, option="--streaming")
    array = read_codes(codes)
    if codebooks is not None and codebooks > len(array):
        raise VocoderError(f"{codes}: has {len(array)} codebooks, fewer than --codebooks {codebooks}")
    array = array[:codebooks]
    with load_codec(codec_file, device, threads, codebooks=mimi_codebooks(codec_file, codebooks, len(array))) as codec:
        array = codec.check_codes(array)
        seconds = length = 0.0
        with (
            audio_output(out, codec, streaming=streaming, raw=raw, force=force) as write,
            Progress() as progress,
        ):
            for samples, spent in decoded_chunks(codec, array, chunk_frames(codec, small=streaming or raw)):
                write(samples)
                seconds += spent
                length += samples.size / codec.sample_rate
                progress.show(f"{length:.1f} of {array.shape[1] / codec.frame_rate:.1f} s of audio")
        rtf = f"RTF {seconds / length:.2f} on {codec.device.name}, {codec.lowering}"
        say(f"{length:.2f} s of audio in {seconds:.2f} s ({rtf})")


def mimi_codebooks(codec_file: str, wanted: int | None, present: int) -> int | None:
    """Codebooks to load of Mimi, which has more than most files of codes; of other codecs what was asked for."""
    from ..gguf_file import GGUFFile

    is_mimi = GGUFFile(codec_file).get("general.architecture", str) == "mimi"
    return present if is_mimi else wanted


def chunk_frames(codec: Any, *, small: bool) -> int | None:
    """Frames to decode at a time: few for a stream, else what progress is told by; None where pieces change samples."""
    if small:
        return STREAMING_FRAMES
    return round(PIECE_SECONDS * codec.frame_rate) if codec.exact_streams else None


def decoded_chunks(codec: Any, codes: np.ndarray, frames: int | None) -> Iterator[tuple[np.ndarray, float]]:
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


def read_codes(path: str) -> np.ndarray:
    """audio_codes [1, K, T] of an npz file, - for standard input -> [K, T]."""
    if path != "-" and not Path(path).exists():
        raise VocoderError(f"{path}: there is no such file")
    source: Any = io.BytesIO(standard_input()) if path == "-" else path
    if not zipfile.is_zipfile(source):
        raise VocoderError(f"{path}: not an npz file; `vocoder-plugin encode` writes such files")
    if path == "-":
        source.seek(0)
    try:
        with np.load(source, allow_pickle=False) as archive:
            array = archive.get("audio_codes")
    except Exception as error:  # zipfile and zlib have errors of their own
        raise VocoderError(f"{path}: a damaged npz file ({error})") from None
    if not isinstance(array, np.ndarray):
        raise VocoderError(f"{path}: has no array 'audio_codes'; `vocoder-plugin encode` writes such files")
    if array.ndim != 3 or array.shape[0] != 1:
        raise VocoderError(f"{path}: audio_codes has shape {array.shape}, expected (1, codebooks, frames)")
    return array[0]


# -- generate


@main.command()
@click.option("-m", "--model", required=True, type=click.Path(), help="Speech LLM as a GGUF file.")
@codec_option
@click.option(
    "--prompt-file", required=True, type=click.Path(), help="The prompt as the model expects it; - for standard input."
)
@click.option(
    "-o", "--out", type=click.Path(),
    help="Sound file to write: .wav, .flac, .ogg, or - for wav on standard output. Not needed with --play.",
)  # fmt: skip
@click.option("--stream", is_flag=True, help="Let the file grow while the model speaks; Ctrl-C keeps what was said.")
@raw_option
@play_option
@click.option("--max-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Most tokens to write.")
@llm_options
@device_options
@force_option
def generate(
    model: str, codec_file: str, device: str | None, threads: int | None, prompt_file: str, out: str | None,
    stream: bool, raw: bool, play: bool, max_tokens: int, temperature: float, seed: int | None, n_ctx: int,
    n_gpu_layers: int, force: bool,
) -> None:  # fmt: skip
    """Let a speech LLM continue a raw prompt, and write or play what it says.

    The file appears when it is complete, or with --stream grows while the model speaks: it can be
    played at any time, and Ctrl-C leaves what has been said so far. The samples are the same.

    \b
    Hear it at once:   vocoder-plugin generate … --play
    Through a pipe:    vocoder-plugin generate … -o - --raw | aplay -f S16_LE -r 24000
    """
    from ..llm import SpeechStream, generate_tokens

    check_sound_output(out, raw=raw, play=play, force=force, streaming=stream, option="--stream")
    prompt = read_text(prompt_file)
    llm = load_llm(model, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_threads=threads, seed=seed)
    with ExitStack() as opened:
        codec = opened.enter_context(load_codec(codec_file, device, threads, llm))
        wait = not (stream or play or codec.exact_streams)  # for the end: a whole clip sounds better than windows
        speech = opened.enter_context(SpeechStream(llm, codec, lookahead_frames=WHOLE_CLIP if wait else None))
        start = time.perf_counter()
        tokens = generate_tokens(llm, prompt, end=speech.vocabulary.end, max_tokens=max_tokens, temp=temperature)
        count, length = 0, 0.0
        with (
            audio_output(out, codec, streaming=stream, raw=raw, play=play, force=force) as write,
            Progress() as progress,
        ):
            for count, token in enumerate(tokens, 1):
                for samples in speech.push(token):
                    write(samples)
                    length += samples.size / codec.sample_rate
                    progress.show(f"{length:.1f} s of audio, {count / (time.perf_counter() - start):.0f} tokens/s")
            rest = speech.flush()
            write(rest)
            length += rest.size / codec.sample_rate
            if length == 0:
                reason = "is the prompt in the model's format?"
                raise VocoderError(f"the model wrote {count} tokens, but no audio; {reason}")
            seconds = time.perf_counter() - start
        speed = f"{count / seconds:.0f} tokens/s, RTF {seconds / length:.2f}"
        say(f"{length:.2f} s of audio from {count} tokens in {seconds:.2f} s ({speed})")
        report = speech.report
        if report.damaged_frames or report.stray_tokens:
            say(f"warning: {report.damaged_frames} damaged frames and {report.stray_tokens} stray tokens left out")


# -- doctor


@main.command()
@click.argument("codec_files", nargs=-1, type=click.Path())
@click.option("--device", help="Device to look at the codecs for. [default: the first that is no CPU, if there is one]")
def doctor(codec_files: tuple[str, ...], device: str | None) -> None:
    """List versions, libraries and devices, and what is missing. Put this into bug reports.

    For each of CODEC_FILES, tell the memory that it takes on a device, and the operations that the
    device lacks, which run on the CPU.
    """
    import platform

    from .. import kernels
    from ..runtime import ggml

    click.echo(f"vocoder-plugin    {__version__}")
    click.echo(f"python            {platform.python_version()} on {platform.platform()}")
    for name in ("llama-cpp-python", "ggml-python", "gguf", "numpy", "soundfile", "soxr"):
        click.echo(f"{name:<17} {installed(name) or 'missing'}")
    click.echo(f"sounddevice       {state_of_sounddevice()} (only needed for --play)")
    library = ggml.library()
    click.echo(f"libggml           {library.version}, {library.path}")
    names = kernels.available()
    switched = os.environ.get("VOCODER_KERNELS")
    if switched:
        note = f"{switched} (VOCODER_KERNELS)"
    elif names:
        note = f"{names[0]} of {', '.join(names)}"
    else:
        note = "none: built without a C compiler; decoding is slower"
    click.echo(f"native kernels    {note}")
    for found in library.devices():
        memory = f"{found.memory_free / 2**30:.1f} of {found.memory_total / 2**30:.1f} GiB free"
        click.echo(f"device            {found.name} ({found.kind}): {found.description}, {memory}")
    if codec_files and device is None:
        device = next((found.name for found in library.devices() if found.kind in ("gpu", "igpu")), None)
    for file in codec_files:
        click.echo(f"codec             {fit_of(file, device)}")


def installed(package: str) -> str | None:
    """A package's version."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def state_of_sounddevice() -> str:
    """Its version, and why it cannot be used: it looks for PortAudio when it is imported."""
    version = installed("sounddevice")
    if version is None:
        return "missing"
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError) as error:
        return f"{version}, but {error}"
    return version


def fit_of(file: str, device: str | None) -> str:
    """A line on what a codec would take of a device."""
    from ..codec import Codec

    fit = Codec.survey(file, device)
    if fit.refusal:
        verdict = f"cannot be there: {fit.refusal}"
    elif fit.missing:
        verdict = "falls back to the CPU for " + ", ".join(f"{name} ({n})" for name, n in fit.missing.items())
    else:
        verdict = "every operation runs there"
    weights, rest = fit.memory.weights >> 20, (fit.memory.total - fit.memory.weights) >> 20
    return f"{fit.codec} on {fit.device.name}: {weights} MiB of weights, {rest} MiB of buffers; {verdict}"


if __name__ == "__main__":
    main()
