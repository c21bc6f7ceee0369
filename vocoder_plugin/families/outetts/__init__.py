"""OuteTTS without torch: prompts, speakers and speech.

>>> from vocoder_plugin.families.outetts import Speaker, build_prompt
>>> prompt = build_prompt("Hello there.", version=3, speaker=Speaker.load("me.json"))
"""

from .chunks import split_text
from .create import create_speaker
from .errors import AlignmentError, PromptError, SpeakerError, SpeechError
from .prompts import build_prompt, build_training_prompt
from .sampler import Sampling
from .speaker import Speaker, Word
from .speech import Progress, model_version, speak
from .words import WordTime, read_words

__all__ = [
    "AlignmentError",
    "Progress",
    "PromptError",
    "Sampling",
    "Speaker",
    "SpeakerError",
    "SpeechError",
    "Word",
    "WordTime",
    "build_prompt",
    "build_training_prompt",
    "create_speaker",
    "model_version",
    "read_words",
    "speak",
    "split_text",
]
