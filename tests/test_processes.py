"""Codecs at the edges of a process' life: threads that outlive the main script, the exit, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from vocoder_plugin.runtime.threads import in_threads

BEGIN = """
import atexit, os, sys, threading, time
import numpy as np
from vocoder_plugin import Codec, DeviceError, VocoderError
codes = np.zeros((2, 40), int)
codec = Codec.load(sys.argv[1], n_threads=2)
"""


def run_script(script: str, *arguments: object) -> str:
    """What a program prints that ends well within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_thread_that_outlives_the_main_script(small_dac_file):
    """Its first decode reads and packs weights on threads, which concurrent.futures would refuse by then."""
    script = """
    def late():
        time.sleep(0.5)
        print(codec.decode(codes).size)
    threading.Thread(target=late).start()
    """
    assert run_script(script, small_dac_file) == "12792\n"


def test_the_first_decode_at_exit(small_dac_file):
    assert run_script("atexit.register(lambda: print(codec.decode(codes).size))", small_dac_file) == "12792\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told(small_dac_file):
    """It would wait for ever for threads that it does not have; with one thread it can work."""
    script = """
    codec.decode(codes)
    child = os.fork()
    if child == 0:
        try: codec.decode(codes)
        except VocoderError as error: print(error, flush=True)
        try: Codec.load(sys.argv[1], n_threads=2)
        except DeviceError as error: print(error, flush=True)
        print(Codec.load(sys.argv[1], n_threads=1).decode(codes).size, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(codec.decode(codes).size)
    """
    first, second, *sizes = run_script(script, small_dac_file).splitlines()
    assert first.startswith("this codec belongs to the process that loaded it")
    assert second.startswith("this process was forked from one that had computed")
    assert sizes == ["12792", "12792"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_end_as_usual(small_dac_file):
    """Its exit does not wait for a lock that a thread of its parent's held."""
    script = """
    with codec._session.lock:
        child = os.fork()
    if child == 0:
        sys.exit(0)
    start = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    print(time.monotonic() - start < 5)
    """
    assert run_script(script, small_dac_file) == "True\n"


def test_work_in_threads():
    done: list[int] = []
    in_threads(done.append, range(1, 100), 4)
    assert sorted(done) == list(range(1, 100))


def test_the_first_error_of_threads_is_raised():
    def work(item: int) -> None:
        if item == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(1, 1000), 3)
