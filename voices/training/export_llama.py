#!/usr/bin/env python3
"""The language model as a GGUF file for llama.cpp: ``export_llama.py LLAMA TARGET.gguf``."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from checkpoints import load
from llama_model import Llama, LlamaSize
from vocoder_voice_kumo.sequence import BEGIN, END, NUMBERS, VOCABULARY

NAME = "Kumo"
CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", default="q8_0", choices=("f32", "f16", "q8_0"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--inner", type=int, default=704)
    options = parser.parse_args()
    size = LlamaSize(len(VOCABULARY), dim=options.dim, inner=options.inner, layers=options.layers)
    model = Llama(size)
    load(options.llama / "llama.pt", {}, model=model)
    write(model, options.target, gguf.GGMLQuantizationType[options.type.upper()])


def write(model: Llama, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    size = model.size
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(NAME)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(size.dim)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.inner)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.heads)
    writer.add_layer_norm_rms_eps(size.epsilon)
    writer.add_rope_freq_base(size.rope_base)
    writer.add_rope_dimension_count(size.head_dim)
    writer.add_vocab_size(size.vocabulary)
    add_tokenizer(writer)
    for name, parameter in model.state_dict().items():
        values = parameter.float().numpy()
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A byte-level BPE without merges, whose tokens are all written out and found as they are spelled."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(VOCABULARY))
    control = gguf.TokenType.CONTROL
    writer.add_token_types([control if token in (BEGIN, END) else gguf.TokenType.USER_DEFINED for token in VOCABULARY])
    writer.add_token_merges(["< |"])  # llama.cpp wants at least one; no text is ever split by it
    writer.add_bos_token_id(NUMBERS[BEGIN])
    writer.add_eos_token_id(NUMBERS[END])
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main()
