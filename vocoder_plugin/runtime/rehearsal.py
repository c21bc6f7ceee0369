"""What a device would make of a codec, found out before the device is given anything.

The codec runs on the CPU in the portable lowering, with a session that builds every graph and computes
none: the device is asked about each operation, and the memory is counted. The system gives memory as it
is used, so a rehearsal takes next to none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError
from .ggml import Device, Library
from .graph import Graph, Memory, Session
from .schedule import check_movable, missing_operations


@dataclass(frozen=True)
class Fit:
    """What a codec needs of a device.

    Attributes
    ----------
    codec : str
        What the file calls the model.
    device : Device
    memory : Memory
        For all that the file holds, encoder and decoder, at work on short clips.
    missing : dict
        Operations that the device lacks, and how often graphs have them.
    stuck : str
        Why an operation that the device lacks cannot run elsewhere; empty where all can.
    """

    codec: str
    device: Device
    memory: Memory
    missing: dict[str, int]
    stuck: str

    @property
    def refusal(self) -> str:
        """Why the codec cannot be on this device; empty where it can."""
        free, total = self.device.memory_free, self.device.memory_total
        if total and self.memory.total > free:
            return f"{self.device.name} has {free >> 20} MiB free, and {self.codec} needs {self.memory.total >> 20} MiB"
        return self.stuck


class Rehearsal(Session):
    """A session that builds graphs for a device to look at, and computes none.

    Attributes
    ----------
    missing : Counter
        Names of operations that the device lacks.
    stuck : str
        See Fit.
    """

    def __init__(self, lib: Library, device: Device) -> None:
        super().__init__(lib, lib.device("CPU"), n_threads=1)
        self.missing: Counter[str] = Counter()
        self.stuck = ""
        self._target = device

    def run(
        self, key: Hashable, build: Callable[[], Graph], inputs: list[np.ndarray], moment: Any = None
    ) -> list[np.ndarray]:
        """Zeros in the shapes of the outputs."""
        with self.lock:
            graph = self._graphs.get(key) or self._build(key, build)
            self._graphs.move_to_end(key)
            return [np.zeros(shape, dtype) for _, dtype, shape in graph.outputs]

    def _build(self, key: Hashable, build: Callable[[], Graph]) -> Graph:
        graph = super()._build(key, build)
        missing = missing_operations(self.lib, self._target, graph.nodes)
        self.missing.update(self.lib.ggml_op_desc(node).decode() for node in missing)
        try:
            check_movable(self.lib, self._target, missing)
        except DeviceError as error:
            self.stuck = str(error)
        return graph
