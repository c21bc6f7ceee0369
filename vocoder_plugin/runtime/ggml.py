"""ggml-python's declarations bound to the libggml that llama_cpp already has in the process.

``library()`` loads once and checks what it got before anything is called: version, tensor
layout, type and operation numbers, every function of ``prototypes``. Nothing is loaded or
changed when this module is imported.

ggml-python's module is executed under a private name with its own view of ``ctypes``: the
program's own ``import ggml`` and llama_cpp's own handle are left alone, since ctypes keeps
argument types per handle.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import importlib.util
import logging
import sys
import threading
import types
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from ..errors import DeviceError, LibraryError
from .prototypes import declarations

Tensor = Any  # a ctypes pointer to ggml_tensor; None in a dry run and for an empty signal

logger = logging.getLogger("vocoder_plugin.runtime.ggml")

OLDEST_VERSION = (0, 15)  # first with ggml_col2im_1d and ggml_log_get, which the graphs rely on
OLDEST_RELEASE = "0.3.29"  # of llama-cpp-python, the first with such a ggml
TYPE_NAMES = {
    "F32": "f32", "F16": "f16", "Q4_0": "q4_0", "Q4_1": "q4_1", "Q5_0": "q5_0", "Q5_1": "q5_1",
    "Q8_0": "q8_0", "Q2_K": "q2_K", "Q3_K": "q3_K", "Q4_K": "q4_K", "Q5_K": "q5_K",
    "Q6_K": "q6_K", "I32": "i32", "BF16": "bf16",
}  # fmt: skip
OP_NAMES = (  # not CUSTOM: its number moved between 0.15 and 0.25, and the plugin never passes one
    "NONE", "ADD", "SUB", "MUL", "SQR", "SIN", "CONCAT", "MUL_MAT", "CPY", "CONT", "RESHAPE",
    "VIEW", "PERMUTE", "TRANSPOSE", "GET_ROWS", "ARGMAX", "IM2COL", "COL2IM_1D",
)  # fmt: skip
DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}
LOG_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


@dataclass(frozen=True)
class Device:
    """A device of ggml's registry.

    Memory is in bytes, as the backend reports it just now; a total of 0 means that it does not tell.
    ``hardware_id`` is the same for two backends' devices on one card, such as a PCI address.
    """

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int
    handle: int
    backend: str = ""
    hardware_id: str = ""

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


class Library:
    """A checked libggml: its C functions as attributes, its devices, its log.

    Instances are immutable and may be shared between threads.
    """

    def __init__(self, path: Path, bindings: dict[str, Any], handle: ctypes.CDLL) -> None:
        self.path = path
        self.bindings = bindings
        self.handle = handle
        self.version = "unknown"
        missing = [name for name in declarations() if not hasattr(handle, name)]
        if missing:
            raise LibraryError(
                f"{path} lacks {len(missing)} functions that the plugin calls ({', '.join(missing[:4])}"
                f"{', …' if len(missing) > 4 else ''}); install llama-cpp-python {OLDEST_RELEASE} or newer"
            )
        for name in declarations():
            setattr(self, name, bindings[name])
        self._check()

    def __getattr__(self, name: str) -> Any:  # declared for the type checker; never reached for a bound name
        raise AttributeError(f"{name} is not among the functions listed in prototypes.py")

    def _check(self) -> None:
        """Compare numbers and layouts with those the declarations were written for."""
        self.version = self.ggml_version().decode()
        numbers = tuple(int(part) for part in self.version.split("-")[0].split(".")[:2] if part.isdigit())
        self._expect("ggml version", numbers >= OLDEST_VERSION, True, found=self.version)
        for constant, name in TYPE_NAMES.items():
            number = self.bindings[f"GGML_TYPE_{constant}"]
            self._expect(f"type {number}", self.ggml_type_name(number).decode(), name)
        for op in OP_NAMES:
            number = self.bindings[f"GGML_OP_{op}"]
            self._expect(f"operation {number}", self.ggml_op_name(number).decode(), op)
        tensor = self.bindings["ggml_tensor"]
        self._expect(
            "size of ggml_tensor",
            self.ggml_tensor_overhead(),
            ctypes.sizeof(tensor) + ctypes.sizeof(self.bindings["ggml_object"]),
        )
        self._check_tensor_fields()

    def _check_tensor_fields(self) -> None:
        """Read a real tensor through the declared structure, field by field."""
        params = self.bindings["ggml_init_params"](
            mem_size=8 * self.ggml_tensor_overhead() + 4096, mem_buffer=None, no_alloc=False
        )
        ctx = self.ggml_init(params)
        if not ctx:
            raise LibraryError(f"{self.path}: ggml_init failed")
        try:
            a = self.ggml_new_tensor_3d(ctx, self.bindings["GGML_TYPE_F32"], 5, 3, 2)
            b = self.ggml_view_1d(ctx, a, 4, 16)
            self.ggml_set_name(b, b"probe")
            sum_ = self.ggml_add(ctx, a, a).contents
            a_, b_ = a.contents, b.contents
            self._expect("ggml_tensor.ne", list(a_.ne), [5, 3, 2, 1])
            self._expect("ggml_tensor.nb", list(a_.nb), [4, 20, 60, 120])
            self._expect("ggml_tensor.type", b_.type, self.bindings["GGML_TYPE_F32"])
            self._expect("ggml_tensor.view_offs", b_.view_offs, 16)
            self._expect("ggml_tensor.data", b_.data, a_.data + 16)
            self._expect("ggml_tensor.name", b_.name, b"probe")
            self._expect("ggml_tensor.op", sum_.op, self.bindings["GGML_OP_ADD"])
            same = ctypes.addressof(sum_.src[1].contents) == ctypes.addressof(a_)
            self._expect("ggml_tensor.src", same, True)
        finally:
            self.ggml_free(ctx)

    def _expect(self, what: str, got: object, expected: object, found: str | None = None) -> None:
        if got != expected:
            raise LibraryError(
                f"{self.path} (ggml {self.version}) does not fit the bindings: {what} is "
                f"{found if found is not None else repr(got)}, expected "
                f"{'at least ' + '.'.join(map(str, OLDEST_VERSION)) if found else repr(expected)}; "
                f"install llama-cpp-python {OLDEST_RELEASE} or newer and ggml-python 0.0.45 or newer"
            )

    def devices(self) -> list[Device]:
        """The registered devices, in ggml's order."""
        if self.ggml_backend_dev_count() == 0:  # a build whose backends are plug-in files
            self.ggml_backend_load_all_from_path(str(self.path.parent).encode())
        found = []
        for index in range(self.ggml_backend_dev_count()):
            handle = self.ggml_backend_dev_get(index)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
            found.append(
                Device(
                    name=self.ggml_backend_dev_name(handle).decode(),
                    description=self.ggml_backend_dev_description(handle).decode().strip(),
                    kind=DEVICE_KINDS.get(self.ggml_backend_dev_type(handle), "unknown"),
                    memory_free=free.value,
                    memory_total=total.value,
                    handle=handle,
                    backend=self.ggml_backend_reg_name(self.ggml_backend_dev_backend_reg(handle)).decode(),
                    hardware_id=self._hardware_id(handle),
                )
            )
        return found

    def _hardware_id(self, handle: int) -> str:
        declared = self.bindings["ggml_backend_dev_props"]
        room = (ctypes.c_char * (ctypes.sizeof(declared) + 256))()  # newer libraries' structure may be longer
        props = declared.from_buffer(room)
        self.ggml_backend_dev_get_props(handle, ctypes.byref(props))
        return (props.device_id or b"").decode()

    def device(self, name: str | None = None) -> Device:
        """The device of that name, in any case (``"cpu"``, ``"Vulkan0"``); the CPU for None."""
        devices = self.devices()
        wanted = (name or "cpu").lower()
        for device in devices:
            if device.name.lower() == wanted:
                return device
        raise DeviceError(f"no device {name!r}; this libggml has {', '.join(d.name for d in devices) or 'none'}")


