"""Large buffers on the CPU ask for large pages."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from vocoder_plugin.runtime.ggml import library
from vocoder_plugin.runtime.graph import TensorBuffer

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and os.path.isdir("/sys/kernel/mm/transparent_hugepage")),
    reason="large pages of Linux",
)


def asked_for_large_pages(address: int) -> bool:
    for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(end, 16) for end in area.split()[0].split("-"))
        if first <= address < last:
            return "hg" in re.search(r"VmFlags:(.*)", area)[1].split()
    raise AssertionError(f"{address:#x} is not mapped")


def test_large_buffers_ask():
    lib, floats = library(), 4 << 20
    buffer = TensorBuffer(lib, lib.device(), {"x": ("F32", (floats,))}, zeroed=False)
    assert asked_for_large_pages(buffer.tensors["x"].contents.data + 2 * floats)
    buffer.close()
