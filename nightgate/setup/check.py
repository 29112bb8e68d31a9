"""What a night of a pipeline would have, found by a real refresh into a temporary folder: nothing is trained or kept.

facts = check(load_pipeline("reviews"))                       # nightgate check reviews
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from nightgate.analysis.power import Power, newest_power
from nightgate.config.checks import CheckName
from nightgate.config.pipeline import Pipeline
from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import Snapshot
from nightgate.data.tip import read_tip
from nightgate.data.training_rows import training_positions
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.gate.test_window import microseconds, test_window
from nightgate.gate.wording import points
from nightgate.home import Home
from nightgate.metrics.bootstrap import group_numbers
from nightgate.runs.evidence_store import first_seen
from nightgate.schedule import Night, tonight
from nightgate.setup.baseline import FITTED_ROWS, SCORED_ROWS, Baseline, Labels, commonest_f1, tfidf

FAILS = "fails"
"""Value of a data check that would end the night."""
_PLACES = ("merged", "replaced", "deleted", "quarantined", "conflicting", "future", "outside", "vanished")
"""What became of rows that are not taken, by the names of `PartCounts`."""


@dataclass(frozen=True)
class Fact:
    """One line of what is known."""

    about: str
    """column, rows, label, split, quarantine, time, data check, F1, gate or model."""
    name: str
    value: str | int | float | None
    note: str = ""


def check(pipeline: Pipeline, db: Database | None = None) -> tuple[Fact, ...]:
    """What a night that starts now would have.

    Args:
        db: of the home, which has the splits of earlier nights; None where there is none. Neither is written to.

    Raises:
        DataError: the source cannot be read, or has too few rows to train and evaluate a model.
        StorageError: the temporary folder is full.
    """
    night = tonight(pipeline.schedule)
    with TemporaryDirectory(prefix="nightgate-") as made:
        home = Home(Path(made).resolve(), "")
        folder = home.snapshots / pipeline.name
        if db is not None:
            _mirror(db.home.snapshots / pipeline.name, folder)
        nights = read_tip(folder).nights
        previous = folder / nights[-1].snapshot if nights else None
        refreshed = refresh(pipeline, night, home, previous, allowed=frozenset(get_args(CheckName)))
        return (*_of_rows(pipeline, refreshed), *_of_models(pipeline, night, refreshed.snapshot, db))


def _mirror(folder: Path, copy: Path) -> None:
    """Folders with links to the files of `folder`: files of a home are replaced or removed, and never written to."""
    copy.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        target = copy / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        else:
            target.symlink_to(path)


def _of_rows(pipeline: Pipeline, refreshed: Refreshed) -> Iterator[Fact]:
    data, facts = pipeline.data, refreshed.snapshot.manifest
    roles = {"text": data.text_columns, "label": (data.label,), "slices": data.slices}
    roles |= {name: (getattr(data, name),) for name in ("id", "time", "updated", "deleted", "group")}
    roles["split"] = (pipeline.split.column,) if pipeline.split.column else ()
    for role, columns in roles.items():
        if any(columns):
            yield Fact("column", role, ", ".join(map(str, columns)))
    seen = sum(part.rows_seen for part in refreshed.parts)
    yield Fact("rows", "seen", seen, f"files, days or tables: {len(refreshed.parts):,}")
    yield Fact("rows", "taken", refreshed.rows_total, f"{refreshed.rows_new:,} of them new")
    for place in _PLACES:
        if count := sum(getattr(part, place) for part in refreshed.parts):
            yield Fact("rows", place, count)
    yield from _quarantined(pipeline, refreshed)
    counts = Counter[str]()
    for by_label in facts["label_counts"].values():
        counts.update(by_label)
    for label in data.label_names:
        share = f"{counts[label] / refreshed.rows_total:.1%}" if counts[label] else "never occurs"
        yield Fact("label", label, counts[label], share)
    for split, count in facts["rows"].items():
        yield Fact("split", split, count)
    if data.has_times:
        yield Fact("time", "first", facts["first_time"])
        yield Fact("time", "last", facts["last_time"], f"times without a timezone are in {data.timezone}")
    for one in refreshed.checks:
        yield Fact("data check", one.name, FAILS if one.outcome == "allowed" else one.outcome, one.reason)


def _quarantined(pipeline: Pipeline, refreshed: Refreshed) -> Iterator[Fact]:
    for reason, count in Counter(row.reason for row in refreshed.quarantined).most_common():
        first = next(row for row in refreshed.quarantined if row.reason == reason)
        yield Fact("quarantine", reason, count, f"{first.origin}: {first.detail}")
    known = sum(part.quarantined for part in refreshed.parts if part.unchanged)
    if known:
        yield Fact("quarantine", "earlier nights", known, f"nightgate quarantine {pipeline.name}")


def _of_models(pipeline: Pipeline, night: Night, snapshot: Snapshot, db: Database | None) -> Iterator[Fact]:
    gate, names = pipeline.gate, pipeline.data.label_names
    columns = [name for name in ("fingerprint", "text", "label", "time", "group") if name in snapshot.columns]
    test = snapshot.rows("test", columns)
    seen_at = np.full(len(test), microseconds(night.data_until))
    if "time" in test:
        seen_at = test["time"].dt.tz_localize(None).astype("datetime64[us]").astype("int64").to_numpy()
    elif db is not None:
        seen_at = first_seen(db, pipeline.name, test["fingerprint"].tolist(), night.data_until)
    everything = np.ones(len(test), dtype=np.bool_)
    window, _ = test_window(seen_at, night.data_until, gate.test_window, gate.min_test_rows, everything)
    test = test[window]
    commonest, constant = commonest_f1(test["label"].to_numpy(), len(names), gate)
    at = training_positions(snapshot, pipeline, night.data_until)[:FITTED_ROWS]
    known, scored = snapshot.rows("train", ["text", "label"], at=at), test[:SCORED_ROWS]
    true: Labels = scored["label"].to_numpy()
    groups = group_numbers(scored["group"].tolist()) if "group" in scored else None
    learnt = known["text"].tolist(), known["label"].to_numpy()
    found = tfidf(*learnt, scored["text"].tolist(), true, len(names), gate, groups)
    yield Fact("F1", "commonest class", constant, f"always {names[commonest]!r}, {gate.average} average")
    rows = f"learnt {len(at):,} training rows" + (f", scored on {len(scored):,}" if len(scored) < len(test) else "")
    interval = f"{gate.confidence:.0%} interval {found.f1.interval}; " if found.f1.interval else ""
    yield Fact("F1", "TF-IDF", found.f1.value, interval + rows)
    minimum = constant if gate.min_f1 == "majority" else gate.min_f1
    note = "more than the commonest class" if gate.min_f1 == "majority" else ""
    if minimum < found.f1.value:
        note += f"{'; ' if note else ''}a model that TF-IDF beats may become the first champion"
    yield Fact("gate", "min_f1", minimum, note)
    yield Fact("gate", "test rows", len(test), f"window of {gate.test_window}" if gate.test_window else "")
    yield from _detectable(pipeline, night, len(test), found, db)


def _detectable(
    pipeline: Pipeline, night: Night, num_rows: int, found: Baseline, db: Database | None
) -> Iterator[Fact]:
    """What the gate could see, from the newest night that compared two models, else from two TF-IDF models."""
    gate, name = pipeline.gate, "smallest detectable gain"
    power, models = None, "two TF-IDF models that learnt different rows"
    if db is not None:
        with suppress(RegistryError):
            power = newest_power(db, pipeline.name, {"gate.confidence": gate.confidence, "gate.margin": gate.margin})
            models = f"candidate and champion of {power.night}"
    if power is None:
        if not found.difference.std_error:
            yield Fact("gate", name, None, "too few test rows, or too much alike, to tell")
            return
        margin = gate.margin if gate.margin_unit == "f1" else None
        rows, error = min(num_rows, SCORED_ROWS), found.difference.std_error
        power = Power(night.date, rows, error, found.difference.value, gate.confidence, margin)
        models += f" ({found.disagreement:.0%} of the test rows)"
    yield Fact("gate", name, power.detectable_with(num_rows), f"in F1, with 80 % power, if models differ as {models}")
    if power.margin:
        rows = power.rows_for(power.margin)
        yield Fact("gate", f"test rows for a gain of {points(power.margin)} points", rows, "the margin of [gate]")
