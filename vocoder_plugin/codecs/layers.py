"""Blocks that codecs share."""

from __future__ import annotations

import numpy as np

from ..net.ops import ELU, Ops, Reflect
from ..net.signal import Moment, Signal


def istft(net: Ops, x: Signal, name: str, *, n_fft: int, hop_length: int) -> Signal:
    """Real and imaginary parts [n_fft + 2, T] -> samples [1, T * hop_length], with "same" padding.

    Siuzdak 2023, "Vocos" (arXiv:2306.00814), vocos/spectral_ops.py. The inverse DFT and the overlap-add of windowed
    frames are one transposed convolution, whose weight is ``istft_weight``; it remains to divide by the envelope.
    """
    padding = (n_fft - hop_length) // 2
    samples = net.conv_transpose1d(x, name, out=1, kernel=n_fft, stride=hop_length, padding=padding)

    def gain(moment: Moment) -> np.ndarray:
        return envelope_gain(moment.frames, n_fft, hop_length)

    return net.scaled(samples, f"envelope {n_fft} {hop_length}", gain)


def hann(n: int) -> np.ndarray:
    """The periodic Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def istft_weight(n_fft: int) -> np.ndarray:
    """Real and imaginary parts -> windowed samples, float32 [n_fft + 2, 1, n_fft].

    x[n] = w[n] / N sum over k of s_k (re[k] cos(2 pi k n / N) - im[k] sin(2 pi k n / N)), with s_k = 2 but for the
    first and the last frequency, whose imaginary parts do not count.
    """
    bins = n_fft // 2 + 1
    angle = 2 * np.pi / n_fft * (np.arange(bins)[:, np.newaxis] * np.arange(n_fft) % n_fft)
    scale = np.full((bins, 1), 2.0 / n_fft)
    scale[[0, -1]] = 1.0 / n_fft
    real = scale * np.cos(angle)
    imaginary = -scale * np.sin(angle)
    imaginary[[0, -1]] = 0
    return (np.concatenate([real, imaginary]) * hann(n_fft))[:, np.newaxis].astype(np.float32)


def envelope_gain(n_frames: int, n_fft: int, hop: int) -> np.ndarray:
    """1 / (sum of the squared windows over every sample), float32 [n_frames * hop]."""
    padding, pieces = (n_fft - hop) // 2, -(-n_fft // hop)
    square = np.zeros(pieces * hop)
    square[:n_fft] = hann(n_fft) ** 2
    rows = square.reshape(pieces, hop)
    few = min(n_frames, 2 * pieces)  # the middle of a long clip is the same row again and again
    total = np.zeros((few + pieces - 1, hop))
    for j in range(pieces):
        total[j : j + few] += rows[j]
    with np.errstate(divide="ignore"):  # the window begins with 0, in what is cut off
        gain = (1.0 / total).astype(np.float32)
    gain = np.concatenate([gain[:pieces], np.repeat(gain[pieces : pieces + 1], n_frames - few, axis=0), gain[pieces:]])
    return np.ascontiguousarray(gain.reshape(-1)[padding : padding + n_frames * hop])


def seanet_block(net: Ops, x: Signal, name: str) -> Signal:
    """EnCodec's residual unit: half the channels between two ELUs, beside a convolution of its own."""
    shortcut = net.conv1d(x, f"{name}.shortcut.conv.conv", out=x.channels, kernel=1)
    h = net.conv1d(x, f"{name}.block.1.conv.conv", out=x.channels // 2, kernel=3, padding=Reflect(), activation=ELU)
    return net.conv1d(net.elu(h), f"{name}.block.3.conv.conv", out=x.channels, kernel=1, add=shortcut)
