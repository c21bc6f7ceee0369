"""Commands as a user types them, in this process or one of their own, and what they say."""

from __future__ import annotations

import re
import subprocess
import sys

import llama_cpp
from click.testing import CliRunner, Result

from vocoder_plugin.commands.cli import main

COMMAND = (sys.executable, "-m", "vocoder_plugin")
RELEASE = tuple(int(part) for part in llama_cpp.__version__.split("."))
# libllama of 0.3.29 warns of a context smaller than the model's, where 0.3.36 informs. The bindings of both take ggml's
# warnings for errors (they number the levels one too low), and these are shown with verbose=False too.
SMALL_CONTEXT = re.compile(r"llama_context: n_ctx_seq \(\d+\) < n_ctx_train \(\d+\) -- the full capacity of .*\n")


def run(*arguments: object, stdin: bytes | str | None = None, kernels: str | None = None) -> Result:
    """In this process; ``kernels`` is what the environment says of them."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin, env={"VOCODER_KERNELS": kernels})


def run_process(*arguments: object, stdin: bytes = b"", **options) -> subprocess.CompletedProcess:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, check=False, **streams)


def spawn(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **{"stderr": subprocess.PIPE} | options)


def talk(stderr: str | bytes) -> str:
    """Standard error without what an old libllama says there by itself: all that is left is the plugin's."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    return SMALL_CONTEXT.sub("", text) if RELEASE < (0, 3, 36) else text


def refusal(result: Result) -> str:
    """What a failed command says after "Error: ": one line on standard error, nothing on standard output."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    said = talk(result.stderr)
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    return said.removeprefix("Error: ").rstrip("\n")


def assert_done(result: Result) -> None:
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""  # what a command says goes to standard error
