"""The reference packages with seeded random weights at full size, as oracles.

Random weights prove little unless signals stay realistic at every layer, so each model is
calibrated: its layers run in order on a test input, and each convolution's gain is set so that its
output has a chosen spread. Gains differ from the norm of v, alphas and biases are non-trivial.
"""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

DAC_SIZES: dict[str, dict] = {  # published models, and a small one: the arguments of descript-audio-codec's DAC
    "outetts": dict(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2], n_codebooks=2, sample_rate=24000),
    "24khz": dict(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2], n_codebooks=32, sample_rate=24000),
    "16khz": dict(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2], n_codebooks=12, sample_rate=16000),
    "44khz": dict(encoder_rates=[2, 4, 8, 8], decoder_rates=[8, 8, 4, 2], n_codebooks=9, sample_rate=44100),
    "small": dict(
        encoder_dim=4, latent_dim=48, decoder_dim=32, encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2],
        n_codebooks=2, sample_rate=24000,
    ),
}  # fmt: skip
PUBLISHED = [name for name in DAC_SIZES if name != "small"]


def import_dac() -> types.ModuleType:
    """descript-audio-codec without audiotools and argbind, which it needs only for training and its command line."""
    if "dac" not in sys.modules:
        audiotools, ml, argbind = (types.ModuleType(name) for name in ("audiotools", "audiotools.ml", "argbind"))

        class BaseModel(nn.Module):
            INTERN: ClassVar[list[str]] = []
            EXTERN: ClassVar[list[str]] = []

            @property
            def device(self) -> torch.device:
                return next(self.parameters()).device

        ml.BaseModel, ml.Accelerator = BaseModel, object
        audiotools.ml, audiotools.AudioSignal, audiotools.STFTParams = ml, object, object
        argbind.bind = lambda *_args, **_kwargs: lambda function: function
        sys.modules.update({"audiotools": audiotools, "audiotools.ml": ml, "argbind": argbind})
    import dac

    return dac


