"""The door for codecs: entry points of the group ``vocoder_plugin.codecs``, the built-in ones among them.

A class that cannot be loaded or is no Model is left out with a warning, and harms nobody else.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from dataclasses import dataclass
from typing import Any

from ..errors import LibraryError, ModelFileError
from ..gguf_file import GGUFFile
from .model import Model, checked_options

logger = logging.getLogger(__name__)
GROUP = "vocoder_plugin.codecs"


@dataclass(frozen=True)
class Door:
    """What came through the door.

    Attributes
    ----------
    models : dict
        Codecs by the name of their entry point.
    packages : dict
        Name and version of the package that each comes from.
    problems : tuple of str
        A line for each that is left out, and why.
    """

    models: dict[str, type[Model]]
    packages: dict[str, str]
    problems: tuple[str, ...]


@functools.cache
def door() -> Door:
    """Load every codec that is installed."""
    found: dict[str, type[Model]] = {}
    packages: dict[str, str] = {}
    problems: list[str] = []
    owners: dict[str, str] = {}  # of each architecture
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=_built_ins_first):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        said = f"the codec {entry.name!r} ({entry.value}, {package})"
        try:
            model = entry.load()
        except Exception as error:  # whatever a stranger's module raises
            problems.append(f"{said} cannot be loaded: {type(error).__name__}: {error}")
            continue
        if problem := _problem(entry.name, model, found, owners):
            problems.append(f"{said} is left out: {problem}")
            continue
        found[entry.name], packages[entry.name] = model, package
        owners.update(dict.fromkeys(model.architectures, entry.name))
    return Door(found, packages, tuple(problems))


@functools.cache
def models() -> dict[str, type[Model]]:
    """Codecs by the name of their entry point; a warning for each that is left out."""
    for problem in problems():
        logger.warning("%s", problem)
    return door().models


def problems() -> tuple[str, ...]:
    """A line for each codec that is installed and left out."""
    return door().problems


def _built_ins_first(entry: importlib.metadata.EntryPoint) -> tuple[bool, str]:
    return not entry.value.startswith(__package__ + "."), entry.name


def _problem(name: str, model: Any, found: dict[str, type[Model]], owners: dict[str, str]) -> str:
    """Why a class that came through the door is not let in; empty where it is."""
    if not (isinstance(model, type) and issubclass(model, Model)):
        return f"it is {type(model).__name__} {model!r}, expected a subclass of vocoder_plugin.codecs.model.Model"
    if getattr(model, "__abstractmethods__", None):
        return f"it lacks {', '.join(sorted(model.__abstractmethods__))}"
    if not model.architectures:
        return "it names no architectures"
    if name in found:
        return "a codec of that name is there already"
    for architecture in model.architectures:
        if architecture in owners:
            return f"architecture {architecture!r} is that of the codec {owners[architecture]!r} already"
    return ""


def model_class(file: GGUFFile) -> type[Model]:
    """The class that reads a file's architecture."""
    architecture = file.get("general.architecture", str)
    for model in models().values():
        if architecture in model.architectures:
            return model
    known = ", ".join(repr(name) for model in models().values() for name in model.architectures)
    if not known:
        raise LibraryError("no codec is installed: install vocoder-plugin, rather than put its source tree on the path")
    message = f"architecture {architecture!r} is not supported (expected {known})"
    raise ModelFileError(message, path=file.path, key="general.architecture")


def read_model(file: GGUFFile, **options: Any) -> Model:
    """The model in a file, with the codec's own options."""
    model = model_class(file)
    checked_options(model, options, path=file.path)
    return model.read(file, **options)
