"""Every operation on signals, with its definition in NumPy: what the lowerings, plans and streams are tried on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference
from tiny_pass import signal_in

from vocoder_plugin.net.ops import ELU, Causal, Ops, Reflect, Rotary, Snake
from vocoder_plugin.net.signal import Signal

Weights = dict[str, np.ndarray]
THETA, WINDOW = 100.0, 5
BOUND = 3e-6  # of the relative error


@dataclass(frozen=True)
class Op:
    """An operation: how a pass writes it, and what it means for signals [channels, T] in float64.

    ``inputs`` are channels and samples a frame of each of its signals; ``portable_bound`` is the relative error that
    ggml's own operation may have.
    """

    forward: Callable[..., Signal]
    meaning: Callable[..., np.ndarray]
    inputs: tuple[tuple[int, int], ...]
    weights: Callable[[np.random.Generator], Weights] = lambda rng: {}
    whole_clip: bool = False
    portable_bound: float = BOUND

    def head(self, net: Ops) -> None:
        net.rows_out(self.forward(net, *(signal_in(net, *each) for each in self.inputs)))

    def random_inputs(self, rng: np.random.Generator, frames: int) -> list[np.ndarray]:
        """As a pass takes them, [rows, channels]."""
        return [rng.standard_normal((frames * rate, n)).astype(np.float32) for n, rate in self.inputs]

    def random_weights(self, rng: np.random.Generator) -> Weights:
        """Float32 values."""
        return {name: np.asarray(array, np.float32) for name, array in self.weights(rng).items()}

    def expected(self, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
        """The output of a clip, float64 [T, channels]."""
        wide = {name: array.astype(np.float64) for name, array in weights.items()}
        return self.meaning(wide, *(x.T.astype(np.float64) for x in inputs)).T


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def activated(x: np.ndarray, kind: Any, w: Weights) -> np.ndarray:
    if isinstance(kind, Snake):
        return reference.snake(x, w[f"{kind.name}.alpha"])
    return elu(x) if kind is ELU else x


def padded(x: np.ndarray, padding: Any, *, span: int, stride: int) -> np.ndarray:
    if isinstance(padding, Causal):
        return np.pad(x, ((0, 0), (span - stride, 0)), mode="edge" if padding.replicate else "constant")
    if isinstance(padding, Reflect):
        total, n = span - stride, x.shape[1]
        left, right = total - total // 2, total // 2 + -n % stride
        missing = max(0, max(left, right) + 1 - n)  # EnCodec continues a clip that is too short with zeros first
        wide = np.pad(np.pad(x, ((0, 0), (0, missing))), ((0, 0), (left, right)), mode="reflect")
        return wide[:, : left + n + right]
    both = span // 2 if padding is None else padding
    return np.pad(x, ((0, 0), (both, both)))


def conv_weights(rng: np.random.Generator, name: str, *shape: int, outputs: int) -> Weights:
    fan_in = math.prod(shape) / outputs
    return {
        f"{name}.weight": rng.standard_normal(shape) / math.sqrt(fan_in),
        f"{name}.bias": rng.standard_normal(outputs) * 0.2,
    }


def alphas(rng: np.random.Generator, name: str, channels: int) -> Weights:
    return {f"{name}.alpha": np.exp(rng.standard_normal(channels) * 0.5)}


def conv(
    channels: int, out: int, kernel: int, *, rate: int = 1, stride: int = 1, dilation: int = 1, padding: Any = None,
    activation: Any = None, add: bool = False,
) -> Op:  # fmt: skip
    def forward(net: Ops, x: Signal, *other: Signal) -> Signal:
        return net.conv1d(
            x, "c", out=out, kernel=kernel, stride=stride, dilation=dilation, padding=padding, activation=activation,
            add=other[0] if add else None,
        )  # fmt: skip

    def meaning(w: Weights, x: np.ndarray, *other: np.ndarray) -> np.ndarray:
        x = padded(activated(x, activation, w), padding, span=(kernel - 1) * dilation + 1, stride=stride)
        y = reference.conv1d(x, w["c.weight"], w["c.bias"], stride=stride, dilation=dilation)
        return y + other[0] if add else y

    return Op(
        forward,
        meaning,
        ((channels, rate), *([(out, rate // stride)] if add else [])),
        lambda rng: conv_weights(rng, "c", out, channels, kernel, outputs=out) | alphas(rng, "s", channels),
        whole_clip=isinstance(padding, Reflect),
    )


def conv_transpose(
    channels: int, out: int, kernel: int, stride: int, *, padding: Any = 0, activation: Any = None
) -> Op:
    def meaning(w: Weights, x: np.ndarray) -> np.ndarray:
        x, crop = activated(x, activation, w), 0 if isinstance(padding, Causal) else padding
        y = reference.conv_transpose1d(x, w["c.weight"], w["c.bias"], stride=stride, padding=crop)
        return y[:, : x.shape[1] * stride] if isinstance(padding, Causal) else y

    return Op(
        lambda net, x: net.conv_transpose1d(
            x, "c", out=out, kernel=kernel, stride=stride, padding=padding, activation=activation
        ),
        meaning,
        ((channels, 2),),
        lambda rng: conv_weights(rng, "c", channels, out, kernel, outputs=out) | alphas(rng, "s", channels),
    )


def residual_unit(dilation: int) -> Op:
    """DAC's: the branch beside the convolutions reads its window as late as they are."""
    first, second = conv(34, 34, 7, dilation=dilation, activation=Snake("s")), conv(34, 34, 1, activation=Snake("s"))

    def forward(net: Ops, x: Signal) -> Signal:
        h = net.conv1d(x, "a", out=34, kernel=7, dilation=dilation, activation=Snake("s"))
        return net.conv1d(h, "b", out=34, kernel=1, activation=Snake("s"), add=x)

    def meaning(w: Weights, x: np.ndarray) -> np.ndarray:
        parts = [{"s.alpha": w["s.alpha"]} | {f"c.{p}": w[f"{n}.{p}"] for p in ("weight", "bias")} for n in "ab"]
        return x + second.meaning(parts[1], first.meaning(parts[0], x))

    return Op(
        forward,
        meaning,
        ((34, 3),),
        lambda rng: (
            conv_weights(rng, "a", 34, 34, 7, outputs=34)
            | conv_weights(rng, "b", 34, 34, 1, outputs=34)
            | alphas(rng, "s", 34)
        ),
    )


