"""DAC files of any size with seeded random weights, for tests that compare the plugin with itself."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np

from vocoder_plugin.codecs.dac import Dac
from vocoder_plugin.net.plan import Plan
from vocoder_plugin.net.weights import ConvSpec, SnakeSpec
from vocoder_plugin.streams.format import Format

SIZES = {  # codebooks, rates and sample rates of the published models
    "16khz": dict(sample_rate=16000, n_codebooks=12, rates=(2, 4, 5, 8)),
    "24khz": dict(sample_rate=24000, n_codebooks=32, rates=(2, 4, 5, 8)),
    "44khz": dict(sample_rate=44100, n_codebooks=9, rates=(2, 4, 8, 8)),
}


def dac_of(*, sample_rate: int = 24000, codebook_size: int = 1024, **sizes) -> Dac:
    """A model of these sizes without a file, by default OuteTTS's."""
    model = object.__new__(Dac)
    vars(model).update(
        n_codebooks=2, codebook_dim=8, latent_dim=1024, encoder_dim=64, encoder_rates=(2, 4, 5, 8),
        decoder_dim=1536, decoder_rates=(8, 5, 4, 2), has_encoder=True, has_decoder=True,
    )  # fmt: skip
    vars(model).update(sizes)
    rows = tuple(range(model.n_codebooks))
    model.format = Format("", sample_rate, math.prod(model.decoder_rates), rows, codebook_size, len(rows))
    return model


def write_random_dac(
    path: Path, size: str, *, encoder_dim: int = 8, decoder_dim: int = 256, latent_dim: int = 40
) -> None:
    """A model of that size, narrower. The widths make most convolutions run as F(2,7)."""
    rng = np.random.default_rng(3)
    rates, n_codebooks = SIZES[size]["rates"], SIZES[size]["n_codebooks"]
    model = dac_of(
        sample_rate=SIZES[size]["sample_rate"], n_codebooks=n_codebooks, codebook_size=64, latent_dim=latent_dim,
        encoder_dim=encoder_dim, encoder_rates=rates, decoder_dim=decoder_dim, decoder_rates=rates[::-1],
    )  # fmt: skip
    specs = {}
    for heads in model.passes().values():
        specs |= Plan.of(heads.values(), rings=False, most_frames=1).specs
    writer = gguf.GGUFWriter(path, "dac")
    for key, value in (("sample_rate", model.format.sample_rate), ("codebook_size", 64), ("codebook_dim", 8)):
        writer.add_uint32(f"codec.{key}", value)
    writer.add_uint32("codec.latent_dim", latent_dim)
    writer.add_uint32("codec.n_q", n_codebooks)

    def conv(spec: ConvSpec) -> None:
        fan_in = spec.in_channels * spec.taps
        shape = (spec.out_channels, spec.in_channels, spec.kernel)
        shape = (shape[1], shape[0], shape[2]) if spec.transposed else shape
        writer.add_tensor(f"{spec.name}.weight", (rng.standard_normal(shape) * 0.5 / fan_in**0.5).astype(np.float32))
        writer.add_tensor(f"{spec.name}.bias", rng.normal(0, 0.02, spec.out_channels).astype(np.float32))

    for spec in specs.values():
        if isinstance(spec, ConvSpec) and not spec.name.startswith("vq."):
            conv(spec)
        elif isinstance(spec, SnakeSpec):
            writer.add_tensor(
                f"{spec.name}.alpha", np.exp(rng.normal(0, 0.5, (1, spec.channels, 1))).astype(np.float32)
            )
    for q in range(n_codebooks):
        writer.add_tensor(f"vq.q{q}.codebook.weight", rng.standard_normal((64, 8)).astype(np.float32))
        conv(ConvSpec(f"vq.q{q}.in_proj", latent_dim, 8, 1))
        conv(ConvSpec(f"vq.q{q}.out_proj", 8, latent_dim, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
