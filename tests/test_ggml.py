"""The bindings: they fit the library, refuse one they do not fit, and leave everybody else's alone."""

from __future__ import annotations

import ast
import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from vocoder_plugin.errors import DeviceError, LibraryError
from vocoder_plugin.runtime import ggml
from vocoder_plugin.runtime.prototypes import declarations

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lib() -> ggml.Library:
    return ggml.library()


def expected_ctype(c_type: str, bindings: dict) -> tuple:
    """ctypes that may stand for a C type of the headers."""
    simple = {
        "void": (None,),
        "bool": (ctypes.c_bool,),
        "int": (ctypes.c_int,),
        "float": (ctypes.c_float,),
        "int64_t": (ctypes.c_int64,),
        "size_t": (ctypes.c_size_t,),
        "uint8_t": (ctypes.c_uint8,),
        "const char*": (ctypes.c_char_p,),
        "ggml_tensor*": (ctypes.POINTER(bindings["ggml_tensor"]),),
        "const ggml_tensor*": (ctypes.POINTER(bindings["ggml_tensor"]),),
        "ggml_tensor**": (ctypes.POINTER(ctypes.POINTER(bindings["ggml_tensor"])),),
        "size_t*": (ctypes.POINTER(ctypes.c_size_t),),
        "void**": (ctypes.POINTER(ctypes.c_void_p),),
        "ggml_init_params": (bindings["ggml_init_params"],),
        "ggml_backend_dev_props*": (ctypes.POINTER(bindings["ggml_backend_dev_props"]),),
        "ggml_backend_t*": (ctypes.POINTER(ctypes.c_void_p),),
        "ggml_backend_buffer_type_t*": (ctypes.POINTER(ctypes.c_void_p),),
        "ggml_custom_op_t": (bindings["ggml_custom_op_t"],),
        "ggml_log_callback": (bindings["ggml_log_callback"],),
        "ggml_log_callback*": (ctypes.POINTER(bindings["ggml_log_callback"]),),
    }
    if c_type in simple:
        return simple[c_type]
    enums = {"ggml_type", "ggml_op", "ggml_status", "ggml_backend_dev_type", "ggml_backend_buffer_usage"}
    if c_type in enums:
        return (ctypes.c_int,)
    return (ctypes.c_void_p, ctypes.POINTER(bindings["ggml_cgraph"]))  # handles


@pytest.mark.parametrize("name", declarations())
def test_binding_matches_prototype(lib, name):
    returns, arguments = declarations()[name]
    function = getattr(lib, name)
    assert function.restype in expected_ctype(returns, lib.bindings)
    assert len(function.argtypes) == len(arguments)
    for got, c_type in zip(function.argtypes, arguments, strict=True):
        assert got in expected_ctype(c_type, lib.bindings), (c_type, got)


def test_every_function_called_is_declared():
    called = set()
    for path in (ROOT / "vocoder_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("ggml_"):
                called.add(node.attr)
    assert called <= set(declarations())
    assert len(called) > 40


def test_undeclared_function_is_refused(lib):
    with pytest.raises(AttributeError, match=r"ggml_time_us is not among the functions"):
        _ = lib.ggml_time_us


def test_old_version_is_refused(monkeypatch, lib):
    monkeypatch.setattr(ggml, "OLDEST_VERSION", (99, 0))
    with pytest.raises(LibraryError, match=r"ggml version is 0\.\d+.*expected at least 99\.0; install"):
        ggml.bind(lib.path)


def moved_fields(bindings: dict) -> dict:
    class Tensor(ctypes.Structure):
        _fields_ = [("op", ctypes.c_int), *((n, t) for n, t in bindings["ggml_tensor"]._fields_ if n != "op")]

    declared = ctypes.POINTER(bindings["ggml_tensor"])
    for name in ("ggml_new_tensor_3d", "ggml_view_1d", "ggml_add", "ggml_set_name"):
        function = bindings[name]
        function.restype = ctypes.POINTER(Tensor)
        function.argtypes = [ctypes.POINTER(Tensor) if t is declared else t for t in function.argtypes]
    return {"ggml_tensor": Tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"GGML_TYPE_F16": 2}, r"type 2 is 'q4_0', expected 'f16'; install"),
        (lambda b: {"GGML_OP_ADD": 3}, r"operation 3 is 'ADD_ID', expected 'ADD'"),
        (lambda b: {"ggml_object": ctypes.c_int}, r"size of ggml_tensor is \d+, expected \d+"),
        (moved_fields, r"ggml_tensor\.op is 0, expected 2"),
    ],
)
def test_mismatch_is_refused(monkeypatch, lib, change, message):
    real = ggml._execute_declarations

    def changed(handle: ctypes.CDLL) -> dict:
        bindings = real(handle)
        return {**bindings, **change(bindings)}

    monkeypatch.setattr(ggml, "_execute_declarations", changed)
    with pytest.raises(LibraryError, match=message):
        ggml.bind(lib.path)


def test_missing_functions_are_named(monkeypatch, lib):
    monkeypatch.setattr(ggml, "declarations", lambda: {**declarations(), "ggml_col2im_9d": ("int", [])})
    with pytest.raises(LibraryError, match=r"lacks 1 functions that the plugin calls \(ggml_col2im_9d\); install"):
        ggml.bind(lib.path)


