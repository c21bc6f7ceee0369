"""Choosing a device, falling back from one, and what a codec says of its memory; no second device needed."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run
from measures import transfers

from vocoder_plugin import Codec, DeviceError, SpeechStream
from vocoder_plugin.runtime import ggml, graph, rehearsal, schedule
from vocoder_plugin.runtime.ggml import Device
from vocoder_plugin.runtime.placement import MOST_LAYERS, Offload, choose_device, device_of_last_layer, offload_devices

GIB = 1 << 30


def device(name: str, kind: str = "gpu", *, free: int = 8 * GIB, backend: str = "CUDA", hardware: str = "") -> Device:
    return Device(name, name, kind, free, max(free, 0) and 16 * GIB, 0, backend, hardware)


CPU = device("CPU", "cpu", free=32 * GIB, backend="CPU")
A, B, C = (device(f"CUDA{i}") for i in range(3))
IGPU = device("Vulkan0", "igpu", backend="Vulkan")
REMOTE = device("RPC0", backend="RPC")
BLAS = device("BLAS", "accel", free=0, backend="BLAS")


@pytest.mark.parametrize(
    ("devices", "offload", "expected"),
    [
        # nothing to offload to, or nothing offloaded
        ([CPU], Offload(28, -1), None),
        ([CPU, BLAS], Offload(28, -1), None),
        ([CPU, A], Offload(28, 0), None),
        # one GPU, all layers or some
        ([CPU, A], Offload(28, -1), "CUDA0"),
        ([CPU, A], Offload(28, 0x7FFFFFFF), "CUDA0"),
        ([CPU, A], Offload(28, 1), "CUDA0"),
        # by free memory: the output layer lies on the last device
        ([CPU, A, B], Offload(28, -1), "CUDA1"),
        ([CPU, A, B], Offload(28, 1), "CUDA0"),
        ([CPU, A, B], Offload(28, 2), "CUDA1"),
        ([CPU, A, device("CUDA1", free=0)], Offload(28, -1), "CUDA1"),  # does not tell: as the host
        # by shares
        ([CPU, A, B, C], Offload(28, -1, tensor_split=[1, 1, 1]), "CUDA2"),
        ([CPU, A, B, C], Offload(28, -1, tensor_split=[1, 3]), "CUDA1"),
        ([CPU, A, B, C], Offload(28, -1, tensor_split=[1]), "CUDA0"),
        ([CPU, A, B, C], Offload(28, -1, tensor_split=[99, 0.5, 0.5]), "CUDA0"),  # the last 29th begins at 96.6 %
        ([CPU, A, B, C], Offload(28, 2, tensor_split=[1, 2, 1]), "CUDA1"),
        ([CPU, A, B], Offload(28, -1, tensor_split=[0, 0]), "CUDA1"),
        # one device of several
        ([CPU, A, B], Offload(28, -1, split_mode=0), "CUDA0"),
        ([CPU, A, B], Offload(28, -1, split_mode=0, main_gpu=1, tensor_split=[1, 0]), "CUDA1"),
        ([CPU, A, B], Offload(28, -1, split_mode=0, main_gpu=-1), None),
        ([CPU, A, B], Offload(28, -1, split_mode=0, main_gpu=7), None),
        # rows and tensors
        ([CPU, A, B], Offload(28, -1, split_mode=2, tensor_split=[1, 1]), "CUDA1"),
        ([CPU, A, B], Offload(28, -1, split_mode=3), "CUDA0"),
        ([CPU, A, B], Offload(28, -1, split_mode=3, main_gpu=1), "CUDA1"),
        # integrated GPUs serve where there are no others, remote ones come first
        ([CPU, IGPU], Offload(28, -1), "Vulkan0"),
        ([CPU, IGPU, A], Offload(28, -1), "CUDA0"),
        ([REMOTE, CPU, IGPU], Offload(28, -1), "Vulkan0"),
        ([CPU, A, REMOTE], Offload(28, -1, tensor_split=[1, 0]), "RPC0"),
        ([CPU, A], Offload(MOST_LAYERS, -1), "CUDA0"),
    ],
)  # fmt: skip
def test_device_of_the_last_layer(devices, offload, expected):
    found = device_of_last_layer(devices, offload)
    assert (found.name if found else None) == expected


def test_a_card_that_two_backends_drive_counts_once():
    cuda, vulkan = (
        device("CUDA0", hardware="0000:01:00.0"),
        device("Vulkan0", backend="Vulkan", hardware="0000:01:00.0"),
    )
    other = device("Vulkan1", backend="Vulkan", hardware="0000:02:00.0")
    assert [d.name for d in offload_devices([CPU, cuda, vulkan, other], Offload(28, -1))] == ["CUDA0", "Vulkan1"]
    metal = device("MTL0", "igpu", backend="MTL")
    assert [d.name for d in offload_devices([IGPU, metal, CPU], Offload(28, -1))] == ["Vulkan0"]


def fake_llm(**changes):
    params = SimpleNamespace(**{"n_gpu_layers": -1, "split_mode": 1, "main_gpu": 0, **changes})
    metadata = {"general.architecture": "llama", "llama.block_count": "16"}
    return SimpleNamespace(model_params=params, metadata=metadata, tensor_split=None, n_threads=3)


def test_offload_of_a_real_model(llm):
    assert Offload.of(llm) == Offload(layers=1, gpu_layers=0, split_mode=1, main_gpu=0, tensor_split=())


def test_the_device_of_the_llm_unless_one_is_named(monkeypatch):
    lib = ggml.library()
    monkeypatch.setattr(ggml.Library, "devices", lambda _lib: [A, B, CPU])
    assert choose_device(lib, fake_llm(), None) is B
    assert choose_device(lib, fake_llm(n_gpu_layers=0), None) is CPU
    assert choose_device(lib, fake_llm(), "CPU") is CPU
    assert choose_device(lib, None, None) is CPU
    assert choose_device(lib, None, "cuda0") is A
    with pytest.raises(DeviceError, match="this libggml has CUDA0, CUDA1, CPU"):
        choose_device(lib, fake_llm(), "Vulkan0")


def test_real_devices_tell_their_backend():
    cpu = ggml.library().device("CPU")
    assert cpu.backend == "CPU"
    assert isinstance(cpu.hardware_id, str)


def test_the_llms_threads(llm, small_dac_file):
    with Codec.load(small_dac_file, llm=llm) as codec:
        assert codec.device.is_cpu
        assert codec._session.n_threads == llm.n_threads


@pytest.fixture
def gpu(monkeypatch) -> Device:
    """Device "GPU0": the CPU's under another name, so that codecs take the portable lowering."""
    lib = ggml.library()
    cpu = lib.device("CPU")
    pretended = Device("GPU0", "pretended", "gpu", 8 * GIB, 8 * GIB, cpu.handle, "GPU")
    monkeypatch.setattr(ggml.Library, "devices", lambda _lib: [pretended, cpu])
    return pretended


