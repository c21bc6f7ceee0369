"""What may be read by name: regular files only, since others may never end, or never begin."""

from __future__ import annotations

import errno
import os
import stat

KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"),
         (stat.S_ISBLK, "device"))  # fmt: skip


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a regular file, or of the one that a link leads to; OSError for anything else."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a null character in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    for is_kind, kind in KINDS:
        if is_kind(status.st_mode):
            code = errno.EISDIR if kind == "folder" else errno.EINVAL
            raise OSError(code, f"it is a {kind}, expected a regular file", str(path))
    return status
