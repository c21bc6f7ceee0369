#!/usr/bin/env python3
"""Train the decoder and the codebook on the teacher's features and samples: ``train_codec.py DATA CODEC``.

Goes on from ``CODEC/codec.pt``, which is written every few minutes and at the end. Reads shards that appear while it
runs. The first tenth of the steps has no quantiser. At ``--freeze`` (a share of the steps) codes are final: encoder and
codebook stay as they are, so that the language model can be trained while the decoder goes on getting better.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from checkpoints import load, save
from codec_losses import RESOLUTIONS, SpectralLoss
from codec_model import Codec, CodecSize
from shards import Clip, complete_shards, read_clips

CROP_FRAMES, BATCH = 40, 6  # a second each
LEVEL = 0.7 / 32767
HELD_OUT = "00000"  # the shard of samples that is never trained on


class Crops:
    """Random seconds of all clips read so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._seen: set[Path] = set()
        self.clips: list[Clip] = []

    def refresh(self) -> None:
        for path in complete_shards(self.folder):
            if path.stem != HELD_OUT and path not in self._seen:
                self._seen.add(path)
                self.clips += [clip for clip in read_clips(path) if clip.frames >= CROP_FRAMES]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [B, 2T, C] and samples [B, N], the same for the same step and clips."""
        chance = np.random.default_rng((self.seed, step))
        inputs, samples = [], []
        for index in chance.integers(len(self.clips), size=BATCH):
            clip = self.clips[index]
            at = int(chance.integers(clip.frames - CROP_FRAMES + 1))
            inputs.append(clip.inputs[2 * at : 2 * (at + CROP_FRAMES)].astype(np.float32))
            samples.append(clip.samples[600 * at : 600 * (at + CROP_FRAMES)].astype(np.float32) * LEVEL)
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--freeze", type=float, default=0.5)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.target.mkdir(parents=True, exist_ok=True)
    crops = Crops(options.data / "audio", options.seed)
    crops.refresh()
    codec = Codec(CodecSize(codes=options.codes)).to(device)
    loss_of = SpectralLoss().to(device)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=8e-4, betas=(0.8, 0.99), weight_decay=0.01)
    state = {"step": 0, "minutes": 0.0, "seed": options.seed, "frozen": False}
    if not load(options.target / "codec.pt", state, codec=codec, optimizer=optimizer):
        begin(codec, crops)
    free_steps, last_codes = options.steps // 10, int(options.steps * options.freeze)
    started, minutes = time.process_time(), state["minutes"]
    sums: dict[str, float] = {}
    for step in range(state["step"], options.steps):
        if step % 200 == 0 or step == state["step"]:
            crops.refresh()
        for group in optimizer.param_groups:
            group["lr"] = 8e-4 * learning_rate(step, options.steps)
        if step == free_steps:
            codec.codebook.begin(latents(codec, crops, device))
        inputs, samples = (part.to(device) for part in crops.batch(step))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.set_grad_enabled(step < last_codes):
                z = codec.encoder(inputs).float()
            quantized, commitment = z, z.new_zeros(())
            if step >= free_steps:
                codes = codec.codebook.nearest(z)
                entry = codec.codebook.embed[codes]
                if step < last_codes:
                    codec.codebook.learn(z, codes)
                    commitment = (z - entry).square().mean() / z.detach().var()
                quantized = z + (entry - z).detach()
            hidden = codec.backbone(quantized)
        resolutions = np.random.default_rng((options.seed, step, 1)).choice(list(RESOLUTIONS), 2, replace=False)
        spectral = loss_of(codec.head(hidden), samples, [int(n) for n in resolutions])
        optimizer.zero_grad(set_to_none=True)
        (spectral + 3 * commitment).backward()
        norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), 50.0)
        optimizer.step()
        for name, value in (("spectral", spectral), ("commitment", commitment), ("gradient", norm)):
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / 100
        if (step + 1) % 100 == 0:
            state |= {"step": step + 1, "minutes": minutes + (time.process_time() - started) / 60}
            state["frozen"] = step + 1 >= last_codes
            record = {"step": step + 1, "cpu_minutes": round(state["minutes"], 2), "clips": len(crops.clips), **sums}
            if (step + 1) % 500 == 0:
                record |= held_out(codec, options.data, loss_of, device)
                save(options.target / "codec.pt", state, codec=codec, optimizer=optimizer)
            with (options.target / "codec.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)
            sums = {}
    save(options.target / "codec.pt", state, codec=codec, optimizer=optimizer)


def learning_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def begin(codec: Codec, crops: Crops) -> None:
    """Inputs of mean 0 and deviation 1, and a head that begins at the mean log spectrum."""
    inputs = torch.from_numpy(np.concatenate([clip.inputs for clip in crops.clips[:60]]).astype(np.float32))
    codec.encoder.mean.copy_(inputs.mean(0))
    codec.encoder.deviation.copy_(inputs.std(0).clamp(min=1e-3))
    head = codec.head
    samples = torch.from_numpy(np.concatenate([clip.samples for clip in crops.clips[:60]]).astype(np.float32)) * LEVEL
    frames = samples[: len(samples) // head.n_fft * head.n_fft].view(-1, head.n_fft) * head.window
    magnitudes = torch.fft.rfft(frames).abs()
    print("magnitudes above the head's limit:", float((magnitudes > 100).float().sum(1).gt(0).float().mean()))
    head.out.bias[: head.n_fft // 2 + 1] = (magnitudes + 1e-3).log().mean(0)
    head.out.weight.mul_(0.5)


@torch.no_grad()
def latents(codec: Codec, crops: Crops, device: torch.device) -> torch.Tensor:
    found = [codec.encoder(crops.batch(10**9 + i)[0].to(device)).flatten(0, 1) for i in range(160)]
    return torch.cat(found).float()


@torch.no_grad()
def held_out(codec: Codec, data: Path, loss_of: SpectralLoss, device: torch.device) -> dict[str, float]:
    """Loss and use of codes over clips of the shard that is never trained on."""
    path = data / "audio" / f"{HELD_OUT}.npz"
    if not path.exists():
        return {}
    total, all_codes, clips = 0.0, [], [clip for clip in read_clips(path) if clip.frames >= CROP_FRAMES][:40]
    for clip in clips:
        inputs = torch.from_numpy(clip.inputs.astype(np.float32))[None].to(device)
        samples = torch.from_numpy(clip.samples.astype(np.float32))[None].to(device) * LEVEL
        codes = codec.codes(inputs)
        total += float(loss_of(codec.decode(codec.codebook.embed[codes]), samples, list(RESOLUTIONS)))
        all_codes.append(codes.flatten())
    share = torch.bincount(torch.cat(all_codes)).float()
    share = share[share > 0] / share.sum()
    return {
        "held_out": total / len(clips),
        "codes_used": len(share),
        "perplexity": float((-(share * share.log()).sum()).exp()),
    }


if __name__ == "__main__":
    main()
