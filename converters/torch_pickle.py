"""The pickle inside a torch checkpoint, read without running anything.

Unpickling calls whatever a pickle names. This interpreter of the opcodes that torch writes, as
``torch.load(weights_only=True)`` is one, knows three functions and builds plain values. Work and memory
are bounded by the pickle's length: dictionaries have plain keys, and no value is ever walked through.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .wording import described, plain

MOST_OPCODES = 1 << 20  # ten times those of the largest training checkpoint
MOST_DIMENSIONS = 32
STORAGE_TYPES = {
    "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "<u1",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(Exception):
    """A pickle that torch did not write, or that is damaged."""


@dataclass(frozen=True)
class StorageType:
    """Stands for torch's class of a storage: how its values are stored."""

    kind: str


def unpickled(data: bytes, storage: Callable[[Any], np.ndarray]) -> Any:
    """The value of a pickle; ``storage`` gives the values that a persistent id stands for.

    Raises
    ------
    PickleError
        For opcodes and globals that a checkpoint has no use for, and for damage.
    """
    machine = _Machine(storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MOST_OPCODES:
                raise PickleError(f"its pickle has more than {MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PickleError(f"a damaged checkpoint: {described(error)}") from None
    raise PickleError("a damaged checkpoint: its pickle has no end")


class _Machine:
    def __init__(self, storage: Callable[[Any], np.ndarray]) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storage = storage

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._after_mark()))
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = self._after_mark()
            _set(stack[-1], items)
        elif name == "APPEND":
            value = stack.pop()
            _extend(stack[-1], [value])
        elif name == "APPENDS":
            items = self._after_mark()
            _extend(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(_global(stack.pop(), attribute))
        elif name == "BUILD":  # attributes of a state_dict: the versions of its modules
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise PickleError(f"sets attributes of a {type(stack[-1]).__name__}")
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"has the pickle opcode {name}, which torch does not write")

    def _after_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise PickleError(f"sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) and not (isinstance(key, int) and -(1 << 31) <= key < 1 << 31):
            raise PickleError(f"has a dictionary with a {type(key).__name__} for a key, expected names and numbers")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise PickleError(f"appends to a {type(target).__name__}")
    target.extend(items)


def _global(module: Any, name: Any) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("refers to a global by no name")
    if module in ("torch", "torch.storage") and name in STORAGE_TYPES:
        return StorageType(STORAGE_TYPES[name])
    try:
        return FUNCTIONS[module, name]
    except KeyError:
        raise PickleError(
            f"refers to {plain(f'{module}.{name}')}, which a plain checkpoint has no use for; "
            "it is refused, since loading it could run code"
        ) from None


def _call(function: Any, arguments: Any) -> Any:
    if not any(function is known for known in FUNCTIONS.values()) or not isinstance(arguments, tuple):
        raise PickleError(f"calls a {type(function).__name__}")
    return function(*arguments)


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _tensor(storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """What torch's _rebuild_tensor_v2 gives: a view of a storage."""
    if not isinstance(storage, np.ndarray):
        raise PickleError("has a tensor of no storage")
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride))
    if not whole or len(shape) > MOST_DIMENSIONS or len(shape) != len(stride):
        raise PickleError("a damaged checkpoint: a tensor has an impossible shape")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else offset - 1
    if last >= storage.size or count > storage.size:  # strides of 0 could make any size of one value
        raise PickleError("a damaged checkpoint: a tensor reaches beyond its storage")
    strides = [s * storage.itemsize for s in stride]
    return np.ndarray(shape, storage.dtype, storage.data, offset * storage.itemsize, strides if count else None)


def _parameter(data: Any, *_: Any) -> Any:
    return data


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
