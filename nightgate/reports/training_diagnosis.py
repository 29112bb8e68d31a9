"""Diagnose a run from its epochs and its machine; each finding names the `--set` that tries a remedy.

Numbers in, findings out. They use training and validation figures only: hints for the next experiment, never part of
the gate's verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from nightgate.config.training import Training
from nightgate.pipeline_files import reference_to

NOISE = 5e-3
"""Relative change of a loss that is noise: on some hundred rows it varies as much. The first rise of the published run,
which must be found, is 1.4 %."""
F1_NOISE = 1e-4

FAR_BELOW = 0.5
"""Share of the usual speed below which a run is starved. Another process on one of two cores costs less than half, and
the texts of another night a few per cent."""
NIGHTS_TO_COMPARE = 3
"""Earlier nights that make a usual speed."""


@dataclass(frozen=True)
class EpochFacts:
    epoch: int
    training_loss: float | None
    validation_loss: float | None
    f1: float | None
    """On validation. None, like a loss of None, was not finite."""
    examples_per_second: float | None = None
    """In training."""


@dataclass(frozen=True)
class EarlierNight:
    """Speed of another night of the pipeline with the same base model, max_length and batch size."""

    device: str
    precision: str
    examples_per_second: float
    """Median of its epochs."""


@dataclass(frozen=True)
class MachineFacts:
    """Where and how fast a run was computed."""

    device: str | None = None
    """'cpu' or the GPU's name; None if training never began."""
    precision: str | None = None
    restarts: int = 0
    """Restarts after a stall, in all attempts."""
    micro_batches: int | None = None
    slot: str = ""
    """Name of the slot that it held; '': none."""
    train_rows: int | None = None
    """Rows of one epoch."""
    earlier: tuple[EarlierNight, ...] = ()
    """Nights before this one, in any order."""


@dataclass(frozen=True)
class Finding:
    kind: Literal["overfitting", "low_score", "stalled", "short_of_memory", "starved", "other_device"]
    text: str
    """The observation with its numbers."""
    remedy: str
    """Ends with a `--set`."""

    def step(self, pipeline: str) -> str:
        """The remedy with the whole command, where that is another training."""
        command = f"nightgate run {reference_to(pipeline)} --force"
        return self.remedy.replace(": --set training.", f": {command} --set training.")


def diagnose(
    epochs: Sequence[EpochFacts],
    min_f1: float | None,
    training: Training | None = None,
    machine: MachineFacts | None = None,
    *,
    goes_on: bool = False,
) -> list[Finding]:
    """Findings about one run, those of the training first; none for a healthy run.

    Args:
        min_f1: the gate's threshold, compared with validation F1, which is optimistic; None: not known yet.
        training: the run's settings, from which remedies start; None: the defaults.
        machine: None: no findings about it.
        goes_on: whether it went on from a version, in one epoch of few rows.
    """
    seen = sorted(epochs, key=lambda epoch: epoch.epoch)
    settings = training or Training()
    found: list[Finding | None] = []
    if seen:
        overfitting = _overfitting(seen, settings)
        low = _low_score(seen, min_f1, settings, overfits=overfitting is not None)
        if low and goes_on:
            low = replace(low, remedy="Train in full: --set training.start_from=base")
        found += [overfitting, low]
    if machine:
        found += [
            _stalled(machine),
            _starved(seen, machine),
            _other_device(seen, settings, machine),
            _short_of_memory(settings, machine),
        ]
    return [finding for finding in found if finding]


def _overfitting(epochs: list[EpochFacts], training: Training) -> Finding | None:
    """Validation loss ends above its lowest point, and training loss fell since that point."""
    known = [epoch for epoch in epochs if _finite(epoch.training_loss) and _finite(epoch.validation_loss)]
    if len(known) < 2:
        return None
    lowest = min(range(len(known)), key=lambda at: known[at].validation_loss or 0.0)
    best, last = known[lowest], known[-1]
    if _moved(best.validation_loss, last.validation_loss) <= 0 or _moved(best.training_loss, last.training_loss) >= 0:
        return None
    since = known[lowest + 1].epoch
    text = (
        f"Overfitting from epoch {since} on: validation loss rose from {best.validation_loss:.4f} (epoch {best.epoch}) "
        f"to {last.validation_loss:.4f} (epoch {last.epoch}) while training loss fell from {best.training_loss:.4f} "
        f"to {last.training_loss:.4f}"
    )
    epochs_word = "epoch" if best.epoch == 1 else "epochs"
    shorter = f"Train for no more than {best.epoch} {epochs_word}: --set training.epochs={best.epoch}"
    peak = max((epoch for epoch in known if _finite(epoch.f1)), key=lambda epoch: epoch.f1 or 0.0, default=None)
    if peak is None or peak.f1 is None or not _finite(best.f1):
        return Finding("overfitting", f"{text}.", shorter)
    if peak.f1 <= best.f1 + F1_NOISE:
        return Finding("overfitting", f"{text}, and F1 gained nothing after {best.f1:.4f}.", shorter)
    text += f". F1 still moved from {best.f1:.4f} to {peak.f1:.4f} (epoch {peak.epoch})."
    return Finding("overfitting", text, _regularise(epochs, peak, training))


