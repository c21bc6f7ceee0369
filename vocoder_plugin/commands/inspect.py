"""The commands ``info`` and ``doctor``: what a file holds, and what is installed here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Iterator

import click

from .. import kernels
from ..codec import Codec
from ..codecs.model import Model
from ..codecs.registry import door, models, problems, read_model
from ..gguf_file import GGUFFile
from ..runtime import ggml
from .console import check_there, printable


def tell(label: str, text: str, width: int = 14) -> None:
    """A line of a table; names in files may hold anything."""
    click.echo(printable(f"{label:<{width}}{text}"))


@click.command(short_help="Say what a codec file holds.")
@click.argument("file", type=click.Path())
@click.option("--tensors", is_flag=True, help="List every tensor too.")
def info(file: str, tensors: bool) -> None:
    """Say what the codec FILE holds."""
    check_there(file)
    gguf = GGUFFile(file)
    architecture = gguf.get("general.architecture", str)
    tell("architecture", architecture)
    if any(architecture in model.architectures for model in models().values()):
        for label, text in described(read_model(gguf)):
            tell(label, text)
    kinds = Counter(t.type for t in gguf.tensors.values())
    size = sum(t.nbytes for t in gguf.tensors.values())
    tell("tensors", f"{', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}; {size / 1e6:.1f} MB")
    if tensors:
        for t in gguf.tensors.values():
            tell("", f"{t.name}  {t.type}  {list(t.shape)}", width=2)


def described(model: Model) -> Iterator[tuple[str, str]]:
    """What a codec declares of a file, by label."""
    f = model.format
    yield "name", f.name
    yield "sample rate", f"{f.sample_rate} Hz, {f.hop_length} samples a frame, {f.frame_rate:g} frames/s"
    yield "codebooks", f"{f.n_codebooks} of {f.codebook_size} entries"
    if len(f.rows) != f.n_codebooks:
        yield "codes", f"{len(f.rows)} a frame, of the codebooks {' '.join(map(str, f.rows))}"
    yield "latents", f"{model.latent_dim} values a frame"
    yield from model.describe().items()
    for name, option in model.options.items():
        default = "" if option.default is None else f" [default: {option.default}]"
        yield "option", f"{name}: {option.help}{default}"


@click.command(short_help="List versions, libraries, devices, codecs, and what is missing.")
@click.argument("codec_files", nargs=-1, type=click.Path())
@click.option("--device", help="Device to look at the codecs for. [default: the first that is no CPU, if there is one]")
def doctor(codec_files: tuple[str, ...], device: str | None) -> None:
    """List versions, libraries, devices and codecs, and what is missing. Put this into bug reports.

    For each of CODEC_FILES, tell the memory that it takes on a device, and the operations that the
    device lacks, which run on the CPU.
    """
    for label, text in surroundings():
        tell(label, text, width=18)
    devices = ggml.library().devices()
    if codec_files and device is None:
        device = next((found.name for found in devices if found.kind in ("gpu", "igpu")), None)
    for file in codec_files:
        check_there(file)
        tell("codec", fit_of(file, device), width=18)


def surroundings() -> Iterator[tuple[str, str]]:
    """What this machine has, by label."""
    yield "vocoder-plugin", installed("vocoder-plugin") or "not installed"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in ("llama-cpp-python", "ggml-python", "gguf", "numpy", "soundfile", "soxr"):
        yield name, installed(name) or "missing"
    yield "sounddevice", f"{state_of_sounddevice()} (only needed for --play)"
    library = ggml.library()
    yield "libggml", f"{library.version}, {library.path}"
    names, switched = kernels.available(), os.environ.get("VOCODER_KERNELS")
    if switched:
        yield "native kernels", f"{switched} (VOCODER_KERNELS)"
    elif names:
        yield "native kernels", f"{names[0]} of {', '.join(names)}"
    else:
        yield "native kernels", "none: built without a C compiler; decoding is slower"
    for found in library.devices():
        memory = f"{found.memory_free / 2**30:.1f} of {found.memory_total / 2**30:.1f} GiB free"
        yield "device", f"{found.name} ({found.kind}): {found.description}, {memory}"
    for name, package in door().packages.items():
        yield "codec installed", f"{name} ({package})"
    for problem in problems():
        yield "codec broken", problem


def installed(package: str) -> str | None:
    """A package's version."""
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
    fit = Codec.survey(file, device)
    if fit.refusal:
        verdict = f"cannot be there: {fit.refusal}"
    elif fit.missing:
        verdict = "falls back to the CPU for " + ", ".join(f"{name} ({n})" for name, n in fit.missing.items())
    else:
        verdict = "every operation runs there"
    weights, rest = fit.memory.weights >> 20, (fit.memory.total - fit.memory.weights) >> 20
    return f"{fit.codec} on {fit.device.name}: {weights} MiB of weights, {rest} MiB of buffers; {verdict}"
