"""Files that are files, and files that appear only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading; OSError for a pipe, a device or a folder, which could block or never end."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a path with a null character in it
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        _check_regular(os.fstat(handle), path)
    except OSError:
        os.close(handle)
        raise
    return open(handle, "rb")


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a regular file, or of the one that a link leads to; OSError for anything else."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a path with a null character in it
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    _check_regular(status, path)
    return status


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    for is_kind, kind in KINDS:
        if is_kind(status.st_mode):
            code = errno.EISDIR if kind == "folder" else errno.EINVAL
            raise OSError(code, f"it is a {kind}, expected a regular file", os.fspath(path))


@contextlib.contextmanager
def complete_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``target`` to write to, which takes its place when the block ends well; else the target stays.

    What killed processes left of earlier attempts at the same target is removed. Raises OSError.
    """
    path = Path(target)
    _remove_abandoned(path)
    handle, name = _new_partial(path)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def complete_file(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The same as an open binary file."""
    with complete_path(target) as path, path.open("w+b") as file:
        yield file


def _new_partial(path: Path) -> tuple[int | None, str]:
    """A new file beside ``path``, and a handle whose lock says that its process lives; None without locks."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        if fcntl is None:
            os.close(handle)
            return None, name
        _lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process took it for abandoned before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove partial files of ``path`` that no process has locked."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{path.name}.") + r"\w{8}\.partial")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with open_regular(entry.path) as file:
                    if _lock(file.fileno(), wait=False):
                        os.unlink(entry.path)


def _lock(handle: int, *, wait: bool = True) -> bool:
    """Lock a file for this process; False where another has it, or the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
