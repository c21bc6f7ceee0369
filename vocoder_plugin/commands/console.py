"""What the commands share: talk on standard error, models, files in and out, sound while it is being made.

Only here and in the commands is anything printed, or the environment read.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import numpy as np

from .. import hub
from ..audio.output import GrowingFile, Player, RawPipe
from ..audio.samples import as_mono, audio_blocks, audio_format, open_audio, standard_input, write_audio
from ..codec import Codec
from ..codecs.registry import model_class, models
from ..errors import AudioError, VocoderError
from ..files import complete_file
from ..gguf_file import GGUFFile
from .options import CodecOptions, LLMOptions, SoundOptions

if TYPE_CHECKING:
    import llama_cpp

Write = Callable[[np.ndarray], Any]
PIECE_SECONDS = 10.0  # of sound that commands work on at a time, and then tell how far they are
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
CLEAR_LINE = "\r\x1b[K"


def on_terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def printable(text: str) -> str:
    """The text with escapes for what a terminal would act on or could not show: names come from strangers' files."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def say(message: str) -> None:
    """A line on standard error, in place of a line of progress."""
    click.echo((CLEAR_LINE if on_terminal() else "") + printable(message), err=True)


class Progress:
    """One line on standard error that tells how far the work is; nothing where that is no terminal."""

    def show(self, line: str) -> None:
        if on_terminal():
            click.echo(CLEAR_LINE + printable(line), err=True, nl=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.show("")


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {' '.join(record.getMessage().split())}")


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings of the package, raised or logged, go to standard error, a line each."""
    logger, handler = logging.getLogger("vocoder_plugin"), _Told(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_args, **_options: say(f"warning: {message}")
            yield
    finally:
        logger.removeHandler(handler)


def load_codec(options: CodecOptions, llm: Any = None, *, codebooks: int | None = None) -> Codec:
    """The codec, with so many codebooks if it is one that can be told how many to use."""
    path = hub.local_or_fetch(options.codec_file, offline=options.offline, progress=on_terminal())
    check_there(str(path), wanted="a codec's GGUF file")
    declared = model_class(GGUFFile(path)).options
    chosen = {"n_codebooks": codebooks} if codebooks is not None and "n_codebooks" in declared else {}
    kernels = os.environ.get("VOCODER_KERNELS") or None
    return Codec.load(
        path, llm=llm, device=options.device, n_threads=options.threads, kernels=kernels, precision=options.precision,
        **chosen,
    )  # fmt: skip


def codec_kind(path: str | os.PathLike[str]) -> str:
    """The name under which a file's codec is installed."""
    found = model_class(GGUFFile(path))
    return next(name for name, model in models().items() if model is found)


def load_llm(name: str, options: LLMOptions, codec: CodecOptions) -> llama_cpp.Llama:
    """A Llama by its path or its name on the hub, with the codec's threads."""
    import llama_cpp

    path = str(hub.local_or_fetch(name, offline=codec.offline, progress=on_terminal()))
    check_there(path, wanted="a language model's GGUF file")
    try:
        return llama_cpp.Llama(
            path, n_ctx=options.n_ctx, n_gpu_layers=options.n_gpu_layers, n_threads=codec.threads,
            n_threads_batch=codec.threads,
            seed=llama_cpp.LLAMA_DEFAULT_SEED if options.seed is None else options.seed, verbose=False,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise VocoderError(f"{path}: llama.cpp cannot load it: {error}") from None


def check_there(path: str, *, wanted: str = "") -> None:
    """Refuse a file that is not there, or where a GGUF is ``wanted`` is a checkpoint, and say what would help."""
    is_gguf = bool(wanted)
    if is_gguf and (Path(path).is_dir() or Path(path).suffix in CHECKPOINTS) and Path(path).exists():
        raise VocoderError(f"{path}: expected {wanted}; make one of a checkpoint: vocoder-plugin convert --help")
    if Path(path).exists():
        return
    hint = ""
    if hub.REFERENCE.fullmatch(path) and path.count("/") == 1 and not path.startswith((".", "~")):
        hint = f"; if it is a repo on the hub, name a file of it: {path}/FILE"
        hint += f", or {path}:TAG such as {path}:Q8_0" * is_gguf
    raise VocoderError(f"{path}: there is no such file{hint}")


def read_text(path: str) -> str:
    """A UTF-8 file with or without a byte order mark, - for standard input."""
    try:
        data = standard_input() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocoderError(f"{path}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def sound_pieces(audio: str, *, streaming: bool) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """A sound file's rate, and its mono samples in pieces; with ``streaming`` each is read when it is wanted."""
    with open_audio(audio) as sound, Progress() as progress:

        def told(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            done = 0
            for block in blocks:
                try:
                    samples = as_mono(block, first=done)
                except AudioError as error:
                    raise AudioError(f"{audio}: {error}") from None
                yield samples
                done += len(block)
                progress.show(f"{done / sound.samplerate:.1f} of {sound.frames / sound.samplerate:.1f} s of audio")

        blocks = audio_blocks(sound, PIECE_SECONDS, path=audio)
        yield sound.samplerate, told(blocks if streaming else list(blocks))


class _Plain:
    """A binary file as NumPy writes to it with the file's own errors: into a real one it goes past Python's."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.read, self.seek, self.tell, self.flush = (
            file.write,
            file.read,
            file.seek,
            file.tell,
            file.flush,
        )
        self.truncate = file.truncate


@contextmanager
def output_file(target: str, *, force: bool) -> Iterator[Any]:
    """A binary file that takes the target's place only when the block ends well; ``-`` is standard output."""
    if target == "-":
        buffer = io.BytesIO()  # sound file headers need seeking back
        yield buffer
        standard_output().write(buffer.getvalue())
        standard_output().flush()
        return
    check_output(target, force=force)
    with failures_named(target), complete_file(target) as file:
        yield _Plain(file)


@contextmanager
def failures_named(target: str) -> Iterator[None]:
    """A failure to write, such as on a full disk, becomes one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.filename and not str(error.filename).endswith(".partial"):
            raise  # it is of another file, which it names
        raise VocoderError(f"{target}: cannot be written: {error.strerror or error}") from None
    except AudioError as error:  # of sound that goes into an open file
        raise AudioError(str(error), path=target) if error.path is None else error from None


def check_output(target: str, *, force: bool, inputs: Iterable[str | None] = ()) -> None:
    """Refuse early what could not be written later, and what would take the place of an input."""
    if target == "-":
        if standard_output().isatty():
            raise VocoderError("standard output is a terminal; send it to a file or into a pipe, or name a file")
        return
    path = Path(target)
    if path.exists():
        if not path.is_file():
            raise VocoderError(f"{target} is no ordinary file; name another output")
        if any(given is not None and os.path.exists(given) and path.samefile(given) for given in inputs):
            raise VocoderError(f"{target} is an input of this command; name another output")
        if not force:
            raise VocoderError(f"{target} exists already; use --force to overwrite it")
    if not path.parent.is_dir():
        raise VocoderError(f"{path.parent}: there is no such folder")
    if not os.access(path.parent, os.W_OK):
        raise VocoderError(f"{path.parent}: this folder cannot be written to")


def standard_output() -> BinaryIO:
    if sys.stdout is None:
        raise VocoderError("standard output is closed")
    return sys.stdout.buffer


def check_sound_output(sound: SoundOptions) -> None:
    """Refuse early an output that ``audio_output`` could not serve."""
    if sound.out is None and not sound.play:
        raise click.UsageError("nowhere to put the sound: give -o FILE, or --play")
    if sound.raw and sound.out != "-":
        raise click.UsageError("--raw writes to standard output only: give - as the output")
    if sound.streaming and not sound.raw and sound.out == "-":
        raise click.UsageError("the header of a wav needs its length: use --raw, or leave out --streaming")
    if sound.out is not None:
        audio_format(sound.out)
        check_output(sound.out, force=sound.force)


@contextmanager
def audio_output(sound: SoundOptions, codec: Codec) -> Iterator[Write]:
    """A function that takes samples: to a file, a pipe, the loudspeaker.

    A streaming file grows with every call and stays when the block is left early; any other appears
    when the block ends well.
    """
    out, writes = sound.out, list[Write]()
    with ExitStack() as stack:
        if sound.play:
            writes.append(stack.enter_context(Player(codec.sample_rate)).write)
        if sound.raw:
            writes.append(RawPipe(standard_output()).write)
        elif sound.streaming and out is not None:
            file = stack.enter_context(GrowingFile(out, codec.sample_rate, format=audio_format(out)))
            stack.enter_context(kept_when_interrupted(file, out, codec.sample_rate))
            writes.append(file.write)
        parts: list[np.ndarray] = []
        if out is not None and not (sound.raw or sound.streaming):
            writes.append(parts.append)

        def write(samples: np.ndarray) -> None:
            if samples.size:
                for each in writes:
                    each(samples)

        yield write
        if parts:
            with output_file(str(out), force=sound.force) as target:
                write_audio(target, np.concatenate(parts), codec.sample_rate, format=audio_format(str(out)))


@contextmanager
def kept_when_interrupted(file: GrowingFile, out: str, sample_rate: int) -> Iterator[None]:
    """Say what a growing file holds when an error or Ctrl-C ends the block."""
    try:
        yield
    except BaseException as error:
        if file.n_samples:
            why = "interrupted: " if isinstance(error, KeyboardInterrupt) else ""
            say(f"{why}{out} keeps the first {file.n_samples / sample_rate:.2f} s")
        raise
