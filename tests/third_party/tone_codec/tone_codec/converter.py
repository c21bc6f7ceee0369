"""Tone's checkpoints to GGUF."""

from __future__ import annotations

import os

import gguf

from vocoder_plugin.converters.checkpoint import Tensors, load_checkpoint
from vocoder_plugin.converters.gguf_output import TYPES, Progress, atomic_output, check_choice, write_tensors


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    type: str = "f16",
    progress: Progress | None = None,
    force: bool = False,
    sample_rate: int = 8000,
) -> None:
    """Convert a checkpoint; the target appears only when it is complete and can be loaded."""
    check_choice("type", type, TYPES)
    with atomic_output(target, force=force) as partial:
        checkpoint = load_checkpoint(source)
        tensors = Tensors(checkpoint)
        named = {"codebook": tensors.take("quantizer.codebook.weight", ndim=2)}
        named.update(tensors.conv("decoder.mix", "dec.mix"))
        named["dec.snake.alpha"] = tensors.take("decoder.snake.alpha", ndim=1)
        named.update(tensors.conv("decoder.up", "dec.up"))
        if "encoder.down.bias" in tensors:
            named.update(tensors.conv("encoder.down", "enc.down"))
        tensors.finish()
        writer = gguf.GGUFWriter(partial, "tone")
        writer.add_name("Tone")
        writer.add_uint32("codec.sample_rate", sample_rate)
        write_tensors(
            writer, named, lambda _name, values: type if values.ndim == 3 else "f32", progress, source=checkpoint.path
        )
