"""The examples as a user runs them, without models of their own, and the code in the README and docs/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import talk
from speaking_llm import FRAMES, word_script, write_speaking_llm
from tiny_llm import byte_tokens, dictate, outetts_1_tokens, speaker_script

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def python_in(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


DOCUMENTED = python_in("docs/live.md")
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
    assert (result.returncode, talk(result.stderr)) == (0, "")
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


@pytest.fixture
def named_files(tmp_path, monkeypatch, small_dac_file, fixtures):
    """A folder with small files under the names that the README and docs/outetts.md use."""
    write_speaking_llm(tmp_path / "OuteTTS-1.0-0.6B-Q8_0.gguf", word_script())
    (tmp_path / "dac-24khz-1.5kbps-f16.gguf").symlink_to(small_dac_file)
    (tmp_path / "me.wav").write_bytes((fixtures / "spoken_1.ogg").read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("named_files")
def test_readme(small_dac, small_reference):
    """Its two pieces of code, one after the other, give the shapes that their comments say."""
    load, generate = python_in("README.md")
    played: list[np.ndarray] = []
    names = {"audio": np.stack([small_reference["wav"]] * 2, axis=1), "play": played.append}
    exec(load, names)
    assert names["codes"].shape == (2, 75) and names["codes"].dtype == np.int32
    assert names["audio"].shape == (75 * 320 - 8,) and names["audio"].dtype == np.float32
    prompt = "<|im_start|>\n<|text_start|>a<|text_end|>\n<|audio_start|>\n"
    names["prompt_tokens"] = names["llm"].tokenize(prompt.encode(), add_bos=False, special=True)
    exec(generate, names)
    expected = small_dac.decode(np.array(FRAMES, np.int32).T)
    assert np.allclose(np.concatenate(played), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("named_files")
def test_code_of_outetts(small_dac):
    import llama_cpp

    (code,) = python_in("docs/outetts.md")
    played: list[np.ndarray] = []
    llm = llama_cpp.Llama("OuteTTS-1.0-0.6B-Q8_0.gguf", n_ctx=4096, verbose=False)
    names = {"llm": llm, "codec": small_dac, "play": played.append}
    exec(code, names)
    assert Path("me.json").is_file()
    assert names["prompt"].startswith("<|im_start|>\n<|text_start|>What I say in the clip. Hello there.<|text_end|>")
    assert np.allclose(np.concatenate(played), small_dac.decode(np.array(FRAMES, np.int32).T), rtol=0, atol=1e-5)
