"""Speech from the language model in torch: sounds in, codes out. For checks during training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llama_model import Llama
from vocoder_voice_kumo.sequence import CODES, FIRST_CODE, FIRST_FRAMES, MOST_FRAMES, prompts


@torch.no_grad()
def speak_codes(
    model: Llama, phones: Sequence[str], *, temperature: float = 0.6, top_k: int = 20, seed: int = 1
) -> list[int]:
    """The codes of a sentence's sounds."""
    chance = torch.Generator().manual_seed(seed)
    caches: list[list[torch.Tensor]] = [[] for _ in model.blk]
    codes: list[int] = []
    position = 0

    def fed(token: int) -> torch.Tensor:
        nonlocal position
        hidden = model(torch.tensor([[token]]), caches=caches, start=position)
        position += 1
        return model.logits(hidden[0, -1]).float()

    def chosen(logits: torch.Tensor) -> int:
        best, places = logits.topk(min(top_k, len(logits)))
        return int(places[torch.multinomial((best / temperature).softmax(0), 1, generator=chance)])

    for prompt in prompts(phones):
        for token in prompt:
            logits = fed(token)
        frames = 1 + chosen(logits[FIRST_FRAMES : FIRST_FRAMES + MOST_FRAMES])
        logits = fed(FIRST_FRAMES + frames - 1)
        for _ in range(frames):
            code = chosen(logits[FIRST_CODE : FIRST_CODE + CODES])
            codes.append(code)
            logits = fed(FIRST_CODE + code)
    return codes
