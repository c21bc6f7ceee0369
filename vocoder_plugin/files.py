"""Files that appear only when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def complete_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``target`` to write to, which takes its place when the block ends well; else the target stays.

    Raises OSError.
    """
    path = Path(target)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def complete_file(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The same as an open binary file."""
    with complete_path(target) as path, path.open("w+b") as file:
        yield file
