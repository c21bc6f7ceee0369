"""Checkpoints that are whole or absent: written beside, then renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any], **parts: Any) -> None:
    """Write ``state`` and the state_dict of each part."""
    partial = path.with_suffix(".partial")
    torch.save({"state": state, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    partial.rename(path)


def load(path: Path, state: dict[str, Any], **parts: Any) -> bool:
    """Fill ``state`` and the parts from a file; False if there is none."""
    if not path.exists():
        return False
    found = torch.load(path, map_location="cpu", weights_only=True)
    state.update(found["state"])
    for name, part in parts.items():
        part.load_state_dict(found[name])
    return True