def _randomise(model: nn.Module, seed: int) -> None:
    """Trained-like parameters before calibration."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) * std

    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("alpha"):
                parameter.copy_(torch.exp(normal(parameter, 0.5)))
            elif name.endswith("bias"):
                parameter.copy_(normal(parameter, 0.02))
            elif name.endswith("codebook.weight"):
                parameter.copy_(normal(parameter, 1.0))
            elif name.endswith(("weight_v", "weight")):
                parameter.copy_(normal(parameter, 0.02) * torch.exp(normal(parameter[:, :1, :1], 0.2)))
            elif name.endswith("weight_g"):
                parameter.copy_(torch.exp(normal(parameter, 0.2)))


def _calibrate(layers: list[tuple[str, nn.Module, float]], run) -> None:
    """Set each layer's gain so that its output has the chosen standard deviation, in one run of the model."""

    def adjust(layer: nn.Module, target: float):
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            factor = target / max(output.std().item(), 1e-9)
            gain = layer.weight_g if hasattr(layer, "weight_g") else layer.weight
            gain.mul_(factor)
            bias = layer.bias[:, None]
            return (output - bias) * factor + bias

        return layer.register_forward_hook(hook)

    hooks = [adjust(layer, target) for _, layer, target in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()


def _targets(model: nn.Module, residual_suffixes: tuple[str, ...], last: str) -> list[tuple[str, nn.Module, float]]:
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            target = 0.3 if name.endswith(residual_suffixes) or name == last else 1.0
            layers.append((name, module, target))
    return layers


def _test_codes(n_codebooks: int, size: int, frames: int) -> torch.Tensor:
    return torch.randint(0, size, (1, n_codebooks, frames), generator=torch.Generator().manual_seed(1))


def speech_like(n: int, rate: int, seed: int = 0) -> np.ndarray:
    """A deterministic test signal: gliding harmonics under a syllable-like envelope, and a little noise."""
    t = np.arange(n) / rate
    rng = np.random.default_rng(seed)
    pitch = 120 * np.exp(0.3 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voiced = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = np.clip(np.sin(2 * np.pi * 3 * t), 0, None) ** 0.5
    return (0.2 * voiced * envelope + 0.01 * rng.standard_normal(n)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def descript_dac(size: str) -> nn.Module:
    """descript-audio-codec's DAC of a published size, calibrated."""
    torch.manual_seed(0)
    model = import_dac().DAC(**DAC_SIZES[size]).eval()
    _randomise(model, seed=7)
    residual = tuple(f"block.{k}.block.3" for k in (0, 1, 2, 3, 4))
    layers = _targets(model, residual, f"decoder.model.{len(model.decoder_rates) + 2}")
    by_part = {part: [e for e in layers if e[0].startswith(part)] for part in ("encoder", "quantizer", "decoder")}
    audio = torch.from_numpy(speech_like(model.hop_length * 20, model.sample_rate))[None, None]
    codes = _test_codes(model.n_codebooks, 1024, 12)
    _calibrate(by_part["encoder"], lambda: model.encoder(audio))
    _calibrate(by_part["quantizer"], lambda: model.quantizer(model.encoder(audio)))
    _calibrate(by_part["decoder"], lambda: model.decode(model.quantizer.from_codes(codes)[0]))
    return model


@functools.lru_cache(maxsize=1)
def transformers_dac(size: str) -> nn.Module:
    """transformers' DacModel of a published size, calibrated (its weights are folded)."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    arguments = DAC_SIZES[size]
    config = DacConfig(
        encoder_hidden_size=64,
        downsampling_ratios=arguments["encoder_rates"],
        decoder_hidden_size=1536,
        n_codebooks=arguments["n_codebooks"],
        codebook_size=1024,
        codebook_dim=8,
        sampling_rate=arguments["sample_rate"],
    )
    model = DacModel(config).eval()
    _randomise(model, seed=8)
    layers = _targets(model, tuple(f"res_unit{k}.conv2" for k in (1, 2, 3)), "decoder.conv2")
    hop = int(np.prod(arguments["encoder_rates"]))
    audio = torch.from_numpy(speech_like(hop * 20, config.sampling_rate))[None, None]
    codes = _test_codes(config.n_codebooks, 1024, 12)
    _calibrate([e for e in layers if e[0].startswith("encoder")], lambda: model.encoder(audio))
    _calibrate([e for e in layers if e[0].startswith("quantizer")], lambda: model.quantizer(model.encoder(audio)))
    _calibrate([e for e in layers if e[0].startswith("decoder")], lambda: model.decode(audio_codes=codes))
    return model


def save_descript(model: nn.Module, size: str, path: Path) -> None:
    """In the package's own format (audiotools' BaseModel.save, unpackaged)."""
    kwargs = {"encoder_dim": 64, "latent_dim": None, "decoder_dim": 1536, "codebook_size": 1024, "codebook_dim": 8,
              "quantizer_dropout": False, **DAC_SIZES[size]}  # fmt: skip
    torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, path)


def descript_decode(model: nn.Module, codes: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        z = model.quantizer.from_codes(torch.from_numpy(codes.astype(np.int64))[None])[0]
        return model.decode(z)[0, 0].numpy()


def descript_latents(model: nn.Module, samples: np.ndarray) -> np.ndarray:
    """Before quantisation, [T, channels]."""
    with torch.no_grad():
        audio = model.preprocess(torch.from_numpy(samples)[None, None], model.sample_rate)
        return model.encoder(audio)[0].T.numpy()


def descript_encode(model: nn.Module, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [K, T], and for each the relative gap between the reference's two best distances."""
    gaps = []
    with torch.no_grad():
        audio = model.preprocess(torch.from_numpy(samples)[None, None], model.sample_rate)
        residual, codes = model.encoder(audio), []
        for quantizer in model.quantizer.quantizers:
            z = quantizer.in_proj(residual)
            e = nn.functional.normalize(z[0].T)
            table = nn.functional.normalize(quantizer.codebook.weight)
            distances = (e**2).sum(1, keepdim=True) - 2 * e @ table.T + (table**2).sum(1)[None]
            best = distances.topk(2, dim=1, largest=False).values
            gaps.append(((best[:, 1] - best[:, 0]) / best[:, 0].clamp_min(1e-9)).numpy())
            codes.append(distances.argmin(1).numpy())
            residual = residual - quantizer(residual)[0]
        reference = model.encode(audio)[1][0].numpy()
    assert (np.array(codes) == reference).mean() > 0.999
    return reference, np.array(gaps)
