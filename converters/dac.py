"""Descript Audio Codec checkpoints to GGUF, in codec.cpp's names.

Reads descript-audio-codec's ``.pth`` and transformers' ``DacModel`` safetensors. Convolution
weights are written in torch's layout [out, in, kernel], except with ``q8_0``, whose blocks of 32
need the output channels innermost; both layouts are in circulation and both are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from vocoder_plugin.errors import ConversionError

from .checkpoint import Checkpoint, Tensors, load_checkpoint
from .gguf_output import TYPES, Progress, atomic_output, check_choice, check_hop, write_tensors
from .wording import listed, shown

RESIDUAL_UNITS = (1, 2, 3)
SAMPLE_RATES = range(1000, 400_001)


@dataclass(frozen=True)
class Naming:
    """Where a checkpoint keeps what the file calls otherwise.

    ``{i}`` is the block from 1, ``{i0}`` from 0; ``{k}`` the residual unit from 1, ``{k0}`` from 0, ``{k1}`` from 2;
    ``{n1}`` and ``{n2}`` are 1 and 2 more than the number of blocks.
    """

    first: str
    block: str
    snake: str
    resample: str
    unit: str
    unit_parts: tuple[str, str, str, str]  # snake, convolution, snake, convolution
    last_snake: str
    last: str


DESCRIPT = {
    "enc": Naming(
        "encoder.block.0", "encoder.block.{i}.block", "3", "4", "{k0}", ("block.0", "block.1", "block.2", "block.3"),
        "encoder.block.{n1}", "encoder.block.{n2}",
    ),
    "dec": Naming(
        "decoder.model.0", "decoder.model.{i}.block", "0", "1", "{k1}", ("block.0", "block.1", "block.2", "block.3"),
        "decoder.model.{n1}", "decoder.model.{n2}",
    ),
}  # fmt: skip
TRANSFORMERS = {
    side: Naming(
        f"{side}oder.conv1", f"{side}oder.block.{{i0}}", "snake1", resample, "res_unit{k}",
        ("snake1", "conv1", "snake2", "conv2"), f"{side}oder.snake1", f"{side}oder.conv2",
    )
    for side, resample in (("enc", "conv1"), ("dec", "conv_t1"))
}  # fmt: skip
KWARGS = {  # of descript's DAC class; what they say is checked against the tensors
    "encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "decoder_rates", "n_codebooks", "codebook_size",
    "codebook_dim", "quantizer_dropout", "sample_rate",
}  # fmt: skip


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    type: str = "f16",
    sample_rate: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert a checkpoint; the target appears only when it is complete.

    Parameters
    ----------
    source : path-like
        A ``.pth`` file, a ``.safetensors`` file, or a Hugging Face folder.
    target : path-like
    type : {"f32", "f16", "bf16", "q8_0"}
        Of convolution weights; biases, Snake's alphas and codebooks stay F32.
    sample_rate : int, optional
        In Hz, where the checkpoint does not say.
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
        tensors = dict(_named_tensors(Tensors(checkpoint)))
        writer = gguf.GGUFWriter(partial, "dac")
        _add_metadata(writer, checkpoint, tensors, sample_rate)
        if type == "q8_0":
            tensors = {name: values.T if _is_conv(name, values) else values for name, values in tensors.items()}
        write_tensors(
            writer, tensors, lambda name, values: type if _is_conv(name, values) else "f32", progress,
            source=checkpoint.path,
        )  # fmt: skip


def _is_conv(name: str, values: np.ndarray) -> bool:
    return values.ndim == 3 and name.endswith(".weight")


def _named_tensors(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors under the file's names, in torch's layout; fails if any is missing or left over."""
    naming = DESCRIPT if "decoder.model.0.bias" in tensors or "encoder.block.0.bias" in tensors else TRANSFORMERS
    sides = [side for side in ("enc", "dec") if naming[side].first + ".bias" in tensors]
    if not sides:
        raise ConversionError("tensors of neither an encoder nor a decoder of DAC", path=tensors.path)
    for side in sides:
        yield from _side(tensors, side, naming[side])
    q = 0
    while f"quantizer.quantizers.{q}.codebook.weight" in tensors:
        source = f"quantizer.quantizers.{q}"
        yield f"vq.q{q}.codebook.weight", tensors.take(f"{source}.codebook.weight", ndim=2)
        for part in ("in_proj", "out_proj"):
            yield from tensors.conv(f"{source}.{part}", f"vq.q{q}.{part}")
        q += 1
    if q == 0:
        raise ConversionError("tensor 'quantizer.quantizers.0.codebook.weight' is missing", path=tensors.path)
    tensors.finish()


