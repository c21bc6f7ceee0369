"""Where the LLM's layers lie: the device that holds the last one offloaded, as llama.cpp deals them out.

llama.h has no call that tells a layer's device, so this repeats libllama's arithmetic on what the caller
asked for. Source: llama.cpp, src/llama.cpp (llama_prepare_model_devices) and src/llama-model.cpp
(load_tensors), as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .ggml import Device, Library

SPLIT_NONE, SPLIT_TENSOR = 0, 3  # llama_split_mode; the others deal out whole layers
MOST_LAYERS = 1 << 30  # of a model that does not tell


class LoadedModel(Protocol):
    """A ``llama_cpp.Llama``: what tells where its layers lie."""

    @property
    def n_threads(self) -> int: ...

    @property
    def model_params(self) -> Any: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def tensor_split(self) -> Sequence[float] | None: ...


@dataclass(frozen=True)
class Offload:
    """What a model was loaded with.

    Attributes
    ----------
    layers : int
        Layers of the model, not counting the output layer, which is offloaded as one more.
    gpu_layers : int
        Most layers to offload, from the last backwards; negative for all.
    split_mode : int
        llama_split_mode: 0 none, 1 layer, 2 row, 3 tensor.
    main_gpu : int
        The one device to use where nothing is split; negative for the CPU.
    tensor_split : sequence of float
        Share of each device; empty or all zero for shares by free memory.
    """

    layers: int
    gpu_layers: int
    split_mode: int = 1
    main_gpu: int = 0
    tensor_split: Sequence[float] = ()

    @classmethod
    def of(cls, llm: LoadedModel) -> Offload:
        """Read a llama_cpp.Llama."""
        params, metadata = llm.model_params, llm.metadata
        count = metadata.get(f"{metadata.get('general.architecture')}.block_count")
        return cls(
            layers=int(count) if count else MOST_LAYERS,
            gpu_layers=params.n_gpu_layers,
            split_mode=params.split_mode,
            main_gpu=params.main_gpu,
            tensor_split=llm.tensor_split or (),
        )


def offload_devices(devices: Sequence[Device], offload: Offload) -> list[Device]:
    """The devices that libllama offloads to: remote ones, then GPUs, or integrated GPUs where there are no others."""
    remote = [d for d in devices if d.kind == "gpu" and d.backend == "RPC"]
    gpus: list[Device] = []
    integrated: list[Device] = []
    for device in devices:
        if device.kind == "gpu" and device.backend != "RPC":
            if not device.hardware_id or device.hardware_id not in [d.hardware_id for d in gpus]:
                gpus.append(device)  # once, where two backends drive the same card
        elif device.kind == "igpu" and (not integrated or device.backend == integrated[-1].backend):
            integrated.append(device)
    found = remote + (gpus or integrated)
    if offload.split_mode == SPLIT_NONE:
        return found[offload.main_gpu :][:1] if offload.main_gpu >= 0 else []
    return found


def device_of_last_layer(devices: Sequence[Device], offload: Offload) -> Device | None:
    """The device of the last layer that is offloaded, the output layer; None where nothing is."""
    found = offload_devices(devices, offload)
    count = offload.layers + 1 if offload.gpu_layers < 0 else min(offload.gpu_layers, offload.layers + 1)
    if not found or count <= 0:
        return None
    if offload.split_mode == SPLIT_TENSOR:  # every device has a piece of every layer
        return found[max(0, min(offload.main_gpu, len(found) - 1))]
    shares = [float(share) for share in offload.tensor_split][: len(found)]
    shares += [0.0] * (len(found) - len(shares))
    if not any(shares):
        host = next((d.memory_free for d in devices if d.is_cpu), 1)
        shares = [float(d.memory_free if d.memory_total else host) for d in found]
    ends = list(itertools.accumulate(shares))
    if not ends[-1] > 0:
        return found[-1]
    place = bisect.bisect_right(ends, (count - 1) / count * ends[-1])
    return found[min(place, len(found) - 1)]


def choose_device(lib: Library, llm: LoadedModel | None, name: str | None) -> Device:
    """The named device; else that of the LLM's last offloaded layer; else the CPU."""
    if name is None and llm is not None:
        chosen = device_of_last_layer(lib.devices(), Offload.of(llm))
        if chosen is not None:
            return chosen
    return lib.device(name)
