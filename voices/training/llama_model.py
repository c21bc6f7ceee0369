"""A Llama small enough to train on a CPU, computed as llama.cpp computes it.

RMS norm, rotary positions on pairs of neighbouring channels, SwiGLU, and one matrix for input and output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class LlamaSize:
    vocabulary: int
    dim: int = 256
    inner: int = 704
    layers: int = 4
    heads: int = 4
    context: int = 4096
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Layer(nn.Module):
    def __init__(self, size: LlamaSize, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, dropout
        self.attn_norm = nn.RMSNorm(size.dim, size.epsilon)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(size.dim, size.dim, bias=False) for _ in range(4)
        )
        self.ffn_norm = nn.RMSNorm(size.dim, size.epsilon)
        self.ffn_gate, self.ffn_up = (nn.Linear(size.dim, size.inner, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(size.inner, size.dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """``cache`` holds the keys and values of the positions before, and gets those of x."""
        h = self.attn_norm(x)
        q, k, v = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.attn_q, self.attn_k, self.attn_v)
        )  # [B, heads, T, head_dim]
        q, k = rotated(q, turns), rotated(k, turns)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        h = attention(q, k, v)
        x = x + self._dropped(self.attn_output(h.transpose(1, 2).flatten(2)))
        h = self.ffn_norm(x)
        return x + self._dropped(self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h)))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class Llama(nn.Module):
    def __init__(self, size: LlamaSize, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.token_embd = nn.Embedding(size.vocabulary, size.dim)
        self.blk = nn.ModuleList(Layer(size, dropout) for _ in range(size.layers))
        self.output_norm = nn.RMSNorm(size.dim, size.epsilon)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / (2 * size.layers) ** 0.5 if name.endswith(("output.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)
        angle = size.rope_base ** (-torch.arange(0, size.head_dim, 2) / size.head_dim)
        turns = torch.outer(torch.arange(size.context), angle)  # [context, head_dim / 2]
        self.register_buffer("turns", torch.stack([turns.cos(), turns.sin()], -1), persistent=False)

    def forward(self, tokens: Tensor, *, caches: list[list[Tensor]] | None = None, start: int = 0) -> Tensor:
        """Tokens [B, T] at positions from ``start`` on -> hidden states [B, T, dim]."""
        x = self.token_embd(tokens)
        turns = self.turns[start : start + tokens.shape[1]]
        for i, layer in enumerate(self.blk):
            x = layer(x, turns, caches[i] if caches is not None else None)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.token_embd.weight)


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of channels (2i, 2i + 1) of [B, heads, T, head_dim] by the angle of its position."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns.to(x.dtype).unbind(-1)  # [T, head_dim / 2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention [B, heads, T, head_dim] of the last T positions of all keys.

    Written out, because on a CPU it is then three times as fast for short rows, forward and backward, as torch's own,
    which also aligns a causal mask to the first key where there are more keys than queries.
    """
    before = k.shape[2] - q.shape[2]
    future = torch.full((q.shape[2], k.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu(before + 1)
    return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + future).softmax(-1) @ v
