"""The exceptions of the package. Everything it raises on purpose derives from VocoderError."""

from __future__ import annotations


class VocoderError(Exception):
    """Base class: catch this to catch whatever the plugin refuses."""


class LibraryError(VocoderError):
    """The ggml library in the process cannot be used: missing, too old or of another layout."""


class DeviceError(VocoderError):
    """A device does not exist, or could not allocate or compute."""


class ModelFileError(VocoderError):
    """A model file is damaged, incomplete or not what it says; names the key or tensor."""


class ConversionError(VocoderError):
    """A checkpoint cannot be converted: unreadable, incomplete, or with leftovers."""


class CodesError(VocoderError, ValueError):
    """Audio codes of a wrong type, shape or range."""


class AudioError(VocoderError, ValueError):
    """Audio of a wrong type, shape, rate or value, or an audio file that cannot be read."""


class TokenError(VocoderError):
    """A language model's vocabulary or token stream does not fit the codec."""


class StreamError(VocoderError):
    """A stream was used after its end, or by two threads at once."""


class BuildError(VocoderError):
    """A patch does not fit, or llama-cpp-python could not be built; names the hunk or the compiler's first error."""
