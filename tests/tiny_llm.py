"""A small Llama GGUF with OuteTTS's real token strings and random weights, written with gguf-py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np

CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|text_start|>", "<|text_end|>", "<|audio_start|>", "<|audio_end|>",
    "<|word_start|>", "<|word_end|>", "<|features|>", "<|code|>", "<|space|>",
    "<|global_features_start|>", "<|global_features_end|>",
]  # fmt: skip


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(hidden)) for b in range(256)]


def outetts_1_tokens() -> list[str]:
    features = [f"<|{name}_{i}|>" for name in ("energy", "spectral_centroid", "pitch") for i in range(101)]
    times = [f"<|t_{i / 100:.2f}|>" for i in range(201)]
    codes = [f"<|c{q}_{i}|>" for q in (1, 2) for i in range(1025)]
    return [*CONTROL, *features, *times, *codes]


def outetts_0_tokens() -> list[str]:
    return [*CONTROL, *(f"<|t_{i / 100:.2f}|>" for i in range(201)), *(f"<|{i}|>" for i in range(4100))]


def write_tiny_llm(
    path: Path,
    special: list[str],
    *,
    kind: gguf.TokenType = gguf.TokenType.CONTROL,
    width: int = 32,
    layers: int = 1,
    context: int = 8192,
    seed: int = 0,
) -> list[str]:
    """Write the model; returns its tokens' texts by id."""
    tokens = [*byte_tokens(), *special]
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    tensors = {
        "token_embd.weight": weights(len(tokens), width),
        "output.weight": weights(len(tokens), width),
        "output_norm.weight": weights(width),
    }
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = weights(width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{i}.{name}.weight"] = weights(width, width)
        for name, shape in (("ffn_gate", (2 * width, width)), ("ffn_up", (2 * width, width))):
            tensors[f"blk.{i}.{name}.weight"] = weights(*shape)
        tensors[f"blk.{i}.ffn_down.weight"] = weights(width, 2 * width)
    write_llama(path, tokens, tensors, kind=kind, context=context)
    return tokens


def write_llama(
    path: Path, tokens: list[str], tensors: dict[str, np.ndarray], *, kind: gguf.TokenType, context: int
) -> None:
    """Write a Llama of two heads; its sizes are those of the tensors, tokens beyond the bytes are of that kind."""
    feed_forward, width = tensors["blk.0.ffn_gate.weight"].shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(sum(name.endswith("ffn_gate.weight") for name in tensors))
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [kind] * (len(tokens) - 256))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def speaker_script(speaker_file: Path) -> list[str]:
    """The token texts with which OuteTTS 1.0 would say the words in ``speaker.npz``."""
    with np.load(speaker_file) as archive:
        speaker = dict(archive)
    script, frame = [], 0
    for word, frames, duration in zip(speaker["words"], speaker["frames"], speaker["durations"], strict=True):
        script += ["<|word_start|>", *str(word), "<|features|>", f"<|t_{duration:.2f}|>"]
        script += ["<|energy_10|>", "<|spectral_centroid_15|>", "<|pitch_45|>", "<|code|>"]
        for c1, c2 in speaker["codes"].T[frame : frame + frames]:
            script += [f"<|c1_{c1}|>", f"<|c2_{c2}|>"]
        script += ["<|word_end|>", byte_tokens()[ord("\n")]]
        frame += frames
    return [*script, "<|audio_end|>", "<|im_end|>"]


def one_choice(ids: Iterable[int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A logits processor that leaves the model one choice a step: the next of these tokens."""
    wanted = iter(ids)

    def process(_input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        only = np.full_like(scores, -np.inf)
        only[next(wanted)] = 0.0
        return only

    return process


def dictate(tokens: list[str], script: list[str]):
    """A logits processor list that dictates the script's tokens, then the end token for ever."""
    import llama_cpp

    ids = [tokens.index(text) for text in script]
    return llama_cpp.LogitsProcessorList(
        [one_choice(itertools.chain(ids, itertools.repeat(tokens.index("<|im_end|>"))))]
    )