def norm_weights(name: str, channels: int) -> Callable[[np.random.Generator], Weights]:
    return lambda rng: {f"{name}.{part}": rng.standard_normal(channels) for part in ("weight", "bias")}


def layer_norm(x: np.ndarray, w: Weights, epsilon: float = 1e-6) -> np.ndarray:
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon)
    return y * w["n.weight"][:, None] + w["n.bias"][:, None]


def group_norm(x: np.ndarray, w: Weights, groups: int) -> np.ndarray:
    parts = x.reshape(groups, -1)
    y = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-6)
    return y.reshape(x.shape) * w["n.weight"][:, None] + w["n.bias"][:, None]


def depthwise(x: np.ndarray, w: Weights) -> np.ndarray:
    kernel = w["d.weight"].shape[2]
    wide, n = np.pad(x, ((0, 0), (kernel // 2, kernel // 2))), x.shape[1]
    return sum(w["d.weight"][:, 0, j, None] * wide[:, j : j + n] for j in range(kernel)) + w["d.bias"][:, None]


def depthwise_weights(channels: int, kernel: int) -> Callable[[np.random.Generator], Weights]:
    return lambda rng: conv_weights(rng, "d", channels, 1, kernel, outputs=channels)


def upsampled(x: np.ndarray, w: Weights, stride: int) -> np.ndarray:
    before = np.pad(x, ((0, 0), (1, 0)))[:, :-1]
    phases = [w[f"u.tap{p}"][:, None] * x + w[f"u.tap{p + stride}"][:, None] * before for p in range(stride)]
    return np.stack(phases, axis=2).reshape(len(x), -1)


def polar(x: np.ndarray) -> np.ndarray:
    size, phase = np.split(x, 2)
    size = np.minimum(np.exp(size), 100)
    return np.concatenate([size * np.cos(phase), size * np.sin(phase)])


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, seen: Any = True) -> np.ndarray:
    """softmax(q k / sqrt(D)) v, [C, T] each, of the keys that ``seen`` [T, T] allows."""
    q, k, v = (x.reshape(heads, -1, x.shape[1]) for x in (q, k, v))
    scores = np.where(seen, q.transpose(0, 2, 1) @ k / math.sqrt(q.shape[1]), -np.inf)
    shares = np.exp(scores - scores.max(2, keepdims=True))
    shares /= shares.sum(2, keepdims=True)
    return (v @ shares.transpose(0, 2, 1)).reshape(-1, q.shape[2])


def rotated(x: np.ndarray, heads: int) -> np.ndarray:
    parts = x.reshape(heads, 2, -1, x.shape[1])
    half = parts.shape[2]
    turns = np.exp(1j * np.arange(x.shape[1]) * (THETA ** (-np.arange(half) / half))[:, np.newaxis])
    turned = (parts[:, 0] + 1j * parts[:, 1]) * turns
    return np.stack([turned.real, turned.imag], axis=1).reshape(x.shape)


def sliding_attention(heads: int) -> Op:
    def forward(net: Ops, x: Signal) -> Signal:
        q, k, v = net.split(x, 3)
        how = dict(heads=heads, rotary=Rotary(THETA), window=WINDOW, causal=True)
        return net.attention(q, k, v, "a", **how)

    def meaning(w: Weights, x: np.ndarray) -> np.ndarray:
        q, k, v = np.split(x, 3)
        age = np.arange(x.shape[1])[:, np.newaxis] - np.arange(x.shape[1])
        return attend(rotated(q, heads), rotated(k, heads), v, heads, (age >= 0) & (age < WINDOW))

    return Op(forward, meaning, ((3 * 24, 2),))


def full_attention(heads: int) -> Op:
    return Op(
        lambda net, q, k, v: net.attention(q, k, v, "a", heads=heads),
        lambda w, q, k, v: attend(q, k, v, heads),
        ((32, 1),) * 3,
        whole_clip=True,
    )


def by_position(net_frames: np.ndarray, frames: int) -> np.ndarray:
    """1 + position / 8, float32 [batch, frames]."""
    at = net_frames[:, np.newaxis] + np.arange(frames)
    return (1 + at / 8).astype(np.float32)


def split_sum(net: Ops, x: Signal) -> Signal:
    first, second, third = net.split(x, 3)
    return net.subtract(net.add(first, second), third)


gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))

