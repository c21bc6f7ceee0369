"""A picture of a speaker: waveform, word boundaries, energy and pitch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...codec import Codec
from ...errors import ArgumentError
from .errors import missing
from .features import HIGHEST, HOP, LOWEST, pitch_track
from .speaker import Speaker

FORMATS = (".png", ".svg", ".pdf")
# for what matplotlib's own font lacks; those that are installed are used
FONTS = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "IPAGothic", "TakaoGothic", "VL Gothic",
    "WenQuanYi Zen Hei", "Noto Sans KR", "NanumGothic", "Hiragino Sans", "Yu Gothic", "MS Gothic", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Arabic", "Arial Unicode MS", "Unifont",
)  # fmt: skip


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format that a picture's suffix asks for; ArgumentError if it is none that is drawn."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        what = suffix or "a file without suffix"
        raise ArgumentError(f"cannot draw {what}; use one of {', '.join(FORMATS)}", path=path)
    return suffix[1:]


def draw(speaker: Speaker, samples: np.ndarray, codec: Codec, file: BinaryIO, *, format: str = "png") -> None:
    """Write a picture of a speaker and its decoded samples, float32 [n]; ``format`` as ``picture_format`` names it."""
    try:
        import matplotlib
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("matplotlib", purpose="drawing", extra="plot") from None
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with (
        matplotlib.rc_context({"font.family": [font for font in FONTS if font in installed]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(max(8.0, samples.size / codec.sample_rate * 2), 6), layout="constrained")
        FigureCanvasAgg(figure)
        _fill(figure, speaker, samples, codec)
        figure.savefig(file, format=format, dpi=110)


def _fill(figure: Any, speaker: Speaker, samples: np.ndarray, codec: Codec) -> None:
    rate = codec.sample_rate
    ends = np.cumsum([word.n_frames for word in speaker.words]) / codec.frame_rate
    starts = np.concatenate([[0], ends[:-1]])
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
