"""Where a training stands, as people read it: a line, and a share of the whole."""

from __future__ import annotations

from nightgate.jobs import Progress

TRAINING_SHARE = 0.95
"""Of an epoch, the rest is evaluation: a forward pass over the tenth of the rows that is the default split."""


def progress_line(progress: Progress) -> str:
    """One line: `epoch 1/3, step 40/75, loss 1.21, 53 examples/s, 2,280 tokens/s, 0:20 left`."""
    parts = [f"epoch {progress.epoch}/{progress.epochs}"] if progress.epoch else []
    if progress.phase == "train":
        parts.append(f"step {progress.step}/{progress.total_steps}")
    else:
        parts.append(progress.detail or {"evaluate": "evaluating", "save": "saving"}.get(progress.phase, "loading"))
        if progress.total:
            parts.append(f"{progress.done}/{progress.total}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.examples_per_second is not None:
        parts.append(f"{_rate(progress.examples_per_second)} examples/s")
    if progress.tokens_per_second is not None:
        parts.append(f"{_rate(progress.tokens_per_second)} tokens/s")
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append((f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}") + " left")
    return ", ".join(parts)


def done_share(progress: Progress) -> float:
    """How much of all epochs is done, 0 to 1; 0 before the first step."""
    if not (progress.epoch and progress.epochs):
        return 0.0
    if progress.phase == "save":
        within = 1.0
    elif progress.phase == "evaluate":
        within = TRAINING_SHARE + (1 - TRAINING_SHARE) * progress.done / max(progress.total, 1)
    else:
        steps = max(progress.total_steps / progress.epochs, 1)
        within = TRAINING_SHARE * (progress.step / steps - (progress.epoch - 1))
    return (progress.epoch - 1 + within) / progress.epochs


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
