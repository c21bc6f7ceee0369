"""Mimi as a Codec: exact streams both ways, codes of fewer codebooks, and the latents before quantisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .audio.samples import as_mono
from .codec import Codec
from .codecs import mimi
from .codecs.mimi_file import Tensors
from .errors import AudioError, CodesError, StreamError
from .gguf_file import GGUFFile
from .net.plan import FIRST, MIDDLE, Phase, Signal
from .net.weights import check_shapes
from .net.window_ops import Attention, WindowNative, WindowPlan, WindowPortable
from .runtime.ggml import Device
from .streams.exact import DecoderStream, EncoderStream, Pass, State, push_many
from .streams.row_resampler import RowResampler

CHUNK_FRAMES = 8  # of long input: weights are read rarely enough, and activations stay in cache
Net = Any  # WindowNativeOps or WindowPortableOps, which have no common class beyond their methods


class WindowPass(Pass):
    """A pass with causal transformers. ``shared`` is another with the same weights and state.

    Natively a stream keeps ``ring``: keys and values of each layer's last positions; see window.c.
    """

    def __init__(self, *args: Any, sizes: Attention, shared: WindowPass | None = None) -> None:
        self.sizes = sizes
        if shared is None:
            super().__init__(*args)
            return
        self.name, self.session, self._lowering, self.plan, _, self._build = args
        self.weights, self._slots, self._states = shared.weights, shared._slots, shared._states

    def _kept(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        rings = isinstance(self._lowering, WindowNative)
        return {"ring": ("F32", (self.sizes.ring_floats,))} if rings else {}

    def _context(self, states: Sequence[State], phase: Phase, frames: int) -> list[np.ndarray]:
        s, n = self.sizes, frames * mimi.STEPS
        positions = [0 if phase.first else state.frames * mimi.STEPS for state in states]
        turns = np.stack([s.turns(position, n) for position in positions])  # [B, n, D]
        past = [min(position, s.window - 1) for position in positions]
        if isinstance(self._lowering, WindowNative):
            addresses = [state.memory.tensors["ring"].contents.data for state in states]
            rows = [
                (address & 0xFFFFFFFF, address >> 32, position % s.capacity, before)
                for address, position, before in zip(addresses, positions, past, strict=True)
            ]
            return [np.array(rows, np.uint32).view(np.int32), turns]
        history = 0 if phase.first else s.window - 1
        masks = np.stack([s.mask(before, history, n) for before in past])
        half = s.head_dim // 2
        return [
            masks,
            *(np.ascontiguousarray(part.transpose(0, 2, 1)) for part in (turns[..., :half], turns[..., half:])),
        ]


def _next_chunk(waiting: int, most: int, started: bool) -> tuple[Phase, int] | None:
    """Of a stream whose outputs do not lag: there is nothing to flush, and no chunk is the last."""
    return (MIDDLE if started else FIRST, min(waiting, most)) if waiting else None


class MimiDecoderStream(DecoderStream):
    """See DecoderStream. Samples do not lag; ``push`` takes codes of any number of codebooks."""

    def _next_chunk(self, last: bool) -> tuple[Phase, int] | None:
        return _next_chunk(self._pending_frames, self._chunk_frames, self._started)


class MimiEncoderStream(EncoderStream):
    """See EncoderStream. ``push_latents`` gives the latents before quantisation in place of codes.

    A stream may be asked for either at any time, as both advance it; with a frame rate of its own it gives
    latents only (StreamError otherwise).

    Attributes
    ----------
    frame_rate : float
        Latents per second.
    """

    _codec: MimiCodec

    def __init__(
        self,
        codec: MimiCodec,
        passes: dict[str, Pass],
        chunk_frames: int,
        *,
        sample_rate: float | None,
        frame_rate: float | None,
    ) -> None:
        self.frame_rate = codec.frame_rate if frame_rate is None else frame_rate
        if not 0 < self.frame_rate <= codec.sample_rate:
            raise ValueError(f"frame_rate is {frame_rate!r}, expected more than 0 and at most {codec.sample_rate}")
        self._latent_pass = passes["latents"]
        self._rows = (
            RowResampler(codec.frame_rate, self.frame_rate, codec.latent_dim)
            if self.frame_rate != codec.frame_rate
            else None
        )
        super().__init__(codec, passes["encode"], chunk_frames, sample_rate=sample_rate)

    def _clear(self) -> None:
        super()._clear()
        if self._rows:
            self._rows.reset()

    def _next_chunk(self, last: bool) -> tuple[Phase, int] | None:
        return _next_chunk(self._pending_frames, self._chunk_frames, self._started)

    def push_latents(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples at ``sample_rate``, float32 [n] -> latents float32 [m, latent_dim]; m may be 0."""
        return self._advance(self._latent_pass, samples, last=False)

    def flush_latents(self) -> np.ndarray:
        """End the stream: the remaining latents; a last partial frame is filled with zeros."""
        return self.finish_latents(np.empty(0, np.float32))

    def finish_latents(self, samples: np.ndarray) -> np.ndarray:
        """``push_latents`` and ``flush_latents`` in one."""
        return self._advance(self._latent_pass, samples, last=True)

    def _check_ready(self, pass_: Pass) -> None:
        super()._check_ready(pass_)
        if self._rows and pass_ is not self._latent_pass:
            raise StreamError(
                f"this stream gives latents at {self.frame_rate:g} frames/s; codes come at {self._codec.frame_rate:g}, "
                "from a stream without frame_rate"
            )

    def _outputs(self, pass_: Pass, outputs: list[np.ndarray], streams: int) -> list[np.ndarray]:
        return list(outputs[0]) if pass_ is self._latent_pass else super()._outputs(pass_, outputs, streams)

    def _result(self, pass_: Pass, parts: list[np.ndarray], *, last: bool) -> np.ndarray:
        if pass_ is not self._latent_pass:
            return super()._result(pass_, parts, last=last)
        latents = np.concatenate([np.empty((0, self._codec.latent_dim), np.float32), *parts])
        return self._rows.push(latents, last=last) if self._rows else latents


