"""Tone: a small codec that shows what a package of its own needs. One codebook, frames of HOP samples."""

from __future__ import annotations

from typing import Any, ClassVar

from vocoder_plugin.codecs.model import (
    MOST_CHANNELS,
    SAMPLE_RATES,
    Converter,
    Model,
    ModelFile,
    Option,
    mapped,
    stored,
    unit_rows,
)
from vocoder_plugin.errors import ArgumentError, refusal
from vocoder_plugin.gguf_file import GGUFFile
from vocoder_plugin.net.ops import Ops, Snake
from vocoder_plugin.net.signal import Signal
from vocoder_plugin.runtime.ggml import Tensor
from vocoder_plugin.streams.format import Format

HOP = 40  # samples a frame
KERNEL, DILATION = 7, 16  # of the decoder's convolution: it sees 48 frames on either side


class Tone(Model):
    architectures = ("tone",)
    options: ClassVar = {"gain": Option(float, "Factor of what the last convolution gives, 0 to 10.", 1.0)}
    converter = Converter(
        "tone_codec.converter:convert",
        "SOURCE is a safetensors file of Tone's weights.",
        {"sample_rate": Option(int, "Sample rate in Hz.", 8000)},
    )

    @classmethod
    def read(cls, file: GGUFFile, **options: Any) -> Tone:
        return cls(ModelFile(file), **options)

    def __init__(self, file: ModelFile, *, gain: float = 1.0) -> None:
        super().__init__(file)
        self.has_encoder, self.has_decoder = file.sides(encoder="enc.down.weight", decoder="dec.up.weight")
        codebook = file.shape("codebook")
        if len(codebook) != 2 or not 1 <= codebook[1] <= MOST_CHANNELS:
            raise file.fail(f"the codebook has shape {codebook}, expected (size, dim)", tensor="codebook")
        if not 0 < gain <= 10:
            raise ArgumentError(refusal("gain", gain, "more than 0 and at most 10"))
        self.latent_dim = codebook[1]
        rate = file.get("codec.sample_rate", int)
        file.expect("key 'codec.sample_rate'", rate, SAMPLE_RATES)
        self.format = Format(
            name=file.get("general.name", str, "Tone"),
            sample_rate=rate,
            hop_length=HOP,
            rows=(0,),
            codebook_size=codebook[0],
            least_rows=1,
        )
        file.recipes["codebook.unit"] = mapped(unit_rows, stored("codebook"))
        file.recipes["dec.up.scaled.weight"] = mapped(lambda weight: weight * gain, stored("dec.up.weight"))
        file.recipes["dec.up.scaled.bias"] = mapped(lambda bias: bias * gain, stored("dec.up.bias"))

    def decode(self, net: Ops, codes: Tensor) -> Signal:
        x = net.embed(codes, "codebook", size=self.format.codebook_size, dim=self.latent_dim)  # [dim, T]
        snake = Snake("dec.snake")
        x = net.conv1d(x, "dec.mix", out=x.channels, kernel=KERNEL, dilation=DILATION, activation=snake, add=x)
        x = net.conv_transpose1d(x, "dec.up.scaled", out=1, kernel=2 * HOP, stride=HOP, padding=HOP // 2)
        return net.tanh(x)  # [1, T * HOP]

    def latents(self, net: Ops, samples: Signal) -> Signal:
        return net.conv1d(samples, "enc.down", out=self.latent_dim, kernel=2 * HOP, stride=HOP, padding=HOP // 2)

    def quantise(self, net: Ops, latents: Signal) -> list[Tensor]:
        return [net.nearest(latents, "codebook.unit", size=self.format.codebook_size)]  # the largest inner product
