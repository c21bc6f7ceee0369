#!/usr/bin/env python3
"""Train the language model on the tokens that encode_speech.py wrote: ``train_llama.py CODEC LLAMA``.

Goes on from ``LLAMA/llama.pt``, which is written every few minutes and at the end. Reads files of tokens that appear
while it runs. Only what the model writes counts: frames and codes, never the sounds that it is given.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from checkpoints import load, save
from llama_model import Llama, LlamaSize
from torch.nn import functional
from vocoder_voice_kumo.sequence import FIRST_CODE, VOCABULARY

LONGEST = 640  # tokens of a sentence
MUON_RATE, ADAM_RATE = 0.02, 3e-3
HELD_OUT = "audio_00000"  # neither trained on by the codec nor here


class Sentences:
    """All sentences read so far, by length, so that a batch has rows of about one length."""

    def __init__(self, folder: Path, seed: int, batch_tokens: int) -> None:
        self.folder, self.seed, self.batch_tokens = folder, seed, batch_tokens
        self._seen: set[Path] = set()
        self.sentences: list[tuple[np.ndarray, np.ndarray]] = []
        self.tokens = 0

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("*.npz")):
            if path in self._seen or ".partial" in path.name or path.stem == HELD_OUT or path.stem.startswith("test"):
                continue
            self._seen.add(path)
            self.sentences += [pair for pair in read_sentences(path) if len(pair[0]) <= LONGEST]
        self.sentences.sort(key=lambda pair: len(pair[0]))
        self.tokens = sum(len(tokens) for tokens, _ in self.sentences)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and whether they are written, [rows, length]; the same for the same step and sentences.

        Of sentences near a random place in the order of lengths, as many as fill a batch. A place is as likely as its
        sentence is long, so that every sentence comes equally often.
        """
        chance = np.random.default_rng((self.seed, step))
        lengths = np.cumsum([len(tokens) for tokens, _ in self.sentences])
        middle = int(np.searchsorted(lengths, chance.integers(lengths[-1]), side="right"))
        rows = max(1, self.batch_tokens // len(self.sentences[middle][0]))
        reach = 8 * rows
        near = np.arange(max(0, middle - reach), min(len(self.sentences), middle + reach))
        chosen = [self.sentences[i] for i in chance.choice(near, min(rows, len(near)), replace=False)]
        longest = max(len(tokens) for tokens, _ in chosen)
        tokens = np.zeros((len(chosen), longest), np.int64)
        written = np.zeros((len(chosen), longest), bool)
        for i, (row, own) in enumerate(chosen):
            tokens[i, : len(row)], written[i, : len(row)] = row, own
        return torch.from_numpy(tokens), torch.from_numpy(written)


def read_sentences(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(path) as arrays:
        tokens, written, starts = arrays["tokens"], arrays["written"], arrays["starts"]
    return [(tokens[a:b], written[a:b]) for a, b in pairwise(starts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codec", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--inner", type=int, default=704)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--code-noise", type=float, default=0.0, help="share of codes that the model reads wrongly")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=250)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.target.mkdir(parents=True, exist_ok=True)
    sentences = Sentences(options.codec / "codes", options.seed, options.batch_tokens)
    sentences.refresh()
    size = LlamaSize(len(VOCABULARY), dim=options.dim, inner=options.inner, layers=options.layers)
    model = Llama(size, dropout=options.dropout).to(device)
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blk")]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("blk"))]
    muon = torch.optim.Muon(hidden, lr=MUON_RATE, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    state = {"step": 0, "minutes": 0.0, "tokens": 0}
    load(options.target / "llama.pt", state, model=model, muon=muon, adam=adam)
    started, minutes = time.process_time(), state["minutes"]
    total, steps = 0.0, 0
    for step in range(state["step"], options.steps):
        if step % 100 == 0:
            sentences.refresh()
        rate = min(1.0, (step + 1) / 50) * min(1.0, 0.02 + 1.6 * (1 - step / options.steps))  # flat, then to zero
        for optimizer, base in ((muon, MUON_RATE), (adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        tokens, written = (part.to(device) for part in sentences.batch(step))
        with torch.autocast(device.type, torch.bfloat16):
            wanted = written[:, 1:]
            logits = model.logits(model(misread(tokens[:, :-1], options.code_noise))[wanted])
        loss = functional.cross_entropy(logits.float(), tokens[:, 1:][wanted])
        for optimizer in (muon, adam):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        total, steps = total + float(loss.detach()), steps + 1
        state["tokens"] += tokens.numel()
        if (step + 1) % 50 == 0:
            state |= {"step": step + 1, "minutes": minutes + (time.process_time() - started) / 60}
            record = {
                "step": step + 1,
                "cpu_minutes": round(state["minutes"], 2),
                "tokens": state["tokens"],
                "tokens_of_data": sentences.tokens,
                "loss": total / steps,
            }
            if (step + 1) % options.save_every == 0:
                record |= held_out(model, options.codec / "codes" / f"{HELD_OUT}.npz", device)
                save(options.target / "llama.pt", state, model=model, muon=muon, adam=adam)
            with (options.target / "llama.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)
            total, steps = 0.0, 0
    save(options.target / "llama.pt", state, model=model, muon=muon, adam=adam)


def misread(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Tokens with a share of the codes replaced by others, so that the model trusts the sounds more than its past."""
    if not share:
        return tokens
    wrong = torch.randint_like(tokens, FIRST_CODE, len(VOCABULARY))
    chosen = (tokens >= FIRST_CODE) & (torch.rand(tokens.shape, device=tokens.device) < share)
    return torch.where(chosen, wrong, tokens)


@torch.no_grad()
def held_out(model: Llama, path: Path, device: torch.device) -> dict[str, float]:
    """Mean loss in nats of frames and of codes over sentences that were never trained on."""
    if not path.exists():
        return {}
    model.eval()
    sums = {"held_out_codes": [0.0, 0], "held_out_frames": [0.0, 0]}
    for tokens, written in read_sentences(path):
        row = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
        wanted = torch.from_numpy(written[1:])
        with torch.autocast(device.type, torch.bfloat16):
            logits = model.logits(model(row[:, :-1])[0][wanted])
        targets = row[0, 1:][wanted]
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        for name, chosen in (("held_out_codes", targets >= FIRST_CODE), ("held_out_frames", targets < FIRST_CODE)):
            sums[name][0] += float(losses[chosen].sum())
            sums[name][1] += int(chosen.sum())
    model.train()
    return {name: value / count for name, (value, count) in sums.items()}


if __name__ == "__main__":
    main()
