"""Mimi checkpoints to GGUF, in codec.cpp's names.

Reads transformers' ``MimiModel`` and moshi's safetensors. Codebooks are written as such (their sums over
their usage); queries and keys of moshi, which rotates neighbouring values, are put into the order of
transformers, which rotates a head's first half against its second.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from vocoder_plugin.errors import ConversionError

from .checkpoint import Checkpoint, Tensors, load_checkpoint
from .gguf_output import TYPES, Progress, atomic_output, check_choice, check_hop, write_tensors
from .wording import listed, shown

USAGE_FLOOR = 1e-5  # as both reference packages divide
HEAD_DIM = 64  # of Kyutai's model, for checkpoints that do not say
KEYS = {  # of transformers' config that must be what the runtime computes
    "use_causal_conv": True, "pad_mode": "constant", "use_conv_shortcut": False, "num_residual_layers": 1,
    "hidden_act": "gelu", "trim_right_ratio": 1.0, "audio_channels": 1, "attention_bias": False,
}  # fmt: skip

# transformers' names -> the file's; {} is a number
TRANSFORMERS = [
    (r"(enc|dec)oder(?:\.(?:enc|dec)oder_seanet)?\.layers\.(\d+)\.(.*conv)\.(w|b)(?:eight|ias)", r"\1.l\2.\3.\4"),
    (r"(?:(?:enc|dec)oder\.)?(e|d)(?:nc|ec)oder_transformer\.layers\.(\d+)\.(.+)", r"\1tr.l\2.\3"),
    (r"(?:encoder\.)?downsample\.conv\.weight", r"dn.cv.w"),
    (r"(?:decoder\.)?upsample\.conv\.weight", r"up.cv.w"),
    (r"quantizer\.(s|a)\w+_residual_vector_quantizer\.(.+)", r"q.\1.\2"),
]
MOSHI = [
    (r"(enc|dec)oder\.model\.(\d+)\.(block\.\d\.)?conv\.conv\.(w|b)(?:eight|ias)", r"\1.l\2.\3conv.\4"),
    (r"decoder\.model\.(\d+)\.convtr\.convtr\.(w|b)(?:eight|ias)", r"dec.l\1.conv.\2"),
    (r"(e|d)(?:nc|ec)oder_transformer\.transformer\.layers\.(\d+)\.(.+)", r"\1tr.l\2.\3"),
    (r"downsample\.conv\.conv\.conv\.weight", r"dn.cv.w"),
    (r"upsample\.convtr\.convtr\.convtr\.weight", r"up.cv.w"),
    (r"quantizer\.rvq_first\.(.+)", r"q.s.\1"),
    (r"quantizer\.rvq_rest\.(.+)", r"q.a.\1"),
]
PARTS = [  # of layers and quantisers, by either package
    (r"(?:input_layernorm|norm1)\.(w|b)(?:eight|ias)", r"inln.\1"),
    (r"(?:post_attention_layernorm|norm2)\.(w|b)(?:eight|ias)", r"paln.\1"),
    (r"self_attn\.([qkvo])_proj\.weight", r"attn.\1_proj.w"),
    (r"self_attn\.out_proj(?:s\.0)?\.weight", r"attn.o_proj.w"),
    (r"self_attn\.in_proj(?:_|s\.0\.|\.)weight", r"attn.in_proj.w"),
    (r"(?:mlp\.fc|linear)([12])\.weight", r"mlp.fc\1.w"),
    (r"(?:self_attn_layer_scale|layer_scale_1)\.scale", r"sa_ls.scale"),
    (r"(?:mlp_layer_scale|layer_scale_2)\.scale", r"mlp_ls.scale"),
    (r"(in|out)put_proj\.weight", lambda m: {"in": "ip.w", "out": "op.w"}[m[1]]),
    (r"(?:vq\.)?layers\.(\d+)\._?codebook\.(\w+)", r"layers.\1.cb.\2"),
]
IGNORED = r".*\.cb\._?initialized"
BOTH_SIDES = r"q\.[sa]\.[io]p\.w"  # what a file of one side alone may have of the other


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    type: str = "f16",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert a checkpoint; the target appears only when it is complete.

    Parameters
    ----------
    source : path-like
        A ``.safetensors`` file of either package, or a Hugging Face folder.
    target : path-like
    type : {"f32", "f16", "bf16", "q8_0"}
        Of matrices; biases, norms, scales and codebooks stay F32, and with ``q8_0`` the kernels of
        convolutions, which its blocks of 32 do not divide, become F16.
    force : bool
        Overwrite ``target``.
    progress : callable, optional
        Called with (tensors done, tensors in all).

    Raises
    ------
    ConversionError
        If the checkpoint is unreadable, incomplete, contradicts itself or has leftovers.
    """
    check_choice("type", type, TYPES)
    with atomic_output(target, force=force) as partial:
        checkpoint = load_checkpoint(source)
        sizes = _sizes(checkpoint)
        named = list(_named_tensors(checkpoint, sizes["head_dim"]))
        tensors = {new: values for new, _, values in named}
        writer = gguf.GGUFWriter(partial, "mimi")
        n_codebooks = _add_metadata(writer, checkpoint, tensors, sizes)
        unread = write_tensors(
            writer, tensors, lambda name, values: type if _is_matrix(name, values) else "f32", progress,
            source=checkpoint.path, n_codebooks=n_codebooks,
        )  # fmt: skip
        left = {name for new, name, _ in named if new in unread and not re.fullmatch(BOTH_SIDES, new)}
        if left:
            raise ConversionError(f"tensors left over: {listed(left)}", path=checkpoint.path)


