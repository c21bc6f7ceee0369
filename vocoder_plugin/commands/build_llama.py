"""The command ``build-llama``: a wheel of llama-cpp-python for a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import click

from vocoder_plugin.patches import build

from ..codec import usable_cores

DEFINE = re.compile(r"(\w+)=(.*)")
BACKENDS = {"vulkan": "GGML_VULKAN", "cuda": "GGML_CUDA", "metal": "GGML_METAL"}


def parse_defines(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    defines = {}
    for value in values:
        match = DEFINE.fullmatch(value)
        if not match:
            raise click.BadParameter(f"got {value!r}, expected NAME=VALUE")
        defines[match.group(1)] = match.group(2)
    return defines


@click.command("build-llama", short_help="Build a patched llama-cpp-python wheel for a GPU.")
@click.option("--vulkan", is_flag=True, help="Build with Vulkan: -D GGML_VULKAN=ON.")
@click.option("--cuda", is_flag=True, help="Build with CUDA: -D GGML_CUDA=ON.")
@click.option("--metal", is_flag=True, help="Build with Metal: -D GGML_METAL=ON (the default on macOS).")
@click.option("-D", "defines", metavar="NAME=VALUE", multiple=True, callback=parse_defines, help="A CMake option.")
@click.option("--sdist", type=click.Path(), help="Source distribution to build. [default: 0.3.36 from PyPI]")
@click.option("--wheel-dir", type=click.Path(), default=".", show_default=True, help="Where the wheel goes.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Files compiled at once. [default: usable cores]")
@click.option("--patch-only", type=click.Path(), metavar="TREE", help="Patch an unpacked sdist in place, no build.")
def build_llama(
    vulkan: bool,
    cuda: bool,
    metal: bool,
    defines: dict[str, str],
    sdist: str | None,
    wheel_dir: str,
    jobs: int | None,
    patch_only: str | None,
) -> None:
    """Build a patched llama-cpp-python wheel for a GPU; prints the wheel's path.

    Takes llama-cpp-python's source distribution, applies the patches of this package (see patches/README.md: Vulkan
    with Debian 12's headers, functions that older releases had), and builds a wheel with CMake's options. Whatever
    does not fit is refused, with the name of the patch, the file and the hunk.

    \b
    With Vulkan, then into this environment:
        vocoder-plugin build-llama --vulkan --wheel-dir wheels
        pip install --force-reinstall --no-deps wheels/llama_cpp_python-*.whl
        vocoder-plugin doctor
    For one generation of NVIDIA cards, without image input:
        vocoder-plugin build-llama --cuda -D CMAKE_CUDA_ARCHITECTURES=86 -D LLAVA_BUILD=OFF

    Needs a C++ compiler; Vulkan needs glslc and the headers of Vulkan and SPIR-V (Debian and Ubuntu: build-essential
    glslc libvulkan-dev spirv-headers), CUDA needs NVIDIA's toolkit. It takes about 6 minutes on 2 cores with Vulkan.
    """
    with Steps() as steps:
        if patch_only is not None:
            build.patch_tree(Path(patch_only), steps.say)
            return
        wanted = {"vulkan": vulkan, "cuda": cuda, "metal": metal}
        options = {define: "ON" for name, define in BACKENDS.items() if wanted[name]} | defines
        wheel = build.build(
            Path(sdist) if sdist else None, Path(wheel_dir), options, jobs=jobs or usable_cores(), report=steps.say,
            progress=steps.progress,
        )  # fmt: skip
    click.echo(wheel)


class Steps:
    """What a build does, on standard error: a line a step, and a bar on a terminal or a line a tenth elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, TaskID

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not console.is_terminal, transient=True)
        self._task: TaskID | None = None
        self._tenth = 0

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("compiling")
        self._bar.update(self._task, completed=done, total=total)
        if self._bar.disable and done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self.say(f"compiled {done} of {total}")
