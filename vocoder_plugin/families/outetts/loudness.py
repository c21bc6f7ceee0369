"""Loudness: what the codec's training expects of a clip, and a level for speech that needs no look-back."""

from __future__ import annotations

import numpy as np

from ...errors import AudioError

TARGET_LUFS = -18.0
PEAK_DB = -1.0
BLOCK_SECONDS = 0.4  # of the meter; shorter clips are padded with zeros


def measure(samples: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of samples [n] in LUFS (ITU-R BS.1770, pyloudnorm); -inf for silence."""
    import pyloudnorm

    padding = int(BLOCK_SECONDS * sample_rate) - samples.size
    padded = np.pad(samples, (0, max(padding, 0)))
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(sample_rate, block_size=BLOCK_SECONDS).integrated_loudness(padded))


def normalise(
    samples: np.ndarray, sample_rate: int, *, target_lufs: float = TARGET_LUFS, peak_db: float = PEAK_DB
) -> np.ndarray:
    """Samples [n] at the target's loudness, or softer where the peak would be higher; float32 [n].

    Raises AudioError for silence, which no gain makes louder.
    """
    loudness = measure(samples, sample_rate)
    if not np.isfinite(loudness):
        raise AudioError("the clip is silent, or too soft to measure its loudness")
    scaled = samples * np.power(10.0, (target_lufs - loudness) / 20)
    peak, highest = np.abs(scaled).max(), 10 ** (peak_db / 20)
    if peak > highest:
        scaled = scaled * (highest / peak)
    return scaled.astype(np.float32)


class FixedGain:
    """One gain for a whole stream, and a soft limit below full scale; each sample depends on itself alone.

    Samples up to half of full scale only change by the gain; above, they approach the peak smoothly.
    """

    def __init__(self, gain_db: float, *, peak_db: float = PEAK_DB) -> None:
        self.gain_db = gain_db
        self._gain = 10 ** (gain_db / 20)
        self._peak = 10 ** (peak_db / 20)

    @classmethod
    def for_clip(cls, samples: np.ndarray, sample_rate: int, *, target_lufs: float = TARGET_LUFS) -> FixedGain:
        """The gain that brings a clip of the voice to the target; none if the clip is silent."""
        loudness = measure(samples, sample_rate)
        return cls(target_lufs - loudness if np.isfinite(loudness) else 0.0)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Float32 [n] -> float32 [n], within the peak."""
        scaled = samples * self._gain
        size, knee = np.abs(scaled), 0.5
        room = self._peak - knee
        limited = knee + room * np.tanh((size - knee) / room)
        return np.where(size > knee, np.copysign(limited, scaled), scaled).astype(np.float32)
