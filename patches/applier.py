"""Unified diffs, applied strictly: every line of context must match, though it may have moved.

A hunk that is there already is left alone, so a series may be applied again. Nothing is written unless everything
fits. Deleted and renamed files are not supported; the patches of a series must touch different lines.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vocoder_plugin.errors import BuildError

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


@dataclass(frozen=True)
class Hunk:
    """Lines to find and lines to put in their place, both without terminators. ``start`` counts from 1."""

    header: str
    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class FilePatch:
    """What a patch does to one file. ``path`` is relative to the tree; ``creates`` means the file is new."""

    path: str
    creates: bool
    hunks: tuple[Hunk, ...]


def read_series(folder: Path) -> list[Path]:
    """The patches named in ``folder/series``, in order; ``#`` starts a comment."""
    lines = (line.split("#")[0].strip() for line in (folder / "series").read_text(encoding="utf-8").splitlines())
    return [folder / line for line in lines if line]


def parse(patch: Path) -> list[FilePatch]:
    """The files of a unified diff. Raises BuildError where it is damaged, or would leave the tree."""
    lines = [_without_end(line) for line in _lines(patch.read_bytes().decode("utf-8"))]
    files = []
    at = 0
    while at < len(lines):
        if not lines[at].startswith("--- "):
            at += 1  # what git and people write between the files
            continue
        if at + 1 == len(lines) or not lines[at + 1].startswith("+++ "):
            raise BuildError(f"{patch.name}: line {at + 1}: a +++ line is missing after {lines[at]!r}")
        creates = _name(lines[at]) == "/dev/null"
        path = _checked_path(patch, _name(lines[at + 1]))
        hunks, at = _parse_hunks(patch, lines, at + 2)
        if not hunks:
            raise BuildError(f"{patch.name}: no hunks for {path}")
        files.append(FilePatch(path, creates, tuple(hunks)))
    if not files:
        raise BuildError(f"{patch.name}: not a unified diff: it has no --- line")
    return files


def apply(patches: Sequence[Path], tree: Path) -> list[bool]:
    """Apply patches in order to the files under ``tree``; True for those that changed something.

    Raises BuildError naming patch, file and hunk where one does not fit; no file has been touched then.
    """
    texts: dict[Path, str | None] = {}  # None: there is no such file
    before: dict[Path, str | None] = {}
    changed = []
    for patch in patches:
        changed.append(False)
        for file in parse(patch):
            target = _inside(patch, tree, file.path)
            if target not in texts:
                texts[target] = before[target] = _read(target)
            after = _create(patch, file, texts[target]) if file.creates else _edit(patch, file, texts[target])
            changed[-1] |= after != texts[target]
            texts[target] = after
    for target, text in texts.items():
        if text is not None and text != before[target]:
            _write(target, text)
    return changed


def _name(line: str) -> str:
    return line[4:].split("\t")[0].strip()


def _checked_path(patch: Path, name: str) -> str:
    if name == "/dev/null":
        raise BuildError(f"{patch.name}: deletes a file, which is not supported")
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise BuildError(f"{patch.name}: {name!r} is no path inside the tree; expected b/path/to/file")
    return "/".join(parts[1:])


def _inside(patch: Path, tree: Path, path: str) -> Path:
    target = (tree / path).resolve()  # follows links, which might lead out
    if not target.is_relative_to(tree.resolve()):
        raise BuildError(f"{patch.name}: {path} leads out of {tree}")
    return target


def _parse_hunks(patch: Path, lines: list[str], at: int) -> tuple[list[Hunk], int]:
    hunks = []
    while at < len(lines) and lines[at].startswith("@@"):
        header = lines[at]
        match = HUNK.match(header)
        if not match:
            raise BuildError(f"{patch.name}: line {at + 1}: {header!r} is no hunk header")
        n_old, n_new = (int(count) if count else 1 for count in match.group(2, 3))
        old: list[str] = []
        new: list[str] = []
        while len(old) < n_old or len(new) < n_new:
            at += 1
            kind, text = (lines[at][:1], lines[at][1:]) if at < len(lines) else ("", "")
            if kind not in ("-", "+", " "):
                raise BuildError(f"{patch.name}: {header}: ends early; it has {len(old)} of {n_old} old lines")
            if kind != "+":
                old.append(text)
            if kind != "-":
                new.append(text)
        if (len(old), len(new)) != (n_old, n_new):
            raise BuildError(f"{patch.name}: {header}: the counts do not fit the lines")
        hunks.append(Hunk(header, int(match.group(1)), tuple(old), tuple(new)))
        at += 1
        if at < len(lines) and lines[at].startswith("\\"):
            raise BuildError(f"{patch.name}: {header}: files without a newline at the end are not supported")
    return hunks, at


def _create(patch: Path, file: FilePatch, text: str | None) -> str:
    wanted = "".join(line + "\n" for line in file.hunks[0].new)
    if len(file.hunks) > 1 or file.hunks[0].old:
        raise BuildError(f"{patch.name}: {file.path} is new, yet the patch expects lines in it")
    if text is not None and text.replace("\r\n", "\n") != wanted:
        raise BuildError(f"{patch.name} does not fit: {file.path} exists already, with other content")
    return wanted if text is None else text


def _edit(patch: Path, file: FilePatch, text: str | None) -> str:
    if text is None:
        raise BuildError(f"{patch.name} does not fit: there is no {file.path}")
    lines = _lines(text)
    bare = [_without_end(line) for line in lines]
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    shift = at = 0
    for number, hunk in enumerate(file.hunks, 1):
        if not hunk.old:
            raise BuildError(f"{patch.name}: {file.path}, hunk {number} ({hunk.header}): has no lines of context")
        found, present = _locate(bare, hunk, hunk.start - 1 + shift, at)
        if found is None:
            raise BuildError(
                f"{patch.name} does not fit: {file.path}, hunk {number} ({hunk.header}): its lines are not there; "
                "is this the release that the series was made for?"
            )
        if not present:
            kept = dict(zip(hunk.old, lines[found : found + len(hunk.old)], strict=True))  # with their own line ends
            lines[found : found + len(hunk.old)] = [kept.get(line, line + end) for line in hunk.new]
            bare[found : found + len(hunk.old)] = hunk.new
        at = found + len(hunk.new)
        shift = at - len(hunk.old) - (hunk.start - 1)
    return "".join(line if line.endswith("\n") else line + end for line in lines[:-1]) + "".join(lines[-1:])


def _locate(lines: list[str], hunk: Hunk, expected: int, first: int) -> tuple[int | None, bool]:
    """Where the hunk belongs, nearest to ``expected`` and not before ``first``; and whether it is there already."""
    found = [
        (abs(place - expected), -len(wanted), place, present)  # of two in one place the longer: it contains the other
        for wanted, present in ((hunk.new, True), (hunk.old, False))
        for place in range(first, len(lines) - len(wanted) + 1)
        if tuple(lines[place : place + len(wanted)]) == wanted
    ]
    return min(found)[2:] if found else (None, False)


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)  # not splitlines: a form feed ends no line of a diff


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _read(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
