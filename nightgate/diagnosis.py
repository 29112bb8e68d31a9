"""What a run's epochs and its machine say about it, in words, each with the `--set` that tries a remedy.

Pure: numbers in, findings out. Losses and F1 are those of training and validation, so a finding is a hint for the
next experiment and never part of the gate's verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nightgate.config import Training

NOISE = 5e-3
"""Relative change of a loss below which it has not moved. The loss on some hundred rows wobbles by as much; the first
rise of the published run, which must be told, is 1.4 %."""

F1_NOISE = 1e-4

FAR_BELOW = 0.5
"""Share of the usual speed below which a machine is called starved. A neighbour on one of two cores takes less than
that, and texts of another night differ by a few per cent."""

NIGHTS_TO_COMPARE = 3
"""Earlier nights without which nothing is usual yet."""


@dataclass(frozen=True)
class EpochFacts:
    epoch: int
    training_loss: float | None
    validation_loss: float | None
    f1: float | None
    """On validation. None, here and above, where the number was not finite."""
    examples_per_second: float | None = None
    """In training."""


@dataclass(frozen=True)
class EarlierNight:
    """How fast another night of the pipeline was, with the same base model, max_length and batch size."""

    device: str
    precision: str
    examples_per_second: float
    """Median of its epochs."""


@dataclass(frozen=True)
class MachineFacts:
    """What a run was computed on."""

    device: str | None = None
    """'cpu' or the GPU's name; None where it never came to training."""
    precision: str | None = None
    restarts: int = 0
    """How often its training stood still and was started again, in all attempts."""
    micro_batches: int | None = None
    slot: str = ""
    """The queue that it waited in; '': none."""
    train_rows: int | None = None
    """Rows of one epoch."""
    earlier: tuple[EarlierNight, ...] = ()
    """Nights before this one, in any order."""


@dataclass(frozen=True)
class Finding:
    kind: Literal["overfitting", "low_score", "stalled", "short_of_memory", "starved", "other_device"]
    text: str
    """What was seen, with the numbers."""
    remedy: str
    """What to try; ends with the `--set` that tries it."""


def diagnose(
    epochs: Sequence[EpochFacts],
    min_f1: float,
    training: Training | None = None,
    machine: MachineFacts | None = None,
) -> list[Finding]:
    """Findings about one run, the most telling first; none for a healthy run.

    Args:
        min_f1: the gate's threshold; compared with validation F1, which is optimistic.
        training: the run's settings, so that a remedy goes on from them; None: the defaults.
        machine: None: nothing is said about it.
    """
    seen = sorted((epoch for epoch in epochs), key=lambda epoch: epoch.epoch)
    settings = training or Training()
    found: list[Finding | None] = []
    if seen:
        overfitting = _overfitting(seen, settings)
        found += [overfitting, _low_score(seen, min_f1, settings, overfits=overfitting is not None)]
    if machine:
        found += _machine(seen, settings, machine)
    return [finding for finding in found if finding]


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
        return Finding("overfitting", text + ".", _stop_at(best.epoch))
    if (peak.f1 or 0.0) <= best.f1 + F1_NOISE:
        return Finding("overfitting", f"{text}, and F1 gained nothing after {best.f1:.4f}.", _stop_at(best.epoch))
    text += f". F1 still moved from {best.f1:.4f} to {peak.f1:.4f} (epoch {peak.epoch})."
    return Finding("overfitting", text, _regularise(epochs, peak, training))


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
        return Finding("low_score", text, _slower(training))
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
        return Finding("low_score", f"{text}, and {losses}: the steps are too large.", _slower(training))
    if change == 0:
        remedy = f"Take larger steps: --set training.learning_rate={min(1.0, training.learning_rate * 2):g}"
        return Finding("low_score", f"{text}, and {losses}: it did not learn.", remedy)
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
        "Bring more rows, look at the labels of those that it gets wrong, or take smaller steps: "
        f"--set training.learning_rate={training.learning_rate / 2:g}"
    )


def _machine(epochs: list[EpochFacts], training: Training, machine: MachineFacts) -> list[Finding | None]:
    return [
        _stalled(machine),
        _starved(epochs, machine),
        _other_device(epochs, training, machine),
        _short_of_memory(training, machine),
    ]


