"""What a run's epochs say about its training, in words, each with the `--set` that tries a remedy.

Pure: numbers in, findings out. Losses and F1 are those of training and validation, so a finding is a hint for the
next experiment and never part of the gate's verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nightgate.config import Training

NOISE = 5e-3
"""Relative change of a loss below which it has not moved. The loss on some hundred rows wobbles by as much; the first
rise of the published run, which must be told, is 1.4 %."""

F1_NOISE = 1e-4


@dataclass(frozen=True)
class EpochFacts:
    epoch: int
    training_loss: float | None
    validation_loss: float | None
    f1: float | None
    """On validation. None, here and above, where the number was not finite."""


@dataclass(frozen=True)
class Finding:
    kind: Literal["overfitting", "low_score"]
    since_epoch: int
    text: str
    """What was seen, with the numbers."""
    remedy: str
    """What to try; ends with the `--set` that tries it."""


def diagnose(epochs: Sequence[EpochFacts], min_f1: float, training: Training | None = None) -> list[Finding]:
    """Findings about one run, the most telling first; none for a healthy run or one without epochs.

    Args:
        min_f1: the gate's threshold; compared with validation F1, which is optimistic.
        training: the run's settings, so that a remedy goes on from them; None: the defaults.
    """
    seen = sorted((epoch for epoch in epochs), key=lambda epoch: epoch.epoch)
    if not seen:
        return []
    settings = training or Training()
    overfitting = _overfitting(seen, settings)
    low_score = _low_score(seen, min_f1, settings, overfits=overfitting is not None)
    return [finding for finding in (overfitting, low_score) if finding]


def _overfitting(epochs: list[EpochFacts], training: Training) -> Finding | None:
    """Validation loss above its lowest point at the end, while training loss went on falling since that point."""
    told = [epoch for epoch in epochs if _finite(epoch.training_loss) and _finite(epoch.validation_loss)]
    if len(told) < 2:
        return None
    lowest = min(range(len(told)), key=lambda at: told[at].validation_loss or 0.0)
    best, last = told[lowest], told[-1]
    if not (
        _moved(best.validation_loss, last.validation_loss) > 0 and _moved(best.training_loss, last.training_loss) < 0
    ):
        return None
    since = told[lowest + 1].epoch
    text = (
        f"Overfitting from epoch {since} on: validation loss rose from {best.validation_loss:.4f} (epoch {best.epoch}) "
        f"to {last.validation_loss:.4f} (epoch {last.epoch}) while training loss fell from {best.training_loss:.4f} "
        f"to {last.training_loss:.4f}"
    )
    peak = max((epoch for epoch in told if _finite(epoch.f1)), key=lambda epoch: epoch.f1 or 0.0, default=None)
    if peak is None or best.f1 is None or not _finite(best.f1):
        return Finding("overfitting", since, text + ".", _stop_at(best.epoch))
    if (peak.f1 or 0.0) <= best.f1 + F1_NOISE:
        return Finding(
            "overfitting", since, f"{text}, and F1 gained nothing after {best.f1:.4f}.", _stop_at(best.epoch)
        )
    text += f". F1 still moved from {best.f1:.4f} to {peak.f1:.4f} (epoch {peak.epoch})."
    return Finding("overfitting", since, text, _regularise(epochs, peak, training))


def _stop_at(epoch: int) -> str:
    return f"Train for no more than {epoch} epoch{'s' if epoch != 1 else ''}: --set training.epochs={epoch}"


def _regularise(epochs: list[EpochFacts], peak: EpochFacts, training: Training) -> str:
    if peak.epoch < epochs[-1].epoch - 1 and training.early_stopping_patience == 0:
        return "Stop once F1 no longer rises: --set training.early_stopping_patience=1"
    if training.dropout == "model" or training.dropout < 0.2:
        return "Hold the weights back with more dropout: --set training.dropout=0.2"
    if training.dropout < 0.5:
        return f"Hold the weights back with more dropout: --set training.dropout={min(0.5, training.dropout + 0.1):g}"
    return "Hold the weights back with decay: --set training.weight_decay=0.01"


def _low_score(epochs: list[EpochFacts], min_f1: float, training: Training, *, overfits: bool) -> Finding | None:
    scored = [epoch for epoch in epochs if _finite(epoch.f1)]
    first, last = epochs[0], epochs[-1]
    if not scored:
        text = f"No epoch has a finite F1, so none reaches min_f1 {min_f1:.4f}."
        return Finding("low_score", first.epoch, text, _slower(training))
    peak = max(scored, key=lambda epoch: epoch.f1 or 0.0)
    assert peak.f1 is not None
    if peak.f1 >= min_f1:
        return None
    text = f"The best validation F1, {peak.f1:.4f} (epoch {peak.epoch}), is below min_f1 {min_f1:.4f}"
    change = _moved(first.training_loss, last.training_loss) if len(epochs) > 1 else math.nan
    losses = f"training loss went from {first.training_loss} to {last.training_loss}"
    if _finite(first.training_loss) and _finite(last.training_loss):
        losses = f"training loss went from {first.training_loss:.4f} to {last.training_loss:.4f}"
    if change > 0:
        return Finding("low_score", first.epoch, f"{text}, and {losses}: the steps are too large.", _slower(training))
    if change == 0:
        remedy = f"Take larger steps: --set training.learning_rate={min(1.0, training.learning_rate * 2):g}"
        return Finding("low_score", first.epoch, f"{text}, and {losses}: it did not learn.", remedy)
    if overfits:
        return Finding("low_score", first.epoch, f"{text}, and more epochs would only overfit.", _more_data(training))
    if peak.epoch == last.epoch:
        rise = f" and was still rising at the last of {len(epochs)} epochs" if len(epochs) > 1 else " after one epoch"
        remedy = f"Train for longer: --set training.epochs={min(1000, 2 * last.epoch)}"
        return Finding("low_score", first.epoch, f"{text}{rise}.", remedy)
    return Finding("low_score", first.epoch, f"{text} and has stopped rising.", _more_data(training))


def _slower(training: Training) -> str:
    return f"Take smaller steps: --set training.learning_rate={training.learning_rate / 5:g}"


def _more_data(training: Training) -> str:
    if training.max_train_rows:
        return "Train on all rows: --set training.max_train_rows=0"
    return (
        "Bring more rows, look at the labels of those that it gets wrong, or take smaller steps: "
        f"--set training.learning_rate={training.learning_rate / 2:g}"
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _moved(before: float | None, after: float | None) -> int:
    """1 where a loss rose, -1 where it fell, 0 where it did not move by more than noise or is not known."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return 0
    if abs(after - before) <= NOISE * max(abs(before), abs(after)):
        return 0
    return 1 if after > before else -1
