"""WavTokenizer checkpoints to GGUF, in codec.cpp's names or, the decoder alone, in llama.cpp's.

Reads the training checkpoint (``.ckpt``, with its yaml beside it or given), and outetts' split
``encoder_model.pt`` and ``decoder_model.pt``, alone or in the folder that holds ``encoder/`` and
``decoder/``. Tensors that only training needs are left out; everything else must be used up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml

from vocoder_plugin.codecs.wavtokenizer import CODEC_CPP, LLAMA, OVERLAP, SAMPLE_RATE, llama_name
from vocoder_plugin.errors import ConversionError

from .checkpoint import Checkpoint, Tensors, load_checkpoint, read_text
from .gguf_output import TYPES, Progress, atomic_output, check_choice, check_hop, write_tensors
from .wording import plain, shown

DIALECTS = ("codec.cpp", "llama")
ENCODER, QUANTIZER = "feature_extractor.encodec.encoder.model", "feature_extractor.encodec.quantizer.vq.layers"
TRAINING_ONLY = re.compile(
    r"(multiperioddisc|multiresddisc|dac|dacdiscriminator|disc_loss|gen_loss|feat_matching_loss|melspec_loss"
    r"|utmos_model|feature_extractor\.encodec\.decoder)\."
    r"|feature_extractor\.encodec\.quantizer\.vq\.layers\.\d+\._codebook\.(inited|cluster_size|embed_avg)$"
    r"|head\.istft\.window$"
)
POSNET_RESNETS, POSNET_ATTENTION, POSNET_NORM = (0, 1, 3, 4), 2, 5
MOST_YAML = 1 << 16  # bytes: the published ones have 3,000, and PyYAML reads 40,000 a second
LLAMA_CONTEXT = 8192  # frames: a bound that llama.cpp wants to know
LLAMA_COLUMNS = re.compile(r"(conv1d|posnet\.\d\.\w+|convnext\.\d+\.dw)\.bias$|posnet\.\d\.\w*norm\d?\.weight$")


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    type: str = "f16",
    dialect: str = "codec.cpp",
    config: str | os.PathLike[str] | None = None,
    gelu: str = "erf",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert a checkpoint; the target appears only when it is complete.

    Parameters
    ----------
    source : path-like
        A ``.ckpt`` or ``.pt`` file, or a folder with ``encoder/encoder_model.pt`` and/or ``decoder/decoder_model.pt``.
    target : path-like
    type : {"f32", "f16", "bf16", "q8_0"}
        Of convolution and linear weights; norms, biases and the codebook stay F32.
    dialect : {"codec.cpp", "llama"}
        ``llama`` writes the decoder alone, as a file that libllama loads too.
    config : path-like, optional
        The model's yaml, by default the only one beside the checkpoint, if any. It must agree with the tensors.
    gelu : {"erf", "tanh"}
        The form the file asks for. The reference is erf; libllama itself always computes tanh.
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
    check_choice("dialect", dialect, DIALECTS)
    check_choice("gelu", gelu, ("erf", "tanh"))
    with atomic_output(target, force=force) as partial:
        checkpoint = load_parts(source)
        tensors = dict(_named_tensors(checkpoint))
        facts = _facts(tensors, checkpoint.path)
        settings = _settings(source, config)
        _check_settings(settings, facts)
        if dialect == "llama":
            tensors = _as_llama(tensors, checkpoint.path)
        writer = gguf.GGUFWriter(partial, LLAMA if dialect == "llama" else CODEC_CPP)
        rate = settings.get("sample_rate", SAMPLE_RATE)
        writer.add_name(f"WavTokenizer {rate / facts['hop_length']:g} tokens/s")
        if dialect == "llama":
            _add_llama_keys(writer, facts)
            if rate != SAMPLE_RATE:  # which the dialect has no key for, and readers take for granted
                writer.add_uint32("codec.sample_rate", rate)
        else:
            _add_keys(writer, facts, rate)
        if gelu != "erf":
            writer.add_string("vocoder.gelu", gelu)
        write_tensors(
            writer, tensors, lambda name, values: type if _is_matrix(name, values) else "f32", progress,
            source=checkpoint.path,
        )  # fmt: skip


def _is_matrix(name: str, values: np.ndarray) -> bool:
    """Weights of convolutions and linear layers, depthwise ones (whose kernels are tiny) and the codebook apart."""
    return values.ndim >= 2 and values[0].size > 16 and not name.endswith(("embed", "token_embd.weight"))


def load_parts(source: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint, or outetts' folder of two as one, without what only training needs."""
    path = Path(source)
    parts = [path / side / f"{side}_model.pt" for side in ("encoder", "decoder")]
    found = [part for part in parts if part.exists()] if path.is_dir() else [path]
    if not found:
        raise ConversionError("holds neither encoder/encoder_model.pt nor decoder/decoder_model.pt", path=path)
    tensors: dict[str, np.ndarray] = {}
    for part in found:
        tensors.update(load_checkpoint(part).tensors)
    kept = {name: values for name, values in tensors.items() if not TRAINING_ONLY.match(name)}
    return Checkpoint(path, kept, {})


