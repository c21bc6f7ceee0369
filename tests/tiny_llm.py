"""A small Llama GGUF with OuteTTS's real token strings and random weights, written with gguf-py."""

from __future__ import annotations

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
    kinds = [gguf.TokenType.NORMAL] * 256 + [kind] * len(special)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.3).astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output.weight", len(tokens), width)
    add("output_norm.weight", width)
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", width, width)
        add(f"blk.{i}.ffn_gate.weight", 2 * width, width)
        add(f"blk.{i}.ffn_up.weight", 2 * width, width)
        add(f"blk.{i}.ffn_down.weight", width, 2 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokens


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


def dictate(tokens: list[str], script: list[str]):
    """A logits processor list that leaves the model one choice a step: the script's next token, then the end token."""
    import llama_cpp

    ids = iter([tokens.index(text) for text in script])

    def process(_input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        wanted = next(ids, tokens.index("<|im_end|>"))
        only = np.full_like(scores, -np.inf)
        only[wanted] = 0.0
        return only

    return llama_cpp.LogitsProcessorList([process])
