"""Every codec on the device against itself on the CPU: offline, in streams, in one piece, with few transfers."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import DEVICE, some_codes
from measures import relative_error, transfers
from random_dac import write_random_dac

from vocoder_plugin import Codec
from vocoder_plugin.runtime import graph

F16 = 2e-3  # where the device multiplies in F16, as llvmpipe and most GPUs do: 1.0e-3 to 1.2e-3 seen
F32 = 1e-5  # with GGML_VK_DISABLE_F16: 1.2e-6 seen


def seconds(codec: Codec, duration: float) -> int:
    return round(duration * codec.frame_rate)


def cuts(frames: int) -> list[slice]:
    """Uneven pushes."""
    ends = sorted({round(frames * part) for part in (0.1, 0.15, 0.4, 0.8, 1.0)})
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def test_decode_and_encode(pair):
    there, here = pair
    assert (there.device.name, there.lowering) == (DEVICE, "portable")
    codes = some_codes(there, seconds(there, 0.9))
    audio = here.decode(codes)
    assert relative_error(there.decode(codes), audio) < F16
    wanted, got = here.encode(audio, here.sample_rate), there.encode(audio, there.sample_rate)
    assert got.shape == wanted.shape
    assert np.mean(got == wanted) > 0.97  # two entries as near as one another are a matter of rounding


def test_streams_give_what_one_call_gives(pair):
    there, here = pair
    codes = some_codes(there, seconds(there, 0.9))
    offline = there.decode(codes)
    if there.exact_streams:
        with there.decoder_stream() as stream:
            parts = [stream.push(codes[:, cut]) for cut in cuts(codes.shape[1])]
            assert relative_error(np.concatenate([*parts, stream.flush()]), offline) < F16
    with there.decoder_stream() as stream:  # windowed ones too, if all comes at once
        assert relative_error(stream.finish(codes), offline) < F16
    audio = here.decode(codes)
    whole = there.encode(audio, there.sample_rate)
    with there.encoder_stream() as encoder:
        parts = [encoder.push(audio[cut]) for cut in cuts(audio.size)]
        joined = np.concatenate([*parts, encoder.flush()], axis=1)
    assert joined.shape == whole.shape
    assert np.mean(joined == whole) > 0.97


def test_ggmls_scheduler_makes_one_piece_of_every_graph(pair, monkeypatch):
    """Each graph of a decode and an encode, handed to ggml_backend_sched with the CPU as the second backend."""
    there, here = pair
    splits = []
    compute = graph.Session._compute

    def counted(session, built):
        compute(session, built)
        splits.append((built.scheduled, session.splits))

    monkeypatch.setattr(graph.Session, "_allocate", lambda session, built: session._schedule(built, []))
    monkeypatch.setattr(graph.Session, "_compute", counted)
    codes = some_codes(there, seconds(there, 0.4))
    audio = there.decode(codes)
    there.encode(audio, there.sample_rate)
    monkeypatch.undo()
    assert set(splits) == {(True, 1)}
    assert relative_error(audio, here.decode(codes)) < F16


def test_codes_up_and_samples_down(files):
    with Codec.load(files["dac"], device=DEVICE) as codec:
        frames = seconds(codec, 0.9)
        with transfers(codec) as bytes_:
            audio = codec.decode(some_codes(codec, frames))
        assert codec._session.splits == 1
        assert (bytes_["up"], bytes_["down"]) == (4 * codec.n_codebooks * frames, audio.nbytes)


def test_memory_is_the_devices(pair, files):
    there, _ = pair
    there.decode(some_codes(there, 10))
    (weights,) = {pass_.weights.kind for pass_ in there._passes.values()}
    assert weights == DEVICE
    assert list(there.memory) == [DEVICE]


def test_a_missing_operation_runs_on_the_cpu(files, monkeypatch):
    def missing(lib, device, nodes):
        return [node for node in nodes if lib.ggml_op_desc(node) == b"TANH"]

    with Codec.load(files["dac"], device=DEVICE) as codec:
        codes = some_codes(codec, 20)
        wanted = codec.decode(codes)
    monkeypatch.setattr(graph, "missing_operations", missing)
    with Codec.load(files["dac"], device=DEVICE) as codec:
        assert relative_error(codec.decode(codes), wanted) < F32
        assert codec._session.splits == 2
        assert set(codec.memory) == {DEVICE, "CPU"}


def test_a_model_of_full_width(tmp_path):
    """OuteTTS's channels and strides; a few frames, as the device may be a CPU in disguise."""
    path = tmp_path / "wide.gguf"
    write_random_dac(path, "24khz", decoder_dim=1536, encoder_dim=8, latent_dim=64)
    with Codec.load(path, device=DEVICE) as there, Codec.load(path, n_threads=2) as here:
        codes = some_codes(there, 4)
        assert relative_error(there.decode(codes), here.decode(codes)) < F16


DECODE = (
    "import sys, numpy as np\n"
    "from vocoder_plugin import Codec\n"
    "audio = []\n"
    "for device in sys.argv[2:]:\n"
    "    with Codec.load(sys.argv[1], device=device, n_threads=2) as codec:\n"
    "        shape = (codec.n_codebooks, round(0.3 * codec.frame_rate))\n"
    "        audio.append(codec.decode(np.random.default_rng(0).integers(0, codec.codebook_size, shape)))\n"
    "print(np.linalg.norm(audio[0] - audio[-1]) / np.linalg.norm(audio[0]))\n"
)


def decode_with(setting: str, *arguments: str) -> subprocess.CompletedProcess:
    """Decode in a process whose ggml reads that setting from the environment."""
    command = ["env", f"{setting}=1", sys.executable, "-c", DECODE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.parametrize("name", ["dac", "wavtokenizer", "mimi"])
def test_without_f16_the_samples_are_those_of_the_cpu(files, name):
    done = decode_with("GGML_VK_DISABLE_F16", str(files[name]), "CPU", DEVICE)
    assert 0 < float(done.stdout.split()[-1]) < F32


def test_every_snake_runs_as_one_kernel(files):
    done = decode_with("GGML_VK_PERF_LOGGER", str(files["dac"]), DEVICE)
    log = done.stdout + done.stderr
    assert re.search(r"^SNAKE.*: 29 x ", log, re.MULTILINE), log  # four blocks of seven, and the last
    assert not re.search(r"^(SIN|SQR): ", log, re.MULTILINE), log
