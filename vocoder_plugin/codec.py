"""The public codec: a model file on a device, codes to samples and back."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from . import kernels as kernels_module
from .audio.samples import as_mono, resample
from .codecs import dac, wavtokenizer_file
from .codecs.dac_file import Tensors
from .errors import AudioError, CodesError, ModelFileError, VocoderError
from .gguf_file import GGUFFile
from .net.ops import GraphOps, Lowering, Native, Portable
from .net.plan import Plan, Signal
from .net.weights import check_shapes
from .runtime.ggml import Device, library
from .runtime.graph import Memory, Session
from .runtime.placement import choose_device
from .runtime.rehearsal import Fit, Rehearsal
from .streams.exact import DecoderStream, EncoderStream, Pass, push_many

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "int16", "int8")
MOST_THREADS = 512  # of ggml, which crashes beyond
REHEARSED_SECONDS = 10.0  # a sentence or two: the buffers of codecs that see whole clips grow with them
EXIT_SECONDS = 10.0  # that the interpreter's exit waits for what another thread computes
CHUNK_SECONDS = 0.32  # of a chunk in long input: activations stay in cache, weights are read rarely enough


class Codec:
    """A neural audio codec on one device. Make it with ``Codec.load``.

    Threads may share a codec: calls take turns on its device. A context manager; ``close`` frees
    the device's memory, as garbage collection does.

    Attributes
    ----------
    name : str
        What the file calls the model.
    sample_rate : int
        Hz.
    hop_length : int
        Samples per frame.
    frame_rate : float
        Frames per second.
    n_codebooks, codebook_size : int
        A frame has n_codebooks codes, each from 0 to codebook_size - 1.
    has_encoder, has_decoder : bool
    exact_streams : bool
        Whether streams can give the samples of offline decoding.
    device : Device
    lowering : str
        ``native/avx512`` and the like, or ``portable``.
    precision : str
        ``float32``, ``int16`` or ``int8``.
    """

    exact_streams = True
    load_options: tuple[str, ...] = ()  # that ``load`` takes beyond those of all codecs

    def __init__(self, file: GGUFFile, device: Device, *, n_threads: int, kernels: str | None, precision: str) -> None:
        self._tensors = Tensors(file)
        self._config = config = self._tensors.config
        self._begin(file, config, device, Native, Portable, n_threads=n_threads, kernels=kernels, precision=precision)
        self._plans: dict[str, Plan] = {}
        if self.has_decoder:
            self._plans["decode"] = plan = Plan()
            self._decoder_delay = dac.decode(plan, config, None).delay
        if self.has_encoder:
            self._plans["encode"] = plan = Plan()
            dac.encode(plan, config, Signal(None, 1, config.hop_length, config.hop_length, 0))
        for plan in self._plans.values():
            check_shapes(plan.specs, self._tensors.find, path=file.path)
        self._chunk_frames = max(
            round(CHUNK_SECONDS * self.frame_rate), *(p.first_frames for p in self._plans.values())
        )

    def _begin(
        self,
        file: GGUFFile,
        config: Any,
        device: Device,
        native: type[Native],
        portable: type[Portable],
        *,
        n_threads: int,
        kernels: str | None,
        precision: str,
    ) -> None:
        """What every codec has: its sizes, a lowering that fits the device, and a session there."""
        self.path = file.path
        self.name = config.name
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.frame_rate = config.sample_rate / config.hop_length
        self.n_codebooks = config.n_codebooks
        self.codebook_size = config.codebook_size
        self.has_encoder = config.has_encoder
        self.has_decoder = config.has_decoder
        self.device = device
        self.precision = precision
        lib = library()
        compiled = self._choose_kernels(device, kernels, precision)
        self._lowering: Lowering = (
            native(lib, device, compiled, precision=precision, n_threads=n_threads)
            if compiled
            else portable(lib, device)
        )
        self.lowering = f"native/{compiled.name}" if compiled else "portable"
        self._session = Session(lib, device, n_threads=n_threads)
        self._passes: dict[str, Pass] = {}
        _closed_at_exit().add(self)

    @staticmethod
    def _choose_kernels(device: Device, kernels: str | None, precision: str) -> kernels_module.Kernels | None:
        if kernels not in (None, "off", *kernels_module.available()):
            choice = ", ".join([*kernels_module.available(), "off"])
            raise VocoderError(f"no native kernels {kernels!r} that this CPU can run; there are {choice}")
        compiled = kernels_module.load(library(), kernels) if device.is_cpu and kernels != "off" else None
        if precision != "float32" and not compiled:
            raise VocoderError(f"precision {precision!r} needs the native kernels, which run on the CPU only")
        return compiled

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        llm: Any = None,
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
            Of Mimi: ``n_codebooks`` (int, default 8) to use, and ``sliding_window`` (int, positions) for
            a file that does not say it and whose window is not Kyutai's 250.

        Raises
        ------
        ModelFileError
            If the file cannot be read or is not a codec this package knows.
        DeviceError, LibraryError
            If there is no such device, or no usable libggml.

        A device that lacks memory for the codec is not used: the codec runs on the CPU then, and a
        warning of the logger ``vocoder_plugin.codec`` says so; so it does for operations that the device lacks, which
        alone run on the CPU (see docs/devices.md).
        """
        if n_threads is not None and not 1 <= n_threads <= MOST_THREADS:
            raise ValueError(f"n_threads is {n_threads}, expected 1 to {MOST_THREADS}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
        file = GGUFFile(path)
        kind = _kind_of(file, options)
        lib = library()
        threads = n_threads or getattr(llm, "n_threads", None) or usable_cores()

        def make(device: Device) -> Codec:
            return kind(file, device, n_threads=threads, kernels=kernels, precision=precision, **options)

        codec = make(choose_device(lib, llm, device))
        if not codec.device.is_cpu:
            fit = _rehearse(kind, file, codec.device, options)
            if fit.refusal:
                logger.warning("%s; %s runs on the CPU instead", fit.refusal, codec.name)
                codec.close()
                return make(lib.device("CPU"))
            if fit.missing:
                logger.warning("%s lacks %s: these run on the CPU", codec.device.name, ", ".join(fit.missing))
        return codec

    @staticmethod
    def survey(path: str | os.PathLike[str], device: str | None = None, **options: Any) -> Fit:
        """What a codec's file would need of a device, without reading its weights or using the device.

        Parameters
        ----------
        path, device, **options
            As ``load`` takes them.
        """
        file = GGUFFile(path)
        return _rehearse(_kind_of(file, options), file, library().device(device), options)

    # -- offline

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes to samples.

        Parameters
        ----------
        codes : int array [n_codebooks, n_frames]
            Values 0 to codebook_size - 1.

        Returns
        -------
        float32 array [n_samples]
            In [-1, 1]; about n_frames * hop_length samples, see ``decoded_length``.

        Raises
        ------
        CodesError
            For codes of a wrong type, shape or range, or none at all.
        """
        codes = self.check_codes(codes)
        if codes.shape[1] == 0:
            raise CodesError("there are no codes to decode")
        samples = np.empty(self.decoded_length(codes.shape[1]), np.float32)
        done = 0
        with self.decoder_stream() as stream:
            for start in range(0, codes.shape[1], self._chunk_frames):
                chunk = codes[:, start : start + self._chunk_frames]
                last = start + self._chunk_frames >= codes.shape[1]
                part = stream.finish(chunk) if last else stream.push(chunk)
                samples[done : done + part.size] = part
                done += part.size
        assert done == samples.size, (done, samples.size)
        return samples

    def encode(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Samples to codes.

        Parameters
        ----------
        audio : float array [n_samples] or [n_samples, channels]
            Nominally in [-1, 1]; channels are averaged, other rates resampled.
        sample_rate : int
            Of ``audio``, in Hz.

        Returns
        -------
        int32 array [n_codebooks, n_frames]
            n_frames = ceil(samples at the codec's rate / hop_length); the end is padded with zeros.

        Raises
        ------
        AudioError
            For audio of a wrong type or shape, empty, or with values that are not finite.
        """
        samples = resample(as_mono(audio), sample_rate, self.sample_rate)
        if samples.size == 0:
            raise AudioError("there are no samples to encode")
        with self.encoder_stream() as stream:
            return stream.finish(samples)

    def decoded_length(self, n_frames: int) -> int:
        """Samples that ``decode`` gives for so many frames, by formula."""
        length = n_frames
        for rate in self._config.decoder_rates:
            length = length * rate + rate - 2 * -(-rate // 2)
        return length

    # -- streams

    def decoder_stream(self, *, lookahead_frames: int | None = None) -> DecoderStream:
        """A stream from codes to samples (see DecoderStream).

        Parameters
        ----------
        lookahead_frames : int, optional
            Fewer frames of delay than the decoder's reach, for samples that are no longer exact.
        """
        self._need(self.has_decoder, "decoder")
        return DecoderStream(
            self,
            self._pass("decode"),
            self._chunk_frames,
            delay=self._decoder_delay,
            lookahead_frames=lookahead_frames,
        )

    def push_many(
        self, streams: Sequence[DecoderStream] | Sequence[EncoderStream], inputs: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Push into several streams of this codec and of one direction, run together: the weights are read once.

        Parameters
        ----------
        streams : sequence of DecoderStream or of EncoderStream
        inputs : sequence of arrays
            For each stream what its ``push`` takes.

        Returns
        -------
        list of arrays
            What each ``stream.push`` alone would have given.
        """
        self._check_owned(streams)
        return push_many(streams, inputs)

    def _check_owned(self, streams: Sequence[Any]) -> None:
        if any(stream._codec is not self for stream in streams):
            raise ValueError("a stream belongs to another codec")

    def encoder_stream(self, *, sample_rate: float | None = None) -> EncoderStream:
        """A stream from mono samples to codes, exact (see EncoderStream).

        Parameters
        ----------
        sample_rate : float, optional
            Hz, of the samples; by default the codec's. Others are resampled as they come.
        """
        self._need(self.has_encoder, "encoder")
        return EncoderStream(self, self._pass("encode"), self._chunk_frames, sample_rate=sample_rate)

    def _need(self, present: bool, what: str) -> None:
        self._session.check_open()
        if not present:
            raise VocoderError(f"{self.path} has no {what}")

    def _pass(self, name: str) -> Pass:
        with self._session.lock:
            if name not in self._passes:
                build = functools.partial(BUILDERS[name], self._config, self._lowering)
                self._passes[name] = Pass(
                    name, self._session, self._lowering, self._plans[name], self._tensors.find, build
                )
            return self._passes[name]

    # -- checks

    def check_codes(self, codes: np.ndarray) -> np.ndarray:
        """The codes as int32 [n_codebooks, n]; CodesError if they are anything else."""
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise CodesError(f"codes are of type {codes.dtype}, expected integers")
        if codes.ndim != 2 or codes.shape[0] != self.n_codebooks:
            raise CodesError(f"codes have shape {codes.shape}, expected ({self.n_codebooks}, n_frames)")
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            q, t = np.argwhere((codes < 0) | (codes >= self.codebook_size))[0]
            raise CodesError(
                f"code {codes[q, t]} of codebook {q}, frame {t}, is out of range "
                f"(expected 0 to {self.codebook_size - 1})"
            )
        return codes.astype(np.int32)

    def check_samples(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples as finite float32 [n]; AudioError if they are anything else."""
        samples = np.asarray(samples)
        if samples.ndim != 1:
            raise AudioError(f"samples have shape {samples.shape}, expected (n_samples,)")
        return as_mono(samples)

    def code_rows(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n_codebooks, n] -> rows of the joined codebooks, frame by frame, int32 [n * n_codebooks]."""
        first_rows = np.arange(self.n_codebooks, dtype=np.int32)[:, np.newaxis] * self.codebook_size
        return np.ascontiguousarray((codes + first_rows).T).reshape(-1)

    # -- the rest

    @property
    def memory(self) -> dict[str, Memory]:
        """What the codec has allocated so far, by the device's name; the CPU too where operations fell back to it."""
        with self._session.lock:
            own = {id(pass_.weights): pass_ for pass_ in self._passes.values()}.values()  # some share theirs
            compute = self._session.compute_bytes
            used = {name: Memory(compute=count) for name, count in compute.items()}
            used[self.device.name] = Memory(
                weights=sum(pass_.weights.nbytes for pass_ in own),
                state=sum(pass_.state_bytes for pass_ in own),
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
        if codec._session.lock.acquire(timeout=EXIT_SECONDS):
            codec.close()


def _build_decode(config: dac.Config, _lowering: Lowering, net: GraphOps) -> None:
    n = net.frames * config.n_codebooks * net.batch
    codes = net.g.input("I32", n) if n else None
    samples = dac.decode(net, config, codes)
    net.g.output(samples.tensor, "F32", net.batch, samples.length)


def _build_encode(config: dac.Config, lowering: Lowering, net: GraphOps) -> None:
    n = net.frames * config.hop_length
    samples = net.g.input("F32", *lowering.input_shape(1, n), net.batch) if n else None
    _, codes = dac.encode(net, config, Signal(samples, 1, n, config.hop_length, 0))
    for tensor in codes:
        net.g.output(tensor, "I32", int(tensor.contents.ne[0]))


BUILDERS = {"decode": _build_decode, "encode": _build_encode}


def _kind_of(file: GGUFFile, options: Mapping[str, Any]) -> type[Codec]:
    """The class for a file's architecture, which must know the options."""
    from .clip_codec import ClipCodec  # subclasses of Codec
    from .mimi_codec import MimiCodec

    kinds = {"dac": Codec, **dict.fromkeys(wavtokenizer_file.ARCHITECTURES, ClipCodec), "mimi": MimiCodec}
    architecture = file.get("general.architecture", str)
    if architecture not in kinds:
        known = ", ".join(map(repr, kinds))
        raise ModelFileError(f"{file.path}: architecture {architecture!r} is not supported (expected {known})")
    for name in options:
        if name not in kinds[architecture].load_options:
            raise VocoderError(f"{file.path}: a {architecture!r} codec has no option {name!r}; it is Mimi's")
    return kinds[architecture]


def _rehearse(kind: type[Codec], file: GGUFFile, device: Device, options: dict[str, Any]) -> Fit:
    """Build every graph of REHEARSED_SECONDS of sound, in the CPU's address space, for another device to look at."""
    cpu = library().device("CPU")
    with kind(file, cpu, n_threads=1, kernels="off", precision="float32", **options) as codec:
        codec._session.close()
        codec._session = session = Rehearsal(library(), device)
        assert isinstance(codec._lowering, Portable)
        codec._lowering.blank = True
        if codec.has_decoder:
            codec.decode(np.zeros((codec.n_codebooks, round(REHEARSED_SECONDS * codec.frame_rate)), np.int32))
        if codec.has_encoder:
            codec.encode(np.zeros(round(REHEARSED_SECONDS * codec.sample_rate), np.float32), codec.sample_rate)
        return Fit(codec.name, device, codec.memory[cpu.name], dict(session.missing), session.stuck)


def usable_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
