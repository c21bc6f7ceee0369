"""llama-cpp-python's source distribution, patched and built into a wheel: what ``build-llama`` runs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from vocoder_plugin.errors import BuildError
from vocoder_plugin.patches.applier import apply, read_series

VERSION = "0.3.36"
SHA256 = {"llama_cpp_python-0.3.36.tar.gz": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
FOLDER = Path(__file__).parent
LOG_NAME = "build-llama.log"
STEP = re.compile(r"^\s*\[\s*(\d+)(?:/(\d+)|%)\]")  # ninja's [3/464], make's [ 12%]
FAULT = re.compile(r"CMake Error|\berror\b[: ]|\*\*\* (\[|.*fail)", re.IGNORECASE)  # not the builders' banners of stars
ADVICE = {  # what the first error calls for
    r"no GPU was detected": "name the generation of the card, such as -D CMAKE_CUDA_ARCHITECTURES=86",
    r"could not find vulkan": "install Vulkan's headers and loader (Debian and Ubuntu: libvulkan-dev glslc)",
    r"SPIRV-Headers": "install SPIR-V's headers (Debian and Ubuntu: spirv-headers)",
    r"No CMAKE_C(XX)?_COMPILER": "install a C++ compiler (Debian and Ubuntu: build-essential)",
    r"CUDAToolkit|CMAKE_CUDA_COMPILER|nvcc": "install NVIDIA's CUDA toolkit and put nvcc on the PATH",
    r"No space left|cannot allocate memory|Killed": "free disk or memory, or build with fewer --jobs",
}

Report = Callable[[str], None]
Progress = Callable[[int, int], None]


def check_tools(defines: Mapping[str, str]) -> None:
    """Raise BuildError with all that is missing for such a build. CMake is not needed: the build brings its own."""
    missing = []
    if importlib.util.find_spec("pip") is None:
        missing.append("pip (python -m ensurepip)")
    if sys.platform != "win32" and not _found(os.environ.get("CXX"), "c++", "g++", "clang++"):
        missing.append("a C++ compiler (Debian and Ubuntu: build-essential)")
    if _on(defines, "GGML_VULKAN") and not _found("glslc"):
        missing.append("glslc (Debian and Ubuntu: glslc libvulkan-dev spirv-headers)")
    if _on(defines, "GGML_CUDA") and not _found(os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        missing.append("nvcc on the PATH (NVIDIA's CUDA toolkit)")
    if _on(defines, "GGML_METAL") and sys.platform != "darwin":
        missing.append("macOS, for Metal")
    if missing:
        raise BuildError(f"cannot build: missing {'; '.join(missing)}")


def fetch_sdist(folder: Path) -> Path:
    """Download the pinned release from the package index with pip, which checks its hash before unpacking it."""
    name, digest = next(iter(SHA256.items()))
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{digest}\n", encoding="utf-8")
    command = [
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--dest",
        str(folder),
        "-r",
        str(requirements),
    ]
    result = subprocess.run(_pip(*command), capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"pip could not download llama-cpp-python {VERSION}: {_last_fault(result.stderr)}")
    return folder / name


def check_hash(sdist: Path) -> bool:
    """True where the file is the pinned release; False where no hash is known for it. Raises where it differs."""
    expected = SHA256.get(sdist.name)
    if expected is None:
        return False
    digest = hashlib.sha256()
    with sdist.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise BuildError(f"{sdist}: its sha256 is {digest.hexdigest()}, expected {expected}; download it again")
    return True


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack an sdist into ``folder``; returns the tree's root."""
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise BuildError(f"{sdist}: cannot be unpacked: {error}") from None
    roots = [path for path in folder.iterdir() if (path / "vendor" / "llama.cpp").is_dir()]
    if len(roots) != 1:
        raise BuildError(f"{sdist}: not a source distribution of llama-cpp-python: it has no vendor/llama.cpp")
    return roots[0]


