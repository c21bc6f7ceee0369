"""WavTokenizer's encoder (EnCodec's SEANet with two LSTM layers) in torch, with its checkpoint's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

RATES = (3, 5, 5, 8)  # from the samples on: a frame is their product, 600 samples
FILTERS = 8


class ReflectConv(nn.Module):
    """A convolution whose ends mirror the signal, as EnCodec pads; ``x`` is [B, C, N]."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = nn.Conv1d(channels, out, kernel, stride)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        total, extra = self.kernel - self.stride, -x.shape[-1] % self.stride
        return self.conv.conv(functional.pad(x, (total - total // 2, total // 2 + extra), mode="reflect"))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.ELU(), ReflectConv(channels, channels // 2, 3), nn.ELU(), ReflectConv(channels // 2, channels, 1))
        )
        self.shortcut = ReflectConv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class Memory(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(2, 0, 1)  # [T, B, C]
        return (self.lstm(rows)[0] + rows).permute(1, 2, 0)


class SeaNet(nn.Module):
    """Samples [B, N] to latents [B, T, code_dim]."""

    def __init__(self, code_dim: int = 32, *, filters: int = FILTERS, rates: tuple[int, ...] = RATES) -> None:
        super().__init__()
        layers: list[nn.Module] = [ReflectConv(1, filters, 7)]
        channels = filters
        for rate in rates:
            layers += [Residual(channels), nn.ELU(), ReflectConv(channels, 2 * channels, 2 * rate, rate)]
            channels *= 2
        layers += [Memory(channels), nn.ELU(), ReflectConv(channels, code_dim, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, samples: Tensor) -> Tensor:
        return self.model(samples[:, None]).transpose(1, 2)

    @torch.no_grad()
    def calibrate(self, samples: Tensor) -> None:
        """Scale each convolution's weights so that its output on real speech has deviation 1.

        Without it the signal dies out on its way down and the fit does not begin.
        """
        for layer in [layer for layer in self.modules() if isinstance(layer, nn.Conv1d)]:
            gains = []
            handle = layer.register_forward_hook(lambda _, __, output, gains=gains: gains.append(output.std()))
            self(samples)
            handle.remove()
            layer.weight.div_(gains[0].clamp(min=1e-6))
            layer.bias.zero_()
