#!/usr/bin/env python3
"""Fit WavTokenizer's encoder to the latents of the stand-in encoder: ``fit_encoder.py DATA CODEC``.

The stand-in sees the teacher's features; this one hears samples, so that clips can be encoded without the teacher. Goes
on from ``CODEC/encoder.pt``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from checkpoints import load, save
from codec_model import Codec, CodecSize
from seanet_model import SeaNet
from shards import read_clips
from torch.nn import functional
from train_codec import HELD_OUT, LEVEL, Crops, learning_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    codec = Codec(CodecSize()).eval()
    load(options.codec / "codec.pt", {}, codec=codec)
    crops = Crops(options.data / "audio", options.seed + 1)
    crops.refresh()
    net = SeaNet(codec.size.code_dim)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    state = {"step": 0, "minutes": 0.0}
    if not load(options.codec / "encoder.pt", state, net=net, optimizer=optimizer):
        net.calibrate(crops.batch(0)[1])
    inputs, _ = crops.batch(1)
    scale = codec.encoder(inputs).detach().std()
    started, minutes, total = time.process_time(), state["minutes"], 0.0
    for step in range(state["step"], options.steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * learning_rate(step, options.steps)
        inputs, samples = crops.batch(step)
        with torch.no_grad():
            wanted = codec.encoder(inputs)
            wanted = (codec.codebook.embed[codec.codebook.nearest(wanted)] + wanted) / 2
        loss = functional.mse_loss(net(samples), wanted) / scale**2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            state |= {"step": step + 1, "minutes": minutes + (time.process_time() - started) / 60}
            record = {**state, "loss": total / 100, "same_codes": agreement(codec, net, options.data)}
            save(options.codec / "encoder.pt", state, net=net, optimizer=optimizer)
            with (options.codec / "encoder.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)
            total = 0.0


@torch.no_grad()
def agreement(codec: Codec, net: SeaNet, data: Path) -> float:
    """The share of held-out frames for which both encoders choose the same code."""
    same = count = 0
    for clip in list(read_clips(data / "audio" / f"{HELD_OUT}.npz"))[:10]:
        codes = codec.codes(torch.from_numpy(clip.inputs.astype(np.float32))[None])
        heard = codec.codebook.nearest(net(torch.from_numpy(clip.samples.astype(np.float32))[None] * LEVEL))
        same += int((codes == heard).sum())
        count += codes.numel()
    return same / count


if __name__ == "__main__":
    main()