def _is_matrix(name: str, values: np.ndarray) -> bool:
    return values.ndim > 1 and not name.endswith("codebook.embed") and name != "up.cv.w"


def _renamed(name: str, rules: list[tuple[str, Any]]) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement).replace("..", ".")
    return None


def _file_name(name: str) -> str | None:
    outer = _renamed(name, MOSHI) or _renamed(name, TRANSFORMERS)
    if outer is None or not outer.startswith(("etr.", "dtr.", "q.")):
        return outer
    side, layer, tail = outer.split(".", 2)  # such as etr, l0 and the rest
    part = _renamed(tail, PARTS)
    return f"{side}.{layer}.{part}" if part else None


def _named_tensors(checkpoint: Checkpoint, head_dim: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """All tensors: the file's name, the checkpoint's, values. What is missing or has no use, reading back finds."""
    names = {name: _file_name(name) for name in checkpoint.tensors}
    skipped = {name for name, new in names.items() if new and re.fullmatch(IGNORED, new)}
    kept = {name: values for name, values in checkpoint.tensors.items() if name not in skipped}
    tensors = Tensors(Checkpoint(checkpoint.path, kept, checkpoint.metadata))
    by_name = {new: name for name, new in names.items() if new and name not in skipped}
    if not any(name.startswith(("enc.", "dec.")) for name in by_name):
        raise ConversionError("tensors of neither an encoder nor a decoder of Mimi", path=checkpoint.path)
    for new, name in by_name.items():
        if new.endswith(("cb.cluster_usage", ".cb.embed")):
            continue
        values = tensors.take(name)
        if re.fullmatch(r".*\.cb\.(embed_sum|embedding_sum)", new):
            layer = new.rpartition(".cb.")[0]
            usage_name = by_name.get(f"{layer}.cb.cluster_usage")
            if usage_name is None:
                raise _refusal(checkpoint, name, "has no cluster_usage beside it")
            usage = tensors.take(usage_name)
            if values.ndim != 2 or usage.shape != values.shape[:1]:
                raise _refusal(checkpoint, name, f"has shape {values.shape}, and its usage {usage.shape}")
            with np.errstate(over="ignore"):
                yield (
                    f"{layer}.codebook.embed",
                    name,
                    values / np.maximum(usage, np.float32(USAGE_FLOOR))[:, np.newaxis],
                )
        elif new.endswith("attn.in_proj.w"):
            if values.ndim != 2 or head_dim % 2 or len(values) % (3 * head_dim):
                raise _refusal(checkpoint, name, f"has shape {values.shape}, expected thrice heads of {head_dim} rows")
            stem = new.removesuffix("in_proj.w")
            q, k, v = np.split(values, 3)
            yield f"{stem}q_proj.w", name, _halves_first(q, head_dim)
            yield f"{stem}k_proj.w", name, _halves_first(k, head_dim)
            yield f"{stem}v_proj.w", name, v
        else:
            yield new, name, values
    tensors.finish()


def _refusal(checkpoint: Checkpoint, name: str, message: str) -> ConversionError:
    return ConversionError(f"tensor {name!r} {message}", path=checkpoint.path, tensor=name)


def _halves_first(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head: those of even number, then the odd ones."""
    heads = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(weight.shape)


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tensors do not tell, from transformers' config where there is one."""
    config = dict(checkpoint.metadata)
    for part in ("encoder_config", "decoder_config"):  # transformers 5 may nest what it once had flat
        nested = config.get(part)
        if isinstance(nested, dict):
            config = {**nested, **config}
    for key, expected in KEYS.items():
        value = config.get(key, expected)
        if not isinstance(value, (int, float, str)) or value != expected:
            raise ConversionError(
                f"config's {key} is {shown(value)}, but only {expected!r} is supported", path=checkpoint.path
            )
    rope = config.get("rope_parameters")
    rope = {} if rope is None else rope
    if not isinstance(rope, dict):
        raise ConversionError(f"config's rope_parameters is a {type(rope).__name__}", path=checkpoint.path)
    sizes = {
        "sample_rate": config.get("sampling_rate", 24000),
        "head_dim": HEAD_DIM if config.get("head_dim") is None else config["head_dim"],
        "window": config.get("sliding_window", 250),
        "theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "epsilon": config.get("norm_eps", 1e-5),
    }
    for key, value in sizes.items():
        kinds = (int, float) if key in ("theta", "epsilon") else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**32:
            raise ConversionError(f"config's {key} is {shown(value)}, expected a positive number", path=checkpoint.path)
    return sizes


def _add_metadata(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, tensors: dict[str, np.ndarray], sizes: dict[str, Any]
) -> int:
    """Keys from the tensors and ``sizes``; the number of codebooks."""

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    def count_codebooks(kind: str) -> int:
        return next(n for n in itertools.count() if f"q.{kind}.layers.{n}.codebook.embed" not in tensors)

    for needed in ("q.s.layers.0.codebook.embed", "q.s.op.w"):
        if needed not in tensors:
            raise ConversionError(f"lacks the tensor that becomes {needed!r}", path=checkpoint.path)
    for name, values in tensors.items():
        dimensions = 3 if re.search(r"conv\.w$", name) else 2 if re.search(r"mlp\.fc\d\.w$|op\.w$", name) else 0
        if values.ndim < min(dimensions, 2) or (dimensions == 3 and values.ndim != 3):
            raise ConversionError(f"{name!r} would have shape {values.shape}", path=checkpoint.path)
    size, dim = tensors["q.s.layers.0.codebook.embed"].shape
    latent = tensors["q.s.op.w"].shape[0]
    side = "etr" if "etr.l0.mlp.fc1.w" in tensors else "dtr"
    if f"{side}.l0.mlp.fc1.w" not in tensors or latent % sizes["head_dim"]:
        raise ConversionError(f"{latent} channels and heads of {sizes['head_dim']} do not fit", path=checkpoint.path)
    semantic, acoustic = count_codebooks("s"), count_codebooks("a")
    strides = [
        tensors[f"enc.l{i}.conv.w" if side == "etr" else f"dec.l{i - 1}.conv.w"].shape[2] // 2
        for i in range(3, 64, 3)
        if (f"enc.l{i}.conv.w" if side == "etr" else f"dec.l{i - 1}.conv.w") in tensors
        and (f"enc.l{i - 2}.block.1.conv.w" if side == "etr" else f"dec.l{i}.block.1.conv.w") in tensors
    ]
    writer.add_name("Mimi")
    writer.add_uint32("codec.sample_rate", sizes["sample_rate"])
    writer.add_uint32("codec.hop_size", check_hop(checkpoint.path, [*strides, 2]))
    writer.add_uint32("codec.n_q", semantic + acoustic)
    writer.add_uint32("codec.num_semantic_quantizers", semantic)
    writer.add_uint32("codec.codebook_size", size)
    writer.add_uint32("codec.codebook_dim", dim)
    writer.add_uint32("codec.latent_dim", latent)
    writer.add_uint32("codec.num_hidden_layers", count(rf"{side}\.l(\d+)\."))
    writer.add_uint32("codec.num_attention_heads", latent // sizes["head_dim"])
    writer.add_uint32("codec.head_dim", sizes["head_dim"])
    writer.add_uint32("codec.intermediate_size", tensors[f"{side}.l0.mlp.fc1.w"].shape[0])
    writer.add_float32("codec.rope_theta", float(sizes["theta"]))
    writer.add_float32("codec.norm_eps", float(sizes["epsilon"]))
    writer.add_uint32("codec.sliding_window", sizes["window"])
    writer.add_bool("codec.has_encoder", any(name.startswith("enc.") for name in tensors))
    writer.add_bool("codec.has_decoder", any(name.startswith("dec.") for name in tensors))
    return semantic + acoustic
