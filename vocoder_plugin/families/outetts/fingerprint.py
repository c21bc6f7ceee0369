"""The hash that tells whether two codec files are the same."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal; remembered while the file keeps its size and time."""
    status = Path(path).stat()
    return _digest(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _digest(path: str, _size: int, _time: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
