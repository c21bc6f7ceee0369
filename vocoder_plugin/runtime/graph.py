"""Memory and computation on one device: buffers of tensors, graphs, and running them.

Everything that ggml allocates is owned by an object here and freed by its ``close``, at garbage
collection at the latest. A Session may be shared between threads; it runs one graph at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError, VocoderError
from . import huge_pages
from .ggml import Device, Library, LogBridge, Tensor
from .schedule import Scheduler, check_movable, missing_operations

NUMPY_TYPES: dict[str, np.dtype] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "I32": np.dtype(np.int32)}
MOST_TENSORS = 1 << 20  # of one graph: some hundred MB that only describe it
Feed = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: weights loaded, states of streams, and buffers of the graphs."""

    weights: int = 0
    state: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.state + self.compute


class TensorBuffer:
    """Named tensors in one buffer of a device: weights, or the state of a stream.

    Parameters
    ----------
    shapes : mapping
        Name -> (ggml type name, ne in ggml's order).
    columns : collection of str
        Float32 matrices whose columns are wanted as tensors too, as ``name[0]``, ``name[1]``, …
    zeroed : bool
        Not needed where everything is written anyway; the system then gives memory as it is used.
    weights : bool
        Whether these are weights, beside which ggml's scheduler places operations.
    """

    def __init__(
        self,
        lib: Library,
        device: Device,
        shapes: Mapping[str, tuple[str, tuple[int, ...]]],
        *,
        columns: Collection[str] = (),
        zeroed: bool = True,
        weights: bool = False,
    ) -> None:
        self._lib = lib
        views = sum(shapes[name][1][1] for name in columns)
        self._context = _new_context(lib, (len(shapes) + views) * lib.ggml_tensor_overhead())
        self.tensors: dict[str, Tensor] = {}
        for name, (kind, ne) in shapes.items():
            ne4 = (*ne, 1, 1, 1, 1)[:4]
            self.tensors[name] = lib.ggml_new_tensor_4d(self._context, lib.bindings["GGML_TYPE_" + kind], *ne4)
        for name in columns:
            rows, count = shapes[name][1]
            for i in range(count):
                view = lib.ggml_view_1d(self._context, self.tensors[name], rows, i * rows * 4)
                self.tensors[f"{name}[{i}]"] = view
        with LogBridge(lib):
            self._buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(
                self._context, lib.ggml_backend_dev_buffer_type(device.handle)
            )
        if not self._buffer:
            lib.ggml_free(self._context)
            size = sum(int(np.prod(ne)) * 4 for _, ne in shapes.values())
            raise DeviceError(f"{device.name} could not allocate about {size >> 20} MiB")
        huge_pages.advise(lib, self._buffer)
        if zeroed:
            lib.ggml_backend_buffer_clear(self._buffer, 0)
        if weights:
            lib.ggml_backend_buffer_set_usage(self._buffer, lib.bindings["GGML_BACKEND_BUFFER_USAGE_WEIGHTS"])
        self.close = weakref.finalize(self, _free_buffer, lib, self._buffer, self._context)

    @property
    def nbytes(self) -> int:
        self._check_open()
        return int(self._lib.ggml_backend_buffer_get_size(self._buffer))

    @property
    def kind(self) -> str:
        """Name of the buffer's type, such as ``CPU`` or ``Vulkan0``."""
        return self._lib.ggml_backend_buffer_name(self._buffer).decode()

    def _check_open(self) -> None:
        if not self.close.alive:
            raise VocoderError("this memory was freed by close()")

    def clear(self) -> None:
        self._check_open()
        self._lib.ggml_backend_buffer_clear(self._buffer, 0)

    def upload(self, name: str, array: np.ndarray) -> None:
        self._check_open()
        upload(self._lib, self.tensors[name], array)

    def copy(self, name: str, target: TensorBuffer, target_name: str) -> None:
        """Copy a tensor to one of the same shape in another buffer of the device."""
        self._check_open()
        target._check_open()
        self._lib.ggml_backend_tensor_copy(self.tensors[name], target.tensors[target_name])


def upload(lib: Library, tensor: Tensor, array: np.ndarray) -> None:
    """Copy a whole array into a tensor of the same size in bytes."""
    array = np.ascontiguousarray(array)
    size = lib.ggml_nbytes(tensor)
    if array.nbytes != size:
        raise ValueError(f"array of {array.nbytes} bytes for a tensor of {size}")
    lib.ggml_backend_tensor_set(tensor, array.ctypes.data, 0, size)  # data_as would make a reference cycle


def _new_context(lib: Library, size: int) -> int:
    params = lib.bindings["ggml_init_params"](mem_size=size + 256, mem_buffer=None, no_alloc=True)
    context = lib.ggml_init(params)
    if not context:
        raise DeviceError("ggml_init failed: out of memory")
    return context


def _free_buffer(lib: Library, buffer: int, context: int) -> None:
    lib.ggml_backend_buffer_free(buffer)
    lib.ggml_free(context)


