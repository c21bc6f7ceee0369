"""The command ``generate``: a raw prompt in, sound out."""

from __future__ import annotations

import time

import click

from ..errors import VocoderError
from ..llm import SpeechStream, generate_tokens
from .console import Progress, audio_output, check_sound_output, load_codec, load_llm, read_text, say
from .options import (
    CodecOptions,
    LLMOptions,
    SoundOptions,
    codec_options,
    llm_options,
    out_option,
    play_option,
    raw_option,
    sound_options,
)


@click.command(short_help="Let a speech LLM continue a raw prompt.")
@click.option(
    "-m", "--model", required=True, type=click.Path(), help="Speech LLM as a GGUF file, or owner/repo:TAG on the hub."
)
@codec_options(llm=True)
@click.option(
    "--prompt-file", required=True, type=click.Path(), help="The prompt as the model expects it; - for standard input."
)
@sound_options(
    out_option,
    click.option(
        "--streaming", "--stream", "streaming", is_flag=True,
        help="Let the file grow while the model speaks; Ctrl-C keeps what was said.",
    ),
    raw_option,
    play_option,
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Most tokens to write.")
@llm_options
def generate(
    model: str, codec: CodecOptions, prompt_file: str, sound: SoundOptions, max_tokens: int, llm: LLMOptions
) -> None:
    """Let a speech LLM continue a raw prompt, and write or play what it says.

    The file appears when it is complete, or with --streaming grows while the model speaks: it can be
    played at any time, and Ctrl-C leaves what has been said so far. The samples are the same.

    \b
    Hear it at once:   vocoder-plugin generate … --play
    Through a pipe:    vocoder-plugin generate … -o - --raw | aplay -f S16_LE -r 24000
    """
    check_sound_output(sound)
    prompt = read_text(prompt_file)
    model_loaded = load_llm(model, llm, codec)
    with (
        load_codec(codec, model_loaded) as loaded,
        SpeechStream(model_loaded, loaded, whole=not (sound.streaming or sound.play)) as speech,
    ):
        start = time.perf_counter()
        tokens = generate_tokens(
            model_loaded, prompt, end=speech.vocabulary.end, max_tokens=max_tokens, temp=llm.temperature
        )
        count, length = 0, 0.0
        with audio_output(sound, loaded) as write, Progress() as progress:
            for count, token in enumerate(tokens, 1):
                for samples in speech.push(token):
                    write(samples)
                    length += samples.size / loaded.sample_rate
                    progress.show(f"{length:.1f} s of audio, {count / (time.perf_counter() - start):.0f} tokens/s")
            rest = speech.flush()
            write(rest)
            length += rest.size / loaded.sample_rate
            if length == 0:
                raise VocoderError(
                    f"the model wrote {count} tokens, but no audio; is the prompt in the model's format?"
                )
            seconds = time.perf_counter() - start
        speed = f"{count / seconds:.0f} tokens/s, RTF {seconds / length:.2f}"
        say(f"{length:.2f} s of audio from {count} tokens in {seconds:.2f} s ({speed})")
        if tokens.cut:
            say(f"warning: the speech was cut off: {tokens.cut}")
        report = speech.report
        if report.damaged_frames or report.stray_tokens:
            say(f"warning: {report.damaged_frames} damaged frames and {report.stray_tokens} stray tokens left out")
