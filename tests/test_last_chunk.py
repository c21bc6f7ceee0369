"""The last chunk of a stream has no frames of its own where all were pushed before: early layers have nothing there."""

from __future__ import annotations

import numpy as np
import pytest

from vocoder_plugin import kernels
from vocoder_plugin.net.native import Native
from vocoder_plugin.net.ops import ELU, Causal, Rotary
from vocoder_plugin.net.portable import Portable
from vocoder_plugin.net.weights import Stored
from vocoder_plugin.runtime.ggml import library
from vocoder_plugin.runtime.graph import Session
from vocoder_plugin.streams.exact import DecoderStream
from vocoder_plugin.streams.format import Format
from vocoder_plugin.streams.passes import Pass

SIZE, DIM, FRAMES = 16, 32, 30
FORMAT = Format(name="early", sample_rate=8000, hop_length=1, rows=(0,), codebook_size=SIZE, least_rows=1)
EARLY = {
    "elu": lambda net, x: net.elu(x),
    "swish": lambda net, x: net.swish(x),
    "gelu": lambda net, x: net.gelu(x),
    "tanh": lambda net, x: net.tanh(x),
    "add": lambda net, x: net.add(x, x),
    "subtract": lambda net, x: net.subtract(net.tanh(x), x),
    "split": lambda net, x: net.add(*net.split(x, 2)),
    "polar": lambda net, x: net.polar(x),
    "layer_norm": lambda net, x: net.layer_norm(x, "norm", epsilon=1e-5),
    "depthwise and layer_norm": lambda net, x: net.layer_norm(net.depthwise(x, "dw", kernel=3), "norm", epsilon=1e-5),
    "linear": lambda net, x: net.conv1d(x, "linear", out=DIM, kernel=1, activation=ELU),
    "causal": lambda net, x: net.conv1d(x, "causal", out=DIM, kernel=3, padding=Causal()),
    "attention": lambda net, x: net.attention(x, x, x, "a", heads=2, rotary=Rotary(), window=8, causal=True),
}


def find(name: str, shape: tuple[int, ...]) -> Stored:
    rng = np.random.default_rng(list(name.encode()))
    return Stored(shape, lambda: rng.standard_normal(shape).astype(np.float32) * np.float32(0.3))


@pytest.fixture(scope="module", params=["native", "portable"])
def lowering(request):
    lib = library()
    if request.param == "portable":
        return Portable(lib, lib.device("CPU"))
    if not kernels.available():
        pytest.skip("no native kernels")
    return Native(lib, lib.device("CPU"), kernels.load(lib, None))


@pytest.mark.parametrize("early", EARLY.values(), ids=list(EARLY))
def test_ends_as_offline(lowering, early):
    def head(net):
        x = net.embed(net.codes_in(1), "table", size=SIZE, dim=DIM)
        net.samples_out(net.conv1d(early(net, x), "last", out=1, kernel=7))

    session = Session(lowering.lib, lowering.device, n_threads=1)
    pass_ = Pass("decoder", session, lowering, {"decode": head}, find, chunk_frames=8)
    codes = np.random.default_rng(1).integers(0, SIZE, (1, FRAMES))
    with DecoderStream(FORMAT, pass_) as stream:
        offline = stream.finish(codes)
        stream.reset()
        pushed = np.concatenate([stream.push(codes[:, i : i + 5]) for i in range(0, FRAMES, 5)] + [stream.flush()])
    with DecoderStream(FORMAT, pass_) as stream:
        frame_by_frame = np.concatenate([*(stream.push(codes[:, i : i + 1]) for i in range(FRAMES)), stream.flush()])
    pass_.close()
    session.close()
    assert offline.size == FRAMES and np.std(offline) > 1e-3
    exact = dict(rtol=0, atol=0 if lowering.name == "native" else 1e-6 * np.abs(offline).max())
    assert np.allclose(pushed, offline, **exact)
    assert np.allclose(frame_by_frame, offline, **exact)
