"""One pass of a codec on a device: its weights, its graphs, and the state that makes streams exact."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..net.lowering import Lowering
from ..net.plan import Head, Plan
from ..net.signal import WHOLE, Moment, Phase
from ..net.weights import Find, check_shapes
from ..runtime.graph import Graph, Session, TensorBuffer


@dataclass(eq=False)
class State:
    """What a stream keeps between chunks: the memory on the device, and the frames it has had."""

    memory: TensorBuffer
    frames: int = 0

    def __post_init__(self) -> None:
        self._size = self.memory.nbytes  # asked now, as another thread may close the stream at any time

    @property
    def kept(self) -> int:
        """Address of the memory that stays put; 0 where there is none."""
        tensor = self.memory.tensors.get("kept")
        return tensor.contents.data if tensor else 0

    @property
    def nbytes(self) -> int:
        return self._size if self.memory.close.alive else 0


class Pass:
    """Heads over the same weights and state, such as codes and latents of one encoder.

    May be shared between threads; chunks of different streams take turns.

    Parameters
    ----------
    name : str
        Distinguishes its graphs in the session's cache.
    heads : mapping
        Name -> forward pass.
    find : callable
        Finds the weights, whose shapes are checked at once; they are read when the pass first runs.
    chunk_frames : int
        Frames of the longest chunk of a stream.

    Attributes
    ----------
    plan : Plan
        What a dry run of the heads found.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        lowering: Lowering,
        heads: Mapping[str, Head],
        find: Find,
        *,
        chunk_frames: int,
    ) -> None:
        self.name, self.session, self.heads = name, session, heads
        self._lowering, self._find = lowering, find
        self.plan = Plan.of(heads.values(), rings=lowering.rings, most_frames=chunk_frames)
        self.chunk_frames = chunk_frames if self.plan.whole_clip else max(chunk_frames, self.plan.first_frames)
        check_shapes(self.plan.specs, find)
        self._weights: TensorBuffer | None = None
        self._slots: dict[int, TensorBuffer] = {}
        self._states: weakref.WeakSet[State] = weakref.WeakSet()

    @property
    def weights(self) -> TensorBuffer:
        with self.session.lock:
            self.session.check_open()
            if self._weights is None:
                self._weights = self._lowering.load(self.plan.specs, self._find)
            return self._weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, once they are read."""
        return self._weights.nbytes if self._weights else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the streams' states, and of the slots that graphs read and write."""
        return sum(slots.nbytes for slots in self._slots.values()) + sum(state.nbytes for state in self._states)

    def new_state(self) -> State:
        """The state of a stream that has not begun."""
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"state": ("F32", (max(1, self.plan.state_floats),))}
        if self.plan.kept:
            shapes["kept"] = ("F32", (self.plan.kept_floats,))
        state = State(TensorBuffer(self.session.lib, self.session.device, shapes))
        with self.session.lock:  # beside Codec.memory
            self._states.add(state)
        return state

    def length(self, head: str, frames: int) -> int:
        """Samples or rows that a clip of so many frames gives."""
        return self._planned(head, WHOLE, frames).outputs[0].length

    def _planned(self, head: str, phase: Phase, frames: int, batch: int = 1) -> Plan:
        """A dry run of the very chunk."""
        plan = Plan(phase, frames, self.chunk_frames, batch, rings=self.plan.rings)
        self.heads[head](plan)
        return plan

    def run_clip(self, head: str, frames: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Run a clip at once, without a stream."""
        return self._run(head, Moment(WHOLE, frames, np.zeros(1, np.int64), [0]), None, inputs)

    def run(
        self, head: str, states: Sequence[State], phase: Phase, frames: int, inputs: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Advance streams by one chunk of ``frames`` frames each, all in the same phase.

        A last or whole chunk leaves the states as they are.
        """
        with self.session.lock:
            self.session.check_open()
            slots = self._slots_for(len(states))
            if phase.first:
                slots.clear()
            else:
                for i, state in enumerate(states):
                    state.memory.copy("state", slots, f"in[{i}]")
            before = np.array([0 if phase.first else state.frames for state in states], np.int64)
            outputs = self._run(head, Moment(phase, frames, before, [state.kept for state in states]), slots, inputs)
            if not phase.last:
                for i, state in enumerate(states):
                    slots.copy(f"out[{i}]", state.memory, "state")
                    state.frames = int(before[i]) + frames
        return outputs

    def _slots_for(self, batch: int) -> TensorBuffer:
        """Room for at least so many streams; in powers of two, as graphs point to it for good."""
        room = 1 << (batch - 1).bit_length()
        if room not in self._slots:
            shape = ("F32", (max(1, self.plan.state_floats), room))
            shapes = {"in": shape, "out": shape}
            self._slots[room] = TensorBuffer(self.session.lib, self.session.device, shapes, columns=shapes)
        return self._slots[room]

    def _run(self, head: str, moment: Moment, slots: TensorBuffer | None, inputs: list[np.ndarray]) -> list[np.ndarray]:
        weights, batch = self.weights, len(moment.positions)

        def build() -> Graph:
            planned = self._planned(head, moment.phase, moment.frames, batch)
            graph = Graph(self.session.lib, planned.tensors)
            net = self._lowering.ops(
                moment.phase,
                moment.frames,
                self.chunk_frames,
                batch,
                graph=graph,
                weights=weights.tensors,
                plan=self.plan,
                state_in=slots.tensors["in"] if slots else None,
                state_out=slots.tensors["out"] if slots else None,
            )
            self.heads[head](net)
            return graph

        return self.session.run((self.name, head, moment.phase, moment.frames, batch), build, inputs, moment)

    def close(self) -> None:
        for buffer in (self._weights, *self._slots.values()):
            if buffer:
                buffer.close()
