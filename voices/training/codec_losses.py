"""How far a decoded clip is from the original: spectra in several resolutions, whatever the phases are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

RESOLUTIONS = {2048: 100, 1024: 80, 512: 40, 256: 20}  # window in samples: bands of the mel scale
FLOOR = 1e-3


class SpectralLoss(nn.Module):
    """9 log-mel + 6 (log magnitude + spectral convergence), at the resolutions asked for."""

    def __init__(self, sample_rate: int = 24000) -> None:
        super().__init__()
        for n, bands in RESOLUTIONS.items():
            self.register_buffer(f"window_{n}", torch.hann_window(n), persistent=False)
            self.register_buffer(f"mel_{n}", mel_filters(n, bands, sample_rate), persistent=False)

    def forward(self, found: Tensor, wanted: Tensor, resolutions: list[int]) -> Tensor:
        return sum(self._at(found, wanted, n) for n in resolutions) / len(resolutions)

    def _at(self, found: Tensor, wanted: Tensor, n: int) -> Tensor:
        mel = getattr(self, f"mel_{n}")
        a, b = self.magnitudes(found, n), self.magnitudes(wanted, n)
        log_mel = ((a @ mel + FLOOR).log() - (b @ mel + FLOOR).log()).abs().mean()
        log_magnitude = ((a + FLOOR).log() - (b + FLOOR).log()).abs().mean()
        convergence = (a - b).norm() / b.norm().clamp(min=1e-3)
        return 9 * log_mel + 6 * (log_magnitude + convergence)

    def magnitudes(self, samples: Tensor, n: int) -> Tensor:
        """[B, N] -> [B, frames, n / 2 + 1], a frame every quarter window; scaled so that a full sine is about n^0.5."""
        hop = n // 4
        pieces = samples[:, : samples.shape[1] // hop * hop].unflatten(1, (-1, hop))  # [B, P, hop]
        count = pieces.shape[1] - 3
        frames = torch.cat([pieces[:, i : i + count] for i in range(4)], dim=-1) * getattr(self, f"window_{n}")
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        return (spectrum.square().sum(-1) + 1e-8).sqrt() * (2 / math.sqrt(n))


def mel_filters(n_fft: int, bands: int, sample_rate: int) -> Tensor:
    """Triangles over the mel scale, [n_fft / 2 + 1, bands], each of sum 1."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (torch.linspace(mel(30), mel(sample_rate / 2), bands + 2) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    nearest = (bins - edges[1:-1]).abs().argmin(0)  # narrow bands keep at least the nearest bin
    filters[nearest, torch.arange(bands)] = filters[nearest, torch.arange(bands)].clamp(min=1e-3)
    return filters / filters.sum(0)