class Graph:
    """A graph under construction, then ready to run: inputs, outputs and what C still points to.

    ``c`` is the ggml context for tensor-making calls. Append to ``keep`` whatever must live as
    long as the graph.

    Parameters
    ----------
    tensors : int
        No fewer than will be made, views included. ggml aborts the process beyond.
    """

    def __init__(self, lib: Library, tensors: int) -> None:
        if tensors > MOST_TENSORS:
            raise DeviceError(
                f"this pass needs a graph of {tensors} tensors, more than {MOST_TENSORS}; give it less at once"
            )
        self.lib, self.tensors = lib, tensors
        self.c = _new_context(
            lib, tensors * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead_custom(tensors, False)
        )
        self.close = weakref.finalize(self, lib.ggml_free, self.c)
        self.handle = lib.ggml_new_graph_custom(self.c, tensors, False)
        self.keep: list[Any] = []
        self.scheduled = False
        self.inputs: list[tuple[Tensor, np.dtype, int, Feed | None]] = []
        self.outputs: list[tuple[Tensor, np.dtype, tuple[int, ...]]] = []

    def input(self, kind: str, *ne: int, feed: Feed | None = None) -> Tensor:
        """A tensor that ``run`` fills: from ``feed`` of its moment, or from the next of the arrays it is given."""
        tensor = self.lib.ggml_new_tensor_4d(self.c, self.lib.bindings["GGML_TYPE_" + kind], *(*ne, 1, 1, 1)[:4])
        self.lib.ggml_set_input(tensor)
        self.inputs.append((tensor, NUMPY_TYPES[kind], int(np.prod(ne)), feed))
        return tensor

    def output(self, tensor: Tensor, kind: str, *shape: int) -> None:
        """Return this contiguous tensor from ``run``, as an array of ``shape`` (numpy order)."""
        self.lib.ggml_set_output(tensor)
        self.expand(tensor)
        self.outputs.append((tensor, NUMPY_TYPES[kind], shape))

    def expand(self, tensor: Tensor) -> None:
        """Compute this tensor (and what it needs) after all that was expanded before."""
        self.lib.ggml_build_forward_expand(self.handle, tensor)

    @property
    def nodes(self) -> list[Tensor]:
        """Its operations, in the order of their computation."""
        count = self.lib.ggml_graph_n_nodes(self.handle)
        return [self.lib.ggml_graph_node(self.handle, i) for i in range(count)]


_computed_in = 0  # The process whose threads ggml's OpenMP has started; those that fork from it have none.


