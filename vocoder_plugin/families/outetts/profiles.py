"""Where a user's speakers are kept, and what ``--speaker`` may name."""

from __future__ import annotations

from pathlib import Path

from ... import hub
from .errors import SpeakerError
from .speaker import Speaker


def folder() -> Path:
    """The user's profile folder, such as ~/.local/share/vocoder-plugin/speakers; it need not exist."""
    import platformdirs

    return platformdirs.user_data_path("vocoder-plugin", appauthor=False) / "speakers"


def target(name: str) -> Path:
    """Where a profile is written: a path as it is; a bare name, without .json, in the profile folder."""
    path = Path(name)
    if path.suffix == ".json" or path.name != name:
        return path
    if name in ("", "-", "none"):
        raise SpeakerError(f"{name!r} cannot name a profile; give another name, or a path that ends in .json")
    return folder() / f"{name}.json"


def names() -> list[str]:
    """The profiles in that folder, without their suffix."""
    return sorted(path.stem for path in folder().glob("*.json"))


def find(name: str, *, offline: bool = False, progress: bool = False) -> Speaker:
    """A speaker by path, by its name in the profile folder, or as a hub file ``owner/repo/file.json``."""
    own = folder() / f"{Path(name).name}.json"
    if name == Path(name).name and own.is_file() and not Path(name).is_file():
        return Speaker.load(own)
    path = hub.local_or_fetch(name, suffix=".json", offline=offline, progress=progress)
    if path.exists():
        return Speaker.load(path)
    raise SpeakerError(f"there is no such file, nor such a profile; {available()}", path=name)


def available() -> str:
    """One line: the profiles there are, and how to come by others."""
    found = names()
    listed = f"profiles in {folder()}: {', '.join(found)}" if found else f"there are no profiles in {folder()}"
    return (
        f"{listed}; make one with `vocoder-plugin create-speaker --audio CLIP --transcript TEXT --codec C -o NAME`, "
        "or fetch one with --speaker owner/repo/file.json"
    )