def lacking(monkeypatch, *names: str) -> None:
    """Make "GPU0" lack operations."""
    lib = ggml.library()

    def missing(_lib, device, nodes):
        return [n for n in nodes if device.name == "GPU0" and lib.ggml_op_desc(n).decode() in names]

    for module in (schedule, graph, rehearsal):
        monkeypatch.setattr(module, "missing_operations", missing)


CODES = np.random.default_rng(0).integers(0, 1024, (2, 60))


def test_a_whole_device(gpu, small_dac, small_dac_file, caplog):
    with Codec.load(small_dac_file, llm=fake_llm(), n_threads=2) as codec, caplog.at_level(logging.WARNING):
        assert (codec.device.name, codec.lowering) == ("GPU0", "portable")
        with transfers(codec) as bytes_:
            np.testing.assert_allclose(codec.decode(CODES), small_dac.decode(CODES), atol=1e-5)
        assert not caplog.records
        assert codec._session.splits == 1
        assert (bytes_["down"], list(codec.memory)) == (4 * codec.decoded_length(60), ["GPU0"])


def test_inputs_up_and_samples_down(gpu, small_dac_file):
    with Codec.load(small_dac_file, device="GPU0", n_threads=2) as codec:
        with transfers(codec) as bytes_, codec.decoder_stream() as stream:
            received = sum(stream.push(CODES[:, i : i + 5]).size for i in range(0, 60, 5)) + stream.flush().size
        assert bytes_["down"] == 4 * received
        assert bytes_["up"] == 4 * CODES.size
        assert 11 <= bytes_["graphs"] <= 13


def test_missing_operations_run_on_the_cpu(gpu, monkeypatch, small_dac, small_dac_file, caplog):
    lacking(monkeypatch, "SIN", "ELU", "TANH")
    with caplog.at_level(logging.WARNING):
        codec = Codec.load(small_dac_file, device="GPU0", n_threads=2)
    assert [r.message for r in caplog.records] == ["GPU0 lacks SIN, TANH: these run on the CPU"]
    with codec:
        audio = codec.decode(CODES)
        np.testing.assert_allclose(audio, small_dac.decode(CODES), atol=1e-5)
        with codec.decoder_stream() as stream:  # one scheduled graph at a time: each phase replaces the last one's
            parts = [stream.push(CODES[:, :30]), stream.push(CODES[:, 30:]), stream.flush()]
        np.testing.assert_allclose(np.concatenate(parts), audio, atol=1e-5)
        assert len(codec._session._graphs) == 1
        assert set(codec.memory) == {"GPU0", "CPU"}
        assert codec.memory["GPU0"].total > codec.memory["GPU0"].weights > 0


