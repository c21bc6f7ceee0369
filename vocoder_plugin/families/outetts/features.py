"""The three numbers that OuteTTS 1.0 knows of a word's sound: energy, spectral centroid, pitch.

Each is 0 to 100, rounded from 0 to 1, as the package outetts computes them, in float32 as it does.
Where that package fails (segments under 400 samples have no frame for pitch), the pitch is 0.
"""

from __future__ import annotations

import numpy as np

from .markup import FEATURE_NAMES

LOWEST, HIGHEST = 75.0, 600.0  # Hz
FRAME, HOP = 400, 160  # samples, at any rate
VOICED = 0.3  # of the autocorrelation at lag 0
LIMIT = 100  # the largest that has a token


def measure(samples: np.ndarray, sample_rate: int) -> dict[str, int]:
    """Features of float32 samples [n]: integers 0 to 100; all 0 for no samples or samples that are not finite."""
    samples = np.asarray(samples, np.float32)
    if samples.size == 0 or not np.isfinite(samples).all():
        return dict.fromkeys(FEATURE_NAMES, 0)
    values = (
        float(np.sqrt(np.mean(samples**2))),
        spectral_centroid(samples, sample_rate),
        min(max((mean_pitch(samples, sample_rate) - LOWEST) / (HIGHEST - LOWEST), 0.0), 1.0),
    )
    return {name: min(round(value * 100), LIMIT) for name, value in zip(FEATURE_NAMES, values, strict=True)}


def spectral_centroid(samples: np.ndarray, sample_rate: int) -> float:
    """The mean frequency, weighted by amplitude, of one spectrum of all samples; 0 to 1 for 0 to half the rate."""
    amplitudes = np.abs(np.fft.rfft(samples)).astype(np.float32)
    frequencies = np.linspace(0, sample_rate / 2, amplitudes.size, dtype=np.float32)
    return float(np.sum(frequencies * amplitudes) / (np.sum(amplitudes) + np.float32(1e-10))) / (sample_rate / 2)


def mean_pitch(samples: np.ndarray, sample_rate: int) -> float:
    """Hz, over all frames; an unvoiced frame counts as the lowest pitch."""
    pitches = pitch_track(samples, sample_rate)
    return float(pitches.mean()) if pitches.size else LOWEST


def pitch_track(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Hz of each frame of 400 samples every 160, by autocorrelation: float32 [n_frames]; 75 where unvoiced."""
    padded = np.pad(samples, (0, (FRAME - samples.size % HOP) % HOP)).astype(np.float32)
    if padded.size < FRAME:
        return np.zeros(0, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
    spectrum = np.fft.rfft(frames * hann, n=2 * FRAME, axis=1)
    correlation = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, axis=1)[:, :FRAME].astype(np.float32)

    first, last = max(1, int(sample_rate / HIGHEST)), min(FRAME, int(sample_rate / LOWEST))
    lag = first + np.argmax(correlation[:, first:last], axis=1)
    row = np.arange(lag.size)
    peak = correlation[row, lag]
    centre = np.clip(lag, 1, FRAME - 2)
    left, middle, right = (correlation[row, centre + step] for step in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.float32(0.5) * (left - right) / (left - 2 * middle + right + np.float32(1e-8))  # of a parabola
        period = (lag + np.where(lag < FRAME - 1, shift, 0)) / sample_rate
        pitch = np.where(period > 0, 1 / period, 0)
    voiced = peak / (correlation[:, 0] + np.float32(1e-8)) > VOICED
    return np.clip(np.where(voiced, pitch, 0), LOWEST, HIGHEST).astype(np.float32)
