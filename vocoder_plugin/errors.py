"""The exceptions of the package. Everything it raises on purpose derives from VocoderError.

A value that is wrong raises a ValueError too, and a thing of the wrong kind a TypeError too, so code that
knows nothing of this package still catches what it expects.
"""

from __future__ import annotations

import os


class VocoderError(Exception):
    """Base class: catch this to catch whatever the plugin refuses.

    Parameters
    ----------
    message : str
        What was got, what was expected, and what to do; the path is put before it.
    path : path-like, optional
        The file that is refused.
    key, tensor : str, optional
        What in the file is refused.

    Attributes
    ----------
    path, key, tensor : str or None
        As given.
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str | os.PathLike[str] | None = None,
        key: str | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(message if path is None else f"{os.fspath(path)}: {message}")
        self.path = None if path is None else os.fspath(path)
        self.key = key
        self.tensor = tensor


def refusal(what: str, got: object, expected: str, remedy: str = "") -> str:
    """The sentence of a refusal: ``what is got, expected expected; remedy``."""
    return f"{what} is {got}, expected {expected}" + (f"; {remedy}" if remedy else "")


class ArgumentError(VocoderError, ValueError):
    """An argument has a value that cannot be used."""


class KindError(VocoderError, TypeError):
    """An argument is a thing of another kind than the call takes."""


class LibraryError(VocoderError):
    """The ggml library in the process cannot be used: missing, too old or of another layout."""


class DeviceError(VocoderError):
    """A device does not exist, or could not allocate or compute."""


class ModelFileError(VocoderError):
    """A model file is damaged, incomplete or not what it says; names the key or tensor."""


class ConversionError(VocoderError):
    """A checkpoint cannot be converted: unreadable, incomplete, or with leftovers."""


class CodesError(VocoderError, ValueError):
    """Audio codes of a wrong shape or range."""


class CodesKindError(CodesError, TypeError):
    """Audio codes that are no integers."""


class AudioError(VocoderError, ValueError):
    """Audio of a wrong shape, rate or value, or an audio file that cannot be read."""


class AudioKindError(AudioError, TypeError):
    """Audio that is no array of real numbers."""


class TokenError(VocoderError):
    """A language model's vocabulary or token stream does not fit the codec."""


class StreamError(VocoderError):
    """A stream was used after its end, or by two threads at once."""


class BuildError(VocoderError):
    """A patch does not fit, or llama-cpp-python could not be built; names the hunk or the compiler's first error."""


class HubError(VocoderError):
    """A file that the hub does not have, does not give out, or that cannot be reached."""
