"""What the commands share: talk on standard error, models, files in and out, sound while it is being made.

Only here and in the commands is anything printed, or the environment read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np

from ..audio.samples import as_mono, audio_blocks, audio_format, open_audio, standard_input, write_audio
from ..errors import AudioError, VocoderError
from ..files import complete_file

Write = Callable[[np.ndarray], Any]
PIECE_SECONDS = 10.0  # of sound that commands work on at a time, and then tell how far they are


CLEAR_LINE = "\r\x1b[K"


def on_terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(message: str) -> None:
    """A line on standard error, in place of a line of progress."""
    click.echo((CLEAR_LINE if on_terminal() else "") + message, err=True)


class Progress:
    """One line on standard error that tells how far the work is; nothing where that is no terminal."""

    def show(self, line: str) -> None:
        if on_terminal():
            click.echo(f"{CLEAR_LINE}{line}", err=True, nl=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.show("")


# -- models


def load_codec(
    path: str, device: str | None, threads: int | None, llm: Any = None, *, codebooks: int | None = None
) -> Any:
    from ..codec import Codec

    kernels = os.environ.get("VOCODER_KERNELS") or None
    precision = click.get_current_context().meta["precision"]
    options = {} if codebooks is None else {"n_codebooks": codebooks}
    try:
        return Codec.load(
            path, llm=llm, device=device, n_threads=threads, kernels=kernels, precision=precision, **options
        )
    except ValueError as error:  # of the number of codebooks; click has checked the others
        raise VocoderError(f"{path}: {error}") from None


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


# -- files in


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


# -- files out


@contextmanager
def output_file(target: str, *, force: bool) -> Iterator[Any]:
    """A binary file that takes the target's place only when the block ends well; ``-`` is standard output."""
    if target == "-":
        import io

        buffer = io.BytesIO()  # sound file headers need seeking back
        yield buffer
        standard_output().write(buffer.getvalue())
        standard_output().flush()
        return
    check_output(target, force=force)
    with complete_file(target) as file:
        yield file


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


# -- sound while it is being made


def check_sound_output(
    out: str | None, *, raw: bool, force: bool, play: bool = False, streaming: bool = False, option: str = ""
) -> None:
    """Refuse early an output that ``audio_output`` could not serve; ``option`` is the one that asks for streaming."""
    if out is None and not play:
        raise click.UsageError("nowhere to put the sound: give -o FILE, or --play")
    if raw and out != "-":
        raise click.UsageError("--raw writes to standard output only: give - as the output")
    if streaming and not raw and out == "-":
        raise click.UsageError(f"the header of a wav needs its length: use --raw, or leave out {option}")
    if out is not None:
        audio_format(out)
        check_output(out, force=force)


@contextmanager
def audio_output(
    out: str | None, codec: Any, *, streaming: bool, raw: bool = False, play: bool = False, force: bool = False
) -> Iterator[Write]:
    """A function that takes samples: to a file, a pipe, the loudspeaker.

    A streaming file grows with every call and stays when the block is left early; any other appears
    when the block ends well.
    """
    from ..audio.output import GrowingFile, Player, RawPipe

    writes: list[Write] = []
    with ExitStack() as stack:
        if play:
            writes.append(stack.enter_context(Player(codec.sample_rate)).write)
        if raw:
            writes.append(RawPipe(standard_output()).write)
        elif streaming and out is not None:
            file = stack.enter_context(GrowingFile(out, codec.sample_rate, format=audio_format(out)))
            stack.enter_context(kept_when_interrupted(file, out, codec.sample_rate))
            writes.append(file.write)
        parts: list[np.ndarray] = []
        if out is not None and not (raw or streaming):
            writes.append(parts.append)

        def write(samples: np.ndarray) -> None:
            if samples.size:
                for each in writes:
                    each(samples)

        yield write
        if parts:
            with output_file(str(out), force=force) as target:
                write_audio(target, np.concatenate(parts), codec.sample_rate, format=audio_format(str(out)))


@contextmanager
def kept_when_interrupted(file: Any, out: str, sample_rate: int) -> Iterator[None]:
    """Say what a growing file holds when an error or Ctrl-C ends the block."""
    try:
        yield
    except BaseException as error:
        if file.n_samples:
            why = "interrupted: " if isinstance(error, KeyboardInterrupt) else ""
            say(f"{why}{out} keeps the first {file.n_samples / sample_rate:.2f} s")
        raise
