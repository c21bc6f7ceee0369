"""How the native kernels want the weights of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels import Kernels, winograd_kernel
from ..runtime.graph import TensorBuffer
from .lowering import Shapes
from .weights import ConvSpec

WINOGRAD = winograd_kernel()  # [points, kernel]
PANELS = 1  # panels of outputs whose points are computed at once
INT8_WEIGHTS = 1 << 16  # with fewer in a convolution, 8 bits would only lose accuracy
WEIGHT_TYPES = {4: "F32", 2: "I16", 1: "I8"}
WINOGRAD_CHANNELS = 32  # with fewer, its additions cost more than the products they replace


@dataclass(frozen=True)
class Packing:
    """The weights of one convolution, packed for the kernels.

    Parameters
    ----------
    spec : ConvSpec
    kernels : Kernels
    precision : {"float32", "int16", "int8"}
        As float32, or as integers with scales.
    """

    spec: ConvSpec
    kernels: Kernels
    precision: str

    @property
    def winograd(self) -> bool:
        """Whether it runs as minimal filtering F(2,7)."""
        spec = self.spec
        fits = spec.kernel == WINOGRAD.shape[1] and spec.stride == 1 and not spec.transposed
        return fits and min(spec.in_channels, spec.out_channels) >= WINOGRAD_CHANNELS

    @property
    def single(self) -> bool:
        """Whether it has one output and runs as dot products, in float32."""
        return self.spec.out_channels == 1 and self.spec.stride == 1 and not self.spec.transposed

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight: 4 float32, 2 or 1 integers. With 8 bits only where reading them takes the time."""
        if self.precision == "float32" or self.single or self.spec.in_channels == 1:
            return 4
        large = self.outputs * self.spec.in_channels * self.taps >= INT8_WEIGHTS
        return 1 if self.precision == "int8" and large and not (self.winograd or self.spec.search) else 2

    @property
    def integers(self) -> bool:
        """Whether products are of integers, of 16 bits."""
        return self.weight_bytes < 4

    @property
    def outputs(self) -> int:
        """Rows of the matrix product: a transposed convolution gives ``stride`` samples at once."""
        return self.spec.out_channels * (self.spec.stride if self.spec.transposed else 1)

    @property
    def taps(self) -> int:
        """Matrices: one a tap of the kernel, or one a point of F(2,7)."""
        return WINOGRAD.shape[0] if self.winograd else self.spec.taps

    @property
    def together(self) -> int:
        """Taps that one block of products sums."""
        return 1 if self.winograd or self.integers else self.spec.taps

    @property
    def block(self) -> int:
        """Input channels of one block of products."""
        return self.kernels.block(together=self.together, channels=self.spec.in_channels, integers=self.integers)

    @property
    def vectors(self) -> int:
        """Vectors of a panel of outputs."""
        return self.kernels.vectors(self.outputs)

    def packed_scales(self, outputs: int) -> int:
        """Scales of so many outputs as packed integers, of which every panel is full."""
        panel = self.vectors * self.kernels.lanes
        return -(-outputs // panel) * panel * self.taps

    def packed_weights(self, outputs: int) -> int:
        """Values of so many outputs' packed weights; integers come in pairs."""
        channels = self.spec.in_channels
        return self.packed_scales(outputs) * (-(-channels // 2) * 2 if self.integers else channels)

    @property
    def kernel(self) -> Any:
        """The C function that runs it."""
        if self.single:
            return self.kernels.conv1d_single
        return self.kernels.conv1d_winograd if self.winograd else self.kernels.conv1d

    def shapes(self) -> Shapes:
        """Tensors to allocate: ggml type and ne by name."""
        name = self.spec.name
        if self.single:
            padded = -(-self.spec.in_channels // self.kernels.lanes) * self.kernels.lanes
            return {name + ".weight": ("F32", (padded, self.taps)), name + ".bias": ("F32", (1,))}
        count = self.packed_weights(self.outputs)
        shapes: Shapes = {name + ".weight": (WEIGHT_TYPES[self.weight_bytes], (count,))}
        if self.integers:
            shapes[name + ".scale"] = ("F32", (self.packed_scales(self.outputs),))
        shapes[name + ".bias"] = ("F32", (self.outputs,))
        return shapes

    def store(self, buffer: TensorBuffer, weight: np.ndarray, bias: np.ndarray) -> None:
        """Pack float32 weights, torch's [out, in, kernel] or [in, out, kernel] for a transposed convolution."""
        name = self.spec.name
        if self.single:
            padding = -self.spec.in_channels % self.kernels.lanes
            buffer.upload(name + ".weight", np.pad(weight[0].T, ((0, 0), (0, padding))))
            buffer.upload(name + ".bias", bias)
            return
        target = buffer.tensors[name + ".weight"].contents.data
        scale = buffer.tensors[name + ".scale"].contents.data if self.integers else 0
        step = PANELS * self.vectors * self.kernels.lanes if self.winograd else self.outputs
        order = dict(vectors=self.vectors, block=self.block)
        for first in range(0, self.outputs, step):  # few at a time: points take room
            part = points_of(weight[first : first + step]) if self.winograd else phases_first(weight, self.spec)
            at = target + self.packed_weights(first) * self.weight_bytes
            if self.integers:
                scales = scale + self.packed_scales(first) * 4
                self.kernels.pack_integers(at, scales, part, **order, weight_bytes=self.weight_bytes)
            else:
                self.kernels.pack(at, part, **order, together=self.together)
        buffer.upload(name + ".bias", np.tile(bias, self.spec.stride if self.spec.transposed else 1))


def points_of(weight: np.ndarray) -> np.ndarray:
    """[out, in, 7] -> [1, out, in, points], rounded once to float32."""
    rows = np.matmul(weight.reshape(-1, weight.shape[2]).astype(np.float64), WINOGRAD.T)
    return rows.astype(np.float32).reshape(1, *weight.shape[:2], -1)


def phases_first(weight: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """A convolution's weights as a view [phases, out, in, taps] for ``Kernels.pack``.

    A plain convolution has one phase. A transposed one has ``stride``: with kernel index
    j * stride + phase, output phase p of block t is the sum over j of w[j, p] x[t - j], and window
    order runs from the oldest input to the newest, so taps are reversed.
    """
    if not spec.transposed:
        return weight[np.newaxis]
    weight = pad_kernel(weight, spec)
    n_in, n_out, _ = weight.shape
    split = weight.reshape(n_in, n_out, spec.taps, spec.stride)[:, :, ::-1]
    return split.transpose(3, 1, 0, 2)


def pad_kernel(weight: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """Zeros up to a kernel of whole strides."""
    missing = spec.taps * spec.stride - spec.kernel
    return np.pad(weight, ((0, 0), (0, 0), (0, missing))) if missing else weight
