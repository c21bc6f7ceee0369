"""Each way to run the full-size OuteTTS DAC, as a worker; inputs are seeded, so all rivals work on the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workers import Worker, serve

SAMPLE_RATE, HOP, CODEBOOKS, CODEBOOK_SIZE = 24000, 320, 2, 1024
PRODUCTS = 20  # matrix products in one measurement of the peak


def test_codes(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, CODEBOOK_SIZE, (CODEBOOKS, frames)).astype(np.int32)


def test_audio(frames: int) -> np.ndarray:
    rng = np.random.default_rng(frames)
    t = np.arange(frames * HOP) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t + k) / k for k in range(1, 10)) * (np.sin(2 * np.pi * 2.5 * t) > 0)
    return (0.2 * voice + 0.01 * rng.standard_normal(t.size)).astype(np.float32)


def plugin(folder: Path, kind: str, threads: int) -> dict[str, Callable[[int], Any]]:
    from vocoder_plugin import Codec

    file, precision = ("f16", "int16") if kind == "int16" else (kind, "float32")
    codec = Codec.load(folder / f"dac_{file}.gguf", n_threads=threads, precision=precision)
    return {
        "decode": lambda frames: codec.decode(test_codes(frames)),
        "encode": lambda frames: codec.encode(test_audio(frames), SAMPLE_RATE),
    }


def torch_model(folder: Path, kind: str, threads: int) -> dict[str, Callable[[int], Any]]:
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
    from oracles import DAC_SIZES, import_dac

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[kind]
    model = import_dac().DAC(**DAC_SIZES["outetts"]).eval()
    model.load_state_dict(torch.load(folder / "dac.pth")["state_dict"])
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)  # as fast as torch can be
    model = model.to(dtype)

    def decode(frames: int) -> Any:
        codes = torch.from_numpy(test_codes(frames).astype(np.int64))[None]
        return model.decode(model.quantizer.from_codes(codes)[0]).float().numpy()

    def encode(frames: int) -> Any:
        return model.encode(torch.from_numpy(test_audio(frames)).to(dtype)[None, None])[1].numpy()

    def multiply(size: int) -> None:
        """Matrix products, for the peak of the machine: 2 * size**3 operations each."""
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for _ in range(PRODUCTS):
            a @ b

    return {"decode": decode, "encode": encode, "multiply": multiply}


def onnx(folder: Path, _kind: str, threads: int) -> dict[str, Callable[[int], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / "dac_decoder.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return {"decode": lambda frames: session.run(None, {"codes": test_codes(frames).astype(np.int64)[None]})[0]}


RIVALS = {
    "plugin f32": (plugin, "f32"),
    "plugin f16": (plugin, "f16"),
    "plugin int16": (plugin, "int16"),
    "torch f32": (torch_model, "f32"),
    "torch bf16": (torch_model, "bf16"),
    "onnxruntime f32": (onnx, "f32"),
}


def work(name: str, folder: Path, threads: int) -> None:
    make, kind = RIVALS[name]
    calls: dict[str, Callable[[int], Any]] = {"load": lambda _: calls.update(make(folder, kind, threads))}
    serve(calls)


def start(name: str, folder: Path, threads: int) -> Worker:
    return Worker(__file__, name, folder, threads)


def prepare_plugin(folder: Path) -> Any:
    """The full-size model with seeded random weights, as a checkpoint and the plugin's files. Returns torch's."""
    from vocoder_plugin.converters import dac

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
    from oracles import descript_dac, save_descript

    folder.mkdir(parents=True, exist_ok=True)
    model = descript_dac("outetts")
    save_descript(model, "outetts", folder / "dac.pth")
    for kind in ("f32", "f16"):
        dac.convert(folder / "dac.pth", folder / f"dac_{kind}.gguf", type=kind, force=True)
    return model


def prepare(folder: Path) -> None:
    """The model in every rival's format, made once."""
    import torch

    model = prepare_plugin(folder)

    class Decoder(torch.nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return model.decode(model.quantizer.from_codes(codes)[0])

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.onnx.export(
        Decoder().eval(), (torch.from_numpy(test_codes(30).astype(np.int64))[None],), str(folder / "dac_decoder.onnx"),
        input_names=["codes"], dynamic_axes={"codes": {2: "frames"}}, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
