"""Mimi at full size with seeded random weights, as transformers' and moshi's own models.

Weights are calibrated: layer scales of 0.3 let attention matter, so that a wrong window is seen, and codebooks
are drawn from a model's own latents, so that every entry is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

CODEBOOKS = 32
SCALE = 0.3  # of transformer layers
DECAY = 0.8  # of the spread from one codebook to the next


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Noise with a moving envelope, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    n = int(seconds * 24000)
    noise = np.convolve(rng.standard_normal(n), np.hanning(12), "same")
    return (0.1 * noise * (1 + np.sin(np.arange(n) / 4000.0)) / 2).astype(np.float32)


@torch.no_grad()
def transformers_mimi() -> Any:
    """transformers' MimiModel with 32 codebooks of 2048."""
    import transformers

    torch.manual_seed(7)
    torch.set_num_threads(2)
    model = transformers.MimiModel(transformers.MimiConfig(num_quantizers=CODEBOOKS)).eval()
    rng = np.random.default_rng(7)
    for name, values in model.named_parameters():
        if name.endswith("scale"):
            values.fill_(SCALE)
        elif "norm" in name:
            values.add_(torch.from_numpy(rng.normal(0, 0.1, values.shape).astype(np.float32)))
    latents = model.encoder(torch.from_numpy(speech_like(20, 1))[None, None]).latents[0]
    for kind in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        projected = kind.input_proj(latents[None])[0].T
        spread = projected.std(0).numpy()
        for q, layer in enumerate(kind.layers):
            entries = rng.normal(0, 1, (2048, 256)) * spread * DECAY**q + (projected.mean(0).numpy() if q == 0 else 0)
            layer.codebook.embed_sum.copy_(torch.from_numpy(entries.astype(np.float32)))
            layer.codebook.cluster_usage.fill_(1.0)
    return model


@torch.no_grad()
def moshi_mimi(codebooks: int = 8) -> Any:
    """moshi's own model."""
    from moshi.models import loaders

    torch.manual_seed(8)
    model = loaders.get_mimi(None, device="cpu", num_codebooks=codebooks).eval()
    for name, values in model.state_dict().items():
        if "layer_scale" in name:
            values.fill_(SCALE)
        elif name.endswith(("embedding_sum", "cluster_usage")):
            values.copy_(torch.ones_like(values) if values.ndim == 1 else torch.randn(values.shape) * 0.3)
    for module in model.modules():  # the codebooks that moshi derived from the sums before
        if hasattr(module, "_embedding"):
            module._embedding = None
    return model


def save_moshi(model: Any, path: Any) -> None:
    import safetensors.torch

    weights = {name: values.contiguous() for name, values in model.state_dict().items()}
    safetensors.torch.save_file(weights, path)
