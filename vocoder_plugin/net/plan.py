"""The dry run of a forward pass: what it needs of weights, memory and time, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..runtime.ggml import Tensor
from .ops import Elu, Feed, Ops
from .signal import LAST, MIDDLE, WHOLE, Phase, Region, Signal, Window
from .weights import Spec

Head = Callable[[Ops], None]
"""One way through a codec: declares its inputs, runs, declares its outputs."""
MOST_OF_AN_OPERATION = 32  # tensors that either lowering makes for any operation but those below
LSTM_STEP = 24  # tensors of a step of the portable LSTM


@dataclass
class Plan(Ops):
    """Runs a forward pass over time alone, for a middle chunk of one frame unless told otherwise.

    Attributes
    ----------
    specs : dict
        Every weight the pass needs.
    regions : dict
        Layer name -> its rows in the state of a stream.
    state_floats : int
        Size of that state.
    kept : dict
        Layer name -> (where its part begins, its size) in memory that stays put, in floats.
    feeds : dict
        Inputs that are functions of position.
    first_frames : int
        Fewest frames of a first chunk: enough for every layer to give a sample.
    outputs : list of Signal
        What the pass gives.
    lags : bool
        Whether anything is left to give when a stream ends.
    whole_clip : bool
        Whether the pass has no exact stream, as an operation looks at every frame.
    period : int
        Positions of chunks count modulo this; a multiple of what every layer's result repeats with.
    tensors : int
        No fewer than a graph of this chunk has, in either lowering.
    rates : dict
        Name of each weight's layer -> its outputs a frame.
    """

    phase: Phase = MIDDLE
    frames: int = 1
    rings: bool = False
    specs: dict[str, Spec] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    state_floats: int = 0
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    feeds: dict[str, Feed] = field(default_factory=dict)
    first_frames: int = 1
    outputs: list[Signal] = field(default_factory=list)
    lags: bool = False
    whole_clip: bool = False
    period: int = 1
    tensors: int = 0
    rates: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, heads: Iterable[Head], *, rings: bool, most_frames: int) -> Plan:
        """What several heads over the same weights and state need together."""
        heads = list(heads)
        for phase in (MIDDLE, WHOLE):
            plan = cls(phase=phase, rings=rings, most_frames=most_frames)
            for head in heads:
                head(plan)
            if not plan.whole_clip:
                break
        if not plan.whole_clip:
            end = cls(phase=LAST, frames=0, rings=rings, most_frames=most_frames)
            for head in heads:
                head(end)
            plan.lags = any(y.length > 0 for y in end.outputs)
        return plan

    @property
    def kept_floats(self) -> int:
        return sum(size for _, size in self.kept.values())

    def _emit(self, operation: str, y: Signal, *specs: Spec | Elu | None, **arguments: Any) -> Signal:
        for spec in specs:
            if spec is not None and not isinstance(spec, Elu):
                self.specs[spec.name] = spec
                self.rates[spec.name] = y.rate
        if operation.endswith("_out"):
            self.outputs.append(y)
        self.tensors += self._tensors(operation, y, arguments)
        self.period = math.lcm(self.period, 2 * arguments.get("dilation", 1))  # minimal filtering goes by pairs
        if y.rate:
            self.first_frames = max(self.first_frames, -(-(y.delay + 1) // y.rate))
        return y

    def _tensors(self, operation: str, y: Signal, arguments: dict[str, Any]) -> int:
        many = {
            "lstm": LSTM_STEP * y.length,
            "pad": 6 * (arguments.get("left", 0) + arguments.get("right", 0)),
            "depthwise": 16 * arguments["spec"].kernel if operation == "depthwise" else 0,
            "upsample": 8 * arguments.get("stride", 0),
            "repeated": 2 * y.length,
            "conv_transpose1d": 4 * self.batch,
            "full_attention": 6 * (y.length // QUERY_TILE + 1) * arguments.get("heads", 1),
        }
        return MOST_OF_AN_OPERATION + many.get(operation, 0)

    def _input(self, kind: str, *ne: int) -> Tensor:
        self.tensors += 4

    def _rows_input(self, channels: int, rows: int, rate: int) -> Signal:
        self.tensors += 4
        return Signal(None, channels, rows, rate)

    def _feed(self, name: str, feed: Feed, kind: str, *ne: int) -> Tensor:
        self.feeds[name] = feed

    def _kept(self, name: str, floats: int) -> int:
        self.kept.setdefault(name, (self.kept_floats, floats))
        return self.kept[name][0]

    def _of_whole_clip(self, x: Signal) -> Signal:
        self.whole_clip = True
        return super()._of_whole_clip(x)

    def _history(self, x: Signal, name: str, rows: int) -> Tensor:
        if name not in self.regions:
            self.regions[name] = Region(self.state_floats, x.channels, rows)
            self.state_floats += x.channels * rows

    def _remember(self, window: Window, name: str, rows: int) -> None:
        self.tensors += 12


QUERY_TILE = 256  # queries of one portable step of full attention: memory is QUERY_TILE * frames
