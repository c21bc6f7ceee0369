"""WavTokenizer's own code, as the ``outetts`` package carries it, with seeded and calibrated random weights.

As in ``oracles.py``: layers run in order on a test input and each gets the gain that gives its output a
chosen spread. Norms have scales and shifts away from 1 and 0, attention is neither uniform nor one-hot,
and the codebook is sampled from what the encoder gives, so that codes vary.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracles import speech_like
from torch import nn

BINS = 4096
# the arguments that the published yaml files give; "tiny" is for fixtures
SIZES: dict[str, dict[str, Any]] = {
    "75": dict(ratios=[8, 5, 4, 2], dim=768, intermediate=2304, layers=12, n_fft=1280, hop=320),
    "40": dict(ratios=[6, 5, 5, 4], dim=768, intermediate=2304, layers=12, n_fft=2400, hop=600),
    "small": dict(
        ratios=[5, 4], dim=64, intermediate=96, layers=2, n_fft=80, hop=20, bins=64, filters=4, codebook_dim=16
    ),
}


def import_wavtokenizer() -> types.SimpleNamespace:
    """The modules ``decoder`` and ``encoder`` of outetts' wav_tokenizer, without torchaudio, scipy and the rest."""
    spec = importlib.util.find_spec("outetts")
    folder = Path(next(iter(spec.submodule_search_locations))) / "wav_tokenizer"

    def stub(name: str, **values: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__dict__.update(values)
        return module

    stubs = {}
    for name in ("torchaudio", "torchaudio.functional", "torchaudio.functional.functional", "torchaudio.transforms"):
        stubs[name] = stub(name, _hz_to_mel=None, _mel_to_hz=None)
    stubs["scipy"] = stub("scipy")
    stubs["huggingface_hub"] = stub("huggingface_hub", hf_hub_download=None)
    stubs = {name: module for name, module in stubs.items() if importlib.util.find_spec(name.split(".")[0]) is None}
    sys.path.insert(0, str(folder))
    sys.modules.update(stubs)
    try:
        from decoder.feature_extractors import EncodecFeatures
        from decoder.heads import ISTFTHead
        from decoder.models import VocosBackbone
        from decoder.pretrained import WavTokenizer
    finally:
        sys.path.remove(str(folder))
        for name in stubs:
            sys.modules.pop(name, None)
    return types.SimpleNamespace(
        EncodecFeatures=EncodecFeatures, ISTFTHead=ISTFTHead, VocosBackbone=VocosBackbone, WavTokenizer=WavTokenizer
    )


def build(size: dict[str, Any]) -> nn.Module:
    """The model as its yaml describes it, with torch's own initial weights."""
    package = import_wavtokenizer()
    torch.manual_seed(0)
    features = package.EncodecFeatures(
        encodec_model="encodec_24khz", bandwidths=[6.6] * 4, train_codebooks=True, num_quantizers=1,
        dowmsamples=size["ratios"], vq_bins=size.get("bins", BINS), vq_kmeans=200,
    )  # fmt: skip
    dim = size.get("codebook_dim", 512)
    if dim != 512:  # the class fixes its own sizes
        encodec = features.encodec
        encodec.encoder = type(encodec.encoder)(
            causal=False, n_residual_layers=1, norm="weight_norm", pad_mode="reflect", lstm=2, dimension=dim,
            channels=1, n_filters=size["filters"], ratios=size["ratios"], true_skip=False,
        )  # fmt: skip
        encodec.quantizer = type(encodec.quantizer)(dimension=dim, n_q=1, bins=size["bins"], kmeans_init=True)
        encodec.decoder = nn.Conv1d(1, 1, 1)  # not used
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its attention
        backbone = package.VocosBackbone(
            input_channels=dim, dim=size["dim"], intermediate_dim=size["intermediate"],
            num_layers=size["layers"], adanorm_num_embeddings=4,
        )  # fmt: skip
    head = package.ISTFTHead(dim=size["dim"], n_fft=size["n_fft"], hop_length=size["hop"], padding="same")
    return package.WavTokenizer(feature_extractor=features, backbone=backbone, head=head).eval()


def _randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lstm." in name:
                p.copy_(normal(p) * 0.06)
            elif ("norm" in name and name.endswith("bias")) or "shift" in name or name == "backbone.pos_net.5.bias":
                p.copy_(normal(p) * 0.2)
            elif "norm" in name or "scale" in name or name == "backbone.pos_net.5.weight":
                p.copy_(torch.exp(normal(p) * 0.3))
            elif name.endswith("gamma"):
                p.copy_(0.3 * torch.exp(normal(p) * 0.3))
            elif name.endswith("bias"):
                p.copy_(normal(p) * 0.05)
            elif name.endswith("weight_g"):
                p.copy_(torch.exp(normal(p) * 0.2))
            else:
                p.copy_(normal(p) * 0.05)


def _calibrate(layers: list[tuple[nn.Module, float]], run: Any) -> None:
    """Give each layer the gain with which its output has the chosen standard deviation, bias apart, in one run."""

    def adjust(layer: nn.Module, target: float) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            bias = layer.bias[:, None] if output.dim() == 3 and isinstance(layer, nn.Conv1d) else layer.bias
            factor = target / max((output - bias).std().item(), 1e-9)
            (layer.weight_g if hasattr(layer, "weight_g") else layer.weight).mul_(factor)
            return (output - bias) * factor + bias

        return layer.register_forward_hook(hook)

    hooks = [adjust(layer, target) for layer, target in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()


@functools.lru_cache(maxsize=1)
def wavtokenizer(name: str = "75") -> nn.Module:
    """A calibrated model of a published size."""
    return calibrated(SIZES[name], seed=11)


def calibrated(size: dict[str, Any], *, seed: int) -> nn.Module:
    model = build(size)
    _randomise(model, seed)
    encoder = model.feature_extractor.encodec.encoder
    audio = torch.from_numpy(np.concatenate([speech_like(24000, 24000, seed=i) * (1 + i) for i in range(3)]))
    convs = [(m, 1.0) for m in encoder.modules() if isinstance(m, nn.Conv1d)]
    _calibrate(convs, lambda: encoder(audio[None, None]))
    _sample_codebook(model, encoder, seed)
    codes = torch.randint(0, size.get("bins", BINS), (1, 1, 120), generator=torch.Generator().manual_seed(seed))
    targets = []
    for path, module in model.backbone.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            residual = path.endswith(("conv2", "proj_out"))
            targets.append((module, 0.4 if residual else 1.6 if path.endswith((".q", ".k")) else 1.0))
    targets.append((model.head.out, 1.0))
    bins = size["n_fft"] // 2 + 1
    with torch.no_grad():
        model.head.out.weight[bins:] *= 2.5  # phases turn all the way round
        falling = torch.linspace(1.0, -4.0, bins)  # log magnitudes fall with frequency
        model.head.out.bias[:bins] = model.head.out.bias[:bins] + falling
    _calibrate(targets, lambda: decode(model, codes.numpy()[0]))
    with torch.no_grad():
        loud = float(np.std(decode(model, codes.numpy()[0])))
        model.head.out.bias[:bins] += float(np.log(0.2 / loud))
    return model


def _sample_codebook(model: nn.Module, encoder: nn.Module, seed: int) -> None:
    """Codebook entries near what the encoder gives for varied sounds."""
    generator = torch.Generator().manual_seed(seed)
    codebook = model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook
    with torch.no_grad():
        latents = []
        for i in range(4):
            wave = torch.from_numpy(speech_like(24000 * 3, 24000, seed=20 + i)) * (0.3 + i)
            noisy = wave + 0.05 * torch.randn(wave.shape, generator=generator)
            latents.append(encoder(noisy[None, None])[0].T)
        found = torch.cat(latents)
        pick = torch.randint(0, len(found), (codebook.embed.shape[0],), generator=generator)
        spread = found.std(0)
        codebook.embed.copy_(found[pick] + 0.5 * spread * torch.randn(codebook.embed.shape, generator=generator))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.inited.fill_(1)
        codebook.cluster_size.fill_(3.0)


def decode(model: nn.Module, codes: np.ndarray) -> np.ndarray:
    """Codes [1, T] -> samples [T * hop]."""
    with torch.no_grad():
        features = model.codes_to_features(torch.from_numpy(np.asarray(codes).astype(np.int64)))
        return model.decode(features, bandwidth_id=torch.tensor([0]))[0].numpy()


def head_output(model: nn.Module, codes: np.ndarray) -> np.ndarray:
    """Codes [1, T] -> the head's log magnitudes and phases [T, n_fft + 2], before the ISTFT."""
    with torch.no_grad():
        features = model.codes_to_features(torch.from_numpy(np.asarray(codes).astype(np.int64)))
        return model.head.out(model.backbone(features, bandwidth_id=torch.tensor([0])))[0].numpy()


def latents(model: nn.Module, samples: np.ndarray) -> np.ndarray:
    """Samples -> what the quantiser sees [512, T]."""
    with torch.no_grad():
        return model.feature_extractor.encodec.encoder(torch.from_numpy(samples)[None, None])[0].numpy()


def encode(model: nn.Module, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [1, T], and for each the relative gap between the two best distances."""
    with torch.no_grad():
        _, codes = model.encode_infer(torch.from_numpy(samples)[None], bandwidth_id=torch.tensor([0]))
        x = torch.from_numpy(latents(model, samples)).T
        table = model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook.embed
        best = torch.cdist(x[None].double(), table[None].double())[0].topk(2, dim=1, largest=False).values
        gaps = ((best[:, 1] - best[:, 0]) / best[:, 0].clamp_min(1e-9)).numpy()
    return codes[:, 0].numpy(), gaps[None]


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """As training leaves it: Lightning's dictionary, with tensors that only training needs."""
    state = dict(model.state_dict())
    state["multiperioddisc.discriminators.0.convs.0.weight_g"] = torch.zeros(4, 1, 1)
    state["melspec_loss.mel_spec.spectrogram.window"] = torch.zeros(16)
    torch.save({"epoch": 3, "global_step": 7, "state_dict": state, "hyper_parameters": {"sample_rate": 24000}}, path)


def save_split(model: nn.Module, folder: Path) -> None:
    """As outetts publishes it: encoder/encoder_model.pt and decoder/decoder_model.pt."""
    for part in ("encoder", "decoder"):
        (folder / part).mkdir(parents=True)
    state = model.state_dict()
    encoder = {name: v for name, v in state.items() if name.startswith("feature_extractor.")}
    torch.save(encoder, folder / "encoder" / "encoder_model.pt")
    table = model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook.embed
    decoder = {name: v for name, v in state.items() if name.startswith(("backbone.", "head."))}
    decoder["codebook_weights"] = table
    torch.save({"model_state_dict": decoder, "codebook_weights": table}, folder / "decoder" / "decoder_model.pt")


YAML = """\
model:
  class_path: decoder.experiment.WavTokenizer
  init_args:
    sample_rate: 24000
    feature_extractor:
      class_path: decoder.feature_extractors.EncodecFeatures
      init_args:
        encodec_model: encodec_24khz
        num_quantizers: 1
        dowmsamples: {ratios}
        vq_bins: {bins}
    backbone:
      class_path: decoder.models.VocosBackbone
      init_args:
        input_channels: {codebook_dim}
        dim: {dim}
        intermediate_dim: {intermediate}
        num_layers: {layers}
        adanorm_num_embeddings: 4
    head:
      class_path: decoder.heads.ISTFTHead
      init_args:
        dim: {dim}
        n_fft: {n_fft}
        hop_length: {hop}
        padding: same
"""


def save_yaml(size: dict[str, Any], path: Path) -> None:
    path.write_text(YAML.format(**{"bins": BINS, "codebook_dim": 512, **size}))
