"""A tiny trained model: a stock folder with a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support.tiny import write_tiny_model


def write_trained_model(
    folder: Path, label_names: Sequence[str], *, max_length: int = 32, sharpness: float = 1, hidden_size: int = 32
) -> Path:
    """Write `folder/best` and return it.

    Args:
        sharpness: scale of the random head; a fresh one gives nearly equal logits to all texts.
    """
    import torch

    from nightgate.engine import base_models

    base = write_tiny_model(folder / "base", hidden_size=hidden_size)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    loaded = base_models.load_classifier(base, label_names, named="base", max_length=max_length)
    torch.random.set_rng_state(state)
    with torch.no_grad():
        loaded.model.classifier.weight.mul_(sharpness)
    base_models.save_model(loaded, folder / "best")
    return folder / "best"
