"""What a codec's codes and samples look like, and the checks that both must pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..audio.samples import as_mono
from ..errors import AudioError, CodesError, CodesKindError, refusal

LEFT_OUT = -1  # in place of a code that a frame may lack


@dataclass(frozen=True)
class Format:
    """The codes of a codec, and the sound they stand for.

    Attributes
    ----------
    name : str
        What the file calls the model.
    sample_rate : int
        Hz.
    hop_length : int
        Samples per frame.
    rows : tuple of int
        The codebook of each row of codes; a codebook may have several rows in a frame.
    codebook_size : int
        Codes go from 0 to codebook_size - 1.
    least_rows : int
        So many rows must be given; those after them may be left out, from the last backwards.
    """

    name: str
    sample_rate: int
    hop_length: int
    rows: tuple[int, ...]
    codebook_size: int
    least_rows: int

    @property
    def n_codebooks(self) -> int:
        return max(self.rows) + 1

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def checked(self, codes: np.ndarray) -> np.ndarray:
        """The codes as int32 [rows, n], LEFT_OUT where they are; CodesError if they are anything else."""
        codes = np.asarray(codes)
        most, least = len(self.rows), self.least_rows
        if codes.dtype.kind not in "iu":
            raise CodesKindError(f"codes are of type {codes.dtype}, expected integers")
        if codes.ndim != 2 or not least <= codes.shape[0] <= most:
            wanted = f"({most}, n_frames)" if least == most else f"({least} to {most}, n_frames)"
            raise CodesError(f"codes have shape {codes.shape}, expected {wanted}")
        lowest = np.where(np.arange(codes.shape[0]) < least, 0, LEFT_OUT)[:, np.newaxis]
        wrong = (codes < lowest) | (codes >= self.codebook_size)
        if wrong.any():
            q, t = np.argwhere(wrong)[0]
            raise CodesError(
                f"code {codes[q, t]} of codebook {self.rows[q]}, frame {t}, is out of range "
                f"(expected 0 to {self.codebook_size - 1})"
            )
        missing = np.full((most - codes.shape[0], codes.shape[1]), LEFT_OUT, np.int32)
        return np.concatenate([codes.astype(np.int32), missing])

    def table_rows(self, codes: np.ndarray) -> np.ndarray:
        """Checked codes [rows, n] -> rows of all codebooks laid end to end, frame by frame, int32 [n * rows].

        For a code that is left out it is the row after the last.
        """
        first = np.array(self.rows, np.int32)[:, np.newaxis] * self.codebook_size
        found = np.where(codes < 0, np.int32(self.n_codebooks * self.codebook_size), codes + first)
        return np.ascontiguousarray(found.T, np.int32).reshape(-1)

    def checked_samples(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples as finite float32 [n]; AudioError if they are anything else."""
        samples = np.asarray(samples)
        if samples.ndim != 1:
            raise AudioError(f"samples have shape {samples.shape}, expected (n_samples,)")
        return as_mono(samples)

    def rows_given(self, n: int | None) -> int:
        """The number of rows asked for, by default all; CodesError beyond what a frame has."""
        if n is None:
            return len(self.rows)
        if not self.least_rows <= n <= len(self.rows):
            raise CodesError(refusal("n_codebooks", n, f"{self.least_rows} to {len(self.rows)}"))
        return n
