#!/usr/bin/env python3
"""The trained codec as a WavTokenizer checkpoint, and as a GGUF file: ``export_codec.py CODEC TARGET.gguf``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from checkpoints import load
from codec_model import Codec, CodecSize
from seanet_model import SeaNet

ENCODER = "feature_extractor.encodec.encoder"
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codec", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", default="f16", choices=("f32", "f16", "q8_0"))
    options = parser.parse_args()
    checkpoint = options.codec / "wavtokenizer.ckpt"
    torch.save({"state_dict": state_dict(options.codec)}, checkpoint)
    from vocoder_plugin.converters.wavtokenizer import convert

    convert(checkpoint, options.target, type=options.type, force=True)


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    codec = Codec(CodecSize())
    load(folder / "codec.pt", {}, codec=codec)
    tensors = {f"backbone.{name}": values for name, values in codec.backbone.state_dict().items()}
    tensors |= {f"head.{name}": values for name, values in codec.head.state_dict().items()}
    tensors[CODEBOOK] = codec.codebook.embed
    if (folder / "encoder.pt").exists():
        net = SeaNet(codec.size.code_dim)
        load(folder / "encoder.pt", {}, net=net)
        tensors |= {f"{ENCODER}.{name}": values for name, values in net.state_dict().items()}
    return {name: values.detach().contiguous() for name, values in tensors.items()}


if __name__ == "__main__":
    main()