def _named_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors under codec.cpp's names, in torch's layout; fails if any is missing or left over."""
    tensors = Tensors(checkpoint)
    sides = [f"{ENCODER}.0.conv.conv.bias" in tensors, "backbone.embed.bias" in tensors]
    if not any(sides):
        raise ConversionError("tensors of neither an encoder nor a decoder of WavTokenizer", path=checkpoint.path)
    yield "vq.vq.layers.0._codebook.embed", _codebook(tensors)
    if sides[0]:
        yield from _encoder(tensors)
    if sides[1]:
        yield from _decoder(tensors)
    tensors.finish()


def _codebook(tensors: Tensors) -> np.ndarray:
    names = [name for name in (f"{QUANTIZER}.0._codebook.embed", "codebook_weights") if name in tensors]
    if not names:
        raise ConversionError(f"tensor '{QUANTIZER}.0._codebook.embed' is missing", path=tensors.path)
    tables = [tensors.take(name, ndim=2) for name in names]
    if any(not np.array_equal(table, tables[0]) for table in tables):
        raise ConversionError("encoder and decoder have different codebooks", path=tensors.path)
    return tables[0]


def _plain(tensors: Tensors, source: str, target: str, *, ndim: int) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{target}.weight", tensors.take(f"{source}.weight", ndim=ndim)
    yield f"{target}.bias", tensors.take(f"{source}.bias")


def _encoder(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    yield from tensors.conv(f"{ENCODER}.0.conv.conv", "enc.model.0.conv.conv")
    i = 1
    while f"{ENCODER}.{i}.shortcut.conv.conv.bias" in tensors:
        for part in ("block.1", "block.3", "shortcut"):
            yield from tensors.conv(f"{ENCODER}.{i}.{part}.conv.conv", f"enc.model.{i}.{part}.conv.conv")
        yield from tensors.conv(f"{ENCODER}.{i + 2}.conv.conv", f"enc.model.{i + 2}.conv.conv")
        i += 3
    for layer in (0, 1):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            name = f"{i}.lstm.{part}_l{layer}"
            yield f"enc.model.{name}", tensors.take(f"{ENCODER}.{name}")
    yield from tensors.conv(f"{ENCODER}.{i + 2}.conv.conv", f"enc.model.{i + 2}.conv.conv")


def _decoder(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    yield from _plain(tensors, "backbone.embed", "dec.bb.embed", ndim=3)
    for i in POSNET_RESNETS:
        for part, ndim in (("norm1", 1), ("conv1", 3), ("norm2", 1), ("conv2", 3)):
            yield from _plain(tensors, f"backbone.pos_net.{i}.{part}", f"dec.bb.pos_net.{i}.{part}", ndim=ndim)
    for part, ndim in (("norm", 1), ("q", 3), ("k", 3), ("v", 3), ("proj_out", 3)):
        source = f"backbone.pos_net.{POSNET_ATTENTION}.{part}"
        yield from _plain(tensors, source, f"dec.bb.pos_net.{POSNET_ATTENTION}.{part}", ndim=ndim)
    yield from _plain(tensors, f"backbone.pos_net.{POSNET_NORM}", f"dec.bb.pos_net.{POSNET_NORM}", ndim=1)
    yield from _adaptive_norm(tensors, "backbone.norm", "dec.bb.norm")
    i = 0
    while f"backbone.convnext.{i}.dwconv.bias" in tensors:
        source, target = f"backbone.convnext.{i}", f"dec.bb.cnx.{i}"
        yield from _plain(tensors, f"{source}.dwconv", f"{target}.dwconv", ndim=3)
        yield from _adaptive_norm(tensors, f"{source}.norm", f"{target}.norm")
        for part in ("pwconv1", "pwconv2"):
            yield from _plain(tensors, f"{source}.{part}", f"{target}.{part}", ndim=2)
        yield f"{target}.gamma", tensors.take(f"{source}.gamma")
        i += 1
    yield from _plain(tensors, "backbone.final_layer_norm", "dec.bb.fln", ndim=1)
    yield from _plain(tensors, "head.out", "dec.head.out", ndim=2)


def _adaptive_norm(tensors: Tensors, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """The first of the conditions that training had: the one that outetts and the published scripts decode with."""
    if f"{source}.scale.weight" not in tensors:
        yield from _plain(tensors, source, target, ndim=1)
        return
    for part, name in (("scale", "weight"), ("shift", "bias")):
        yield f"{target}.{name}", tensors.take(f"{source}.{part}.weight", ndim=2)[0]


def _facts(tensors: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    size, dim = tensors["vq.vq.layers.0._codebook.embed"].shape
    facts: dict[str, Any] = {"vq_bins": size, "input_channels": dim}
    facts["has_encoder"], facts["has_decoder"] = "enc.model.0.conv.conv.bias" in tensors, "dec.bb.embed.bias" in tensors
    if facts["has_encoder"]:
        rates, i = [], 3
        while f"enc.model.{i - 2}.shortcut.conv.conv.bias" in tensors:
            rates.append(tensors[f"enc.model.{i}.conv.conv.weight"].shape[2] // 2)
            i += 3
        facts["dowmsamples"] = rates[::-1]
        facts["hop_length"] = check_hop(path, rates)
    if facts["has_decoder"]:
        blocks = sum(name.endswith(".gamma") for name in tensors)
        if blocks == 0:
            raise ConversionError("tensor 'backbone.convnext.0.dwconv.bias' is missing", path=path)
        n_fft = tensors["dec.head.out.bias"].size - 2
        facts |= {"dim": tensors["dec.bb.embed.bias"].size, "num_layers": blocks, "n_fft": n_fft}
        facts["intermediate_dim"] = tensors["dec.bb.cnx.0.pwconv1.bias"].size
        hop = facts.setdefault("hop_length", check_hop(path, [n_fft // OVERLAP]))
        if n_fft != OVERLAP * hop:
            raise ConversionError(f"the decoder's FFT of {n_fft} does not fit the encoder's hop of {hop}", path=path)
    return facts


def _settings(source: str | os.PathLike[str], config: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The init_args of a training yaml, flat; empty without one."""
    if config is None:
        path = Path(source)
        beside = sorted(path.parent.glob("*.yaml")) if path.is_file() else []
        if len(beside) != 1:
            return {}
        config = beside[0]
    try:
        content = load_yaml(read_text(config, MOST_YAML))
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror or error}", path=config) from None
    except ValueError as error:
        raise ConversionError(f"not valid YAML: {error}", path=config) from None
    flat: dict[str, Any] = {}
    root = content.get("model") if isinstance(content, dict) else None
    args = root.get("init_args") if isinstance(root, dict) else None
    if not isinstance(args, dict):
        raise ConversionError("has no model.init_args, expected a WavTokenizer training configuration", path=config)
    for part in ("feature_extractor", "backbone", "head"):
        section = args.get(part)
        inner = section.get("init_args") if isinstance(section, dict) else None
        if not isinstance(inner, dict):
            raise ConversionError(f"has no {part}.init_args", path=config)
        flat |= inner
    return flat | {"path": config, "sample_rate": args.get("sample_rate", SAMPLE_RATE)}


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, whose expansion could be of any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def load_yaml(text: str) -> Any:
    """The plain values of a YAML text; ValueError for others."""
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:  # PyYAML's constructors raise almost anything
        raise ValueError(plain(f"{type(error).__name__}: {error}".splitlines()[0])) from None


