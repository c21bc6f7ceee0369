"""The commands for OuteTTS: speak, create-speaker, speaker."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .. import hub
from ..audio.samples import audio_format, write_audio
from ..errors import VocoderError
from ..families.outetts import create, profiles, speech
from ..families.outetts.sampler import Sampling
from .console import (
    Progress,
    audio_output,
    check_output,
    check_sound_output,
    load_codec,
    load_llm,
    on_terminal,
    output_file,
    read_text,
    say,
)
from .options import FiniteRange, device_options, force_option, llm_options, play_option, raw_option

codec_help = "Codec GGUF file, or owner/repo/file.gguf on the hub."
offline_option = click.option("--offline", is_flag=True, help="Take hub files from the cache only.")


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings of the package go to standard error, a line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_args, **_options: say(f"warning: {message}")
        yield


def open_codec(name: str, device: str | None, threads: int | None, *, offline: bool, llm: Any = None) -> Any:
    path = hub.local_or_fetch(name, offline=offline, progress=on_terminal())
    return load_codec(str(path), device, threads, llm)


# -- speak


@click.command()
@click.argument("text", required=False)
@click.option("-p", "--prompt", "prompt", help="The text, as llama-tts takes it.")
@click.option("--file", "text_file", type=click.Path(), help="Read the text from a file.")
@click.option("-m", "--model", type=click.Path(), help="OuteTTS model as a GGUF file.")
@click.option(
    "--hf", "hub_model", metavar="REPO[:TAG]", help="The model from the hub, such as OuteAI/OuteTTS-1.0-0.6B-GGUF:Q8_0."
)
@click.option("--codec", "-mv", "--model-vocoder", "codec_file", required=True, type=click.Path(), help=codec_help)
@click.option(
    "--speaker", "--tts-speaker-file", "speaker_name",
    help="Voice: a profile's path, its name in the profile folder, owner/repo/file.json, or none.",
)  # fmt: skip
@click.option(
    "-o", "--out", "--output", "out", help="Sound file to write: .wav, .flac, .ogg, or - for standard output."
)
@raw_option
@play_option
@click.option("--guided", is_flag=True, help="Force the words of the text, in order (OuteTTS 1.0).")
@click.option("--voice", help="A description of the voice (OuteTTS 0.2 and 0.3).")
@click.option("--loudness", type=FiniteRange(-60, 0), help="Bring the speaker to so many LUFS, such as -18.")
@click.option(
    "--max-length", type=click.IntRange(1), default=8192, show_default=True,
    help="Most tokens of a chunk, prompt and all.",
)  # fmt: skip
@llm_options
@device_options
@offline_option
@force_option
def speak(
    text: str | None, prompt: str | None, text_file: str | None, model: str | None, hub_model: str | None,
    codec_file: str, speaker_name: str | None, out: str | None, raw: bool, play: bool, guided: bool,
    voice: str | None, loudness: float | None, temperature: float, seed: int | None, max_length: int,
    n_ctx: int, n_gpu_layers: int, device: str | None, threads: int | None, offline: bool, force: bool,
) -> None:  # fmt: skip
    """Say TEXT (- for standard input) with an OuteTTS model, in a speaker's voice.

    The file grows while the model speaks: it can be played at any time, and an error or Ctrl-C leaves what has been
    said so far. llama-tts's flags are understood: -m, -mv, --tts-speaker-file, -p, -o, -c, -ngl.

    \b
    A voice of your own:  vocoder-plugin speak "Hello." -m llm.gguf --codec dac.gguf --speaker me.json -o hello.wav
    A book, at once:      vocoder-plugin speak --file book.txt -m llm.gguf --codec dac.gguf --speaker me.json --play
    """
    said = given_text(text, prompt, text_file)
    if (model is None) == (hub_model is None):
        raise VocoderError("name one model, with --model FILE or --hf REPO")
    check_sound_output(out, raw=raw, play=play, force=force)
    if speaker_name is None:
        raise VocoderError(f"no speaker was named; {profiles.available()}; or let the model choose with --speaker none")
    with warnings_told():
        known = None
        if speaker_name != "none":
            known = profiles.find(speaker_name, offline=offline, progress=on_terminal())
        path = model or hub.fetch(str(hub_model), offline=offline, progress=on_terminal())
        llm = load_llm(str(path), n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_threads=threads, seed=seed)
        with open_codec(codec_file, device, threads, offline=offline, llm=llm) as codec:
            progress, line = speech.Progress(), Progress()

            def follow(now: speech.Progress) -> None:
                nonlocal progress
                progress = now
                line.show(far(now))

            samples = speech.speak(
                llm, codec, said, speaker=known, voice=voice, sampling=Sampling(temperature=temperature), seed=seed,
                max_length=max_length, guided=guided, loudness=loudness, on_progress=follow,
            )  # fmt: skip
            with audio_output(out, codec, streaming=out != "-", raw=raw, play=play, force=force) as write, line:
                line.show("reading the prompt")
                for part in samples:
                    write(part)
            say(summary(progress))


def given_text(text: str | None, prompt: str | None, text_file: str | None) -> str:
    given = [source for source in (text, prompt, text_file) if source is not None]
    if len(given) != 1:
        raise VocoderError("give the text once: as an argument, with --prompt, or with --file")
    if text_file is not None or text == "-":
        return read_text(text_file if text_file is not None else "-")
    return given[0]


def far(p: speech.Progress) -> str:
    """How far the speech has come."""
    return f"{p.words} of {p.total_words} words, {p.seconds:.1f} s, {p.tokens_per_second:.0f} tokens/s, RTF {p.rtf:.2f}"


def summary(p: speech.Progress) -> str:
    tried = f", {p.retries} tried again" if p.retries else ""
    return (
        f"{p.seconds:.2f} s of audio from {p.tokens} tokens in {p.elapsed:.2f} s "
        f"({p.tokens_per_second:.0f} tokens/s, RTF {p.rtf:.2f}), {p.chunks} chunk{'s' * (p.chunks != 1)}{tried}"
    )


# -- speakers


@click.command("create-speaker")
@click.option("--audio", required=True, type=click.Path(), help="Clip of the voice: up to 15 s of clean speech.")
@click.option("--transcript", help="What is said in it, in English unless --words are given.")
@click.option("--words", type=click.Path(), help="When each word is said: .json, .ctm, .srt, .vtt or .TextGrid.")
@click.option("--asr", metavar="NAME", help="Recognise the words, by an installed aligner such as faster-whisper.")
@click.option("--asr-model", type=click.Path(), help="The recogniser's model.")
@click.option("--codec", "-mv", "codec_file", required=True, type=click.Path(), help=codec_help)
@click.option("-o", "--out", required=True, help="Profile to write: a .json file, or a name for the profile folder.")
@click.option("--version", type=click.IntRange(1, 3), help="Version of the profile. [default: by the codec]")
@device_options
@offline_option
@force_option
def create_speaker(
    audio: str, transcript: str | None, words: str | None, asr: str | None, asr_model: str | None, codec_file: str,
    out: str, version: int | None, device: str | None, threads: int | None, offline: bool, force: bool,
) -> None:  # fmt: skip
    """Make a speaker profile of a clip and what is said in it.

    Word times come from --words; else from a recogniser, if --asr names one; else from the transcript,
    aligned offline (pocketsphinx, English).

    \b
    vocoder-plugin create-speaker --audio me.wav --transcript "What I say in the clip." --codec dac.gguf -o me
    vocoder-plugin speak "Hello." -m llm.gguf --codec dac.gguf --speaker me -o hello.wav
    """
    if transcript is None and words is None and asr is None:
        raise VocoderError("what is said in the clip? Give --transcript TEXT, --words FILE, or --asr NAME")
    if words is not None and asr is not None:
        raise VocoderError("--words and --asr exclude each other")
    target = profiles.target(out)
    if target.parent == profiles.folder():
        target.parent.mkdir(parents=True, exist_ok=True)
    check_output(str(target), force=force, inputs=[audio, words, codec_file])
    with warnings_told(), open_codec(codec_file, device, threads, offline=offline) as codec:
        made = create.create_speaker(
            audio, transcript, codec=codec, words=words, version=version, aligner=asr,
            aligner_options={} if asr_model is None else {"model": asr_model},
        )  # fmt: skip
        made.save(target, force=force)
    say(f"{target}: {len(made.words)} words, {made.n_frames / codec.frame_rate:.2f} s, for version {made.version}")


@click.group()
def speaker() -> None:
    """Look at speaker profiles."""


@speaker.command("list")
def list_speakers() -> None:
    """List the profiles in the profile folder."""
    for name in profiles.names():
        click.echo(name)
    if not profiles.names():
        say(profiles.available())


@speaker.command()
@click.argument("profile")
@click.option("--codec", "-mv", "codec_file", type=click.Path(), help=f"{codec_help} Needed for --wav and --png.")
@click.option("--wav", type=click.Path(), help="Write how the speaker sounds.")
@click.option("--png", type=click.Path(), help="Draw the waveform with its words, energy and pitch.")
@device_options
@offline_option
@force_option
def show(
    profile: str, codec_file: str | None, wav: str | None, png: str | None,
    device: str | None, threads: int | None, offline: bool, force: bool,
) -> None:  # fmt: skip
    """List the words of PROFILE (a path, a name from the profile folder, or a hub file)."""
    if (wav or png) and codec_file is None:
        raise VocoderError("hearing or drawing a speaker takes its codec; give --codec FILE")
    for target in filter(None, (wav, png)):
        if target == "-":
            raise click.UsageError("standard output has the list of words; name a file")
        check_output(target, force=force, inputs=[profile, codec_file])
    kind = audio_format(wav) if wav else ""
    known = profiles.find(profile, offline=offline)
    for line in describe(known):
        click.echo(line)
    if not (wav or png):
        return
    with warnings_told(), open_codec(str(codec_file), device, threads, offline=offline) as codec:
        warning = known.check_codec(codec)
        if warning:
            warnings.warn(warning, stacklevel=1)
        samples = known.decode(codec)
        if wav:
            with output_file(wav, force=force) as file:
                write_audio(file, samples, codec.sample_rate, format=kind)
        if png:
            from ..families.outetts.plot import draw

            with output_file(png, force=force) as file:
                draw(known, samples, codec, file)


def describe(known: Any) -> Iterator[str]:
    """Lines of a table: one for the profile, one for each word."""
    codec = f"{known.codec['name']} ({known.codec['sha256'][:12]})" if known.codec else "not recorded"
    yield f"version {known.version}, {len(known.words)} words, {known.n_frames} frames, codec {codec}"
    yield f"text: {known.text}"
    for name in ("energy", "spectral_centroid", "pitch"):
        if name in known.global_features:
            yield f"{name}: {known.global_features[name]}"
    width = max(len(word.text) for word in known.words)
    yield f"{'word':<{width}}  seconds  frames  energy  centroid  pitch"
    for word in known.words:
        energy, centroid, pitch = (str(word.features.get(n, "-")) for n in ("energy", "spectral_centroid", "pitch"))
        yield f"{word.text:<{width}}  {word.duration:7.2f}  {word.n_frames:6d}  {energy:>6}  {centroid:>8}  {pitch:>5}"