def _side(tensors: Tensors, side: str, naming: Naming) -> Iterator[tuple[str, np.ndarray]]:
    stem = "enc.block" if side == "enc" else "dec.model"
    resample = "conv1" if side == "enc" else "conv_t1"
    yield from tensors.conv(naming.first, f"{stem}.0")
    n = 0
    while f"{naming.block.format(i=n + 1, i0=n)}.{naming.resample}.bias" in tensors:
        n += 1
        source, target = naming.block.format(i=n, i0=n - 1), f"{stem}.{n}.block"
        yield from _snake(tensors, f"{source}.{naming.snake}", f"{target}.snake1")
        yield from tensors.conv(f"{source}.{naming.resample}", f"{target}.{resample}")
        for k in RESIDUAL_UNITS:
            unit, named = f"{source}.{naming.unit.format(k=k, k0=k - 1, k1=k + 1)}", f"{target}.res_unit{k}"
            snake1, conv1, snake2, conv2 = naming.unit_parts
            yield from _snake(tensors, f"{unit}.{snake1}", f"{named}.snake1")
            yield from tensors.conv(f"{unit}.{conv1}", f"{named}.conv1")
            yield from _snake(tensors, f"{unit}.{snake2}", f"{named}.snake2")
            yield from tensors.conv(f"{unit}.{conv2}", f"{named}.conv2")
    yield from _snake(tensors, naming.last_snake.format(n1=n + 1), f"{stem}.{n + 1}")
    yield from tensors.conv(naming.last.format(n2=n + 2), f"{stem}.{n + 2}")


def _snake(tensors: Tensors, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{target}.alpha", tensors.take(f"{source}.alpha")


def _add_metadata(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, tensors: dict[str, np.ndarray], sample_rate: int | None
) -> None:
    """Keys from the tensors; what the checkpoint says of itself must agree, but for the sample rate."""
    facts = _facts(tensors)
    kwargs = _kwargs(checkpoint)
    for key, value in kwargs.items():
        fact = facts.get(key)
        if value is not None and fact and not _agrees(value, fact):  # no fact: the side that has it is absent
            raise ConversionError(f"says {key} is {shown(value)}, but its tensors say {fact}", path=checkpoint.path)
    told = (sample_rate, kwargs.get("sample_rate"), checkpoint.metadata.get("sampling_rate"))
    rate = next((rate for rate in told if rate is not None), None)
    if rate is None:
        raise ConversionError("does not say its sample rate; give it with --sample-rate", path=checkpoint.path)
    if not isinstance(rate, int) or rate not in SAMPLE_RATES:
        raise ConversionError(f"sample rate is {shown(rate)}, expected 1000 to 400000 Hz", path=checkpoint.path)
    writer.add_name(f"DAC {rate / 1000:g} kHz")
    writer.add_uint32("codec.sample_rate", rate)
    writer.add_uint32("codec.hop_size", check_hop(checkpoint.path, facts["decoder_rates"] or facts["encoder_rates"]))
    writer.add_uint32("codec.n_q", facts["n_codebooks"])
    writer.add_uint32("codec.codebook_size", facts["codebook_size"])
    writer.add_uint32("codec.latent_dim", facts["latent_dim"])
    writer.add_uint32("codec.codebook_dim", facts["codebook_dim"])
    writer.add_bool("codec.has_encoder", bool(facts["encoder_rates"]))
    writer.add_bool("codec.has_decoder", bool(facts["decoder_rates"]))


def _agrees(value: Any, fact: Any) -> bool:
    if isinstance(fact, list):
        return isinstance(value, (list, tuple)) and len(value) == len(fact) and all(map(_agrees, value, fact))
    return isinstance(value, int) and value == fact


def _facts(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    def rates(pattern: str) -> list[int]:
        kernels: list[int] = []
        while pattern.format(len(kernels) + 1) in tensors:
            kernels.append(tensors[pattern.format(len(kernels) + 1)].shape[2])
        return [kernel // 2 for kernel in kernels]

    size, dim = tensors["vq.q0.codebook.weight"].shape
    facts = {
        "encoder_rates": rates("enc.block.{}.block.conv1.weight"),
        "decoder_rates": rates("dec.model.{}.block.conv_t1.weight"),
        "n_codebooks": sum(name.endswith(".codebook.weight") for name in tensors),
        "codebook_size": size,
        "codebook_dim": dim,
        "latent_dim": tensors["vq.q0.out_proj.weight"].shape[0],
    }
    for side, name in (("encoder_dim", "enc.block.0.bias"), ("decoder_dim", "dec.model.0.bias")):
        if name in tensors:
            facts[side] = tensors[name].size
    return facts


def _kwargs(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments that descript's package stores; transformers' config is known to misstate them."""
    metadata = checkpoint.metadata.get("metadata")
    kwargs = metadata.get("kwargs", {}) if isinstance(metadata, dict) else {}
    if not isinstance(kwargs, dict):
        raise ConversionError(
            f"its metadata.kwargs is a {type(kwargs).__name__}, expected a dictionary", path=checkpoint.path
        )
    unknown = set(map(str, kwargs)) - KWARGS
    if unknown:
        raise ConversionError(f"has model arguments that DAC does not know: {listed(unknown)}", path=checkpoint.path)
    return kwargs
