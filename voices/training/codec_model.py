"""WavTokenizer's decoder and codebook in torch, and the encoder that stands in while they are trained.

Parameters have the names and the shapes of WavTokenizer's checkpoints. Signals are [B, T, C], so that convolutions are
products of matrices: on a CPU that is faster than torch's own, forward and above all backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class CodecSize:
    dim: int = 256
    inner: int = 768
    blocks: int = 8
    hop: int = 600
    codes: int = 2048
    code_dim: int = 32
    input_channels: int = 514  # of the teacher's features and curves, twice a frame
    groups: int = 32


class Conv(nn.Module):
    """A convolution with zeros around the signal. Its weights are [out, in, kernel] as in torch.nn.Conv1d."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        bound = (channels * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(out, channels, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        kernel, length = self.weight.shape[2], x.shape[1]
        if kernel > 1:
            padded = functional.pad(x, (0, 0, kernel // 2, kernel // 2))
            x = torch.cat([padded[:, k : k + length] for k in range(kernel)], dim=-1)  # [B, T, kernel * in]
        return functional.linear(x, self.weight.transpose(1, 2).flatten(1), self.bias)


class DepthwiseConv(nn.Module):
    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__()
        bound = kernel**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        kernel, length = self.weight.shape[2], x.shape[1]
        padded = functional.pad(x, (0, 0, kernel // 2, kernel // 2))
        total = self.bias
        for k in range(kernel):
            total = total + padded[:, k : k + length] * self.weight[:, 0, k]
        return total


class ClipNorm(nn.Module):
    """Group norm over the whole clip."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.float().unflatten(-1, (self.groups, -1))  # [B, T, groups, C / groups]
        variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0, keepdim=True)
        normal = ((grouped - mean) * (variance + 1e-6).rsqrt()).flatten(-2)
        return normal * self.weight + self.bias


class ResNet(nn.Module):
    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = ClipNorm(dim, groups), Conv(dim, dim, 3)
        self.norm2, self.conv2 = ClipNorm(dim, groups), Conv(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm = ClipNorm(dim, groups)
        self.q, self.k, self.v, self.proj_out = (Conv(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).unsqueeze(1) for part in (self.q, self.k, self.v))  # [B, 1, T, C]
        return x + self.proj_out(functional.scaled_dot_product_attention(q, k, v).squeeze(1))


class ConvNeXt(nn.Module):
    def __init__(self, dim: int, inner: int, scale: float) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.pwconv2(functional.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + self.gamma * h


class Backbone(nn.Module):
    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        dim, groups = size.dim, size.groups
        self.embed = Conv(size.code_dim, dim, 7)
        self.pos_net = nn.Sequential(
            *(ResNet(dim, groups), ResNet(dim, groups), Attention(dim, groups)),
            *(ResNet(dim, groups), ResNet(dim, groups), ClipNorm(dim, groups)),
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(ConvNeXt(dim, size.inner, 1 / size.blocks) for _ in range(size.blocks))
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pos_net(self.embed(x)))
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x)


class Head(nn.Module):
    """Log magnitudes and phases of windows of four hops, and their inverse transform."""

    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        self.hop, self.n_fft = size.hop, 4 * size.hop
        self.out = nn.Linear(size.dim, self.n_fft + 2)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> samples [B, T * hop]."""
        magnitude, phase = self.out(x).float().chunk(2, dim=-1)  # [B, T, n_fft / 2 + 1]
        spectrum = torch.polar(magnitude.exp().clamp(max=100.0), phase)
        frames = torch.fft.irfft(spectrum, n=self.n_fft) * self.window  # [B, T, n_fft]
        samples, envelope = self._overlapped(frames), self._overlapped((self.window**2).expand(1, x.shape[1], -1))
        edge = (self.n_fft - self.hop) // 2
        return samples[:, edge : edge + x.shape[1] * self.hop] / envelope[:, edge : edge + x.shape[1] * self.hop]

    def _overlapped(self, frames: Tensor) -> Tensor:
        pieces = frames.unflatten(-1, (4, self.hop)).unbind(2)
        return sum(functional.pad(piece, (0, 0, i, 3 - i)) for i, piece in enumerate(pieces)).flatten(1)


class Codebook(nn.Module):
    """Nearest neighbours, learned as moving averages; entries that nobody uses begin again at somebody's place."""

    def __init__(self, size: CodecSize, *, decay: float = 0.995, rare: float = 0.03) -> None:
        super().__init__()
        self.decay, self.rare = decay, rare
        self.register_buffer("embed", torch.zeros(size.codes, size.code_dim))
        self.register_buffer("count", torch.ones(size.codes))
        self.register_buffer("total", torch.zeros(size.codes, size.code_dim))

    def nearest(self, z: Tensor) -> Tensor:
        z = z.float()
        return (z @ self.embed.T - 0.5 * (self.embed**2).sum(1)).argmax(-1)

    @torch.no_grad()
    def begin(self, z: Tensor, *, rounds: int = 12) -> None:
        """k-means over latents [N, code_dim]."""
        self.embed.copy_(z[torch.randperm(len(z))[: len(self.embed)]])
        for _ in range(rounds):
            codes = self.nearest(z)
            count = torch.bincount(codes, minlength=len(self.embed)).float()
            total = torch.zeros_like(self.embed).index_add_(0, codes, z)
            empty = count < 1
            self.embed.copy_(total / count.clamp(min=1)[:, None])
            self.embed[empty] = z[torch.randint(len(z), (int(empty.sum()),))]
        self.count.fill_(1.0)
        self.total.copy_(self.embed)

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor) -> None:
        z, codes = z.float().flatten(0, 1), codes.flatten()
        count = torch.bincount(codes, minlength=len(self.embed)).float()
        scale = len(self.embed) / len(codes)  # so that a count of 1 is the mean use
        self.count.mul_(self.decay).add_(count * scale, alpha=1 - self.decay)
        total = torch.zeros_like(self.embed).index_add_(0, codes, z)
        self.total.mul_(self.decay).add_(total * scale, alpha=1 - self.decay)
        rare = self.count < self.rare
        found = z[torch.randint(len(z), (int(rare.sum()),))]
        self.count[rare], self.total[rare] = 0.3, 0.3 * found
        self.embed.copy_(self.total / self.count[:, None])


class StandInEncoder(nn.Module):
    """The teacher's features [B, 2T, input_channels], twice a frame, to latents [B, T, code_dim]."""

    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size.input_channels))
        self.register_buffer("deviation", torch.ones(size.input_channels))
        self.front = Conv(2 * size.input_channels, size.dim, 3)
        self.blocks = nn.ModuleList(ConvNeXt(size.dim, 2 * size.dim, 0.5) for _ in range(2))
        self.norm = nn.LayerNorm(size.dim)
        self.out = nn.Linear(size.dim, size.code_dim)

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.mean) / self.deviation
        x = self.front(x.reshape(x.shape[0], -1, 2 * x.shape[2]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class Codec(nn.Module):
    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        self.size = size
        self.encoder, self.codebook = StandInEncoder(size), Codebook(size)
        self.backbone, self.head = Backbone(size), Head(size)

    def decode(self, latents: Tensor) -> Tensor:
        return self.head(self.backbone(latents))

    @torch.no_grad()
    def codes(self, features: Tensor) -> Tensor:
        return self.codebook.nearest(self.encoder(features))
