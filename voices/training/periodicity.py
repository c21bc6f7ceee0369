"""How periodic voiced speech is: the height of the autocorrelation's peak at the period, 1 for a perfect tone."""

from __future__ import annotations

import numpy as np

WINDOW, HOP = 1200, 300  # 50 and 12.5 ms at 24 kHz
SHORTEST, LONGEST = 60, 400  # periods in samples: 400 to 60 Hz
VOICED = 0.6  # of the original's peak


def peaks(samples: np.ndarray) -> np.ndarray:
    """Float samples [N] to the normalised autocorrelation's highest peak of each frame; 0 where it is silent."""
    count = max(0, (len(samples) - WINDOW - LONGEST) // HOP + 1)
    found = np.zeros(count)
    loud = 0.05 * np.sqrt(np.mean(samples**2)) if len(samples) else 0.0
    for i in range(count):
        frame = samples[i * HOP : i * HOP + WINDOW + LONGEST].astype(np.float64)
        first = frame[:WINDOW]
        if np.sqrt(np.mean(first**2)) <= loud:
            continue
        size = 4096
        product = np.fft.irfft(np.conj(np.fft.rfft(first, size)) * np.fft.rfft(frame, size))[SHORTEST : LONGEST + 1]
        energy = np.concatenate([[0.0], np.cumsum(frame**2)])
        lags = np.arange(SHORTEST, LONGEST + 1)
        scale = np.sqrt(energy[WINDOW] * (energy[lags + WINDOW] - energy[lags]))
        found[i] = np.max(product / np.maximum(scale, 1e-9))
    return found


def voiced_periodicity(samples: np.ndarray, original: np.ndarray | None = None) -> np.ndarray:
    """Peaks of the frames that are voiced in the original (or, without one, in the samples themselves)."""
    own = peaks(samples)
    if original is None:
        return own[own > VOICED]
    theirs = peaks(original)
    count = min(len(own), len(theirs))
    return own[:count][theirs[:count] > VOICED]
