"""Words of error messages for what a checkpoint says: short, however long or nested or odd it is."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

import numpy as np

MOST_NAMES = 5
MOST_LETTERS = 200
MOST_BITS = 256  # of an integer that is written out


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxstring, self.maxother = 3, 8, 8, MOST_LETTERS, MOST_LETTERS

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > MOST_BITS:  # Python refuses to write very long ones
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)

    def repr_ndarray(self, x: np.ndarray, level: int) -> str:
        return f"an array of shape {x.shape}"


shown = _Short().repr


def plain(name: str) -> str:
    """A name as it is, or its repr where it is long or would do things to a terminal."""
    return name if name.isprintable() and len(name) <= MOST_LETTERS else shown(name)


def described(error: Exception) -> str:
    """An exception's name and the beginning of what it says, on one line."""
    return f"{type(error).__name__}: {plain(str(error))}"


def listed(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(map(plain, ordered[:MOST_NAMES])) + more
