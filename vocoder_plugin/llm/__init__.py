"""The llama_cpp side: tokens of a running generation in, samples out."""

from .generate import SAMPLING, Generation, generate_tokens
from .prompt import Outside, prompt_tokens
from .protocols import LanguageModel
from .speech import SpeechStream

__all__ = ["SAMPLING", "Generation", "LanguageModel", "Outside", "SpeechStream", "generate_tokens", "prompt_tokens"]