def _check_settings(settings: dict[str, Any], facts: dict[str, Any]) -> None:
    if not settings:
        return
    path = settings["path"]
    for key, fact in facts.items():
        if settings.get(key, fact) != fact:
            raise ConversionError(f"says {key} is {shown(settings[key])}, but the tensors say {fact}", path=path)
    if settings.get("num_quantizers", 1) != 1:
        raise ConversionError(f"says num_quantizers is {shown(settings['num_quantizers'])}, expected 1", path=path)
    if settings.get("padding", "same") != "same":
        raise ConversionError(f"says padding is {shown(settings['padding'])}, expected 'same'", path=path)
    rate = settings["sample_rate"]
    if not isinstance(rate, int) or not 1000 <= rate <= 400_000:
        raise ConversionError(f"sample rate is {shown(rate)}, expected 1000 to 400000 Hz", path=path)


def _add_keys(writer: gguf.GGUFWriter, facts: dict[str, Any], rate: int) -> None:
    writer.add_uint32("codec.sample_rate", rate)
    writer.add_uint32("codec.hop_size", facts["hop_length"])
    writer.add_uint32("codec.n_q", 1)
    writer.add_uint32("codec.codebook_size", facts["vq_bins"])
    writer.add_uint32("codec.n_fft", facts.get("n_fft", OVERLAP * facts["hop_length"]))
    writer.add_bool("codec.has_encoder", facts["has_encoder"])
    writer.add_bool("codec.has_decoder", facts["has_decoder"])


