"""A codec in a package of its own comes in by the same door as the built-in ones, and broken ones harm nobody.

What docs/new-codec.md shows is the package in tests/third_party/tone_codec. Each test runs a Python of its own that
has that package on its path, as installed ones are.
"""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from vocoder_plugin.net.ops import Ops

HERE = Path(__file__).parent
PACKAGE = HERE / "third_party" / "tone_codec"
GROUP = "vocoder_plugin.codecs"
SIZE, DIM, HOP, KERNEL, DILATION = 16, 32, 40, 7, 16  # DIM is enough for minimal filtering
PARTITIONS = 12


def install(site: Path, name: str, entry_points: dict[str, str]) -> None:
    """What pip writes beside a package: its name and its entry points."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{GROUP}]", *(f"{entry} = {value}" for entry, value in entry_points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install_tone(site: Path) -> None:
    shutil.copytree(PACKAGE / "tone_codec", site / "tone_codec", ignore=shutil.ignore_patterns("__pycache__"))
    project = configparser.ConfigParser()
    project.read_string(re.sub(r"\[\n[^]]*\]", "[]", (PACKAGE / "pyproject.toml").read_text()))
    install(site, "tone_codec", {k: v.strip('"') for k, v in project[f'project.entry-points."{GROUP}"'].items()})


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package as installed."""
    folder = tmp_path_factory.mktemp("site")
    install_tone(folder)
    return folder


def python(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}, check=False, capture_output=True, text=True
    )


def vocoder_plugin(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "vocoder_plugin", *arguments)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "quantizer.codebook.weight": normal(SIZE, DIM),
        "decoder.mix.weight": 0.1 * normal(DIM, DIM, KERNEL),
        "decoder.mix.bias": 0.1 * normal(DIM),
        "decoder.snake.alpha": 0.5 + rng.random(DIM, np.float32),
        "decoder.up.weight": 0.05 * normal(DIM, 1, 2 * HOP),
        "decoder.up.bias": 0.05 * normal(1),
        "encoder.down.weight": 0.1 * normal(DIM, 1, 2 * HOP),
        "encoder.down.bias": 0.1 * normal(DIM),
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, weights) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tone.safetensors"
    safetensors.numpy.save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def converted(site, checkpoint) -> Path:
    path = checkpoint.with_suffix(".gguf")
    code = "import sys, tone_codec.converter as c; c.convert(*sys.argv[1:], type='f32', sample_rate=16000)"
    result = python(site, "-c", code, checkpoint, path)
    assert result.returncode == 0, result.stderr
    return path


RUN = """
import sys
import numpy as np
from vocoder_plugin import Codec

file, data, out, kernels, partitions = sys.argv[1:]
given, rng, results = np.load(data), np.random.default_rng(3), {}
codes, audio = given["codes"], given["audio"]


def pieces(n):
    return np.split(np.arange(n), np.sort(rng.integers(0, n + 1, rng.integers(0, 9))))


with Codec.load(file, kernels=kernels or None, n_threads=2) as codec:
    native = codec.lowering.startswith("native")
    assert (codec.sample_rate, codec.hop_length, codec.n_codebooks, codec.latent_dim) == (16000, 40, 1, 32)
    assert codec.exact_streams and codec.decoder_stream().exact
    results["samples"] = codec.decode(codes)
    results["codes"] = codec.encode(audio, 16000)
    results["latents"] = codec.encode_latents(audio, 16000)
    for i in range(int(partitions)):
        cuts, sound = pieces(codes.shape[1]), pieces(audio.size)
        with codec.decoder_stream() as stream:
            results[f"samples {i}"] = np.concatenate([stream.push(codes[:, at]) for at in cuts] + [stream.flush()])
        with codec.encoder_stream() as stream:
            results[f"codes {i}"] = np.concatenate([stream.push(audio[at]) for at in sound] + [stream.flush()], axis=1)
            stream.reset()
            parts = [stream.push_latents(audio[at]) for at in sound]
            results[f"latents {i}"] = np.concatenate([*parts, stream.flush_latents()])
with Codec.load(file, kernels=kernels or None, gain=0.25) as codec:
    results["quiet"] = codec.decode(codes)
np.savez(out, native=native, **results)
"""


