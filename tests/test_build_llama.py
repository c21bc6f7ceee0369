"""Building llama-cpp-python, with stand-ins for pip and its build: no network, no compiler."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import Result
from commands import run

from vocoder_plugin.errors import BuildError
from vocoder_plugin.patches import build

NINJA = "[1/4] Building CXX a.o\n[1/2] Building a tool\n[2/2] Linking it\n[3/4] Building CXX b.o\n[4/4] Linking\n"
GOOD = f"""
import pathlib, sys
print('''{NINJA}''', end="")
folder = pathlib.Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
(folder / "llama_cpp_python-0.3.36-py3-none-any.whl").write_text(str(sys.argv))
"""
BAD = """
print("[1/4] cc -Werror=format a.c")
print("a.cpp:12:3: error: 'LayerSettingEXT' is not a member of 'vk'")
print("ERROR: Failed building wheel for llama_cpp_python")
raise SystemExit(1)
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Sets a script to run in pip's place."""

    def stand_in(script: str) -> None:
        path = tmp_path / "pip.py"
        path.write_text(script)
        monkeypatch.setattr(build, "_pip", lambda *arguments: [sys.executable, str(path), *arguments])

    return stand_in


def make_sdist(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def build_llama(*args: object) -> Result:
    return run("build-llama", *args)


def ignore(*_: object) -> None:
    pass


def test_the_wheel_appears_and_steps_are_counted(tmp_path, pip):
    pip(GOOD)
    seen: list[tuple[int, int]] = []
    wheel = build.build_wheel(
        tmp_path, tmp_path / "wheels", {"GGML_VULKAN": "ON"}, 2, lambda done, total: seen.append((done, total))
    )
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [wheel.name]
    assert "'--config-settings', 'cmake.define.GGML_VULKAN=ON'" in wheel.read_text()
    assert seen == [(1, 4), (3, 4), (4, 4)]


def test_a_failed_build_tells_the_first_error_and_keeps_its_output(tmp_path, pip):
    pip(BAD)
    with pytest.raises(BuildError, match=r"failed: a.cpp:12:3: error: 'LayerSettingEXT' .*build-llama.log$"):
        build.build_wheel(tmp_path, tmp_path / "wheels", {}, 2, ignore)
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [build.LOG_NAME]


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (
            "CMake Error at /usr/share/Find.cmake:230 (message):\n  Could NOT find Vulkan (missing: glslc)\n",
            "Could NOT find Vulkan .*install Vulkan's headers",
        ),
        ("CMake Error at CMakeLists.txt:14 (find_package):\n\n By not providing\n SPIRV-Headers", "spirv-headers"),
        ("CMake Error: CMAKE_CXX_COMPILER\n  No CMAKE_CXX_COMPILER could be found.", "build-essential"),
        ("a\nb: fatal error: oh\nc", r"^b: fatal error: oh$"),
        ("only\nthis", "^this$"),
        (
            "*** scikit-build-core 0.11.6 (wheel)\n*** Configuring CMake...\nFound nvcc\nx.cu(3): error: no\n",
            r"^x.cu\(3\): error: no$",
        ),
        ("*** Building\nmake: *** [Makefile:8: all] Killed\n", r"^make: .*free disk or memory"),
        ("fine\n*** CMake configuration failed\n", r"^\*\*\* CMake configuration failed$"),
        (
            'nvcc\nCMake Error at CMakeLists.txt:8:\n  CUDA_ARCHITECTURES is "native", but no GPU was detected.\n',
            "CMAKE_CUDA_ARCHITECTURES=86",
        ),
        ("", "^it wrote nothing$"),
    ],
)
def test_faults_on_one_line(output, fault):
    assert re.search(fault, build.first_fault(output))
    assert "\n" not in build.first_fault(output)


def test_missing_tools_are_told_together(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"missing a C\+\+ compiler .*; glslc \(Debian and Ubuntu"):
        build.check_tools({"GGML_VULKAN": "ON"})
    monkeypatch.setenv("CXX", f"{sys.executable} -flag")
    assert build.check_tools({"GGML_VULKAN": "OFF"}) is None


def test_another_content_under_the_pinned_name_is_refused(tmp_path):
    sdist = make_sdist(tmp_path / f"llama_cpp_python-{build.VERSION}.tar.gz", ["a"])
    with pytest.raises(BuildError, match=r"its sha256 is .* expected 832db069"):
        build.check_hash(sdist)


def test_a_download_that_fails(tmp_path, pip):
    pip("import sys; sys.exit('WARNING: slow\\nERROR: No matching distribution')")
    with pytest.raises(BuildError, match=r"could not download llama-cpp-python 0.3.36: No matching distribution$"):
        build.fetch_sdist(tmp_path)
    assert (
        f"--hash=sha256:{build.SHA256['llama_cpp_python-0.3.36.tar.gz']}" in (tmp_path / "requirements.txt").read_text()
    )


@pytest.mark.parametrize("names", [["pkg/setup.py"], ["../escape"], []])
def test_archives_of_something_else(tmp_path, names):
    sdist = make_sdist(tmp_path / "other.tar.gz", names)
    (tmp_path / "tree").mkdir()
    with pytest.raises(BuildError, match=r"other.tar.gz: (not a source distribution|cannot be unpacked)"):
        build.unpack(sdist, tmp_path / "tree")
    assert not (tmp_path / "escape").exists()


def test_a_damaged_archive(tmp_path):
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(BuildError, match=r"cut.tar.gz: cannot be unpacked"):
        build.unpack(tmp_path / "cut.tar.gz", tmp_path)


def test_another_release_is_refused_by_patch_file_and_hunk(tmp_path):
    (tmp_path / "vendor/llama.cpp/ggml/src/ggml-vulkan").mkdir(parents=True)
    (tmp_path / "vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp").write_text("int main;\n")
    result = build_llama("--patch-only", tmp_path)
    assert result.exit_code == 1
    assert "0001-vulkan-headers-of-debian-12.patch does not fit" in result.stderr and "hunk 1 (@@" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["--patch-only", "nowhere"], "nowhere: not an unpacked llama-cpp-python", 1),
        (["--sdist", "lost.tar.gz"], "lost.tar.gz", 1),
        (["-D", "GGML_VULKAN"], "got 'GGML_VULKAN', expected NAME=VALUE", 2),
    ],
)
def test_misuse(tmp_path, monkeypatch, args, message, code):
    monkeypatch.chdir(tmp_path)
    result = build_llama(*args)
    assert result.exit_code == code
    assert message in result.stderr


def test_from_an_sdist_to_a_wheel_as_a_user_types_it(tmp_path, pip, monkeypatch):
    pip(GOOD)
    monkeypatch.setattr(build, "check_tools", ignore)
    monkeypatch.setattr(build, "read_series", lambda _folder: [])
    sdist = make_sdist(tmp_path / "llama_cpp_python-9.tar.gz", ["llama_cpp_python-9/vendor/llama.cpp/CMakeLists.txt"])
    result = build_llama("--sdist", sdist, "--vulkan", "-DGGML_NATIVE=OFF", "--wheel-dir", tmp_path / "wheels", "-j", 1)
    assert result.exit_code == 0, result.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert result.stdout.strip() == str(wheel)
    assert "cmake.define.GGML_VULKAN=ON" in wheel.read_text() and "cmake.define.GGML_NATIVE=OFF" in wheel.read_text()
    assert "its hash is not checked" in result.stderr
    assert "building with GGML_VULKAN=ON GGML_NATIVE=OFF" in result.stderr
    assert "compiled 4 of 4" in result.stderr
