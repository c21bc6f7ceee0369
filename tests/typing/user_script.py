"""A user's program against the public face, for type checkers alone: ``.ci/typed`` checks it, nothing runs it.

``assert_type`` fails where something is ``Any``; a comment ``type: ignore`` marks what must be refused, and is itself
an error where it is not.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

from vocoder_plugin import (
    AudioError,
    Codec,
    CodesError,
    DecoderStream,
    DeviceError,
    EncoderStream,
    LibraryError,
    ModelFileError,
    SpeechStream,
    StreamError,
    TokenError,
    TokenLayout,
    TokenReport,
    VocoderError,
    deinterleave,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def play(samples: Floats) -> None: ...


def offline(path: Path, recording: Floats) -> Floats:
    with Codec.load(path, precision="int16", n_threads=2) as codec:
        assert_type(codec, Codec)
        assert_type(codec.name, str)
        assert_type(codec.sample_rate, int)
        assert_type(codec.hop_length, int)
        assert_type(codec.frame_rate, float)
        assert_type(codec.n_codebooks, int)
        assert_type(codec.codebook_size, int)
        assert_type(codec.has_encoder, bool)
        assert_type(codec.has_decoder, bool)
        codes: Ints = codec.encode(recording, sample_rate=44100)
        latents: Floats = codec.encode_latents(recording, 44100)
        play(latents[:, 0])
        samples: Floats = codec.decode(codes)
        assert_type(codec.decoded_length(codes.shape[1]), int)
        return samples


def decode_as_they_come(codec: Codec, pieces: list[Ints]) -> None:
    with codec.decoder_stream(lookahead_frames=2) as stream:
        for codes in pieces:
            play(stream.push(codes))
        play(stream.flush())
    with codec.decoder_stream() as stream:
        assert_type(stream, DecoderStream)
        assert_type(stream.exact, bool)
        assert_type(stream.lookahead_frames, int)
        play(stream.finish(pieces[0]))
        stream.reset()


def encode_as_they_come(codec: Codec, pieces: list[Floats]) -> Ints:
    with codec.encoder_stream(sample_rate=16000) as stream:
        assert_type(stream, EncoderStream)
        parts: list[Ints] = [stream.push(samples) for samples in pieces]
        return np.concatenate([*parts, stream.flush()], axis=1)


def several(codec: Codec, codes: list[Ints], samples: list[Floats]) -> None:
    decoders = [codec.decoder_stream() for _ in codes]
    for pcm in codec.push_many(decoders, codes):
        play(pcm)
    encoders = [codec.encoder_stream() for _ in samples]
    found: list[Ints] = codec.push_many(encoders, samples)
    play(codec.decode(found[0]))


def speak(llm: llama_cpp.Llama, codec: Codec, prompt: list[int]) -> TokenReport:
    layout = TokenLayout("one codebook", (r"<\|s_(\d+)\|>",), end=("<|end|>",), delays=(0,))
    assert_type(layout.n_codebooks, int)
    assert_type(layout.delay, int)
    with SpeechStream(llm, codec, layout=layout, schedule=(1, 8), overlap=False) as stream:
        for token in llm.generate(prompt):
            for pcm in stream.push(token):
                play(pcm)
            if stream.finished:
                break
        play(stream.flush())
        assert_type(stream.report, TokenReport)
        assert_type(stream.overlap, bool)
        codes, report = deinterleave(prompt, stream.vocabulary)
        assert_type(report, TokenReport)
        play(codec.decode(codes))
    return stream.report


def complete(llm: llama_cpp.Llama, codec: Codec, prompt: str) -> None:
    """llama_cpp takes what SpeechStream gives it."""
    stream = SpeechStream(llm, codec)
    stopping = llama_cpp.StoppingCriteriaList([stream.as_stopping_criteria(play)])
    llm.create_completion(prompt, max_tokens=None, stopping_criteria=stopping)
    processors = llama_cpp.LogitsProcessorList([stream.as_logits_processor(play, max_tokens=100)])
    llm.create_completion(prompt, max_tokens=None, logits_processor=processors)
    for pcm in stream.push_text("<|c1_5|>"):
        play(pcm)


def refusals(path: str) -> str:
    try:
        Codec.load(path)
    except ModelFileError as error:
        assert_type(error.path, str | None)
        assert_type(error.key, str | None)
        assert_type(error.tensor, str | None)
    except (DeviceError, LibraryError, StreamError, TokenError) as error:
        return str(error)
    except (AudioError, CodesError) as error:
        as_value: ValueError = error
        return str(as_value)
    except VocoderError as error:
        return str(error)
    return ""


def what_a_checker_refuses(llm: llama_cpp.Llama, codec: Codec) -> None:
    """Each line is wrong, and known to be."""
    Codec.load(7)  # type: ignore[arg-type]
    Codec.load("codec.gguf", n_threads="2")  # type: ignore[arg-type]
    codec.decode("codes")  # type: ignore[arg-type]
    codec.decoder_stream(lookahead_frames="2")  # type: ignore[arg-type]
    print(codec.no_such_thing)  # type: ignore[attr-defined]
    SpeechStream("llm", codec)  # type: ignore[arg-type]
    SpeechStream(llm, "codec")  # type: ignore[arg-type]
    TokenLayout(["name"], (r"(\d+)",))  # type: ignore[arg-type]
