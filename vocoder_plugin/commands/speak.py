"""The commands for OuteTTS: speak, create-speaker, speaker."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from .. import hub
from ..audio.samples import audio_format, write_audio
from ..codec import usable_cores
from ..errors import VocoderError
from ..families.outetts import create, profiles, speech
from ..families.outetts.chunks import MAX_WORDS
from ..families.outetts.plot import draw, picture_format
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
    printable,
    read_text,
    say,
)
from .options import (
    CodecOptions,
    FiniteRange,
    LLMOptions,
    SoundOptions,
    codec_options,
    force_option,
    grouped,
    llm_options,
    out_option,
    play_option,
    raw_option,
    sound_options,
)

STEADY_SECONDS = 0.5  # of audio, before which its relation to the time spent says nothing


@dataclass(frozen=True)
class TextOptions:
    """What is to be said, given in one of three ways."""

    text: str | None
    prompt: str | None
    text_file: str | None


@dataclass(frozen=True)
class ModelOptions:
    """Which language model, given in one of two ways."""

    model: str | None
    hub_model: str | None


@dataclass(frozen=True)
class VoiceOptions:
    """How it is to be said."""

    speaker_name: str | None
    guided: bool
    voice: str | None
    loudness: float | None
    max_length: int
    max_words: int


@click.command(short_help="Say a text with an OuteTTS model.")
@grouped(
    "text",
    TextOptions,
    click.argument("text", required=False),
    click.option("-p", "--prompt", "prompt", help="The text, as llama-tts takes it."),
    click.option("--file", "text_file", type=click.Path(), help="Read the text from a file."),
)
@grouped(
    "model",
    ModelOptions,
    click.option("-m", "--model", type=click.Path(), help="OuteTTS model as a GGUF file."),
    click.option(
        "--hf",
        "hub_model",
        metavar="REPO[:TAG]",
        help="The model from the hub, such as OuteAI/OuteTTS-1.0-0.6B-GGUF:Q8_0.",
    ),
)
@codec_options(llm=True)
@grouped(
    "voice",
    VoiceOptions,
    click.option(
        "--speaker",
        "--tts-speaker-file",
        "speaker_name",
        help="Voice: a profile's path, its name in the profile folder, owner/repo/file.json, or none.",
    ),
    click.option("--guided", is_flag=True, help="Force the words of the text, in order."),
    click.option("--voice", help="A description of the voice (OuteTTS 0.2 and 0.3)."),
    click.option("--loudness", type=FiniteRange(-60, 0), help="Bring the speaker to so many LUFS, such as -18."),
    click.option(
        "--max-length",
        type=click.IntRange(1),
        default=speech.MAX_LENGTH,
        show_default=True,
        help="Most tokens of a chunk, prompt and all.",
    ),
    click.option(
        "--max-words", type=click.IntRange(1), default=MAX_WORDS, show_default=True, help="Most words of a chunk."
    ),
)
@sound_options(out_option, raw_option, play_option)
@llm_options
def speak(
    text: TextOptions,
    model: ModelOptions,
    codec: CodecOptions,
    voice: VoiceOptions,
    sound: SoundOptions,
    llm: LLMOptions,
) -> None:
    """Say TEXT (- for standard input) with an OuteTTS model, in a speaker's voice.

    The file grows while the model speaks: it can be played at any time, and an error or Ctrl-C leaves what has been
    said so far. llama-tts's flags are understood: -m, -mv, --tts-speaker-file, -p, -o, -c, -ngl.

    \b
    A voice of your own:  vocoder-plugin speak "Hello." -m llm.gguf --codec codec.gguf --speaker me.json -o hello.wav
    A book, at once:      vocoder-plugin speak --file book.txt -m llm.gguf --codec codec.gguf --speaker me.json --play
    """
    said = given_text(text)
    if (model.model is None) == (model.hub_model is None):
        raise click.UsageError("name one model, with --model FILE or --hf REPO")
    sound = dataclasses.replace(sound, streaming=sound.out != "-")
    check_sound_output(sound)
    if voice.speaker_name is None:
        raise VocoderError(f"no speaker was named; {profiles.available()}; or let the model choose with --speaker none")
    known = None
    if voice.speaker_name != "none":
        known = profiles.find(voice.speaker_name, offline=codec.offline, progress=on_terminal())
    name = model.model or str(hub.fetch(str(model.hub_model), offline=codec.offline, progress=on_terminal()))
    loaded_llm = load_llm(name, llm, codec)
    with load_codec(codec, loaded_llm) as loaded:
        pace, line = Pace(), Progress()

        def follow(now: speech.Progress) -> None:
            pace.follow(now)
            line.show(pace.far())

        samples = speech.speak(
            loaded_llm, loaded, said, speaker=known, voice=voice.voice, guided=voice.guided, loudness=voice.loudness,
            sampling=Sampling(temperature=llm.temperature), seed=llm.seed, max_length=voice.max_length,
            min_words=min(speech.MIN_WORDS, voice.max_words), max_words=voice.max_words, on_progress=follow,
        )  # fmt: skip
        with audio_output(sound, loaded) as write, line:
            line.show("reading the prompt")
            for part in samples:
                write(part)
        say(pace.summary())
        cores = usable_cores()
        if codec.threads is None and pace.slower_than_speech and loaded_llm.n_threads < cores:
            say(f"hint: {loaded_llm.n_threads} of {cores} cores computed this; --threads {cores} may be faster")


def given_text(options: TextOptions) -> str:
    given = [source for source in (options.text, options.prompt, options.text_file) if source is not None]
    if len(given) != 1:
        raise click.UsageError("give the text once: as an argument, with --prompt, or with --file")
    if options.text_file is not None or options.text == "-":
        return read_text(options.text_file if options.text_file is not None else "-")
    return given[0]


class Pace:
    """How far and how fast a speech is: tokens a second are those after the first samples, without the prompt."""

    def __init__(self) -> None:
        self._now = self._first = speech.Progress()

    def follow(self, now: speech.Progress) -> None:
        """Take what ``speak`` tells; it changes the same object."""
        self._now = dataclasses.replace(now)
        if not self._first.evaluated:
            self._first = self._now

    @property
    def tokens_per_second(self) -> float:
        tokens, seconds = self._now.tokens - self._first.tokens, self._now.elapsed - self._first.elapsed
        return tokens / seconds if tokens and seconds > 0 else self._now.tokens_per_second

    @property
    def prompt_tokens(self) -> int:
        """Computed before the first samples."""
        return max(0, self._first.evaluated - self._first.tokens)

    @property
    def slower_than_speech(self) -> bool:
        return self._now.seconds >= STEADY_SECONDS and self._now.rtf > 1

    def _retried(self) -> str:
        return f", {self._now.retries} tried again" if self._now.retries else ""

    def far(self) -> str:
        """A line of progress."""
        p = self._now
        rtf = f", RTF {p.rtf:.2f}" if p.seconds >= STEADY_SECONDS else ""
        return (
            f"{self.prompt_tokens} prompt tokens in {self._first.elapsed:.1f} s; {p.words} of {p.total_words} words, "
            f"{p.seconds:.1f} s, {self.tokens_per_second:.0f} tokens/s{rtf}{self._retried()}"
        )

    def summary(self) -> str:
        """The last line."""
        p = self._now
        return (
            f"{p.seconds:.2f} s of audio from {p.tokens} tokens in {p.elapsed:.2f} s "
            f"({self.tokens_per_second:.0f} tokens/s, RTF {p.rtf:.2f}), "
            f"{p.chunks} chunk{'s' * (p.chunks != 1)}{self._retried()}"
        )


@dataclass(frozen=True)
class ClipOptions:
    """A clip and what is said in it."""

    audio: str
    transcript: str | None
    words: str | None
    asr: str | None
    asr_model: str | None


@click.command("create-speaker", short_help="Make a speaker profile of a clip and its transcript.")
@grouped(
    "clip",
    ClipOptions,
    click.option("--audio", required=True, type=click.Path(), help="Clip of the voice: up to 15 s of clean speech."),
    click.option("--transcript", help="What is said in it, in English unless --words are given."),
    click.option("--words", type=click.Path(), help="When each word is said: .json, .ctm, .srt, .vtt or .TextGrid."),
    click.option("--asr", metavar="NAME", help="Recognise the words, by an installed aligner such as faster-whisper."),
    click.option("--asr-model", type=click.Path(), help="The recogniser's model."),
)
@codec_options()
@click.option("-o", "--out", required=True, help="Profile to write: a .json file, or a name for the profile folder.")
@click.option("--version", type=click.IntRange(1, 3), help="Version of the profile. [default: by the codec]")
@force_option
def create_speaker(clip: ClipOptions, codec: CodecOptions, out: str, version: int | None, force: bool) -> None:
    """Make a speaker profile of a clip and what is said in it.

    Word times come from --words; else from a recogniser, if --asr names one; else from the transcript,
    aligned offline (pocketsphinx, English).

    \b
    vocoder-plugin create-speaker --audio me.wav --transcript "What I say in the clip." --codec codec.gguf -o me
    vocoder-plugin speak "Hello." -m llm.gguf --codec codec.gguf --speaker me -o hello.wav
    """
    if clip.transcript is None and clip.words is None and clip.asr is None:
        raise click.UsageError("what is said in the clip? Give --transcript TEXT, --words FILE, or --asr NAME")
    if clip.words is not None and clip.asr is not None:
        raise click.UsageError("--words and --asr exclude each other")
    target = profiles.target(out)
    if target.parent == profiles.folder():
        target.parent.mkdir(parents=True, exist_ok=True)
    check_output(str(target), force=force, inputs=[clip.audio, clip.words, codec.codec_file])
    with load_codec(codec) as loaded, Progress() as line:
        line.show("finding the words and encoding the clip")
        made = create.create_speaker(
            clip.audio, clip.transcript, codec=loaded, words=clip.words, version=version, aligner=clip.asr,
            aligner_options={} if clip.asr_model is None else {"model": clip.asr_model},
        )  # fmt: skip
        made.save(target, force=force)
    say(f"{target}: {len(made.words)} words, {made.n_frames / loaded.frame_rate:.2f} s, for version {made.version}")


@click.group(short_help="Look at speaker profiles.")
def speaker() -> None:
    """Look at speaker profiles."""


@speaker.command("list")
def list_speakers() -> None:
    """List the profiles in the profile folder."""
    for name in profiles.names():
        click.echo(printable(name))
    if not profiles.names():
        say(profiles.available())


@speaker.command(short_help="List the words of a profile; let it be heard or drawn.")
@click.argument("profile")
@codec_options(required=False)
@click.option("--wav", type=click.Path(), help="Write how the speaker sounds; needs --codec.")
@click.option(
    "--png", "picture", type=click.Path(),
    help="Draw the waveform with its words, energy and pitch, as the file's suffix says; needs --codec.",
)  # fmt: skip
@force_option
def show(profile: str, codec: CodecOptions, wav: str | None, picture: str | None, force: bool) -> None:
    """List the words of PROFILE (a path, a name from the profile folder, or a hub file)."""
    if (wav or picture) and codec.codec_file is None:
        raise click.UsageError("hearing or drawing a speaker takes its codec; give --codec FILE")
    for target in filter(None, (wav, picture)):
        if target == "-":
            raise click.UsageError("standard output has the list of words; name a file")
        check_output(target, force=force, inputs=[profile, codec.codec_file])
    kind, picture_kind = audio_format(wav) if wav else "", picture_format(picture) if picture else ""
    known = profiles.find(profile, offline=codec.offline)
    for line in describe(known):
        click.echo(printable(line))
    if not (wav or picture):
        return
    with load_codec(codec) as loaded:
        warning = known.check_codec(loaded)
        if warning:
            warnings.warn(warning, stacklevel=1)
        samples = known.decode(loaded)
        if wav:
            with output_file(wav, force=force) as file:
                write_audio(file, samples, loaded.sample_rate, format=kind)
            say(f"{wav}: {samples.size / loaded.sample_rate:.2f} s")
        if picture:
            with output_file(picture, force=force) as file:
                draw(known, samples, loaded, file, format=picture_kind)
            say(f"{picture}: {len(known.words)} words")


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
