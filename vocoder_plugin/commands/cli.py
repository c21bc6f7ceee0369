"""The command line: the group of all commands, and how errors become lines."""

from __future__ import annotations

from typing import Any

import click

from ..errors import VocoderError
from .build_llama import build_llama
from .codes import decode, encode
from .console import printable, warnings_told
from .convert import convert
from .features import features
from .generate import generate
from .inspect import doctor, info
from .speak import create_speaker, speak, speaker


class OneLineErrors(click.Group):
    """Errors and warnings become one line each on standard error, with exit status 1 after an error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_told():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has enough: click ends quietly, with status 1
        except (VocoderError, OSError) as error:
            raise click.ClickException(printable(" ".join(told(error).split()))) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


def told(error: Exception) -> str:
    """What an error says, without the system's number for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vocoder-plugin")
def main() -> None:
    """Turn the audio tokens of a speech LLM into sound, on the ggml that llama.cpp uses.

    \b
    Make a codec file once:     vocoder-plugin convert KIND checkpoint codec.gguf
    Let a model speak:          vocoder-plugin speak "Hello." -m llm.gguf --codec codec.gguf --speaker me -o out.wav
    Hear it while it speaks:    vocoder-plugin speak "Hello." -m llm.gguf --codec codec.gguf --speaker me --play
    Codes to sound and back:    vocoder-plugin decode codes.npz out.wav --codec codec.gguf
    What is installed here:     vocoder-plugin doctor
    """


for command in (build_llama, convert, create_speaker, decode, doctor, encode, features, generate, info, speak, speaker):
    main.add_command(command)

if __name__ == "__main__":
    main()
