"""The public codec: a model file on a device, codes to samples and back."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import numpy as np

from . import kernels as kernels_module
from .audio.samples import as_mono, resample
from .codecs.model import Model
from .codecs.registry import read_model
from .errors import ArgumentError, AudioError, CodesError, VocoderError, refusal
from .gguf_file import GGUFFile
from .net.lowering import Lowering
from .net.native import Native
from .net.portable import Portable
from .runtime.ggml import Device, library
from .runtime.graph import Memory, Session
from .runtime.placement import LoadedModel, choose_device
from .runtime.rehearsal import Fit, Rehearsal
from .streams.early import EarlyDecoderStream
from .streams.exact import DecoderStream, EncoderStream, ExactStream, check_pairs, push_many, reach_frames
from .streams.passes import Pass
from .streams.pushing import TakesCodes, TakesSamples
from .streams.whole_clip import PieceDecoderStream, StagedEncoderStream, decode_clip

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "int16", "int8")
MOST_THREADS = 512  # of ggml, which crashes beyond
REHEARSED_SECONDS = 10.0  # a sentence or two: the buffers of codecs that see whole clips grow with them
EXIT_SECONDS = 10.0  # The interpreter's exit waits so long for what another thread computes.


@final
class Codec:
    """A neural audio codec on one device. Make it with ``Codec.load``.

    Threads may share a codec: calls take turns on its device. A context manager; ``close`` frees
    the device's memory, as garbage collection does.

    Attributes
    ----------
    name : str
        What the file calls the model.
    format : Format
        What its codes and samples look like.
    sample_rate : int
        Hz.
    hop_length : int
        Samples per frame.
    frame_rate : float
        Frames per second.
    n_codebooks, codebook_size : int
        A frame has codes of n_codebooks codebooks, each from 0 to codebook_size - 1.
    latent_dim : int
        Values of a frame's latents before quantisation.
    has_encoder, has_decoder : bool
    exact_streams : bool
        Whether streams can give the samples of offline decoding.
    device : Device
    lowering : str
        ``native/avx512`` and the like, or ``portable``.
    precision : str
        ``float32``, ``int16`` or ``int8``.
    """

    def __init__(self, model: Model, device: Device, lowering: Lowering, session: Session, *, precision: str) -> None:
        self.format = model.format
        self.name, self.path = model.format.name, model.file.file.path
        self.sample_rate, self.hop_length = model.format.sample_rate, model.format.hop_length
        self.frame_rate = model.format.frame_rate
        self.n_codebooks, self.codebook_size = model.format.n_codebooks, model.format.codebook_size
        self.latent_dim = model.latent_dim
        self.has_encoder, self.has_decoder = model.has_encoder, model.has_decoder
        self.device, self.precision = device, precision
        kernels = getattr(lowering, "kernels", None)
        self.lowering = f"{lowering.name}/{kernels.name}" if kernels else lowering.name
        self._stages, self._session = model.stages, session
        self._passes = {
            name: Pass(name, session, lowering, heads, model.file.find, chunk_frames=model.chunk_frames)
            for name, heads in model.passes().items()
        }
        self.exact_streams = not (self.has_decoder and self._passes["decoder"].plan.whole_clip)
        _closed_at_exit().add(self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        llm: LoadedModel | None = None,
        device: str | None = None,
        n_threads: int | None = None,
        kernels: str | None = None,
        precision: str = "float32",
        **options: Any,
    ) -> Codec:
        """Load a codec from a GGUF file.

        Parameters
        ----------
        path : path-like
        llm : llama_cpp.Llama, optional
            Its thread count is used, and the device of its last offloaded layer where ``device`` is not given.
        device : str, optional
            A name that ``vocoder-plugin doctor`` lists, such as ``"CPU"`` or ``"Vulkan0"``.
        n_threads : int, optional
            Threads on a CPU device, 1 to 512; by default the LLM's, else one per usable core.
        kernels : str, optional
            A variant of the native kernels by name, or ``"off"``; by default the best there is.
        precision : {"float32", "int16", "int8"}
            Of the products in convolutions (docs/accuracy.md). ``"int16"`` is faster and halves the
            memory of the weights, at about 50 dB from float32. ``"int8"`` keeps the weights of large
            layers in half of that, which short pushes feel, at about 30 dB. Native kernels only.
        **options
            What the file's codec declares beside these; ``vocoder-plugin info FILE`` lists them.

        Raises
        ------
        ModelFileError
            If the file cannot be read or is not a codec this package knows.
        ArgumentError
            If an argument has a value that cannot be used, or the codec has no such option.
        DeviceError, LibraryError
            If there is no such device, or no usable libggml.

        A device that lacks memory for the codec is not used: the codec runs on the CPU then, and a
        warning of the logger ``vocoder_plugin.codec`` says so; so it does for operations that the device lacks, which
        alone run on the CPU (see docs/devices.md).
        """
        if n_threads is not None and not 1 <= n_threads <= MOST_THREADS:
            raise ArgumentError(refusal("n_threads", n_threads, f"1 to {MOST_THREADS}"))
        if precision not in PRECISIONS:
            raise ArgumentError(refusal("precision", repr(precision), f"one of {', '.join(PRECISIONS)}"))
        model = read_model(GGUFFile(path), **options)
        lib = library()
        threads = n_threads or getattr(llm, "n_threads", None) or usable_cores()
        make = functools.partial(cls._make, model, n_threads=threads, kernels=kernels, precision=precision)
        codec = make(choose_device(lib, llm, device))
        if not codec.device.is_cpu:
            fit = cls._rehearse(model, codec.device)
            if fit.refusal:
                logger.warning("%s; %s runs on the CPU instead", fit.refusal, codec.name)
                codec.close()
                return make(lib.device("CPU"))
            if fit.missing:
                logger.warning("%s lacks %s: these run on the CPU", codec.device.name, ", ".join(fit.missing))
        return codec

    @classmethod
    def _make(cls, model: Model, device: Device, *, n_threads: int, kernels: str | None, precision: str) -> Codec:
        lib = library()
        if kernels not in (None, "off", *kernels_module.available()):
            choice = ", ".join([*kernels_module.available(), "off"])
            raise ArgumentError(f"no native kernels {kernels!r} that this CPU can run; there are {choice}")
        compiled = kernels_module.load(lib, kernels) if device.is_cpu and kernels != "off" else None
        if device.is_cpu and kernels is None and not compiled:
            _warn_of_missing_kernels()
        if precision != "float32" and not compiled:
            raise ArgumentError(f"precision {precision!r} needs the native kernels, which run on the CPU only")
        lowering = (
            Native(lib, device, compiled, precision=precision, n_threads=n_threads)
            if compiled
            else Portable(lib, device)
        )
        return cls(model, device, lowering, Session(lib, device, n_threads=n_threads), precision=precision)

    @staticmethod
    def survey(path: str | os.PathLike[str], device: str | None = None, **options: Any) -> Fit:
        """What a codec's file would need of a device, without reading its weights or using the device.

        Parameters
        ----------
        path, device, **options
            As ``load`` takes them.
        """
        return Codec._rehearse(read_model(GGUFFile(path), **options), library().device(device))

    @classmethod
    def _rehearse(cls, model: Model, device: Device) -> Fit:
        """Build every graph of REHEARSED_SECONDS of sound in the CPU's memory, for another device to look at."""
        cpu, session = library().device("CPU"), Rehearsal(library(), device)
        with cls(model, cpu, Portable(library(), cpu, blank=True), session, precision="float32") as codec:
            if codec.has_decoder:
                frames = round(REHEARSED_SECONDS * codec.frame_rate)
                codec.decode(np.zeros((len(codec.format.rows), frames), np.int32))
            if codec.has_encoder:
                codec.encode(np.zeros(round(REHEARSED_SECONDS * codec.sample_rate), np.float32), codec.sample_rate)
            return Fit(codec.name, device, codec.memory[cpu.name], dict(session.missing), session.stuck)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes to samples.

        Parameters
        ----------
        codes : int array [rows of a frame, n_frames]
            Values 0 to codebook_size - 1. A row a codebook in most codecs; ``format`` tells, and how many
            of the last may be left out.

        Returns
        -------
        float32 array [n_samples]
            Nominally in [-1, 1]; ``decoded_length(n_frames)`` of them.

        Raises
        ------
        CodesError
            For codes of a wrong type, shape or range, or none at all.
        """
        pass_, codes = self._pass("decoder"), self.format.checked(codes)
        n, step = codes.shape[1], pass_.chunk_frames
        if n == 0:
            raise CodesError("there are no codes to decode")
        if pass_.plan.whole_clip:
            return decode_clip(self.format, pass_, codes)
        samples = np.empty(self.decoded_length(n), np.float32)
        done = 0
        with DecoderStream(self.format, pass_) as stream:
            for start in range(0, n, step):
                chunk = codes[:, start : start + step]
                part = stream.finish(chunk) if start + step >= n else stream.push(chunk)
                samples[done : done + part.size] = part
                done += part.size
        assert done == samples.size, (done, samples.size)
        return samples

    def encode(self, audio: np.ndarray, sample_rate: int, *, n_codebooks: int | None = None) -> np.ndarray:
        """Samples to codes.

        Parameters
        ----------
        audio : float array [n_samples] or [n_samples, channels]
            Nominally in [-1, 1]; channels are averaged, other rates resampled.
        sample_rate : int
            Of ``audio``, in Hz.
        n_codebooks : int, optional
            Give the first so many rows of a frame, where the codec can decode those alone; by default all.

        Returns
        -------
        int32 array [rows of a frame, n_frames]
            n_frames = ceil(samples at the codec's rate / hop_length); the end is padded with zeros.

        Raises
        ------
        AudioError
            For audio of a wrong type or shape, empty, or with values that are not finite.
        """
        rows = self.format.rows_given(n_codebooks)
        samples = resample(as_mono(audio), sample_rate, self.sample_rate)
        if samples.size == 0:
            raise AudioError("there are no samples to encode")
        with self.encoder_stream() as stream:
            return stream.finish(samples)[:rows]

    def encode_latents(
        self, audio: np.ndarray, sample_rate: float | None = None, *, frame_rate: float | None = None
    ) -> np.ndarray:
        """Samples to latents before quantisation.

        Parameters
        ----------
        audio : float array [n_samples] or [n_samples, channels]
            Nominally in [-1, 1]; channels are averaged, other rates resampled.
        sample_rate : float, optional
            Of ``audio``, in Hz; by default the codec's.
        frame_rate : float, optional
            Latents per second, interpolated linearly (see ``encoder_stream``); by default the codec's.

        Returns
        -------
        float32 array [n_frames, latent_dim]
            n = ceil(samples at the codec's rate / hop_length), where the end is padded with zeros; with ``frame_rate``
            ceil(n * frame_rate / codec.frame_rate).

        Raises
        ------
        AudioError
            For audio of a wrong type or shape, empty, or with values that are not finite.
        """
        with self.encoder_stream(sample_rate=sample_rate, frame_rate=frame_rate) as stream:
            latents = stream.finish_latents(as_mono(audio))
        if not len(latents):
            raise AudioError("there are no samples to encode")
        return latents

    def decoded_length(self, n_frames: int) -> int:
        """Samples that ``decode`` gives for so many frames."""
        return self._pass("decoder").length("decode", n_frames)

    def decoder_stream(
        self, *, lookahead_frames: int | None = None, context_frames: int | None = None, whole: bool = False
    ) -> DecoderStream | PieceDecoderStream:
        """A stream from codes to samples.

        It is a DecoderStream, exact unless its lookahead is cut short; or a PieceDecoderStream, which comes near,
        of a codec that looks at whole clips (``exact_streams`` is False).

        Parameters
        ----------
        lookahead_frames : int, optional
            Frames after a frame that its samples wait for: fewer than an exact decoder's reach give samples
            earlier that are no longer exact.
        context_frames : int, optional
            Frames before new ones that are decoded with them again, of a codec that looks at whole clips.
        whole : bool
            Wait for the end of the stream where streams are not exact, for the samples of offline decoding.
        """
        pass_ = self._pass("decoder")
        if pass_.plan.whole_clip:
            wait = WHOLE_CLIP if whole and lookahead_frames is None else lookahead_frames
            return PieceDecoderStream(self.format, pass_, lookahead_frames=wait, context_frames=context_frames)
        if context_frames is not None:
            raise ArgumentError(f"context_frames is {context_frames}, but the streams of this codec are exact without")
        if lookahead_frames is None or lookahead_frames == reach_frames(pass_, self.format):
            return DecoderStream(self.format, pass_)
        return EarlyDecoderStream(self.format, pass_, lookahead_frames)

    def encoder_stream(
        self, *, sample_rate: float | None = None, frame_rate: float | None = None
    ) -> EncoderStream | StagedEncoderStream:
        """A stream from mono samples to codes or latents, exact (see TakesSamples).

        Parameters
        ----------
        sample_rate : float, optional
            Hz, of the samples; by default the codec's. Others are resampled as they come.
        frame_rate : float, optional
            Latents per second, by default the codec's. Others are made by linear interpolation between
            neighbours, as they come (see streams.row_resampler); such a stream gives no codes.
        """
        rates = dict(sample_rate=sample_rate, frame_rate=frame_rate)
        if self._stages and self.has_encoder:
            self._session.check_open()
            return StagedEncoderStream(self.format, self._passes, self._stages, self.latent_dim, **rates)
        return EncoderStream(self.format, self._pass("encoder"), self.latent_dim, **rates)

    def push_many(
        self, streams: Sequence[TakesCodes] | Sequence[TakesSamples], inputs: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Push into several streams of this codec and of one direction, run together: the weights are read once.

        Parameters
        ----------
        streams : sequence of decoder streams or of encoder streams
        inputs : sequence of arrays
            For each stream what its ``push`` takes.

        Returns
        -------
        list of arrays
            What each ``stream.push`` alone would have given.
        """
        self._check_owned(streams)
        together = [stream for stream in streams if isinstance(stream, ExactStream)]
        if len(together) == len(streams):
            return push_many(together, inputs)
        check_pairs(streams, inputs)
        return [stream.push(chunk) for stream, chunk in zip(streams, inputs, strict=True)]

    def push_latents_many(self, streams: Sequence[EncoderStream], samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """``streams[i].push_latents(samples[i])`` for all i, run together; see ``push_many``."""
        self._check_owned(streams)
        if not all(isinstance(stream, EncoderStream) for stream in streams):
            raise ArgumentError("latents come from encoder streams only")
        return push_many(streams, samples, "latents")

    def _check_owned(self, streams: Sequence[object]) -> None:
        own = list(self._passes.values())
        if any(getattr(stream, "_pass", None) not in own for stream in streams):
            raise ArgumentError("a stream belongs to another codec")

    def _pass(self, name: str) -> Pass:
        self._session.check_open()
        if name not in self._passes:
            raise VocoderError(f"has no {name}", path=self.path)
        return self._passes[name]

    @property
    def memory(self) -> dict[str, Memory]:
        """What the codec has allocated so far, by the device's name; the CPU too where operations fell back to it."""
        with self._session.lock:
            compute = self._session.compute_bytes
            used = {name: Memory(compute=count) for name, count in compute.items()}
            used[self.device.name] = Memory(
                weights=sum(pass_.weight_bytes for pass_ in self._passes.values()),
                state=sum(pass_.state_bytes for pass_ in self._passes.values()),
                compute=compute[self.device.name],
            )
            return used

    def at_most_threads(self, n_threads: int) -> AbstractContextManager[None]:
        """Work with no more threads than this meanwhile, on a CPU; other threads' calls wait until it ends."""
        return self._session.at_most(n_threads)

    def close(self) -> None:
        """Free the device's memory. The codec and its streams cannot be used afterwards."""
        with self._session.lock:
            self._session.close()
            for pass_ in self._passes.values():
                pass_.close()

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Codec {self.name!r}: {self.sample_rate} Hz, {self.n_codebooks} codebooks of {self.codebook_size} "
            f"at {self.frame_rate:g} frames/s, on {self.device.name} ({self.lowering})>"
        )


@functools.cache
def _warn_of_missing_kernels() -> None:
    """Once a process."""
    source_tree = (Path(__file__).parents[1] / "setup.py").exists()
    logger.warning(
        "the native kernels are missing, so codecs run about 4 times slower on the CPU; %s",
        "this is the source tree, not an installed package: start Python elsewhere, or pip install -e ."
        if source_tree
        else "install a C compiler, then: pip install --force-reinstall --no-deps --no-binary :all: vocoder-plugin",
    )


WHOLE_CLIP = 1 << 30  # Frames of lookahead that no stream reaches.


@functools.cache
def _closed_at_exit() -> weakref.WeakSet[Codec]:
    """Codecs that the interpreter's exit closes.

    At exit weakref frees all memory, buffer by buffer, while daemon threads go on: one of them could compute in
    what is gone. This is registered after weakref's own hook, the first codec's session having needed it, and so
    runs before.
    """
    codecs: weakref.WeakSet[Codec] = weakref.WeakSet()
    atexit.register(_close_for_good, codecs)
    return codecs


def _close_for_good(codecs: weakref.WeakSet[Codec]) -> None:
    """Close them, and keep their locks: threads that want to go on wait for the end of the process."""
    for codec in list(codecs):
        if codec._session.is_of_this_process and codec._session.lock.acquire(timeout=EXIT_SECONDS):
            codec.close()


def usable_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
