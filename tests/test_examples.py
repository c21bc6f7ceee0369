"""The examples as a user runs them, without models of their own, and the code in docs/live.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_llm import byte_tokens, dictate, outetts_1_tokens, speaker_script

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCUMENTED = re.findall(r"```python\n(.*?)```", (ROOT / "docs/live.md").read_text(encoding="utf-8"), re.DOTALL)
PROMPT = "<|im_start|>\n<|text_start|>The cat watched<|text_end|>\n<|audio_start|>\n"


@pytest.fixture(scope="module")
def expected(small_dac, speaker) -> np.ndarray:
    return small_dac.decode(speaker["codes"])


def run(name: str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("generate_wav.py", "3.69 s from 277 frames"),
        ("stream_while_generating.py", "277 frames written, 3.69 s of audio out"),
        ("llama_callback.py", "the same samples both ways"),
    ],
)
def test_example(tmp_path, expected, name, says):
    result = run(name, tmp_path / "speech.wav")
    assert (result.returncode, result.stderr) == (0, "")
    assert says in result.stdout
    samples, rate = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    assert (rate, samples.shape) == (24000, expected.shape)
    assert np.allclose(samples, expected, rtol=0, atol=1e-4)
    if name == "stream_while_generating.py":
        frames = [int(line.split(":")[1].split()[0]) for line in result.stdout.splitlines()[:-1]]
        assert len(frames) > 5
        assert frames[0] < 20
        assert frames == sorted(frames)


def test_every_example_is_tested():
    tested = {"generate_wav.py", "stream_while_generating.py", "llama_callback.py", "demo.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_models_go_together(tmp_path):
    result = run("generate_wav.py", tmp_path / "speech.wav", "--model", "llm.gguf")
    assert result.returncode == 2
    assert "--model, --codec and --prompt-file go together" in result.stderr


@pytest.mark.parametrize("code", DOCUMENTED, ids=["loop", "stopping criteria", "logits processor", "text"])
def test_documented_code(llm, small_dac, fixtures, expected, monkeypatch, code):
    script = dictate([*byte_tokens(), *outetts_1_tokens()], speaker_script(fixtures / "speaker.npz"))
    generate, played = llm.generate, []

    def generate_script(tokens, *, logits_processor=None, **options):
        return generate(tokens, logits_processor=[*script, *(logits_processor or [])], **options)

    monkeypatch.setattr(llm, "generate", generate_script)
    exec(code, {"llm": llm, "codec": small_dac, "prompt": PROMPT, "play": played.append})
    assert len(played) > 5
    samples = np.concatenate(played)
    assert samples.shape == expected.shape
    assert np.allclose(samples, expected, rtol=0, atol=1e-5)
