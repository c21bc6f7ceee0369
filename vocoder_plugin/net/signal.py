"""Signals of a chunk of a stream: what a layer makes available now, and what lies around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..runtime.ggml import Tensor


@dataclass(frozen=True)
class Phase:
    """Where a chunk lies in its stream."""

    first: bool
    last: bool


WHOLE = Phase(first=True, last=True)
FIRST = Phase(first=True, last=False)
MIDDLE = Phase(first=False, last=False)
LAST = Phase(first=False, last=True)


@dataclass(frozen=True, eq=False)
class Signal:
    """The samples of one layer that this chunk makes available.

    ``rate`` is in samples per frame. After n frames, and before the end, n * rate - delay samples
    have appeared in total. ``windows`` are those through which layers have read the signal so far.
    """

    tensor: Tensor
    channels: int
    length: int
    rate: int
    delay: int = 0
    windows: list[Window] = field(default_factory=list, init=False, repr=False)


@dataclass(eq=False)
class Window:
    """A signal joined with what lies around it: ``zeros`` of padding, ``history``, the chunk, ``zeros_after``.

    ``tensor``, ``channels``, ``length`` and ``rate`` are the signal's; ``joined`` is all of it in one tensor, where a
    lowering has made that.
    """

    tensor: Tensor
    channels: int
    length: int
    rate: int
    history: Tensor
    history_rows: int
    zeros: int
    zeros_after: int
    joined: Tensor = None

    @property
    def rows(self) -> int:
        return self.zeros + self.history_rows + self.length + self.zeros_after


@dataclass(frozen=True)
class Region:
    """Rows of a layer in the flat state of a stream; ``offset`` in floats."""

    offset: int
    channels: int
    rows: int


class Moment(NamedTuple):
    """When a chunk is computed, for inputs that are a function of it.

    Attributes
    ----------
    phase : Phase
    frames : int
        Frames of the chunk.
    positions : int64 array [batch]
        Frames that each stream has had before.
    kept : list of int
        Address of each stream's memory that stays put.
    """

    phase: Phase
    frames: int
    positions: np.ndarray
    kept: list[int]