OPS = {
    **{f"conv of dilation {d}": conv(33, 36, 7, rate=2, dilation=d, activation=Snake("s")) for d in (1, 3, 9, 16)},
    **{f"residual unit of dilation {d}": residual_unit(d) for d in (1, 3, 9, 16)},
    **{f"conv of stride {s}": conv(5, 9, 2 * s, rate=6, stride=s, padding=-(-s // 2)) for s in (2, 3)},
    "conv of stride and kernel 7": conv(40, 40, 7, rate=6, stride=3, padding=2, activation=ELU),
    "conv with ELU and a sum": conv(6, 6, 5, activation=ELU, add=True),
    "conv of kernel 1 and no padding": conv(6, 7, 1, padding=0),
    "conv without padding": conv(6, 7, 3, rate=3, padding=0),
    "conv of stride 2 with less padding": conv(6, 7, 5, rate=4, stride=2, padding=1),
    "conv of one input": conv(1, 33, 7, rate=2),
    "conv of one output": conv(33, 1, 7, rate=2, activation=Snake("s")),
    "causal conv": conv(7, 5, 3, padding=Causal(), activation=ELU),
    "causal conv of kernel 7": conv(33, 32, 7, padding=Causal(), dilation=2),
    "causal conv of stride 2": conv(7, 5, 4, rate=2, stride=2, padding=Causal()),
    "causal conv that repeats the first": conv(7, 5, 4, rate=2, stride=2, padding=Causal(replicate=True)),
    "reflecting conv": conv(7, 5, 7, padding=Reflect()),
    "reflecting conv of stride 2": conv(7, 5, 4, rate=3, stride=2, padding=Reflect(), activation=ELU),
    "conv_transpose": conv_transpose(9, 5, 4, 2, padding=1, activation=Snake("s")),
    "conv_transpose of stride 3": conv_transpose(9, 5, 6, 3, padding=2, activation=ELU),
    "conv_transpose of a kernel between strides": conv_transpose(9, 5, 5, 3, padding=1),
    "conv_transpose without crop": conv_transpose(9, 5, 4, 2),
    "causal conv_transpose": conv_transpose(9, 5, 6, 3, padding=Causal(), activation=ELU),
    "depthwise": Op(
        lambda net, x: net.depthwise(x, "d", kernel=7), lambda w, x: depthwise(x, w), ((9, 2),), depthwise_weights(9, 7)
    ),
    "depthwise under a norm": Op(
        lambda net, x: net.layer_norm(net.depthwise(x, "d", kernel=5), "n", epsilon=1e-6),
        lambda w, x: layer_norm(depthwise(x, w), w),
        ((35, 1),),
        lambda rng: depthwise_weights(35, 5)(rng) | norm_weights("n", 35)(rng),
    ),
    "upsample": Op(
        lambda net, x: net.upsample(x, "u", stride=2),
        lambda w, x: upsampled(x, w, 2),
        ((9, 1),),
        lambda rng: {f"u.tap{j}": rng.standard_normal(9) for j in range(4)},
    ),
    "upsample by 3": Op(
        lambda net, x: net.upsample(x, "u", stride=3),
        lambda w, x: upsampled(x, w, 3),
        ((9, 2),),
        lambda rng: {f"u.tap{j}": rng.standard_normal(9) for j in range(6)},
    ),
    "tanh": Op(lambda net, x: net.tanh(x), lambda w, x: np.tanh(x), ((9, 2),)),
    "elu": Op(lambda net, x: net.elu(x), lambda w, x: elu(x), ((9, 2),)),
    "swish": Op(lambda net, x: net.swish(x), lambda w, x: x * sigmoid(x), ((9, 2),)),
    "gelu": Op(lambda net, x: net.gelu(x), lambda w, x: gelu(x), ((9, 2),)),
    "gelu by tanh": Op(
        lambda net, x: net.gelu(x, tanh=True),
        lambda w, x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ((9, 2),),
        portable_bound=1e-3,  # ggml has a table of it in F16
    ),
    "add": Op(lambda net, x, y: net.add(x, y), lambda w, x, y: x + y, ((9, 2), (9, 2))),
    "subtract": Op(lambda net, x, y: net.subtract(x, y), lambda w, x, y: x - y, ((9, 2), (9, 2))),
    "split": Op(split_sum, lambda w, x: x[:4] + x[4:8] - x[8:], ((12, 2),)),
    "scaled": Op(
        lambda net, x: net.scaled(x, "gain", lambda moment: by_position(moment.positions, moment.frames)),
        lambda w, x: x * by_position(np.zeros(1, int), x.shape[1]),
        ((1, 1),),
    ),
    "polar": Op(lambda net, x: net.polar(x), lambda w, x: polar(x), ((18, 2),)),
    "layer norm": Op(
        lambda net, x: net.layer_norm(x, "n", epsilon=1e-6),
        lambda w, x: layer_norm(x, w),
        ((35, 2),),
        norm_weights("n", 35),
    ),
    "group norm": Op(
        lambda net, x: net.group_norm(x, "n", groups=4, epsilon=1e-6),
        lambda w, x: group_norm(x, w, 4),
        ((36, 2),),
        norm_weights("n", 36),
        whole_clip=True,
    ),
    "swish of a group norm": Op(
        lambda net, x: net.swish(net.group_norm(x, "n", groups=4, epsilon=1e-6)),
        lambda w, x: group_norm(x, w, 4) * sigmoid(group_norm(x, w, 4)),
        ((36, 2),),
        norm_weights("n", 36),
        whole_clip=True,
    ),
    **{f"full attention of {h} heads": full_attention(h) for h in (1, 4)},
    **{f"sliding attention of {h} heads": sliding_attention(h) for h in (1, 4)},
}
STREAMED = [name for name, op in OPS.items() if not op.whole_clip]
