"""Speech from an LLM's audio tokens, decoded on llama.cpp's own ggml.

>>> from vocoder_plugin import Codec
>>> codec = Codec.load("dac-24khz-1.5kbps-f16.gguf")
>>> audio = codec.decode(codes)  # int [n_codebooks, n_frames] -> float32 [n_samples]
"""

from .codec import Codec
from .errors import (
    ArgumentError,
    AudioError,
    BuildError,
    CodesError,
    ConversionError,
    DeviceError,
    HubError,
    KindError,
    LibraryError,
    ModelFileError,
    StreamError,
    TokenError,
    VocoderError,
)
from .llm import SpeechStream
from .llm.completion_text import special_tokens_shown
from .llm.tokens import AudioVocabulary, TokenLayout, TokenReport, deinterleave
from .streams.exact import DecoderStream, EncoderStream
from .streams.whole_clip import PieceDecoderStream, StagedEncoderStream

__version__ = "0.1.0"
__all__ = [
    "ArgumentError",
    "AudioError",
    "AudioVocabulary",
    "BuildError",
    "Codec",
    "CodesError",
    "ConversionError",
    "DecoderStream",
    "DeviceError",
    "EncoderStream",
    "HubError",
    "KindError",
    "LibraryError",
    "ModelFileError",
    "PieceDecoderStream",
    "SpeechStream",
    "StagedEncoderStream",
    "StreamError",
    "TokenError",
    "TokenLayout",
    "TokenReport",
    "VocoderError",
    "deinterleave",
    "special_tokens_shown",
]
