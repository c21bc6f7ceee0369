"""A small real Llama that speaks: every token is followed by the one that a script names.

Attention and feed-forward weights are zero, so that the logits depend on the last token alone: the
output row of each script token holds the embedding of the token before it.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import numpy as np
from tiny_llm import byte_tokens, outetts_0_tokens, outetts_1_tokens, write_llama

WIDTH = 256
SHARPNESS = 2.5  # logits of the wanted token; others are near 0
NEWLINE = byte_tokens()[ord("\n")]
FEATURES = ["<|features|>", "<|t_0.11|>", "<|energy_10|>", "<|spectral_centroid_15|>", "<|pitch_45|>", "<|code|>"]
FRAMES = [(3 * i + 1, 5 * i + 2) for i in range(8)]
OUTETTS_0_EXTRA = ["<|text_sep|>", "<|code_start|>", "<|code_end|>"]


def word_script() -> list[list[str]]:
    """A word 'a' of eight frames, then the end of the audio; a new line or <|word_start|> begins it."""
    codes = [text for c1, c2 in FRAMES for text in (f"<|c1_{c1}|>", f"<|c2_{c2}|>")]
    return [[NEWLINE, "<|word_start|>", "a", *FEATURES, *codes, "<|word_end|>", "<|audio_end|>", "<|im_end|>"]]


def silent_script() -> list[list[str]]:
    """The audio ends where it should begin."""
    return [[NEWLINE, "<|audio_end|>"], ["<|word_start|>", "<|audio_end|>"]]


def endless_script() -> list[list[str]]:
    """Frames for ever."""
    return [[NEWLINE, "<|word_start|>", "<|c1_1|>", "<|c2_2|>", "<|c1_3|>", "<|c2_4|>", "<|c1_1|>"]]


def outetts_0_script() -> list[list[str]]:
    """Twelve codes, then the end."""
    return [[NEWLINE, *(f"<|{i}|>" for i in range(12)), "<|audio_end|>", "<|im_end|>"]]


def write_speaking_llm(path: Path, scripts: list[list[str]], *, special: list[str] | None = None) -> list[str]:
    """Write the model; returns its tokens' texts by id."""
    special = outetts_1_tokens() if special is None else special
    tokens = [*byte_tokens(), *special]
    ids = {text: i for i, text in enumerate(tokens)}
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((len(tokens), WIDTH)).astype(np.float32)
    output = np.zeros((len(tokens), WIDTH), np.float32)
    for script in scripts:
        for before, after in itertools.pairwise(script):
            output[ids[after]] += SHARPNESS * embeddings[ids[before]] / WIDTH**0.5
    norm, square = np.ones(WIDTH, np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    tensors = {"token_embd.weight": embeddings, "output.weight": output, "output_norm.weight": norm}
    tensors |= {f"blk.0.{name}.weight": norm for name in ("attn_norm", "ffn_norm")}
    tensors |= {f"blk.0.{name}.weight": square for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    for name, shape in (("ffn_gate", (32, WIDTH)), ("ffn_up", (32, WIDTH)), ("ffn_down", (WIDTH, 32))):
        tensors[f"blk.0.{name}.weight"] = np.zeros(shape, np.float32)
    write_llama(path, tokens, tensors, kind=gguf.TokenType.CONTROL, context=8192)
    return tokens


def outetts_1_speaker(speaker: dict[str, np.ndarray], words: int = 10) -> dict:
    """The profile of ``speaker.npz`` in OuteTTS 1.0's JSON."""
    parts = np.split(speaker["codes"], np.cumsum(speaker["frames"])[:-1], axis=1)
    entries = [
        {
            "word": str(word), "duration": float(duration), "c1": codes[0].tolist(), "c2": codes[1].tolist(),
            "features": {"energy": 10, "spectral_centroid": 15, "pitch": 45},
        }
        for word, duration, codes in zip(speaker["words"], speaker["durations"], parts, strict=True)
    ][:words]  # fmt: skip
    text = " ".join(entry["word"] for entry in entries)
    return {"text": text, "words": entries, "global_features": {}, "interface_version": 3}


def outetts_0_all() -> list[str]:
    return [*outetts_0_tokens(), *OUTETTS_0_EXTRA]