def _as_llama(tensors: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The decoder under llama.cpp's names and in the shapes that libllama expects."""
    if "dec.bb.embed.bias" not in tensors:
        raise ConversionError("has no decoder, which is all that llama.cpp's files hold", path=path)
    named = {}
    for name, values in tensors.items():
        if name.startswith("enc."):
            continue
        name = llama_name("vq.codebook" if name.startswith("vq.") else name)
        named[name] = values.reshape(-1, 1) if LLAMA_COLUMNS.match(name) else values
    return named


def _add_llama_keys(writer: gguf.GGUFWriter, facts: dict[str, Any]) -> None:
    writer.add_vocab_size(facts["vq_bins"])
    writer.add_context_length(LLAMA_CONTEXT)
    writer.add_features_length(facts["input_channels"])
    writer.add_embedding_length(facts["n_fft"] + 2)
    writer.add_feed_forward_length(facts["intermediate_dim"])
    writer.add_block_count(max(facts["num_layers"], POSNET_NORM + 1))
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-6)
    writer.add_group_norm_eps(1e-6)
    writer.add_group_norm_groups(32)
    writer.add_posnet_embedding_length(facts["dim"])
    writer.add_posnet_block_count(POSNET_NORM + 1)
    writer.add_convnext_embedding_length(facts["dim"])
    writer.add_convnext_block_count(facts["num_layers"])
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("none")
