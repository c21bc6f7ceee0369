"""The command line. The only module that prints or reads the environment."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from . import __version__
from .errors import VocoderError

FILE_ERRORS = (VocoderError, OSError)
F = TypeVar("F", bound=Callable[..., Any])


class OneLineErrors(click.Group):
    """Errors of the package become one line on standard error and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FILE_ERRORS as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn the audio tokens of a speech LLM into sound, on the ggml that llama.cpp uses.

    \b
    Make a codec file once:     vocoder-plugin convert dac weights.pth dac.gguf
    Let a model speak:          vocoder-plugin generate --model llm.gguf --codec dac.gguf --prompt-file p.txt -o out.wav
    Codes to sound and back:    vocoder-plugin decode codes.npz out.wav --codec dac.gguf
    What is installed here:     vocoder-plugin doctor
    """


def codec_options(command: F) -> F:
    """--codec, --device and --threads, as every command that runs a codec takes them."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="Threads on a CPU device. [default: usable cores]"),
        click.option("--device", help="Device to run on, such as CPU or Vulkan0; see `doctor`. [default: CPU]"),
        click.option("--codec", "codec_file", required=True, type=click.Path(), help="Codec GGUF file; see `convert`."),
    ):
        command = option(command)
    return command


force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")


def load_codec(path: str, device: str | None, threads: int | None, llm: Any = None) -> Any:
    from .codec import Codec

    kernels = os.environ.get("VOCODER_KERNELS") or None
    return Codec.load(path, llm=llm, device=device, n_threads=threads, kernels=kernels)


@contextmanager
def output_file(target: str, *, force: bool) -> Iterator[Any]:
    """A binary file that takes the target's place only when the block ends well; ``-`` is standard output."""
    if target == "-":
        import io

        buffer = io.BytesIO()  # sound file headers need seeking back
        yield buffer
        sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.buffer.flush()
        return
    check_output(target, force=force)
    path = Path(target)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def check_output(target: str, *, force: bool) -> None:
    """Refuse early what could not be written later."""
    if target == "-":
        return
    path = Path(target)
    if path.exists() and not force:
        raise VocoderError(f"{target} exists already; use --force to overwrite it")
    if not path.parent.is_dir():
        raise VocoderError(f"{path.parent}: there is no such folder")


def say(message: str) -> None:
    click.echo(message, err=True)


# -- convert, info


@main.group()
def convert() -> None:
    """Convert a checkpoint to a codec GGUF file, without torch."""


