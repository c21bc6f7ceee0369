"""Builds the native kernels: one shared library an instruction set, beside vocoder_plugin/kernels/__init__.py.

They are plain C libraries called through ctypes, so a wheel serves every Python 3 of its platform.
A missing or failing compiler leaves them out, and the package then uses its portable lowering.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "vocoder_plugin/kernels"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")


def shape(lanes: int, rows: int, vectors: int) -> list[str]:
    return [f"-DVP_LANES={lanes}", f"-DVP_ROWS={rows}", f"-DVP_VECS={vectors}"]


# Register tiles: rows * vectors accumulators, the vectors of weights and a broadcast must fit the
# registers (32 in AVX-512 and NEON, 16 in AVX2 and SSE2).
VARIANTS = {"baseline": shape(4, 8, 2) if ARM else shape(4, 4, 2)}
if X86:
    VARIANTS["avx2"] = ["-mavx2", "-mfma", *shape(8, 6, 2)]
    VARIANTS["avx512"] = [
        "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512", *shape(16, 8, 3),
    ]  # fmt: skip
    VARIANTS["avx512vnni"] = [*VARIANTS["avx512"], "-mavx512vnni"]

COMMON = [
    "-O3", "-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden", "-fno-math-errno",
    "-ffp-contract=off",  # see multiply_add in kernels.h
]  # fmt: skip
SOURCES, HEADERS = (sorted(map(str, Path(FOLDER).glob(f"*.{kind}"))) for kind in "ch")


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + (".dll" if sys.platform == "win32" else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """The libraries use no Python API: tagged for the platform, not for a Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"vocoder_plugin.kernels.{name}",
            sources=SOURCES,
            depends=HEADERS,
            extra_compile_args=[*COMMON, *flags],
            extra_link_args=["-s"] if sys.platform.startswith("linux") else [],  # no symbols beyond the exported
            libraries=[] if sys.platform == "win32" else ["m"],
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
