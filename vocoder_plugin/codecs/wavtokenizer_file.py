"""WavTokenizer model files: two dialects of keys and tensor names under one vocabulary, checked.

codec.cpp's files (architecture ``wavtokenizer_large``) hold encoder and decoder. llama.cpp's
(``wavtokenizer-dec``) hold the decoder alone and do not store sample rate, hop and FFT length.
"""

from __future__ import annotations

import math
import re

import numpy as np

from ..errors import ModelFileError
from ..gguf_file import GGUFFile
from ..net.weights import Stored, expect_shape
from .wavtokenizer import Config, istft_weight

CODEC_CPP, LLAMA = "wavtokenizer_large", "wavtokenizer-dec"
ARCHITECTURES = (CODEC_CPP, LLAMA)
SAMPLE_RATE = 24_000  # of all published models
OVERLAP = 4  # windows that cover a sample: hop_length = n_fft / 4 in all published models
MOST_BLOCKS = 32  # of ConvNeXt; the published models have 12, and a graph holds 4096 nodes
MOST_CHANNELS = 1 << 14
MOST_FFT = 1 << 14
CODEC_CPP_HOP = 320  # what codec.cpp's converter writes whatever the model is

# the vocabulary's names -> llama.cpp's; a pattern's groups fill the braces
LLAMA_NAMES = [
    (r"vq\.codebook", "token_embd.weight"),
    (r"dec\.bb\.embed\.(weight|bias)", "conv1d.{0}"),
    (r"dec\.bb\.pos_net\.2\.norm\.(weight|bias)", "posnet.2.attn_norm.{0}"),
    (r"dec\.bb\.pos_net\.2\.([qkv])\.(weight|bias)", "posnet.2.attn_{0}.{1}"),
    (r"dec\.bb\.pos_net\.2\.proj_out\.(weight|bias)", "posnet.2.attn_output.{0}"),
    (r"dec\.bb\.pos_net\.5\.(weight|bias)", "posnet.5.attn_norm.{0}"),
    (r"dec\.bb\.pos_net\.([0134])\.(norm1|norm2|conv1|conv2)\.(weight|bias)", "posnet.{0}.{1}.{2}"),
    (r"dec\.bb\.norm\.(weight|bias)", "token_embd_norm.{0}"),
    (r"dec\.bb\.cnx\.(\d+)\.gamma", "convnext.{0}.gamma.weight"),
    (r"dec\.bb\.cnx\.(\d+)\.dwconv\.(weight|bias)", "convnext.{0}.dw.{1}"),
    (r"dec\.bb\.cnx\.(\d+)\.pwconv([12])\.(weight|bias)", "convnext.{0}.pw{1}.{2}"),
    (r"dec\.bb\.cnx\.(\d+)\.norm\.(weight|bias)", "convnext.{0}.norm.{1}"),
    (r"dec\.bb\.fln\.(weight|bias)", "output_norm.{0}"),
    (r"dec\.head\.out\.(weight|bias)", "output.{0}"),
]


def llama_name(name: str) -> str:
    """llama.cpp's name of a decoder's tensor."""
    for pattern, form in LLAMA_NAMES:
        if match := re.fullmatch(pattern, name):
            return form.format(*match.groups())
    raise KeyError(name)