@pytest.fixture(scope="module", params=["", "off"], ids=["native", "portable"])
def results(request, site, converted, tmp_path_factory) -> dict[str, np.ndarray]:
    """What a program gets that has the package installed, with the kernels there are and without."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(5)
    audio = rng.standard_normal(200 * HOP + 7).astype(np.float32)
    np.savez(folder / "in.npz", codes=rng.integers(0, SIZE, (1, 200)), audio=audio)
    result = python(site, "-c", RUN, converted, folder / "in.npz", folder / "out.npz", request.param, PARTITIONS)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    with np.load(folder / "in.npz") as given, np.load(folder / "out.npz") as out:
        return {"given codes": given["codes"], "given audio": given["audio"], **out}


def decoded(weights: dict[str, np.ndarray], codes: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """The decoder in NumPy, float64: codes [n] -> samples [n * HOP]."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    x = w["quantizer.codebook.weight"][codes].T  # [dim, T]
    alpha, reach = w["decoder.snake.alpha"][:, np.newaxis], KERNEL // 2 * DILATION
    snaked = np.pad(x + np.sin(alpha * x) ** 2 / alpha, ((0, 0), (reach, reach)))
    taps = (snaked[:, k * DILATION :][:, : len(codes)] for k in range(KERNEL))
    x = x + w["decoder.mix.bias"][:, np.newaxis]
    for k, tap in enumerate(taps):
        x = x + w["decoder.mix.weight"][:, :, k] @ tap
    samples = np.zeros((len(codes) + 1) * HOP)
    for t, column in enumerate(x.T):
        samples[t * HOP : (t + 2) * HOP] += column @ w["decoder.up.weight"][:, 0]
    return np.tanh(gain * (samples[HOP // 2 : -HOP // 2] + w["decoder.up.bias"]))


def encoded(weights: dict[str, np.ndarray], audio: np.ndarray) -> np.ndarray:
    """The encoder in NumPy, float64: samples [n] -> latents [ceil(n / HOP), dim]."""
    frames = -(-audio.size // HOP)
    padded = np.pad(audio.astype(np.float64), (HOP // 2, frames * HOP - audio.size + HOP // 2))
    windows = np.stack([padded[t * HOP : (t + 2) * HOP] for t in range(frames)])
    return windows @ weights["encoder.down.weight"][:, 0].T.astype(np.float64) + weights["encoder.down.bias"]


def test_decodes_as_the_formula_says(results, weights):
    samples, codes = results["samples"], results["given codes"][0]
    assert samples.dtype == np.float32
    assert np.allclose(samples, decoded(weights, codes), rtol=0, atol=2e-5)
    assert np.std(samples) > 0.1
    assert np.allclose(results["quiet"], decoded(weights, codes, gain=0.25), rtol=0, atol=2e-5)


def test_encodes_as_the_formula_says(results, weights):
    latents = encoded(weights, results["given audio"])
    assert results["latents"].shape == latents.shape == (201, DIM)
    assert np.allclose(results["latents"], latents, rtol=0, atol=2e-5)
    table = weights["quantizer.codebook.weight"].astype(np.float64)
    nearest = np.argmax(latents @ (table / np.linalg.norm(table, axis=1, keepdims=True)).T, axis=1)
    assert results["codes"].dtype == np.int32
    assert np.array_equal(results["codes"], nearest[np.newaxis])
    assert len(set(nearest)) > SIZE // 2


@pytest.mark.parametrize("what", ["samples", "codes", "latents"])
def test_any_partition_gives_the_offline_result(results, what):
    for i in range(PARTITIONS):
        streamed = results[f"{what} {i}"]
        assert streamed.shape == results[what].shape
        if results["native"] or what == "codes":
            assert np.array_equal(streamed, results[what])
        else:
            assert np.allclose(streamed, results[what], rtol=0, atol=1e-6)


def test_help_of_its_conversion(site):
    result = vocoder_plugin(site, "convert", "tone", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "safetensors file of Tone's weights" in result.stdout
    assert "--sample-rate" in result.stdout and "Sample rate in Hz." in result.stdout
    assert "tone" in vocoder_plugin(site, "convert", "--help").stdout


def test_convert(site, checkpoint, converted, tmp_path):
    target = tmp_path / "tone.gguf"
    result = vocoder_plugin(site, "convert", "tone", checkpoint, target, "--type", "f32", "--sample-rate", 16000)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert target.read_bytes() == converted.read_bytes()


def test_leftovers_are_refused(site, tmp_path, weights):
    source = tmp_path / "more.safetensors"
    safetensors.numpy.save_file({**weights, "decoder.other": np.zeros(3, np.float32)}, source)
    result = vocoder_plugin(site, "convert", "tone", source, tmp_path / "more.gguf")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"Error: {source}: tensors left over: decoder.other"]
    assert not (tmp_path / "more.gguf").exists()


def test_info_and_doctor(site, converted):
    info = vocoder_plugin(site, "info", converted)
    assert (info.returncode, info.stderr) == (0, "")
    assert re.search(r"architecture +tone\b", info.stdout)
    assert "16000 Hz, 40 samples a frame, 400 frames/s" in info.stdout
    assert "gain" in info.stdout
    doctor = vocoder_plugin(site, "doctor", converted, "--device", "CPU")
    assert doctor.returncode == 0, doctor.stderr
    assert "Tone on CPU" in doctor.stdout
    assert re.search(r"^codec installed +tone \(tone_codec 1\.0\)$", doctor.stdout, re.MULTILINE)


def test_unknown_option_is_refused_by_name(site, converted):
    code = f"from vocoder_plugin import Codec; Codec.load({str(converted)!r}, gian=2.0)"
    result = python(site, "-c", code)
    assert result.returncode == 1
    assert "unknown option 'gian'; this codec has 'gain'" in result.stderr.splitlines()[-1]


BROKEN = {
    "raises at import": ("broken", "raise OSError('no tables here')", "OSError: no tables here"),
    "lacks the class": ("broken", "", "has no attribute 'Codec'"),
    "wrong type": ("broken", "Codec = 3", "expected a subclass of vocoder_plugin.codecs.model.Model"),
    "clashing name": ("dac", "from tone_codec.codec import Tone as Codec", "of that name is there already"),
    "clashing architecture": (
        "broken",
        "from tone_codec.codec import Tone\nclass Codec(Tone):\n    architectures = ('mimi',)",
        "architecture 'mimi' is that of the codec 'mimi' already",
    ),
    "unfinished": (
        "broken",
        "from vocoder_plugin.codecs.model import Model\nclass Codec(Model):\n    architectures = ('other',)",
        "it lacks decode, read",
    ),
}  # fmt: skip


@pytest.fixture(params=BROKEN.values(), ids=list(BROKEN))
def broken(request, tmp_path) -> tuple[Path, str, str]:
    """A folder with a broken package as installed, and how a warning must begin and go on."""
    name, module, said = request.param
    shutil.copytree(PACKAGE / "tone_codec", tmp_path / "tone_codec")  # not installed, only there to be imported
    (tmp_path / "broken.py").write_text(module)
    install(tmp_path, "broken", {name: "broken:Codec"})
    return tmp_path, f"the codec {name!r} (broken:Codec, broken 1.0) ", said


def assert_warned(stderr: str, beginning: str, said: str) -> None:
    (warning,) = stderr.splitlines()
    assert beginning in warning and said in warning


def test_a_broken_package_harms_nobody(broken, small_dac_file):
    site, *warned = broken
    code = f"from vocoder_plugin import Codec; print(Codec.load({str(small_dac_file)!r}).decode([[1] * 9] * 2).size)"
    result = python(site, "-c", code)
    assert (result.returncode, result.stdout) == (0, f"{9 * 320 - 8}\n"), result.stderr
    assert_warned(result.stderr, *warned)


def test_commands_beside_a_broken_package(broken, small_dac_file):
    site, *warned = broken
    result = vocoder_plugin(site, "info", small_dac_file)
    assert result.returncode == 0, result.stderr
    assert re.search(r"architecture +dac\b", result.stdout)
    assert_warned(result.stderr, *warned)
    doctor = vocoder_plugin(site, "doctor")
    assert doctor.returncode == 0, doctor.stderr
    (told,) = (line for line in doctor.stdout.splitlines() if line.startswith("codec broken"))
    assert all(part in told for part in warned)


PAGE = (HERE.parent / "docs" / "new-codec.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["pyproject.toml", "tone_codec/codec.py", "tone_codec/converter.py"])
def test_the_page_shows_the_package(file):
    kind = "toml" if file.endswith(".toml") else "python"
    assert f"```{kind}\n{(PACKAGE / file).read_text(encoding='utf-8')}```\n" in PAGE


def test_the_page_tells_every_operation():
    table = re.findall(r"`(\w+)\(", "\n".join(line.split(" | ")[0] for line in PAGE.splitlines() if line[:3] == "| `"))
    assert {name for name, member in vars(Ops).items() if callable(member) and name[0] != "_"} <= set(table)
    described = PAGE[PAGE.index("## The operations") : PAGE.index("## Adding an operation")]
    for name, arguments in re.findall(r"`(\w+)\(([^)]*)\)`", described.split("\n\n`padding`")[0]):
        assert list(inspect.signature(getattr(Ops, name)).parameters)[1:] == re.findall(r"\w+", arguments), name


def test_code_of_the_page(site, converted, tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1]
    (tmp_path / "tone.gguf").symlink_to(converted)
    result = python(
        site, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}print(codes.shape, samples.shape, latents.shape)"
    )
    assert (result.returncode, result.stdout) == (0, "(1, 200) (8000,) (200, 32)\n"), result.stderr
