"""DAC files of any size with seeded random weights, for tests that compare the plugin with itself."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from vocoder_plugin.codecs import dac
from vocoder_plugin.net.plan import ConvSpec, Plan, Signal, SnakeSpec

SIZES = {  # codebooks, rates and sample rates of the published models
    "16khz": dict(sample_rate=16000, n_codebooks=12, rates=(2, 4, 5, 8)),
    "24khz": dict(sample_rate=24000, n_codebooks=32, rates=(2, 4, 5, 8)),
    "44khz": dict(sample_rate=44100, n_codebooks=9, rates=(2, 4, 8, 8)),
}


def write_random_dac(
    path: Path, size: str, *, encoder_dim: int = 8, decoder_dim: int = 256, latent_dim: int = 40
) -> None:
    """A model of that size, narrower. The widths make most convolutions run as F(2,7)."""
    rng = np.random.default_rng(3)
    rates, n_codebooks = SIZES[size]["rates"], SIZES[size]["n_codebooks"]
    config = dac.Config(
        name=size, sample_rate=SIZES[size]["sample_rate"], n_codebooks=n_codebooks, codebook_size=64, codebook_dim=8,
        latent_dim=latent_dim, encoder_dim=encoder_dim, encoder_rates=rates, decoder_dim=decoder_dim,
        decoder_rates=rates[::-1],
    )  # fmt: skip
    plan = Plan()
    dac.decode(plan, config, None)
    dac.encode(plan, config, Signal(None, 1, config.hop_length, config.hop_length, 0))
    writer = gguf.GGUFWriter(path, "dac")
    for key in ("sample_rate", "codebook_size", "latent_dim", "codebook_dim"):
        writer.add_uint32(f"codec.{key}", getattr(config, key))
    writer.add_uint32("codec.n_q", n_codebooks)

    def conv(spec: ConvSpec) -> None:
        fan_in = spec.in_channels * spec.taps
        shape = (spec.out_channels, spec.in_channels, spec.kernel)
        shape = (shape[1], shape[0], shape[2]) if spec.transposed else shape
        writer.add_tensor(f"{spec.name}.weight", (rng.standard_normal(shape) * 0.5 / fan_in**0.5).astype(np.float32))
        writer.add_tensor(f"{spec.name}.bias", rng.normal(0, 0.02, spec.out_channels).astype(np.float32))

    for spec in plan.specs.values():
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