class Tensors:
    """A WavTokenizer file's tensors under the names that the forward passes use, in torch's layout, checked."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._llama = file.get("general.architecture", str) == LLAMA
        self.config = self._config()

    # -- one vocabulary of names

    def find(self, name: str) -> Stored:
        """Shape and reader of a tensor by its name in the forward passes; raises if the file lacks it."""
        c = self.config
        if name == "vq.codebook":
            return self._codebook()
        if name == "vq.nearest.weight":
            table = self._codebook()
            return Stored((*table.shape, 1), lambda: table.read()[:, :, np.newaxis])
        if name == "vq.nearest.bias":
            table = self._codebook()
            return Stored((table.shape[0],), lambda: _half_square(table.read()))
        if name == "dec.head.istft.weight":
            return Stored((c.n_fft + 2, 1, c.n_fft), lambda: istft_weight(c.n_fft))
        if name == "dec.head.istft.bias":
            return Stored((1,), lambda: np.zeros(1, np.float32))
        if match := re.fullmatch(r"(dec\.bb\.cnx\.\d+)\.pwconv2\.(weight|bias)", name):
            return self._times_gamma(self._stored(name), f"{match[1]}.gamma")
        if match := re.fullmatch(r"(.*\.lstm)\.(ih|hh)_l(\d)\.(weight|bias)", name):
            return self._lstm(*match.groups())
        return self._stored(name)

    def _stored(self, name: str) -> Stored:
        if re.fullmatch(r"dec\.bb\.(cnx\.\d+\.)?norm\.(weight|bias)", name) and not self._llama:
            return self._condition(name)
        if name.endswith(".bias") or self._is_vector(name):
            return self._vector(name)
        if re.search(r"\.(pwconv[12]|out)\.weight$", name):
            return self._matrix(name)
        return self._conv(name)

    @staticmethod
    def _is_vector(name: str) -> bool:
        return bool(re.search(r"(norm\d?|fln|pos_net\.5)\.weight$|gamma$", name))

    def _named(self, name: str) -> Stored:
        """A tensor as the file holds it."""
        found = llama_name(name) if self._llama else name
        return Stored(self.file.info(found).shape, lambda: self.file.read(found))

    def _vector(self, name: str) -> Stored:
        stored = self._named(name)  # llama.cpp's biases are [C, 1]
        return Stored((math.prod(stored.shape),), lambda: stored.read().reshape(-1))

    def _codebook(self) -> Stored:
        name = "vq.codebook" if self._llama else "vq.vq.layers.0._codebook.embed"
        shape = (self.config.codebook_size, self.config.codebook_dim)
        return expect_shape(name, self._named(name), shape, path=self.file.path)

    def _conv(self, name: str) -> Stored:
        """[out, in, kernel]; codec.cpp's files had the reverse order once, told by the decoder's first convolution."""
        stored = self._named(name)
        shape = self._conv_shape(stored.shape, name)
        if self._reversed:
            return Stored(shape, lambda: stored.read().reshape(shape[::-1]).transpose(2, 1, 0))
        return Stored(shape, lambda: stored.read().reshape(shape))

    def _conv_shape(self, shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
        if len(shape) > 3:
            raise self._fail(f"tensor {name!r} has shape {shape}, expected 3 dimensions")
        a, b, c = (1,) * (3 - len(shape)) + shape  # ggml's own tools drop trailing ones of ne when they rewrite a file
        return (c, b, a) if self._reversed else (a, b, c)

    def _matrix(self, name: str) -> Stored:
        """A linear layer's [out, in] as a convolution's [out, in, 1]."""
        stored = self._named(name)
        if len(stored.shape) != 2:
            raise self._fail(f"tensor {name!r} has shape {stored.shape}, expected 2 dimensions")
        return Stored((*stored.shape, 1), lambda: stored.read()[:, :, np.newaxis])

    def _times_gamma(self, stored: Stored, gamma_name: str) -> Stored:
        gamma = expect_shape(gamma_name, self._stored(gamma_name), stored.shape[:1], path=self.file.path)
        rest = (1,) * (len(stored.shape) - 1)
        return Stored(stored.shape, lambda: stored.read() * gamma.read().reshape(-1, *rest))

    def _condition(self, name: str) -> Stored:
        """Weight or bias of an adaptive norm: the first row of its scales or shifts, or a plain norm's vector."""
        stem, part = name.rsplit(".", 1)
        adaptive = f"{stem}.{'scale' if part == 'weight' else 'shift'}.weight"
        if adaptive not in self.file.tensors:
            return self._vector(name)
        shape = self.file.info(adaptive).shape
        if len(shape) == 1:
            return Stored(shape, lambda: self.file.read(adaptive))
        if len(shape) != 2:
            raise self._fail(f"tensor {adaptive!r} has shape {shape}, expected 2 dimensions")
        return Stored(shape[1:], lambda: np.ascontiguousarray(self.file.read(adaptive)[0]))

    def _lstm(self, stem: str, which: str, layer: str, part: str) -> Stored:
        """``ih`` as a convolution with both biases in it, ``hh`` as a matrix [4 H, H]; codec.cpp transposes both."""
        if part == "bias":
            parts = [self._vector(f"{stem}.bias_{w}_l{layer}") for w in ("ih", "hh")]
            expect_shape(f"{stem}.bias_hh_l{layer}", parts[1], parts[0].shape, path=self.file.path)
            return Stored(parts[0].shape, lambda: parts[0].read() + parts[1].read())
        name = f"{stem}.weight_{which}_l{layer}"
        shape = self.file.info(name).shape
        if len(shape) != 2 or sorted(shape) != [min(shape), 4 * min(shape)]:
            raise self._fail(f"tensor {name!r} has shape {shape}, expected (4 H, H) or its reverse")

        def read() -> np.ndarray:
            values = self.file.read(name)
            return np.ascontiguousarray(values if shape[0] > shape[1] else values.T)

        matrix = Stored((max(shape), min(shape)), read)
        return matrix if which == "hh" else Stored((*matrix.shape, 1), lambda: read()[:, :, np.newaxis])

    # -- sizes

    def _config(self) -> Config:
        file, first = self.file, "dec.bb.embed"
        has_decoder = self._llama or file.get("codec.has_decoder", bool, f"{first}.weight" in file.tensors)
        has_encoder = not self._llama and file.get(
            "codec.has_encoder", bool, "enc.model.0.conv.conv.weight" in file.tensors
        )
        if not has_decoder and not has_encoder:
            raise self._fail("holds neither an encoder nor a decoder")
        self._reversed = self._is_reversed(first if has_decoder else "enc.model.0.conv.conv")
        size, dim = self._codebook_shape()
        rates = self._rates() if has_encoder else ()
        n_fft = self._vector_size("dec.head.out.bias") - 2 if has_decoder else OVERLAP * math.prod(rates)
        config = Config(
            name=file.get("general.name", str, "WavTokenizer") or "WavTokenizer",
            sample_rate=file.get("codec.sample_rate", int, SAMPLE_RATE),
            codebook_size=size,
            codebook_dim=dim,
            encoder_dim=self._vector_size("enc.model.0.conv.conv.bias") if has_encoder else 0,
            encoder_rates=rates,
            decoder_dim=self._vector_size(f"{first}.bias") if has_decoder else 0,
            hidden_dim=self._vector_size("dec.bb.cnx.0.pwconv1.bias") if has_decoder else 0,
            n_blocks=self._count_blocks() if has_decoder else 0,
            n_fft=n_fft,
            hop_length=math.prod(rates) if has_encoder else n_fft // OVERLAP,
            groups=file.get(f"{LLAMA}.attention.group_norm_groups", int, 32),
            group_epsilon=file.get(f"{LLAMA}.attention.group_norm_epsilon", float, 1e-6),
            layer_epsilon=file.get(f"{LLAMA}.attention.layer_norm_epsilon", float, 1e-6),
            tanh_gelu=self._tanh_gelu(),
        )
        self._check(config)
        return config

    def _codebook_shape(self) -> tuple[int, int]:
        shape = self._named("vq.codebook" if self._llama else "vq.vq.layers.0._codebook.embed").shape
        if len(shape) != 2:
            raise self._fail(f"the codebook has shape {shape}, expected (size, dim)")
        return shape[0], shape[1]

    def _vector_size(self, name: str) -> int:
        return math.prod(self._named(name).shape)

    def _is_reversed(self, first: str) -> bool:
        shape, channels = self._named(f"{first}.weight").shape, self._vector_size(f"{first}.bias")
        shape = (1,) * (3 - len(shape)) + shape
        if len(shape) == 3 and (shape[0], shape[2]) == (channels, 7):
            return False
        if len(shape) == 3 and (shape[2], shape[0]) == (channels, 7):
            return True
        raise self._fail(f"tensor '{first}.weight' has shape {shape}, expected ({channels}, in, 7) or its reverse")

    def _rates(self) -> tuple[int, ...]:
        """Strides, from kernels of twice their length."""
        rates: list[int] = []
        while f"enc.model.{3 * len(rates) + 3}.conv.conv.weight" in self.file.tensors:
            name = f"enc.model.{3 * len(rates) + 3}.conv.conv.weight"
            if f"enc.model.{3 * len(rates) + 1}.shortcut.conv.conv.weight" not in self.file.tensors:
                break  # the last convolution
            kernel = self._conv_shape(self.file.info(name).shape, name)[2]
            if kernel % 2 or not 4 <= kernel <= 64:
                raise self._fail(f"tensor {name!r} has kernel {kernel}, expected twice a stride of 2 to 32")
            rates.append(kernel // 2)
        if not 1 <= len(rates) <= 8:
            raise self._fail(f"the encoder has {len(rates)} blocks, expected 1 to 8")
        return tuple(rates)

    def _count_blocks(self) -> int:
        n = 0
        names = self.file.tensors
        while (llama_name(f"dec.bb.cnx.{n}.gamma") if self._llama else f"dec.bb.cnx.{n}.gamma") in names:
            n += 1
        if not 1 <= n <= MOST_BLOCKS:
            raise self._fail(f"the decoder has {n} ConvNeXt blocks, expected 1 to {MOST_BLOCKS}")
        return n

    def _tanh_gelu(self) -> bool:
        gelu = self.file.get("vocoder.gelu", str, "erf")
        if gelu not in ("erf", "tanh"):
            raise self._fail(f"key 'vocoder.gelu' is {gelu!r}, expected 'erf' or 'tanh'")
        return gelu == "tanh"

    def _check(self, c: Config) -> None:
        """Sizes against each other, the keys and sense."""
        if not 1000 <= c.sample_rate <= 400_000:
            raise self._fail(f"key 'codec.sample_rate' is {c.sample_rate}, expected 1000 to 400000")
        hop = self.file.get("codec.hop_size", int, c.hop_length)
        if hop not in (c.hop_length, CODEC_CPP_HOP):
            raise self._fail(f"key 'codec.hop_size' is {hop}, expected {c.hop_length}, as the tensors say")
        if self.file.get("codec.n_q", int, 1) != 1:
            raise self._fail(f"key 'codec.n_q' is {self.file.get('codec.n_q', int)}, expected 1")
        if not 1 <= c.codebook_size <= 1 << 20 or not 1 <= c.codebook_dim <= MOST_CHANNELS:
            raise self._fail(f"the codebook has shape {(c.codebook_size, c.codebook_dim)}")
        if c.n_fft != OVERLAP * c.hop_length or not 8 <= c.n_fft <= MOST_FFT or c.n_fft % 8:
            raise self._fail(
                f"an FFT of {c.n_fft} samples does not fit a hop of {c.hop_length}, expected {OVERLAP} times the hop"
            )
        channels = (c.decoder_dim, c.hidden_dim, c.encoder_dim << len(c.encoder_rates))
        if max(channels) > MOST_CHANNELS:
            raise self._fail(f"there are {max(channels)} channels, more than {MOST_CHANNELS}")
        if c.decoder_dim and (not 1 <= c.groups <= c.decoder_dim or c.decoder_dim % c.groups):
            raise self._fail(f"{c.decoder_dim} channels cannot be normalised in {c.groups} groups")
        if c.encoder_dim % 2:
            raise self._fail(f"{c.encoder_dim} encoder channels cannot be halved")
        for what, epsilon in (("group", c.group_epsilon), ("layer", c.layer_epsilon)):
            if not 0 < epsilon < 1:
                raise self._fail(f"the {what} norms' epsilon is {epsilon}, expected 0 to 1")

    def _fail(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.file.path}: {message}")


def _half_square(table: np.ndarray) -> np.ndarray:
    return (-0.5 * (table.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
