"""WavTokenizer: one codebook, a Vocos decoder with a clip-wide attention, an EnCodec encoder.

Ji et al. 2024, "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling"
(arXiv:2408.16532); Siuzdak 2023, "Vocos" (arXiv:2306.00814); Défossez et al. 2022, "High Fidelity Neural
Audio Compression" (arXiv:2210.13438). Reference implementation: outetts 0.4.4, outetts/wav_tokenizer.

Two dialects of GGUF are read. codec.cpp's files (architecture ``wavtokenizer_large``) hold encoder and decoder;
its tensor names are used here. llama.cpp's (``wavtokenizer-dec``) hold the decoder alone and do not store sample
rate, hop and FFT length.

The group norms and the attention of the decoder look at the whole clip; the encoder looks at a few frames around
each frame and, through its LSTM, at all before it.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np

from ..gguf_file import GGUFFile
from ..net.ops import ELU, Ops, Reflect
from ..net.plan import Head
from ..net.signal import Signal
from ..net.weights import Shape, Stored
from ..runtime.ggml import Tensor
from ..streams.format import Format
from ..streams.whole_clip import Stages
from .layers import istft, istft_weight, seanet_block
from .model import (
    EDGE_KERNEL,
    MOST_CHANNELS,
    SAMPLE_RATES,
    ZEROS,
    Converter,
    Model,
    ModelFile,
    Option,
    Recipe,
    constant,
    linear,
    rows_scaled,
    search_recipes,
    stored,
    total,
)

CODEC_CPP, LLAMA = "wavtokenizer_large", "wavtokenizer-dec"
SAMPLE_RATE = 24_000  # of all published models
OVERLAP = 4  # windows that cover a sample: hop_length = n_fft / 4 in all published models
MOST_BLOCKS = 256  # of ConvNeXt; the published models have 12
MOST_FFT = 1 << 14
CODEC_CPP_HOP = 320  # what codec.cpp's converter writes whatever the model is
LSTM_LAYERS = 2
ENCODER_CHUNK_SECONDS = 2.0  # activations of the first layers stay in cache; the LSTM's weights are read rarely enough

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


def codec_cpp_name(name: str) -> str:
    return "vq.vq.layers.0._codebook.embed" if name == "vq.codebook" else name


class WavTokenizer(Model):
    """WavTokenizer, of either dialect."""

    architectures = (CODEC_CPP, LLAMA)
    converter = Converter(
        "vocoder_plugin.converters.wavtokenizer:convert",
        "SOURCE is a training checkpoint (.ckpt, such as those of novateur/WavTokenizer-large-speech-75token), one of "
        "outetts' encoder_model.pt and decoder_model.pt, or the folder that holds encoder/ and decoder/ with both.",
        {
            "dialect": Option(
                ("codec.cpp", "llama"),
                "Names of tensors and keys. llama writes the decoder alone, as a file that libllama loads too.",
                "codec.cpp",
            ),
            "config": Option(str, "The model's yaml, if it is not the only one beside SOURCE."),
        },
    )

    @classmethod
    def read(cls, file: GGUFFile, **_options: Any) -> WavTokenizer:
        llama = file.get("general.architecture", str) == LLAMA
        return cls(ModelFile(file, rename=llama_name if llama else codec_cpp_name), llama=llama)

    def __init__(self, file: ModelFile, *, llama: bool) -> None:
        super().__init__(file)
        first, front = "dec.bb.embed", "enc.model.0.conv.conv"
        if llama:
            self.has_encoder, self.has_decoder = False, True
        else:
            self.has_encoder, self.has_decoder = file.sides(encoder=f"{front}.weight", decoder=f"{first}.weight")
        file.reversed = file.is_reversed(first if self.has_decoder else front)
        table = file.shape("vq.codebook")
        if len(table) != 2:
            raise file.fail(f"the codebook has shape {table}, expected (size, dim)", tensor="vq.codebook")
        self.codebook_dim = self.latent_dim = table[1]
        self.encoder_rates = self._rates() if self.has_encoder else ()
        self.encoder_dim = file.size(f"{front}.bias") if self.has_encoder else 0
        self.decoder_dim = file.size(f"{first}.bias") if self.has_decoder else 0
        self.hidden_dim = file.size("dec.bb.cnx.0.pwconv1.bias") if self.has_decoder else 0  # inside a ConvNeXt block
        self.n_blocks = len(file.present("dec.bb.cnx.{}.gamma")) if self.has_decoder else 0
        hop = math.prod(self.encoder_rates)
        self.n_fft = file.size("dec.head.out.bias") - 2 if self.has_decoder else OVERLAP * hop
        self.groups = file.get(f"{LLAMA}.attention.group_norm_groups", int, 32)
        self.group_epsilon = file.get(f"{LLAMA}.attention.group_norm_epsilon", float, 1e-6)
        self.layer_epsilon = file.get(f"{LLAMA}.attention.layer_norm_epsilon", float, 1e-6)
        self.gelu = file.get("vocoder.gelu", str, "erf")  # tanh as libllama computes it; the reference uses erf
        self.format = Format(
            name=file.get("general.name", str, "WavTokenizer") or "WavTokenizer",
            sample_rate=file.get("codec.sample_rate", int, SAMPLE_RATE),
            hop_length=hop if self.has_encoder else self.n_fft // OVERLAP,
            rows=(0,),
            codebook_size=table[0],
            least_rows=1,
        )
        self._check()
        file.recipes.update(self._recipes(adaptive=not llama))
        if self.has_encoder:
            units = self.encoder_dim << len(self.encoder_rates)
            self.stages = Stages(self._encoder_reach(), units, LSTM_LAYERS, tail_reach=EDGE_KERNEL // 2)

    def _rates(self) -> tuple[int, ...]:
        """Strides of the convolutions that have a residual block before them."""
        blocks = self.file.present("enc.model.{}.shortcut.conv.conv.weight", 1, 3)
        return self.file.rates([f"enc.model.{3 * i + 3}.conv.conv.weight" for i in range(len(blocks))])

    def _encoder_reach(self) -> int:
        """Frames that the convolutions before the LSTM see on either side of a frame."""
        step, samples = 1, EDGE_KERNEL // 2
        for rate in self.encoder_rates:
            samples += step * (1 + -(-rate // 2))
            step *= rate
        return -(-samples // step)

    def _check(self) -> None:
        """Sizes against each other, the keys and sense."""
        file, f = self.file, self.format
        file.expect("key 'codec.sample_rate'", f.sample_rate, SAMPLE_RATES)
        if (stored_hop := file.get("codec.hop_size", int, f.hop_length)) != CODEC_CPP_HOP:
            file.expect("key 'codec.hop_size'", stored_hop, f.hop_length)
        file.expect("key 'codec.n_q'", file.get("codec.n_q", int, 1), 1)
        if not 1 <= f.codebook_size <= 1 << 20 or not 1 <= self.codebook_dim <= MOST_CHANNELS:
            raise file.fail(f"the codebook has shape {(f.codebook_size, self.codebook_dim)}", tensor="vq.codebook")
        if self.n_fft != OVERLAP * f.hop_length or not 8 <= self.n_fft <= MOST_FFT or self.n_fft % 8:
            hop = f"a hop of {f.hop_length}, expected {OVERLAP} times the hop"
            raise file.fail(f"an FFT of {self.n_fft} samples does not fit {hop}")
        channels = max(self.decoder_dim, self.hidden_dim, self.encoder_dim << len(self.encoder_rates))
        if channels > MOST_CHANNELS:
            raise file.fail(f"there are {channels} channels, more than {MOST_CHANNELS}")
        if self.has_decoder:
            file.expect("the number of ConvNeXt blocks", self.n_blocks, range(1, MOST_BLOCKS + 1))
            if not 1 <= self.groups <= self.decoder_dim or self.decoder_dim % self.groups:
                raise file.fail(f"{self.decoder_dim} channels cannot be normalised in {self.groups} groups")
        if self.encoder_dim % 2:
            raise file.fail(f"{self.encoder_dim} encoder channels cannot be halved")
        for what, epsilon in (("group", self.group_epsilon), ("layer", self.layer_epsilon)):
            if not 0 < epsilon < 1:
                raise file.fail(f"the {what} norms' epsilon is {epsilon}, expected 0 to 1")
        if self.gelu not in ("erf", "tanh"):
            raise file.fail(f"key 'vocoder.gelu' is {self.gelu!r}, expected 'erf' or 'tanh'", key="vocoder.gelu")

    def _recipes(self, *, adaptive: bool) -> dict[str, Recipe]:
        """Layer scales and the first condition of adaptive norms are folded in; the ISTFT's weight is computed."""
        recipes = search_recipes("vq.nearest", stored("vq.codebook"), self.format.codebook_size, self.codebook_dim)
        recipes["dec.head.out.weight"] = linear("dec.head.out.weight")
        recipes["dec.head.istft.weight"] = constant(lambda shape: istft_weight(shape[2]))
        recipes["dec.head.istft.bias"] = ZEROS
        norms = ["dec.bb.norm", *(f"dec.bb.cnx.{i}.norm" for i in range(self.n_blocks))]
        for norm in norms if adaptive else []:
            for part, condition in (("weight", "scale"), ("bias", "shift")):
                if self.file.has(f"{norm}.{condition}.weight"):
                    recipes[f"{norm}.{part}"] = partial(first_condition, name=f"{norm}.{condition}.weight")
        for block in (f"dec.bb.cnx.{i}" for i in range(self.n_blocks)):
            gamma = stored(f"{block}.gamma")
            recipes[f"{block}.pwconv1.weight"] = linear(f"{block}.pwconv1.weight")
            recipes[f"{block}.pwconv2.weight"] = rows_scaled(linear(f"{block}.pwconv2.weight"), gamma)
            recipes[f"{block}.pwconv2.bias"] = rows_scaled(stored(f"{block}.pwconv2.bias"), gamma)
        lstm = f"enc.model.{3 * len(self.encoder_rates) + 1}.lstm"
        for layer in range(LSTM_LAYERS):
            for which in ("ih", "hh"):
                recipes[f"{lstm}.{which}_l{layer}.weight"] = partial(gates, name=f"{lstm}.weight_{which}_l{layer}")
            biases = [stored(f"{lstm}.bias_{which}_l{layer}") for which in ("ih", "hh")]
            recipes[f"{lstm}.ih_l{layer}.bias"] = total(biases)
        return recipes

    def describe(self) -> dict[str, str]:
        return {
            "encoder": f"rates {' '.join(map(str, self.encoder_rates))}" if self.has_encoder else "none",
            "decoder": f"rates {self.format.hop_length}" if self.has_decoder else "none",
        }

    @property
    def chunk_frames(self) -> int:
        return max(1, round(ENCODER_CHUNK_SECONDS * self.format.frame_rate))

    def passes(self) -> dict[str, dict[str, Head]]:
        passes: dict[str, dict[str, Head]] = {}
        if self.has_decoder:
            passes["decoder"] = {"decode": self._decode_head, "spectrum": self._spectrum_head}
        if self.has_encoder:
            passes["front"] = {"front": self._front_head}
            passes["recurrent"] = {"recurrent": self._recurrent_head}
            passes["tail"] = {"encode": self._codes_head, "latents": self._tail_head}
        return passes

    # The decoder

    def decode(self, net: Ops, codes: Tensor) -> Signal:
        x = net.polar(self.spectrum(net, codes))  # [n_fft + 2, T]
        return istft(net, x, "dec.head.istft", n_fft=self.n_fft, hop_length=self.format.hop_length)  # [1, T * hop]

    def spectrum(self, net: Ops, codes: Tensor) -> Signal:
        """Codes [T] -> log magnitudes and phases [n_fft + 2, T]."""
        x = net.embed(codes, "vq.codebook", size=self.format.codebook_size, dim=self.codebook_dim)  # [dim, T]
        x = net.conv1d(x, "dec.bb.embed", out=self.decoder_dim, kernel=EDGE_KERNEL)  # [channels, T], up to the head
        for i in (0, 1):
            x = self.resnet(net, x, f"dec.bb.pos_net.{i}")
        x = self.attention(net, x, "dec.bb.pos_net.2")
        for i in (3, 4):
            x = self.resnet(net, x, f"dec.bb.pos_net.{i}")
        x = self.group_norm(net, x, "dec.bb.pos_net.5")
        x = net.layer_norm(x, "dec.bb.norm", epsilon=self.layer_epsilon)
        for i in range(self.n_blocks):
            x = self.convnext(net, x, f"dec.bb.cnx.{i}")
        x = net.layer_norm(x, "dec.bb.fln", epsilon=self.layer_epsilon)
        return net.conv1d(x, "dec.head.out", out=self.n_fft + 2, kernel=1)

    def resnet(self, net: Ops, x: Signal, name: str) -> Signal:
        h = net.swish(self.group_norm(net, x, f"{name}.norm1"))
        h = net.conv1d(h, f"{name}.conv1", out=x.channels, kernel=3)
        h = net.swish(self.group_norm(net, h, f"{name}.norm2"))
        return net.conv1d(h, f"{name}.conv2", out=x.channels, kernel=3, add=x)

    def attention(self, net: Ops, x: Signal, name: str) -> Signal:
        h = self.group_norm(net, x, f"{name}.norm")
        q, k, v = (net.conv1d(h, f"{name}.{part}", out=x.channels, kernel=1) for part in "qkv")
        h = net.attention(q, k, v, name, heads=1)
        return net.conv1d(h, f"{name}.proj_out", out=x.channels, kernel=1, add=x)

    def convnext(self, net: Ops, x: Signal, name: str) -> Signal:
        """The layer scale gamma is part of pwconv2."""
        h = net.depthwise(x, f"{name}.dwconv", kernel=7)
        h = net.layer_norm(h, f"{name}.norm", epsilon=self.layer_epsilon)
        h = net.conv1d(h, f"{name}.pwconv1", out=self.hidden_dim, kernel=1)  # [hidden, T]
        h = net.gelu(h, tanh=self.gelu == "tanh")
        return net.conv1d(h, f"{name}.pwconv2", out=x.channels, kernel=1, add=x)

    def group_norm(self, net: Ops, x: Signal, name: str) -> Signal:
        return net.group_norm(x, name, groups=self.groups, epsilon=self.group_epsilon)

    def _spectrum_head(self, net: Ops) -> None:
        net.rows_out(self.spectrum(net, net.codes_in(1)))

    # The encoder, in three passes: see Stages

    def front(self, net: Ops, samples: Signal) -> Signal:
        """Samples [1, N] -> [encoder_dim * 2^n, ceil(N / hop_length)]."""
        x = net.conv1d(
            samples, "enc.model.0.conv.conv", out=self.encoder_dim, kernel=EDGE_KERNEL, padding=Reflect()
        )  # [channels, N]
        for i, rate in enumerate(self.encoder_rates):
            x = seanet_block(net, x, f"enc.model.{3 * i + 1}")
            name = f"enc.model.{3 * i + 3}.conv.conv"
            x = net.conv1d(
                x, name, out=2 * x.channels, kernel=2 * rate, stride=rate, padding=Reflect(), activation=ELU
            )  # [2 channels, N / rate]
        return x

    def tail(self, net: Ops, x: Signal) -> Signal:
        """Sums of front and LSTM [C, T] -> latents [dim, T]."""
        name = f"enc.model.{3 * len(self.encoder_rates) + 3}.conv.conv"
        return net.conv1d(x, name, out=self.codebook_dim, kernel=EDGE_KERNEL, padding=Reflect(), activation=ELU)

    def quantise(self, net: Ops, latents: Signal) -> list[Tensor]:
        scores = net.conv1d(latents, "vq.nearest", out=self.format.codebook_size, kernel=1, search=True)
        return [net.argmax(scores)]

    def _front_head(self, net: Ops) -> None:
        net.rows_out(self.front(net, net.samples_in(1)))

    def _recurrent_head(self, net: Ops) -> None:
        units = self.encoder_dim << len(self.encoder_rates)
        front = x = net.rows_in(units)
        before, after = [net.carried_in(units, 2) for _ in range(LSTM_LAYERS)], []
        for layer, state in enumerate(before):
            x, left = net.lstm(x, f"enc.model.{3 * len(self.encoder_rates) + 1}.lstm", layer, state)
            after.append(left)
        net.rows_out(net.add(x, front))
        for state in after:
            net.rows_out(state)

    def _codes_head(self, net: Ops) -> None:
        latents = self.tail(net, net.rows_in(self.encoder_dim << len(self.encoder_rates)))
        for codes in self.quantise(net, latents):
            net.codes_out(codes, latents)

    def _tail_head(self, net: Ops) -> None:
        net.rows_out(self.tail(net, net.rows_in(self.encoder_dim << len(self.encoder_rates))))


def first_condition(file: ModelFile, shape: Shape, *, name: str) -> Stored:
    """Scale or shift of an adaptive norm: its first row, or the whole where there is one."""
    found = file.shape(name)
    if len(found) not in (1, 2) or found[-1:] != shape:
        raise file.fail(f"tensor {name!r} has shape {found}, expected (conditions, {shape[0]})", tensor=name)
    return Stored(shape, lambda: np.ascontiguousarray(file.read(name).reshape(-1, *shape)[0]))


def gates(file: ModelFile, shape: Shape, *, name: str) -> Stored:
    """An LSTM's weights [4 H, H], as a matrix or as a convolution of kernel 1; codec.cpp transposes them."""
    found, wanted = file.shape(name), shape[:2]
    if found not in (wanted, wanted[::-1]):
        raise file.fail(f"tensor {name!r} has shape {found}, expected {wanted} or its reverse", tensor=name)
    return Stored(shape, lambda: np.ascontiguousarray(turned(file.read(name), wanted)).reshape(shape))


def turned(values: np.ndarray, shape: Shape) -> np.ndarray:
    return values if values.shape == shape else values.T
