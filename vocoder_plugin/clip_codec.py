"""Codecs whose decoder sees the whole clip: WavTokenizer. The same public object, other passes.

Offline decoding runs a clip in one graph. Encoding is exact in chunks: each chunk is computed with as
many frames around it as its convolutions see, and the LSTM's state goes from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .codec import Codec
from .codecs import wavtokenizer
from .codecs.wavtokenizer_file import Tensors
from .errors import CodesError
from .gguf_file import GGUFFile
from .net.clip_ops import ClipNative, ClipPlan, ClipPortable, ClipPortableOps
from .net.plan import WHOLE, Signal
from .net.weights import Find, check_shapes
from .runtime.ggml import Device
from .runtime.graph import Graph, Session
from .streams.whole_clip import ClipEncoderStream, WindowedDecoderStream

ENCODER_CHUNK_SECONDS = 2.0  # activations of the first layers stay in cache; the LSTM's weights are read rarely enough
Net = Any  # ClipNativeOps or ClipPortableOps, which have no common class beyond their methods
Build = Callable[[Net], None]


class ClipPass:
    """One stage of a whole-clip codec on one device: its weights, and graphs in the session's cache."""

    state_bytes = 0  # what a stream keeps between chunks lies in numpy's arrays

    def __init__(
        self, name: str, session: Session, lowering: ClipNative | ClipPortable, plan: ClipPlan, find: Find
    ) -> None:
        self._name, self._session, self._lowering = name, session, lowering
        self.weights = lowering.load(plan.specs, find)

    def run(self, key: Hashable, frames: int, build: Build, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Build (where no graph has this key) and run the stage over ``frames`` rows."""

        def build_graph(graph: Graph) -> None:
            weights = self.weights.tensors
            build(
                self._lowering.ops(
                    phase=WHOLE,
                    frames=frames,
                    graph=graph,
                    weights=weights,
                    regions={},
                    position=weights.get("position"),
                )
            )

        return self._session.run((self._name, frames, key), build_graph, inputs)

    def close(self) -> None:
        self.weights.close()


class ClipCodec(Codec):
    """WavTokenizer on one device; see Codec for what all codecs offer.

    ``decoder_stream()`` is windowed: its samples differ from offline ones (``exact`` is False), by how
    much docs/wavtokenizer.md tells. ``encoder_stream()`` is exact.
    """

    exact_streams = False

    def __init__(self, file: GGUFFile, device: Device, *, n_threads: int, kernels: str | None, precision: str) -> None:
        tensors = Tensors(file)
        self._find = tensors.find
        self._wav = config = tensors.config
        self._begin(
            file, config, device, ClipNative, ClipPortable, n_threads=n_threads, kernels=kernels, precision=precision
        )
        self._clip_plans: dict[str, ClipPlan] = {}
        if self.has_decoder:
            wavtokenizer.decode(self._plan("decode"), config, None)
        if self.has_encoder:
            front = wavtokenizer.encode_front(self._plan("front"), config, Signal(None, 1, 1, config.hop_length, 0))
            wavtokenizer.encode_lstm(self._plan("lstm"), config, front, (None, None))
            wavtokenizer.encode_tail(self._plan("tail"), config, front)
        for plan in self._clip_plans.values():
            check_shapes(plan.specs, self._find, path=file.path)

    def _plan(self, name: str) -> ClipPlan:
        self._clip_plans[name] = plan = ClipPlan()
        return plan

    def _stage(self, name: str) -> ClipPass:
        self._session.check_open()
        with self._session.lock:
            if name not in self._passes:
                stage = ClipPass(name, self._session, self._lowering, self._clip_plans[name], self._find)  # type: ignore[arg-type]
                self._passes[name] = stage  # type: ignore[assignment]
            return self._passes[name]  # type: ignore[return-value]

    # -- decoding

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [1, n_frames] -> samples float32 [n_frames * hop_length]; see Codec.decode."""
        self._need(self.has_decoder, "decoder")
        codes = self.check_codes(codes)
        if codes.shape[1] == 0:
            raise CodesError("there are no codes to decode")
        return self.decode_clip(codes)

    def decode_clip(self, codes: np.ndarray) -> np.ndarray:
        """Checked codes [1, n], n > 0 -> samples [n * hop_length]."""
        c, n = self._wav, codes.shape[1]

        def build(net: Net) -> None:
            ids = net.g.input("I32", n)
            gain = net.g.input("F32", n * c.hop_length)
            samples = wavtokenizer.decode(net, c, ids).tensor
            flat = net.lib.ggml_reshape_1d(net.c, samples, n * c.hop_length)
            net.g.output(net.lib.ggml_mul(net.c, flat, gain), "F32", n * c.hop_length)

        gain = wavtokenizer.envelope_gain(n, c.n_fft, c.hop_length)
        return self._stage("decode").run("samples", n, build, [np.ascontiguousarray(codes[0]), gain])[0]

    def decode_head(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [1, n] -> log magnitudes and phases before the ISTFT, float32 [n, n_fft + 2]."""
        self._need(self.has_decoder, "decoder")
        codes = self.check_codes(codes)
        c, n = self._wav, codes.shape[1]
        if n == 0:
            raise CodesError("there are no codes to decode")

        def build(net: Net) -> None:
            net.g.output(
                wavtokenizer.decode_head(net, c, net.g.input("I32", n)).tensor, "F32", *self._shape(n, c.n_fft + 2)
            )

        return self._rows(self._stage("decode").run("head", n, build, [np.ascontiguousarray(codes[0])])[0])

    def decoded_length(self, n_frames: int) -> int:
        """Samples that ``decode`` gives for so many frames."""
        return n_frames * self.hop_length

    def decoder_stream(  # type: ignore[override]
        self, *, lookahead_frames: int | None = None, context_frames: int | None = None
    ) -> WindowedDecoderStream:
        """A windowed stream from codes to samples, not exact (see WindowedDecoderStream).

        Parameters
        ----------
        lookahead_frames : int, optional
            Frames after a frame that its samples wait for.
        context_frames : int, optional
            Frames before it that are decoded with it again.
        """
        self._need(self.has_decoder, "decoder")
        return WindowedDecoderStream(self, lookahead_frames=lookahead_frames, context_frames=context_frames)

    def push_many(self, streams: Sequence[Any], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """``streams[i].push(inputs[i])`` for all i, one after the other."""
        if len({id(stream) for stream in streams}) != len(streams) or len(streams) != len(inputs):
            raise ValueError(f"{len(streams)} streams for {len(inputs)} arrays, expected one each, all different")
        self._check_owned(streams)
        return [stream.push(chunk) for stream, chunk in zip(streams, inputs, strict=True)]

    # -- encoding

    def encoder_stream(self, *, sample_rate: float | None = None) -> ClipEncoderStream:  # type: ignore[override]
        """A stream from mono samples at ``sample_rate`` to codes, exact (see Codec.encoder_stream)."""
        self._need(self.has_encoder, "encoder")
        return ClipEncoderStream(
            self,
            reach=self._wav.encoder_reach,
            tail_reach=wavtokenizer.TAIL_REACH,
            units=self._wav.encoder_dim << len(self._wav.encoder_rates),
            chunk_frames=max(1, round(ENCODER_CHUNK_SECONDS * self.frame_rate)),
            sample_rate=sample_rate,
        )

    def encode_front(self, samples: np.ndarray) -> np.ndarray:
        """Samples [n], n > 0, as a whole clip -> frames before the LSTM [ceil(n / hop_length), channels]."""
        c, n = self._wav, samples.size

        def build(net: Net) -> None:
            x = net.g.input("F32", *self._lowering.input_shape(1, n), 1)
            y = wavtokenizer.encode_front(net, c, Signal(x, 1, n, c.hop_length, 0))
            net.g.output(y.tensor, "F32", *self._shape(y.length, y.channels))

        return self._rows(self._stage("front").run("front", n, build, [np.ascontiguousarray(samples)])[0])

    def encode_lstm(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames [n, channels], n > 0, and the state before, [2 layers, 2, channels] -> x + LSTM(x), state after."""
        most = ClipPortableOps.lstm_steps if isinstance(self._lowering, ClipPortable) else len(x)
        parts = []
        for first in range(0, len(x), most):
            part, state = self._encode_lstm(x[first : first + most], state)
            parts.append(part)
        return np.concatenate(parts), state

    def _encode_lstm(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, (n, channels) = self._wav, x.shape

        def build(net: Net) -> None:
            front = Signal(net.g.input("F32", *self._lowering.input_shape(channels, n), 1), channels, n, 1, 0)
            states = (net.g.input("F32", channels, 2), net.g.input("F32", channels, 2))
            y, after = wavtokenizer.encode_lstm(net, c, front, states)
            net.g.output(net.lib.ggml_add(net.c, y.tensor, front.tensor), "F32", *self._shape(n, channels))
            for tensor in after:
                net.g.output(tensor, "F32", 2, channels)

        inputs = [self._rows(x), np.ascontiguousarray(state[0]), np.ascontiguousarray(state[1])]
        y, *after = self._stage("lstm").run("lstm", n, build, inputs)
        return self._rows(y), np.stack(after)

    def encode_tail(self, x: np.ndarray) -> np.ndarray:
        """Frames [n, channels], n > 0, as a whole clip -> codes int32 [n]."""
        c, (n, channels) = self._wav, x.shape

        def build(net: Net) -> None:
            x = Signal(net.g.input("F32", *self._lowering.input_shape(channels, n), 1), channels, n, 1, 0)
            net.g.output(wavtokenizer.encode_tail(net, c, x), "I32", n)

        return self._stage("tail").run("tail", n, build, [self._rows(x)])[0]

    # -- layouts: arrays are [frames, channels]; portable tensors are [channels, frames] in numpy's order

    def _shape(self, frames: int, channels: int) -> tuple[int, int]:
        return (channels, frames) if isinstance(self._lowering, ClipPortable) else (frames, channels)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.T) if isinstance(self._lowering, ClipPortable) else np.ascontiguousarray(x)