def _stalled(machine: MachineFacts) -> Finding | None:
    if not machine.restarts:
        return None
    often = "once" if machine.restarts == 1 else f"{machine.restarts} times"
    text = (
        f"Stalled: training stood still on {_place(machine)} and was started again {often}; the stacks of that moment "
        "are in the attempt's log."
    )
    return Finding("stalled", text, _queue(machine))


def _starved(epochs: list[EpochFacts], machine: MachineFacts) -> Finding | None:
    """A night, or an epoch of it, at less than half the speed that the same work has on the same device."""
    told = [epoch for epoch in epochs if _speed(epoch) is not None]
    if not told:
        return None
    speeds = [_speed(epoch) or 0.0 for epoch in told]
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
            f"{_rate(usual)}: something else took the machine."
        )
        return Finding("starved", text, _queue(machine))
    slow = []
    for place, epoch in enumerate(told):
        others = speeds[:place] + speeds[place + 1 :]
        # On a GPU the first epoch also records graphs and warms up caches.
        warming_up = place == 0 and machine.device not in (None, "cpu")
        if len(others) >= 2 and not warming_up and speeds[place] < FAR_BELOW * statistics.median(others):
            slow.append((epoch.epoch, speeds[place]))
    if not slow:
        return None
    number, speed = min(slow, key=lambda found: found[1])
    often = "" if len(slow) == 1 else f", and {len(slow) - 1} more like it"
    text = (
        f"Starved in epoch {number}{often}: {_rate(speed)} where the run's median is {_rate(tonight)}: something else "
        f"took {_place(machine)} for a while."
    )
    return Finding("starved", text, _queue(machine))


def _other_device(epochs: list[EpochFacts], training: Training, machine: MachineFacts) -> Finding | None:
    """On the CPU, where the nights before had a GPU."""
    before = [night for night in machine.earlier if night.device != "cpu"]
    if machine.device != "cpu" or len(before) < NIGHTS_TO_COMPARE or 2 * len(before) <= len(machine.earlier):
        return None
    gpu = statistics.mode(night.device for night in before)
    text = f"It ran on the CPU, where {len(before)} of the {len(machine.earlier)} nights before had {gpu}"
    told = [speed for speed in map(_speed, epochs) if speed is not None]
    share = 0.1
    if told:
        tonight = statistics.median(told)
        usual = statistics.median(night.examples_per_second for night in before)
        text += f": {_rate(tonight)} instead of {_rate(usual)}"
        share = min(1.0, tonight / usual)
    # So many rows that the night takes about as long as it did.
    rows = 100 * max(1, round(share * (machine.train_rows or training.max_train_rows or 10_000) / 100))
    remedy = "`nightgate doctor` tells what it finds of a GPU. Until there is one again, train on fewer rows"
    return Finding("other_device", f"{text}.", f"{remedy}: --set training.max_train_rows={rows}")


def _short_of_memory(training: Training, machine: MachineFacts) -> Finding | None:
    parts = machine.micro_batches or 1
    if parts < 2:
        return None
    text = (
        f"Short of memory: a batch of {training.batch_size} did not fit into that of {_place(machine)} and was "
        f"computed in {parts} parts. The steps are those of the recipe, only slower."
    )
    if training.max_length > 128:
        return Finding("short_of_memory", text, "Cut texts sooner: --set training.max_length=128")
    batch = max(1, training.batch_size // parts)
    return Finding("short_of_memory", text, f"Take smaller batches: --set training.batch_size={batch}")


def _queue(machine: MachineFacts) -> str:
    if not machine.slot:
        return "Queue with what shares the machine, instead of beside it: --set resources.slot=default"
    return (
        f"Give all that runs on this machine the slot that this run held, and let one run at a time hold it: "
        f"--set resources.slot={machine.slot}"
    )


def _place(machine: MachineFacts) -> str:
    return "the CPU" if machine.device == "cpu" else machine.device or "its machine"


def _rate(speed: float) -> str:
    return f"{speed:,.0f} examples/s" if speed >= 10 else f"{speed:.1f} examples/s"


def _speed(epoch: EpochFacts) -> float | None:
    speed = epoch.examples_per_second
    return speed if speed is not None and math.isfinite(speed) and speed > 0 else None


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _moved(before: float | None, after: float | None) -> int:
    """1 where a loss rose, -1 where it fell, 0 where it did not move by more than noise or is not known."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return 0
    if abs(after - before) <= NOISE * max(abs(before), abs(after)):
        return 0
    return 1 if after > before else -1