def test_a_library_older_than_the_declarations(monkeypatch, lib):
    class Older(ctypes.CDLL):  # ggml 0.13, of llama-cpp-python 0.3.28
        def __getattr__(self, name: str):
            if name == "ggml_col2im_1d":
                raise AttributeError(name)
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", Older)
    with pytest.raises(LibraryError, match=r"is too old: it lacks ggml_col2im_1d; install llama-cpp-python 0\.3\.29"):
        ggml.bind(lib.path)


def test_the_oldest_release_is_what_the_package_asks_for():
    assert f'"llama-cpp-python>={ggml.OLDEST_RELEASE}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_not_a_library(tmp_path):
    path = tmp_path / "libggml.so"
    path.write_bytes(b"no library")
    with pytest.raises(LibraryError, match="cannot be loaded"):
        ggml.bind(path)


def test_devices(lib):
    cpu = lib.device()
    assert cpu.is_cpu
    assert cpu.name in [d.name for d in lib.devices() if d.kind == "cpu"]
    assert cpu.memory_total >= cpu.memory_free > 0
    assert lib.device("cPu").name == cpu.name
    with pytest.raises(DeviceError, match=r"no device 'Vulkan9'; this libggml has CPU"):
        lib.device("Vulkan9")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_and_starts_nothing():
    out = run_python(
        "import sys, threading, vocoder_plugin, vocoder_plugin.commands.cli, vocoder_plugin.llm\n"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'llama_cpp', 'ggml', 'gguf', 'soundfile', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "print('libggml' in maps)"
    )
    assert out.split("\n")[:2] == ["[] 1", "False"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_libggml_beside_llama_cpp():
    out = run_python(
        "import llama_cpp, llama_cpp._ggml\n"
        "before = llama_cpp._ggml.libggml.ggml_version.argtypes\n"
        "from vocoder_plugin.runtime import ggml\n"
        "lib = ggml.library()\n"
        "lib.devices()\n"
        "assert llama_cpp._ggml.libggml.ggml_version.argtypes == before\n"
        "import sys; assert 'ggml' not in sys.modules\n"
        "paths = {l.split()[-1] for l in open('/proc/self/maps') if 'libggml-base' in l}\n"
        "print(len(paths), all('llama_cpp' in p for p in paths))"
    )
    assert out.split() == ["1", "True"]


def test_without_llama_cpp_ggml_python_serves():
    out = run_python(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'llama_cpp' else real(name, *a)\n"
        "from vocoder_plugin.runtime import ggml\n"
        "lib = ggml.library()\n"
        "print(lib.path.parent.parent.name, lib.device().kind)"
    )
    assert out.split() == ["ggml", "cpu"]


LEVELS = {"DEBUG": 1, "INFO": 2, "WARN": 3, "ERROR": 4, "CONT": 5}  # enum ggml_log_level of ggml.h


def test_log_levels_are_those_of_the_bindings(lib):
    assert {name: lib.bindings["GGML_LOG_LEVEL_" + name] for name in LEVELS} == LEVELS
    assert {name: logging.getLevelName(ggml.LOG_LEVELS[LEVELS[name]])[:4] for name in ("WARN", "INFO")} == {
        "WARN": "WARN", "INFO": "INFO",
    }  # fmt: skip


def test_log_reaches_logging_and_the_hook_before(lib, caplog):
    seen = []
    callback = lib.bindings["ggml_log_callback"](lambda level, text, _data: seen.append((level, text)))
    bridge = ggml.LogBridge(lib)
    original = bridge._current()
    lib.ggml_log_set(callback, None)
    try:
        with caplog.at_level(logging.DEBUG, "vocoder_plugin.runtime.ggml"), bridge, ggml.LogBridge(lib):
            ours, _ = bridge._current()
            ours(LEVELS["WARN"], b"a warning\n", None)
            ours(LEVELS["CONT"], b"continued\n", None)
            ours(LEVELS["DEBUG"], b"a detail\n", None)
        address = ctypes.cast(bridge._current()[0], ctypes.c_void_p).value
        assert address == ctypes.cast(callback, ctypes.c_void_p).value  # given back
    finally:
        lib.ggml_log_set(*original)
    assert [text for _, text in seen] == [b"a warning\n", b"continued\n", b"a detail\n"]
    records = [(record.levelname, record.message) for record in caplog.records]
    assert records == [("WARNING", "a warning"), ("WARNING", "continued"), ("DEBUG", "a detail")]


def test_a_hook_set_meanwhile_stays(lib):
    bridge = ggml.LogBridge(lib)
    original = bridge._current()
    callback = lib.bindings["ggml_log_callback"](lambda *_: None)
    try:
        with bridge:
            lib.ggml_log_set(callback, None)
        assert ctypes.cast(bridge._current()[0], ctypes.c_void_p).value == ctypes.cast(callback, ctypes.c_void_p).value
    finally:
        lib.ggml_log_set(*original)


@pytest.mark.parametrize("folder", ["vocoder_plugin", "converters"])
def test_no_second_runtime_is_imported(folder):
    forbidden = {"torch", "torchaudio", "onnxruntime", "transformers", "tensorflow", "jax"}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, path