def library_path() -> Path:
    """The libggml to use: llama_cpp's, or ggml-python's own where llama_cpp is not installed."""
    loaded = sys.modules.get("llama_cpp._ggml")
    if loaded is not None:
        return Path(loaded.libggml._name)
    folders = [(Path(folder) / "lib", name) for name in ("llama_cpp", "ggml") for folder in _package_folders(name)]
    for folder, _ in folders:
        for candidate in ("libggml.so", "libggml.dylib", "ggml.dll", "libggml.dll"):
            if (folder / candidate).exists():
                return folder / candidate
    raise LibraryError("no libggml found: install llama-cpp-python (or ggml-python for use without an LLM)")


def _package_folders(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
    return list(spec.submodule_search_locations or []) if spec else []


def bind(path: Path) -> Library:
    """Bind the declarations to the library at ``path``; raises LibraryError where they do not fit."""
    try:
        handle = ctypes.CDLL(str(path), winmode=0)  # winmode: find its neighbours on Windows; ignored elsewhere
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from None
    try:
        bindings = _execute_declarations(handle)
    except AttributeError as error:
        raise LibraryError(
            f"{path} is too old: it lacks {error}; install llama-cpp-python {OLDEST_RELEASE} or newer"
        ) from None
    return Library(path, bindings, handle)


@functools.cache
def library() -> Library:
    """The process's libggml, bound and checked once."""
    return bind(library_path())


def _execute_declarations(handle: ctypes.CDLL) -> dict[str, Any]:
    """Run ggml-python's module with every library it would open replaced by ``handle``."""
    folders = _package_folders("ggml")
    if not folders:
        raise LibraryError("ggml-python is not installed; it carries the declarations of libggml's functions")
    folder = Path(folders[0])
    loader = SourceFileLoader("vocoder_plugin._ggml_declarations", str(folder / "ggml.py"))
    private_ctypes = types.ModuleType("ctypes")
    private_ctypes.__dict__.update(vars(ctypes), CDLL=lambda *_args, **_kwargs: handle)
    resources = types.SimpleNamespace(files=lambda _name: folder, as_file=contextlib.nullcontext)
    replaced = {"ctypes": private_ctypes, "importlib_resources": resources}

    def import_(name: str, *args: Any) -> Any:
        return replaced.get(name) or builtins.__import__(name, *args)

    namespace: dict[str, Any] = {
        "__name__": loader.name,
        "__file__": loader.path,
        "__builtins__": {**vars(builtins), "__import__": import_},
    }
    code = loader.get_code(loader.name)
    assert code is not None
    exec(code, namespace)
    return namespace


class LogBridge:
    """Sends ggml's messages to ``logging`` ("vocoder_plugin.runtime.ggml") and on to the hook set before.

    Context manager. ggml has one log hook for the process, so it is taken only while the plugin
    loads a model or builds a graph, and given back unless somebody else has set one since.
    Nested and concurrent uses share one hook.
    """

    _lock = threading.Lock()
    _users = 0
    _previous: tuple[Any, ctypes.c_void_p]
    _callback: Any = None  # made once: each would be a reference cycle

    def __init__(self, lib: Library) -> None:
        self._lib = lib

    def _current(self) -> tuple[Any, ctypes.c_void_p]:
        callback, data = self._lib.bindings["ggml_log_callback"](), ctypes.c_void_p()
        self._lib.ggml_log_get(ctypes.byref(callback), ctypes.byref(data))
        return callback, data

    def __enter__(self) -> LogBridge:
        cls = LogBridge
        with cls._lock:
            cls._users += 1
            if cls._users == 1:
                cls._previous = self._current()
                cls._callback = cls._callback or self._lib.bindings["ggml_log_callback"](_forward())
                self._lib.ggml_log_set(cls._callback, None)
        return self

    def __exit__(self, *_exc: object) -> None:
        cls = LogBridge
        with cls._lock:
            cls._users -= 1
            if cls._users == 0 and _address(self._current()[0]) == _address(cls._callback):
                self._lib.ggml_log_set(*cls._previous)


def _address(function: Any) -> int | None:
    return ctypes.c_void_p.from_buffer(function).value  # ctypes.cast would make a reference cycle


def _forward() -> Any:
    level_before = logging.INFO

    def log(level: int, text: bytes, _data: object) -> None:
        nonlocal level_before
        level_before = LOG_LEVELS.get(level, level_before)  # 5 continues the message before it
        message = text.decode("utf-8", "replace").rstrip()
        if message and logger.isEnabledFor(level_before):
            logger.log(level_before, message)
        callback, data = LogBridge._previous
        if callback:
            callback(level, text, data)

    return log
