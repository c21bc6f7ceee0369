"""What the OuteTTS side refuses, in the package's tree of errors."""

from __future__ import annotations

from ...errors import ArgumentError, VocoderError


class PromptError(ArgumentError):
    """A text or version that no prompt can be made of."""


class SpeakerError(ArgumentError):
    """A speaker profile that is damaged, of another version, or of another codec."""


class AlignmentError(VocoderError):
    """Word times that cannot be read, or that no aligner could find."""


class SpeechError(VocoderError):
    """The model wrote no audio, or the text does not fit its context."""


def missing(package: str, *, purpose: str, extra: str) -> VocoderError:
    """The error for an optional package that is not installed."""
    return VocoderError(
        f"{purpose} needs the package {package}; install it with: pip install 'vocoder-plugin[{extra}]'"
    )