def test_operations_in_the_devices_memory_cannot_move(gpu, monkeypatch, small_dac, small_dac_file, caplog):
    lacking(monkeypatch, "CPY")
    with caplog.at_level(logging.WARNING), Codec.load(small_dac_file, device="GPU0", n_threads=2) as codec:
        assert codec.device.name == "CPU"
        np.testing.assert_array_equal(codec.decode(CODES), small_dac.decode(CODES))
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("GPU0 cannot compute CPY in its own memory, which streams need; DAC")


def test_too_little_memory(gpu, monkeypatch, small_dac_file, caplog):
    small = Device("GPU0", "pretended", "gpu", 1 << 20, 8 * GIB, gpu.handle, "GPU")
    monkeypatch.setattr(ggml.Library, "devices", lambda _lib: [small, CPU_HERE])
    with caplog.at_level(logging.WARNING), Codec.load(small_dac_file, llm=fake_llm()) as codec:
        assert codec.device.name == "CPU"
        assert codec.lowering.startswith("native/")
        assert codec._session.n_threads == 3
    (record,) = caplog.records
    assert record.message.startswith("GPU0 has 1 MiB free, and DAC 24 kHz needs ")
    assert record.message.endswith("; DAC 24 kHz runs on the CPU instead")


CPU_HERE = ggml.library().device("CPU")


def test_survey_counts_what_a_codec_will_take(gpu, small_dac_file, small_wavtokenizer_file, fixtures):
    codes = np.zeros((8, 125), int)
    for file in (small_dac_file, small_wavtokenizer_file, fixtures / "codec_cpp_mimi_hf_f32.gguf"):
        fit = Codec.survey(file, "GPU0")
        assert (fit.missing, fit.stuck, fit.refusal) == ({}, "", "")
        with Codec.load(file, device="GPU0", n_threads=2) as codec:
            frames = round(10 * codec.frame_rate)
            codec.decode(np.resize(codes, (codec.n_codebooks, frames)))
            codec.encode(np.zeros(10 * codec.sample_rate, np.float32), codec.sample_rate)
            assert codec.memory == {"GPU0": fit.memory}


def test_memory_of_streams(small_dac_file):
    with Codec.load(small_dac_file, n_threads=2) as codec:
        assert codec.memory["CPU"].total == codec.memory["CPU"].compute == 0
        codec.decode(CODES)
        before = codec.memory["CPU"]
        streams = [codec.decoder_stream() for _ in range(3)]
        each = streams[0]._state.nbytes
        assert codec.memory["CPU"].state == before.state + 3 * each > 0
        streams[0].close()
        del streams[1:]
        assert codec.memory["CPU"] == before


def test_a_worker_beside_the_model_takes_the_cores_that_are_left(llm, small_dac, monkeypatch):
    seen = []
    session = small_dac._session
    set_threads = session._set_threads
    monkeypatch.setattr(session, "_set_threads", lambda *a: (seen.append(a[2]), set_threads(*a)))
    monkeypatch.setattr("vocoder_plugin.llm.speech.usable_cores", lambda: 3)
    assert (llm.n_threads, session.n_threads) == (2, 2)
    with SpeechStream(llm, small_dac, overlap=True) as stream:
        stream._decode_beside(CODES[:, :20])
    assert seen == [1, 2]  # limited, and given back


def test_doctor_tells_what_a_codec_takes(gpu, monkeypatch, small_dac_file):
    def doctor(*arguments: str) -> str:
        result = run("doctor", *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    line = doctor(small_dac_file)
    assert line.startswith("codec             DAC 24 kHz on GPU0: 2 MiB of weights, 1 MiB of buffers")
    assert line.endswith("; every operation runs there")
    assert " on CPU: " in doctor(small_dac_file, "--device", "CPU")
    lacking(monkeypatch, "TANH", "SIN")
    assert re.search(r"; falls back to the CPU for SIN \(\d+\), TANH \(\d+\)$", doctor(small_dac_file))
    lacking(monkeypatch, "CPY")
    assert doctor(small_dac_file).endswith(
        "cannot be there: GPU0 cannot compute CPY in its own memory, which streams need"
    )