class MimiCodec(Codec):
    """Mimi on one device; see Codec for what all codecs offer.

    Attributes
    ----------
    n_codebooks : int
        Codebooks that ``encode`` gives; ``decode`` takes as many or fewer.
    latent_dim : int
        Values of a frame's latents.
    """

    load_options = ("n_codebooks", "sliding_window")

    def __init__(
        self,
        file: GGUFFile,
        device: Device,
        *,
        n_threads: int,
        kernels: str | None,
        precision: str,
        n_codebooks: int | None = None,
        sliding_window: int | None = None,
    ) -> None:
        self._tensors = tensors = Tensors(file, n_codebooks=n_codebooks, sliding_window=sliding_window)  # type: ignore[assignment]
        self._mimi = config = tensors.config
        self._begin(
            file, config, device, WindowNative, WindowPortable,
            n_threads=n_threads, kernels=kernels, precision=precision,
        )  # fmt: skip
        self.latent_dim = config.latent_dim
        self._chunk_frames = CHUNK_FRAMES
        self._sizes = config.attention(CHUNK_FRAMES)
        self._plans = {}
        self._decoder_delay = 0
        rings = isinstance(self._lowering, WindowNative)
        if self.has_decoder:
            self._plans["decode"] = plan = WindowPlan(rings=rings)
            mimi.decode(plan, config, None, self._sizes)
        if self.has_encoder:
            self._plans["encode"] = plan = WindowPlan(rings=rings)
            samples = Signal(None, 1, config.hop_length, config.hop_length, 0)
            mimi.quantise(plan, config, mimi.encode(plan, config, samples, self._sizes))
        for planned in self._plans.values():
            check_shapes(planned.specs, tensors.find, path=file.path)

    def _pass(self, name: str) -> Pass:
        with self._session.lock:
            if name not in self._passes:
                shared: Any = self._pass("encode") if name == "latents" else None
                plan = self._plans["encode" if shared else name]
                build = functools.partial(BUILDERS[name], self._mimi, self._lowering, self._sizes)
                self._passes[name] = WindowPass(
                    name, self._session, self._lowering, plan, self._tensors.find, build,
                    sizes=self._sizes, shared=shared,
                )  # type: ignore[arg-type]  # fmt: skip
            return self._passes[name]

    # -- offline

    def encode(self, audio: np.ndarray, sample_rate: int, *, n_codebooks: int | None = None) -> np.ndarray:
        """Samples to codes int32 [n_codebooks, n_frames], by default of all codebooks; see Codec.encode."""
        if n_codebooks is not None and not self._mimi.n_semantic <= n_codebooks <= self.n_codebooks:
            raise ValueError(f"n_codebooks is {n_codebooks}, expected {self._mimi.n_semantic} to {self.n_codebooks}")
        return super().encode(audio, sample_rate)[:n_codebooks]

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
        return n_frames * self.hop_length

    # -- streams

    def decoder_stream(self, *, lookahead_frames: int | None = None) -> MimiDecoderStream:
        """A stream from codes to samples (see DecoderStream), which do not lag."""
        self._need(self.has_decoder, "decoder")
        pass_ = self._pass("decode")
        return MimiDecoderStream(self, pass_, self._chunk_frames, delay=0, lookahead_frames=lookahead_frames)

    def encoder_stream(self, *, sample_rate: float | None = None, frame_rate: float | None = None) -> MimiEncoderStream:
        """A stream from mono samples to codes or latents, exact (see MimiEncoderStream).

        Parameters
        ----------
        sample_rate : float, optional
            Hz, of the samples; by default the codec's. Others are resampled as they come (see audio.Resampler).
        frame_rate : float, optional
            Latents per second, by default the codec's. Others are made by linear interpolation between
            neighbours, as they come (see frame_rate.RowResampler); such a stream gives no codes.
        """
        self._need(self.has_encoder, "encoder")
        passes = {name: self._pass(name) for name in ("encode", "latents")}
        return MimiEncoderStream(self, passes, self._chunk_frames, sample_rate=sample_rate, frame_rate=frame_rate)

    def push_latents_many(
        self, streams: Sequence[MimiEncoderStream], samples: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """``streams[i].push_latents(samples[i])`` for all i, run together; see ``push_many``."""
        self._check_owned(streams)
        if not all(isinstance(stream, MimiEncoderStream) for stream in streams):
            raise ValueError("latents come from encoder streams only")
        return push_many(streams, samples, self._pass("latents"))

    # -- checks

    def check_codes(self, codes: np.ndarray) -> np.ndarray:
        """The codes as int32 [n_codebooks, n], -1 for acoustic codebooks left out; else CodesError."""
        codes = np.asarray(codes)
        most, least = self.n_codebooks, self._mimi.n_semantic
        if codes.ndim != 2 or not least <= codes.shape[0] <= most or codes.dtype.kind not in "iu":
            if codes.dtype.kind in "iu" and least != most:
                raise CodesError(f"codes have shape {codes.shape}, expected ({least} to {most}, n_frames)")
            return super().check_codes(codes)
        lowest = np.where(np.arange(codes.shape[0]) < least, 0, -1)[:, np.newaxis]
        wrong = (codes < lowest) | (codes >= self.codebook_size)
        if wrong.any():
            q, t = np.argwhere(wrong)[0]
            raise CodesError(
                f"code {codes[q, t]} of codebook {q}, frame {t}, is out of range "
                f"(expected 0 to {self.codebook_size - 1})"
            )
        missing = np.full((most - codes.shape[0], codes.shape[1]), -1, np.int32)
        return np.concatenate([codes.astype(np.int32), missing])

    def code_rows(self, codes: np.ndarray) -> np.ndarray:
        """Checked codes [n_codebooks, n] -> rows of the joined codebooks, frame by frame, int32 [n * n_codebooks]."""
        rows = codes + np.arange(self.n_codebooks, dtype=np.int32)[:, np.newaxis] * self.codebook_size
        rows[codes < 0] = self.n_codebooks * self.codebook_size  # the row of zeros
        return np.ascontiguousarray(rows.T).reshape(-1)


def _build_decode(c: mimi.Config, _lowering: Any, sizes: Attention, net: Net) -> None:
    net.declare(sizes, net.frames * mimi.STEPS)
    codes = net.g.input("I32", net.frames * c.n_codebooks * net.batch)
    samples = mimi.decode(net, c, codes, sizes)
    net.g.output(samples.tensor, "F32", net.batch, samples.length)


def _build_latents(c: mimi.Config, lowering: Any, sizes: Attention, net: Net) -> None:
    latents = _latents(c, lowering, sizes, net)
    tensor = latents.tensor
    if isinstance(lowering, WindowPortable):
        tensor = net._transposed(tensor)
    net.g.output(tensor, "F32", net.batch, latents.length, latents.channels)


def _build_encode(c: mimi.Config, lowering: Any, sizes: Attention, net: Net) -> None:
    for tensor in mimi.quantise(net, c, _latents(c, lowering, sizes, net)):
        net.g.output(tensor, "I32", int(tensor.contents.ne[0]))


def _latents(c: mimi.Config, lowering: Any, sizes: Attention, net: Net) -> Signal:
    net.declare(sizes, net.frames * mimi.STEPS)
    n = net.frames * c.hop_length
    samples = net.g.input("F32", *lowering.input_shape(1, n), net.batch)
    return mimi.encode(net, c, Signal(samples, 1, n, c.hop_length, 0), sizes)


BUILDERS: dict[str, Callable[..., None]] = {
    "decode": _build_decode, "encode": _build_encode, "latents": _build_latents,
}  # fmt: skip