def patch_tree(tree: Path, report: Report) -> None:
    """Apply the series to an unpacked sdist, and say what was done. Raises BuildError where it does not fit."""
    if not (tree / "vendor" / "llama.cpp").is_dir():
        raise BuildError(f"{tree}: not an unpacked llama-cpp-python: it has no vendor/llama.cpp")
    series = read_series(FOLDER)
    for patch, changed in zip(series, apply(series, tree), strict=True):
        report(f"{patch.name}: {'applied' if changed else 'is there already'}")


def build_wheel(tree: Path, wheel_dir: Path, defines: Mapping[str, str], jobs: int, progress: Progress) -> Path:
    """Build the tree's wheel into ``wheel_dir``; returns the wheel.

    ``progress`` gets (steps done, steps in all). Where the build fails, its output stays in ``wheel_dir`` and
    BuildError quotes the first fault.
    """
    wheel_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel_dir, prefix=".build-") as scratch:
        command = _pip("wheel", "--verbose", "--no-deps", "--wheel-dir", scratch)
        for name, value in defines.items():
            command += ["--config-settings", f"cmake.define.{name}={value}"]
        log = wheel_dir / LOG_NAME
        status = _run_logged([*command, str(tree)], log, {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}, progress)
        wheels = list(Path(scratch).glob("*.whl"))
        if status or len(wheels) != 1:
            output = log.read_text(encoding="utf-8", errors="replace")
            raise BuildError(f"the build failed: {first_fault(output)}; all of its output is in {log}")
        log.unlink()
        return wheels[0].replace(wheel_dir / wheels[0].name)


def build(
    sdist: Path | None,
    wheel_dir: Path,
    defines: Mapping[str, str],
    *,
    jobs: int,
    report: Report,
    progress: Progress,
) -> Path:
    """From the sdist (None: the pinned release, downloaded) to a patched wheel in ``wheel_dir``."""
    check_tools(defines)
    with tempfile.TemporaryDirectory(prefix="build-llama-") as scratch:
        if sdist is None:
            report(f"downloading llama-cpp-python {VERSION}")
            sdist = fetch_sdist(Path(scratch))
        if not check_hash(sdist):
            report(f"{sdist.name}: no release that the series is pinned to; its hash is not checked")
        report(f"unpacking {sdist.name}")
        folder = Path(scratch) / "tree"
        folder.mkdir()
        tree = unpack(sdist, folder)
        patch_tree(tree, report)
        report(f"building with {' '.join(f'{name}={value}' for name, value in defines.items()) or 'default options'}")
        return build_wheel(tree, wheel_dir, defines, jobs, progress)


def first_fault(output: str) -> str:
    """The first error in a build's output on one line, with advice where there is some."""
    lines = output.splitlines()
    at = next((i for i, line in enumerate(lines) if FAULT.search(line)), max(0, len(lines) - 1))
    context = [line.strip() for line in lines[at : at + 4] if line.strip()]  # CMake says what is wrong a line later
    fault = " ".join(context if "CMake Error" in lines[at] else context[:1]) if lines else "it wrote nothing"
    advice = next(
        (text for pattern, text in ADVICE.items() if re.search(pattern, " ".join(context), re.IGNORECASE)), None
    )
    return f"{fault[:300]}{f' ({advice})' if advice else ''}"


def _run_logged(command: list[str], log: Path, environment: dict[str, str], progress: Progress) -> int:
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        ) as process,
    ):
        assert process.stdout is not None
        steps = 0
        try:
            for line in process.stdout:
                file.write(line)
                if match := STEP.match(line.decode("utf-8", "replace")):
                    total = int(match.group(2) or 100)
                    steps = max(steps, total)
                    if total == steps:  # not those of a tool that is built on the way
                        progress(int(match.group(1)), total)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _last_fault(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines() or ["no message"]
    return lines[-1].removeprefix("ERROR: ")


def _found(*tools: str | None) -> bool:
    return any(shutil.which(tool.split()[0]) for tool in tools if tool)


def _on(defines: Mapping[str, str], name: str) -> bool:
    return defines.get(name, "OFF").upper() in ("ON", "1", "TRUE", "YES", "Y")