@convert.command("dac")
@click.argument("source", type=click.Path())
@click.argument("out", type=click.Path())
@click.option(
    "--type", "kind", type=click.Choice(["f32", "f16", "bf16", "q8_0"]), default="f16", show_default=True,
    help="Type of the convolution weights. f32 is exact; f16 is half the size.",
)  # fmt: skip
@click.option("--sample-rate", type=click.IntRange(1), help="Sample rate in Hz, if the checkpoint does not say it.")
@force_option
def convert_dac(source: str, out: str, kind: str, sample_rate: int | None, force: bool) -> None:
    """Convert SOURCE, a Descript Audio Codec, to OUT.

    SOURCE is a descript-audio-codec .pth file (OuteTTS 1.0 uses weights_24khz_1.5kbps_v1.0.pth of
    ibm-research/DAC.speech.v1.0), or a Hugging Face DacModel folder or safetensors file.
    """
    from rich.console import Console
    from rich.progress import Progress

    from vocoder_plugin.converters import dac

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(f"converting to {kind}", total=None)
        dac.convert(
            source, out, type=kind, sample_rate=sample_rate, force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    say(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB")


@main.command()
@click.argument("file", type=click.Path())
@click.option("--tensors", is_flag=True, help="List every tensor too.")
def info(file: str, tensors: bool) -> None:
    """Say what the codec FILE holds."""
    from collections import Counter

    from .codecs.dac_file import Tensors
    from .gguf_file import GGUFFile

    gguf = GGUFFile(file)
    click.echo(f"architecture  {gguf.get('general.architecture', str)}")
    if gguf.metadata["general.architecture"] == "dac":
        c = Tensors(gguf).config
        click.echo(f"name          {c.name}")
        frame_rate = c.sample_rate / c.hop_length
        click.echo(f"sample rate   {c.sample_rate} Hz, {c.hop_length} samples a frame, {frame_rate:g} frames/s")
        click.echo(f"codebooks     {c.n_codebooks} of {c.codebook_size} entries, {c.codebook_dim} values each")
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
@codec_options
@force_option
def encode(audio: str, out: str, codec_file: str, device: str | None, threads: int | None, force: bool) -> None:
    """Encode AUDIO (any sound file, - for standard input) to codes in OUT (.npz).

    OUT holds audio_codes [1, codebooks, frames], sample_rate, num_codebooks and num_frames.
    """
    from .audio import read_audio

    check_output(out, force=force)
    with load_codec(codec_file, device, threads) as codec:
        samples, rate = read_audio(audio)
        codes = codec.encode(samples, rate)
        with output_file(out, force=force) as file:
            np.savez_compressed(
                file, audio_codes=codes[np.newaxis], sample_rate=codec.sample_rate,
                num_codebooks=codes.shape[0], num_frames=codes.shape[1],
            )  # fmt: skip
        say(f"{codes.shape[1]} frames of {codes.shape[0]} codebooks, {codes.shape[1] / codec.frame_rate:.2f} s")


@main.command()
@click.argument("codes", type=click.Path())
@click.argument("out", type=click.Path())
@codec_options
@force_option
def decode(codes: str, out: str, codec_file: str, device: str | None, threads: int | None, force: bool) -> None:
    """Decode the codes in CODES (.npz, as `encode` writes it) to OUT.

    OUT is a .wav, .flac or .ogg file, or - for wav on standard output.
    """
    from .audio import audio_format, write_audio

    kind = audio_format(out)
    check_output(out, force=force)
    with load_codec(codec_file, device, threads) as codec:
        array = read_codes(codes)
        start = time.perf_counter()
        samples = codec.decode(array)
        seconds = time.perf_counter() - start
        with output_file(out, force=force) as file:
            write_audio(file, samples, codec.sample_rate, format=kind)
        length = samples.size / codec.sample_rate
        rtf = f"RTF {seconds / length:.2f} on {codec.device.name}, {codec.lowering}"
        say(f"{length:.2f} s of audio in {seconds:.2f} s ({rtf})")


def read_codes(path: str) -> np.ndarray:
    """audio_codes [1, K, T] of an npz file -> [K, T]."""
    if not Path(path).exists():
        raise VocoderError(f"{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise VocoderError(f"{path}: not an npz file; `vocoder-plugin encode` writes such files")
    try:
        with np.load(path, allow_pickle=False) as archive:
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
@codec_options
@click.option(
    "--prompt-file", required=True, type=click.Path(), help="The prompt as the model expects it; - for standard input."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(),
    help="Sound file to write: .wav, .flac, .ogg, or - for wav on standard output.",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Most tokens to write.")
@click.option("--temperature", type=click.FloatRange(0), default=0.4, show_default=True)
@click.option("--seed", type=int, help="Seed of the sampler, for the same speech again.")
@click.option("--n-ctx", type=click.IntRange(64), default=8192, show_default=True, help="The LLM's context, in tokens.")
@click.option("--n-gpu-layers", type=int, default=0, show_default=True, help="LLM layers on the GPU; -1 for all.")
@force_option
def generate(
    model: str, codec_file: str, device: str | None, threads: int | None, prompt_file: str, out: str,
    max_tokens: int, temperature: float, seed: int | None, n_ctx: int, n_gpu_layers: int, force: bool,
) -> None:  # fmt: skip
    """Let a speech LLM continue a raw prompt, and write what it says as a sound file."""
    from .audio import audio_format, write_audio
    from .llm import SpeechStream, generate_tokens

    kind = audio_format(out)
    check_output(out, force=force)
    prompt = read_text(prompt_file)
    llm = load_llm(model, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_threads=threads, seed=seed)
    with load_codec(codec_file, device, threads, llm) as codec, SpeechStream(llm, codec) as stream:
        start = time.perf_counter()
        parts: list[np.ndarray] = []
        count = 0
        for count, token in enumerate(  # noqa: B007
            generate_tokens(llm, prompt, end=stream.vocabulary.end, max_tokens=max_tokens, temp=temperature), 1
        ):
            parts.extend(stream.push(token))
        parts.append(stream.flush())
        samples = np.concatenate(parts)
        if samples.size == 0:
            raise VocoderError(f"the model wrote {count} tokens, but no audio; is the prompt in the model's format?")
        with output_file(out, force=force) as file:
            write_audio(file, samples, codec.sample_rate, format=kind)
        seconds, length = time.perf_counter() - start, samples.size / codec.sample_rate
        speed = f"{count / seconds:.0f} tokens/s, RTF {seconds / length:.2f}"
        say(f"{length:.2f} s of audio from {count} tokens in {seconds:.2f} s ({speed})")
        report = stream.report
        if report.damaged_frames or report.stray_tokens:
            say(f"warning: {report.damaged_frames} damaged frames and {report.stray_tokens} stray tokens left out")


def read_text(path: str) -> str:
    """A UTF-8 file, - for standard input."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocoderError(f"{path}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from None


def load_llm(path: str, *, n_ctx: int, n_gpu_layers: int, n_threads: int | None, seed: int | None) -> Any:
    import llama_cpp

    if not Path(path).is_file():
        raise VocoderError(f"{path}: there is no such file")
    try:
        return llama_cpp.Llama(
            path, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_threads=n_threads, n_threads_batch=n_threads,
            seed=llama_cpp.LLAMA_DEFAULT_SEED if seed is None else seed, verbose=False,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise VocoderError(f"{path}: llama.cpp cannot load it: {error}") from None


# -- doctor


@main.command()
def doctor() -> None:
    """List versions, libraries and devices, and what is missing. Put this into bug reports."""
    import importlib.metadata
    import platform

    from . import ggml, kernels

    click.echo(f"vocoder-plugin    {__version__}")
    click.echo(f"python            {platform.python_version()} on {platform.platform()}")
    for name in ("llama-cpp-python", "ggml-python", "gguf", "numpy", "soundfile", "soxr", "sounddevice"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing" + (" (only needed for --play)" if name == "sounddevice" else "")
        click.echo(f"{name:<17} {found}")
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
    for device in library.devices():
        memory = f"{device.memory_free / 2**30:.1f} of {device.memory_total / 2**30:.1f} GiB free"
        click.echo(f"device            {device.name} ({device.kind}): {device.description}, {memory}")


from .outetts.commands import register  # noqa: E402  (its commands use the helpers above)

register(main)

if __name__ == "__main__":
    main()
