"""Graphs with operations that a device lacks: those run on the CPU, the rest on the device.

A session uses this for such graphs only. ggml's scheduler cuts the graph where the device changes and
copies what crosses; the graphs of a device that has everything run there in one piece, without it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable

from ..errors import DeviceError
from .ggml import Device, Library, LogBridge, Tensor


def missing_operations(lib: Library, device: Device, nodes: list[Tensor]) -> list[Tensor]:
    """The nodes of a graph that the device cannot compute."""
    return [node for node in nodes if not lib.ggml_backend_dev_supports_op(device.handle, node)]


def check_movable(lib: Library, device: Device, nodes: list[Tensor]) -> None:
    """Raise DeviceError for a node that must run on the device, as it writes memory there: ggml would abort."""
    for node in nodes:
        memory = node.contents.view_src
        if memory and memory.contents.buffer:
            name = lib.ggml_op_desc(node).decode()
            raise DeviceError(f"{device.name} cannot compute {name} in its own memory, which streams need")


class Scheduler:
    """ggml's scheduler over a device and the CPU. It holds one graph at a time.

    Parameters
    ----------
    backend : int
        The device's ``ggml_backend_t``; must outlive the scheduler.
    set_threads : callable
        Sets a CPU backend's threads.
    """

    def __init__(
        self, lib: Library, backend: int, *, most_nodes: int, set_threads: Callable[[Device, int], None]
    ) -> None:
        self._lib, self._backend, self.most_nodes, self.splits = lib, backend, most_nodes, 0
        cpu = lib.device("CPU")
        with LogBridge(lib):
            self._cpu = lib.ggml_backend_dev_init(cpu.handle, None)
            if not self._cpu:
                raise DeviceError(f"{cpu.name} ({cpu.description}) could not be initialised")
            set_threads(cpu, self._cpu)
            backends = (ctypes.c_void_p * 2)(backend, self._cpu)
            self._sched = lib.ggml_backend_sched_new(backends, None, 2, most_nodes, False, False)
        self.close = weakref.finalize(self, _free_scheduler, lib, self._sched, self._cpu)

    def allocate(self, graph: Tensor, on_cpu: list[Tensor]) -> bool:
        """Make room for a graph in place of the one before, whose tensors then point nowhere."""
        self._lib.ggml_backend_sched_reset(self._sched)
        for node in on_cpu:
            self._lib.ggml_backend_sched_set_tensor_backend(self._sched, node, self._cpu)
        done = bool(self._lib.ggml_backend_sched_alloc_graph(self._sched, graph))
        self.splits = int(self._lib.ggml_backend_sched_get_n_splits(self._sched))
        return done

    def compute(self, graph: Tensor) -> int:
        """Run the graph that ``allocate`` was last called with; ggml's status."""
        return self._lib.ggml_backend_sched_graph_compute(self._sched, graph)

    @property
    def device_bytes(self) -> int:
        """Bytes of the buffer on the device."""
        return int(self._lib.ggml_backend_sched_get_buffer_size(self._sched, self._backend))

    @property
    def cpu_bytes(self) -> int:
        """Bytes of the buffer of what runs on the CPU."""
        return int(self._lib.ggml_backend_sched_get_buffer_size(self._sched, self._cpu))


def _free_scheduler(lib: Library, sched: int, cpu: int) -> None:
    lib.ggml_backend_sched_free(sched)
    lib.ggml_backend_free(cpu)
