"""The llama_cpp side: tokens of a running generation in, samples out."""

from .generate import SAMPLING, generate_tokens
from .speech import SpeechStream

__all__ = ["SAMPLING", "SpeechStream", "generate_tokens"]