def _regularise(epochs: list[EpochFacts], peak: EpochFacts, training: Training) -> str:
    if peak.epoch < epochs[-1].epoch - 1 and training.early_stopping_patience == 0:
        return "Stop once F1 no longer rises: --set training.early_stopping_patience=1"
    if training.dropout == "model" or training.dropout < 0.2:
        return "Regularise with more dropout: --set training.dropout=0.2"
    if training.dropout < 0.5:
        return f"Regularise with more dropout: --set training.dropout={min(0.5, training.dropout + 0.1):g}"
    return "Regularise with weight decay: --set training.weight_decay=0.01"


def _low_score(epochs: list[EpochFacts], min_f1: float | None, training: Training, *, overfits: bool) -> Finding | None:
    scored = [epoch for epoch in epochs if _finite(epoch.f1)]
    first, last = epochs[0], epochs[-1]
    if not scored:
        text = f"No epoch has a finite F1, so none reaches min_f1{'' if min_f1 is None else f' {min_f1:.4f}'}."
        return Finding("low_score", text, _slower(training))
    peak = max(scored, key=lambda epoch: epoch.f1 or 0.0)
    assert peak.f1 is not None
    if min_f1 is None or peak.f1 >= min_f1:
        return None
    text = f"The best validation F1, {peak.f1:.4f} (epoch {peak.epoch}), is below min_f1 {min_f1:.4f}"
    change = _moved(first.training_loss, last.training_loss) if len(epochs) > 1 else math.nan
    losses = f"training loss went from {first.training_loss} to {last.training_loss}"
    if _finite(first.training_loss) and _finite(last.training_loss):
        losses = f"training loss went from {first.training_loss:.4f} to {last.training_loss:.4f}"
    if change > 0:
        return Finding("low_score", f"{text}, and {losses}: the steps are too large.", _slower(training))
    if change == 0:
        remedy = f"Take larger steps: --set training.learning_rate={min(1.0, training.learning_rate * 2):g}"
        return Finding("low_score", f"{text}, and {losses}: the model did not learn.", remedy)
    if overfits:
        return Finding("low_score", f"{text}, and more epochs would only overfit.", _more_data(training))
    if peak.epoch == last.epoch:
        rise = f" and was still rising at the last of {len(epochs)} epochs" if len(epochs) > 1 else " after one epoch"
        remedy = f"Train for longer: --set training.epochs={min(1000, 2 * last.epoch)}"
        return Finding("low_score", f"{text}{rise}.", remedy)
    return Finding("low_score", f"{text} and has stopped rising.", _more_data(training))


def _slower(training: Training) -> str:
    return f"Take smaller steps: --set training.learning_rate={training.learning_rate / 5:g}"


def _more_data(training: Training) -> str:
    if training.max_train_rows:
        return "Train on all rows: --set training.max_train_rows=0"
    return (
        "Add rows, check the labels of those that the model gets wrong, or take smaller steps: "
        f"--set training.learning_rate={training.learning_rate / 2:g}"
    )


def _stalled(machine: MachineFacts) -> Finding | None:
    if not machine.restarts:
        return None
    often = "once" if machine.restarts == 1 else f"{machine.restarts} times"
    text = (
        f"Stalled: training on {_place(machine)} made no progress and was restarted {often}; the stack traces are in "
        "the attempt's log."
    )
    return Finding("stalled", text, _queue(machine))