class Session:
    """A backend on one device with one compute buffer, and a bounded cache of graphs.

    Graphs share the compute buffer: only one runs at a time, and its memory is that of the
    largest. Least recently used graphs are dropped beyond ``max_graphs``.

    A graph with operations that the device lacks goes through ggml's scheduler, which runs those on
    the CPU; there is one such graph at a time.

    Attributes
    ----------
    splits : int
        Pieces that the last graph ran in; 1 unless something fell back to the CPU.
    on_run : callable or None
        Called after each run with the graph's key, the graph, its inputs and its outputs, for those who measure.
    """

    def __init__(self, lib: Library, device: Device, *, n_threads: int, max_graphs: int = 24) -> None:
        if device.is_cpu and n_threads > 1 and _computed_in not in (0, os.getpid()):
            raise DeviceError(
                "this process was forked from one that had computed: its threads are gone, and more than one would "
                'wait for them for ever; use n_threads=1, or start processes with the method "spawn"'
            )
        self.lib = lib
        self.device = device
        self.n_threads = n_threads
        self.max_graphs = max_graphs
        self._lock, self._process = threading.RLock(), os.getpid()
        self.splits = 0
        self.on_run: Callable[[Hashable, Graph, list[np.ndarray], list[np.ndarray]], None] | None = None
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._scheduler: list[Scheduler] = []  # none or one; a list, for the finalizer to see what comes later
        with LogBridge(lib):
            self._backend = lib.ggml_backend_dev_init(device.handle, None)
            if not self._backend:
                raise DeviceError(f"{device.name} ({device.description}) could not be initialised")
            self._allocator = lib.ggml_gallocr_new(lib.ggml_backend_dev_buffer_type(device.handle))
        self.close = weakref.finalize(
            self, _free_session, lib, self._allocator, self._backend, self._graphs, self._scheduler
        )
        self._set_threads(device, self._backend, n_threads)

    @property
    def lock(self) -> threading.RLock:
        """Held while a graph runs. VocoderError in a process that was forked: what holds it may not be there."""
        if not self.is_of_this_process:
            raise VocoderError(
                "this codec belongs to the process that loaded it; load it again after a fork, or start processes "
                'with the method "spawn"'
            )
        return self._lock

    @property
    def is_of_this_process(self) -> bool:
        return self._process == os.getpid()

    def check_open(self) -> None:
        if not self.close.alive:
            raise VocoderError("this codec is closed")

    def _set_threads(self, device: Device, backend: int, n_threads: int) -> None:
        reg = self.lib.ggml_backend_dev_backend_reg(device.handle)
        address = self.lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_set_n_threads")
        if address:
            _set_n_threads_type()(address)(backend, n_threads)

    @contextlib.contextmanager
    def at_most(self, n_threads: int) -> Iterator[None]:
        """Run graphs with no more threads than this meanwhile; other threads' graphs wait."""
        with self.lock:
            self.check_open()
            self._set_threads(self.device, self._backend, min(n_threads, self.n_threads))
            try:
                yield
            finally:
                if self.close.alive:
                    self._set_threads(self.device, self._backend, self.n_threads)

    @property
    def compute_bytes(self) -> dict[str, int]:
        """Bytes of the compute buffers, by device."""
        self.check_open()
        used = {self.device.name: self._allocated_bytes}
        for scheduler in self._scheduler:
            used[self.device.name] += scheduler.device_bytes
            used["CPU"] = used.get("CPU", 0) + scheduler.cpu_bytes
        return used

    @property
    def _allocated_bytes(self) -> int:
        return int(self.lib.ggml_gallocr_get_buffer_size(self._allocator, 0))

    def run(
        self, key: Hashable, build: Callable[[], Graph], inputs: list[np.ndarray], moment: Any = None
    ) -> list[np.ndarray]:
        """Run the graph of that key, building it with ``build`` where it is not cached.

        ``inputs`` are for the graph's inputs without a feed, in order; feeds are asked for ``moment``.
        """
        with self.lock:
            self.check_open()
            graph = self._graphs.get(key) or self._build(key, build)
            self._graphs.move_to_end(key)
            given = iter(inputs)
            arrays = [next(given) if feed is None else feed(moment) for *_, feed in graph.inputs]
            for (tensor, dtype, size, _), array in zip(graph.inputs, arrays, strict=True):
                assert array.size == size and array.dtype == dtype, (array.shape, array.dtype, size, dtype)
                if tensor.contents.buffer:  # an input that no node reads has no memory
                    upload(self.lib, tensor, array)
            self._compute(graph)
            outputs = [self._download(*output) for output in graph.outputs]
            if self.on_run:
                self.on_run(key, graph, arrays, outputs)
            return outputs

    def _compute(self, graph: Graph) -> None:
        global _computed_in
        _computed_in = _computed_in or os.getpid()
        if graph.scheduled:
            status = self._scheduler[0].compute(graph.handle)
            self.splits = self._scheduler[0].splits
        else:
            status = self.lib.ggml_backend_graph_compute(self._backend, graph.handle)
            self.splits = 1
        if status != self.lib.bindings["GGML_STATUS_SUCCESS"]:
            raise DeviceError(f"{self.device.name} failed to compute a graph (ggml status {status})")

    def _download(self, tensor: Tensor, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        self.lib.ggml_backend_tensor_get(tensor, array.ctypes.data, 0, array.nbytes)
        return array

    def _build(self, key: Hashable, build: Callable[[], Graph]) -> Graph:
        graph = build()
        missing = [] if self.device.is_cpu else missing_operations(self.lib, self.device, graph.nodes)
        if missing:
            self._schedule(graph, missing)
        else:
            self._allocate(graph)
        while len(self._graphs) >= self.max_graphs:
            self._graphs.popitem(last=False)
        self._graphs[key] = graph
        return graph

    def _allocate(self, graph: Graph) -> None:
        before = self._allocated_bytes
        with LogBridge(self.lib):
            done = self.lib.ggml_gallocr_alloc_graph(self._allocator, graph.handle)
        if not done or self._allocated_bytes != before:  # the buffer moved: what other graphs point to is gone
            self._drop(scheduled=False)
        if not done:
            raise self._no_room()

    def _schedule(self, graph: Graph, missing: list[Tensor]) -> None:
        check_movable(self.lib, self.device, missing)
        self._drop(scheduled=True)
        if self._scheduler and self._scheduler[0].most_nodes < 2 * graph.tensors:
            self._scheduler.pop().close()
        if not self._scheduler:
            self._scheduler.append(
                Scheduler(self.lib, self._backend, most_nodes=2 * graph.tensors, set_threads=self._set_cpu_threads)
            )
        graph.scheduled = True
        with LogBridge(self.lib):
            if not self._scheduler[0].allocate(graph.handle, missing):
                raise self._no_room()

    def _set_cpu_threads(self, cpu: Device, backend: int) -> None:
        self._set_threads(cpu, backend, self.n_threads)

    def _drop(self, *, scheduled: bool) -> None:
        for key in [key for key, graph in self._graphs.items() if graph.scheduled == scheduled]:
            del self._graphs[key]

    def _no_room(self) -> DeviceError:
        return DeviceError(f"{self.device.name} has no room for the buffers of this pass; use device='CPU'")


@functools.cache
def _set_n_threads_type() -> Any:
    """ctypes' type of ggml_backend_set_n_threads_t."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


def _free_session(
    lib: Library, allocator: int, backend: int, graphs: OrderedDict[Hashable, Graph], scheduler: list[Scheduler]
) -> None:
    graphs.clear()
    for each in scheduler:
        each.close()
    lib.ggml_gallocr_free(allocator)
    lib.ggml_backend_free(backend)
