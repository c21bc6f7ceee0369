"""A picture of a speaker: waveform, word boundaries, energy and pitch."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from .errors import missing
from .features import HIGHEST, HOP, LOWEST, pitch_track
from .speaker import Speaker


def draw(speaker: Speaker, samples: np.ndarray, codec: Any, file: BinaryIO) -> None:
    """Write a PNG of a speaker and its decoded samples, float32 [n]."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("matplotlib", purpose="drawing", extra="plot") from None
    rate = codec.sample_rate
    ends = np.cumsum([word.n_frames for word in speaker.words]) / codec.frame_rate
    starts = np.concatenate([[0], ends[:-1]])
    figure = Figure(figsize=(max(8.0, samples.size / rate * 2), 6), layout="constrained")
    FigureCanvasAgg(figure)
    wave, energy, pitch = figure.subplots(3, sharex=True)
    wave.plot(np.arange(samples.size) / rate, samples, linewidth=0.4)
    wave.set_ylabel("waveform")
    for word, start, end in zip(speaker.words, starts, ends, strict=True):
        wave.text((start + end) / 2, 1.02, word.text, ha="center", va="bottom", fontsize=7, rotation=45,
                  transform=wave.get_xaxis_transform(), parse_math=False)  # fmt: skip
    frame = samples[: samples.size // HOP * HOP].reshape(-1, HOP)
    energy.plot(np.arange(len(frame)) * HOP / rate, np.sqrt(np.mean(frame**2, axis=1)), linewidth=0.6, label="decoded")
    energy.stairs(
        [w.features.get("energy", 0) / 100 for w in speaker.words], [0, *ends], baseline=None, label="in the profile"
    )
    energy.legend(loc="upper right", fontsize=7)
    energy.set_ylabel("energy")
    track = pitch_track(samples, rate)
    pitch.plot(np.arange(track.size) * HOP / rate, track, ".", markersize=2)
    levels = [LOWEST + w.features.get("pitch", 0) / 100 * (HIGHEST - LOWEST) for w in speaker.words]
    pitch.stairs(levels, [0, *ends], baseline=None)
    pitch.set_ylabel("pitch, Hz")
    pitch.set_xlabel("seconds")
    for axis in (wave, energy, pitch):
        for end in [0, *ends]:
            axis.axvline(end, color="0.8", linewidth=0.6)
    figure.savefig(file, format="png", dpi=110)