def _starved(epochs: list[EpochFacts], machine: MachineFacts) -> Finding | None:
    """The night, or an epoch of it, ran at less than half the usual speed of the same work on the same device."""
    known = [(epoch.epoch, speed) for epoch in epochs if (speed := _speed(epoch)) is not None]
    if not known:
        return None
    speeds = [speed for _, speed in known]
    tonight = statistics.median(speeds)
    earlier = [
        night.examples_per_second
        for night in machine.earlier
        if (night.device, night.precision) == (machine.device, machine.precision)
    ]
    usual = statistics.median(earlier) if len(earlier) >= NIGHTS_TO_COMPARE else 0.0
    if tonight < FAR_BELOW * usual:
        text = (
            f"Starved: {_rate(tonight)} where the median of {len(earlier)} earlier nights on {_place(machine)} is "
            f"{_rate(usual)}: another process used the machine."
        )
        return Finding("starved", text, _queue(machine))
    if len(known) < 3:
        return None
    # On a GPU the first epoch also records graphs and warms up caches.
    warming_up = 0 if machine.device in (None, "cpu") else 1
    slow = [
        (speed, number)
        for place, (number, speed) in enumerate(known)
        if place >= warming_up and speed < FAR_BELOW * statistics.median(speeds[:place] + speeds[place + 1 :])
    ]
    if not slow:
        return None
    speed, number = min(slow)
    often = "" if len(slow) == 1 else f", and {len(slow) - 1} more like it"
    text = (
        f"Starved in epoch {number}{often}: {_rate(speed)} where the run's median is {_rate(tonight)}: another process "
        f"used {_place(machine)} for a while."
    )
    return Finding("starved", text, _queue(machine))


def _other_device(epochs: list[EpochFacts], training: Training, machine: MachineFacts) -> Finding | None:
    """The night ran on the CPU, most of the nights before on a GPU."""
    before = [night for night in machine.earlier if night.device != "cpu"]
    if machine.device != "cpu" or len(before) < NIGHTS_TO_COMPARE or 2 * len(before) <= len(machine.earlier):
        return None
    gpu = statistics.mode(night.device for night in before)
    text = f"It ran on the CPU, where {len(before)} of the {len(machine.earlier)} nights before had {gpu}"
    known = [speed for speed in map(_speed, epochs) if speed is not None]
    share = 0.1
    if known:
        tonight = statistics.median(known)
        usual = statistics.median(night.examples_per_second for night in before)
        text += f": {_rate(tonight)} instead of {_rate(usual)}"
        share = min(1.0, tonight / usual)
    # As many rows as keep the night's length.
    rows = 100 * max(1, round(share * (machine.train_rows or training.max_train_rows or 10_000) / 100))
    remedy = "`nightgate doctor` checks the GPU. Until it works again, train on fewer rows"
    return Finding("other_device", f"{text}.", f"{remedy}: --set training.max_train_rows={rows}")


def _short_of_memory(training: Training, machine: MachineFacts) -> Finding | None:
    parts = machine.micro_batches or 1
    if parts < 2:
        return None
    text = (
        f"Short of memory: a batch of {training.batch_size} did not fit into the memory of {_place(machine)} and was "
        f"computed in {parts} parts, which gives the same steps more slowly."
    )
    if training.max_length > 128:
        return Finding("short_of_memory", text, "Cut texts earlier: --set training.max_length=128")
    batch = max(1, training.batch_size // parts)
    return Finding("short_of_memory", text, f"Take smaller batches: --set training.batch_size={batch}")


def _queue(machine: MachineFacts) -> str:
    if not machine.slot:
        return "Queue with the other pipelines of the machine: --set resources.slot=default"
    return f"Give every pipeline of this machine the slot of this run: --set resources.slot={machine.slot}"


def _place(machine: MachineFacts) -> str:
    return "the CPU" if machine.device == "cpu" else machine.device or "its machine"


def _rate(speed: float) -> str:
    return f"{speed:,.0f} examples/s" if speed >= 10 else f"{speed:.1f} examples/s"


def _speed(epoch: EpochFacts) -> float | None:
    speed = epoch.examples_per_second
    return speed if _finite(speed) and speed > 0 else None


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _moved(before: float | None, after: float | None) -> int:
    """1 if a loss rose, -1 if it fell, 0 if it moved by no more than noise or is not known."""
    if not (_finite(before) and _finite(after)) or abs(after - before) <= NOISE * max(abs(before), abs(after)):
        return 0
    return 1 if after > before else -1
