"""The data refresh of a night: source -> normalise -> quarantine -> deduplicate -> split -> snapshot.

    refreshed = refresh(pipeline, night, home, previous=None)
    rows = training_rows(refreshed.snapshot, pipeline, night.data_until)

Rows at or after `night.data_until` are ignored: neither used nor quarantined. `nightgate.data.validation` defines
what is quarantined and which of several rows with the same text stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nightgate import config
from nightgate.config import Pipeline
from nightgate.config_types import duration, labels_by_value
from nightgate.data.checks import CheckResult, require_passed, run_checks
from nightgate.data.column_rules import check_columns
from nightgate.data.normalization import hashed_fraction, side_of
from nightgate.data.redaction import not_forgotten
from nightgate.data.refresh_counts import LabelVotes, PartCounts, Statistics, remember
from nightgate.data.snapshots import SPLITS, Snapshot, open_snapshot, write_snapshot
from nightgate.data.sources import read_source
from nightgate.data.validation import Row, as_frame, deduplicate, validate
from nightgate.errors import DataError, SnapshotError
from nightgate.home import Home
from nightgate.label_meaning import LabelMeaning
from nightgate.schedule import Night
from nightgate.sources.source_table import Quarantined, quarantine_summary
from nightgate.text_rules import NORMALISATION_VERSION

log = logging.getLogger(__name__)

READ = "snapshot %s: %s; read in %.2f s"
"""Log line that `benchmarks.orchestration` parses."""


@dataclass(frozen=True)
class Refreshed:
    """Result of a refresh. The counts are tonight's, also where an earlier snapshot was reused."""

    snapshot: Snapshot
    quarantined: tuple[Quarantined, ...]
    rows_new: int
    """Rows whose text the previous snapshot lacks; all rows without a previous snapshot."""
    rows_total: int
    rows_duplicate: int
    parts: tuple[PartCounts, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    votes: tuple[LabelVotes, ...] = ()
    """Of texts with several labels, those with the most rows."""
    relabelled: int | None = None
    """Test rows whose label was corrected since the last snapshot; None: there is none to compare with."""
    corrected: frozenset[str] = frozenset()
    """Row ids that can be used tonight, of parts of which only the rows behind a mark were read."""


def refresh(
    pipeline: Pipeline,
    night: Night,
    home: Home,
    previous: Path | None = None,
    *,
    allowed: AbstractSet[str] = frozenset(),
) -> Refreshed:
    """Read the source and write tonight's snapshot, or reuse one with the same rows and rules.

    Args:
        previous: folder of the pipeline's previous snapshot, to count new rows.
        allowed: data checks whose failure does not count tonight.

    Raises:
        DataError: the source cannot be read, or has too few rows to train and evaluate a model. Nothing is written.
        DataCheckError: a data check failed. Nothing is written.
        StorageError: the snapshot cannot be written.
    """
    began = time.monotonic()
    data = pipeline.data
    raw = read_source(data, night, split_column=pipeline.split.column)
    broken = check_columns(raw.frame, data.checks.columns)
    usable, quarantined, unseen = validate(raw, pipeline, night, broken.rows)
    if unseen:
        log.info("%s rows at or after %s are ignored tonight", f"{unseen:,}", f"{night.data_until:%Y-%m-%d %H:%M} UTC")
    num_read = len(usable) + len(quarantined)
    usable = not_forgotten(usable, home.snapshots / pipeline.name)
    quarantined = not_forgotten(quarantined, home.snapshots / pipeline.name)
    rows = deduplicate(usable, keep_oldest=data.group is not None)
    try:
        _require_usable(rows, quarantined, unseen, pipeline)
        frame = _divided(rows, pipeline)
        _require_splits(frame, pipeline)
        _require_trainable(_windowed(frame[frame["split"] == "train"], pipeline, night.data_until), pipeline)
    except DataError as error:
        error.quarantined = tuple(quarantined)
        raise
    rules = _rules(pipeline, raw.classes)
    facts = _facts(frame, pipeline, night, len(quarantined), len(usable) - len(rows))
    duplicate = len(usable) - len(rows)
    parts = (
        PartCounts(
            part=data.source.kind,
            rows_seen=len(raw.frame) + len(raw.rejected),
            taken=len(rows),
            merged=duplicate,
            deleted=num_read - len(usable) - len(quarantined),  # forgotten
            quarantined=len(quarantined),
            future=unseen,
        ),
    )
    before = _read_before(previous)
    tonight = replace(
        _statistics(frame, usable, len(quarantined), before, pipeline, night),
        missing=broken.missing,
        rows_checked=len(raw.frame),
    )
    checks = run_checks(tonight, before.recent, parts, data.checks, _hashed_shares(pipeline), allowed)
    try:
        require_passed(pipeline.name, checks)
    except DataError as error:
        error.quarantined, error.parts = tuple(quarantined), parts
        raise
    facts["recent"] = [one.to_json() for one in remember(before.recent, tonight)]
    snapshot = write_snapshot(home.snapshots / pipeline.name, frame, rules, facts)
    counts = f"{len(frame):,} rows, {tonight.rows_new:,} of them new, {len(quarantined):,} quarantined"
    log.info(READ, snapshot.id, counts, time.monotonic() - began)
    return Refreshed(
        snapshot,
        tuple(quarantined),
        tonight.rows_new,
        len(frame),
        duplicate,
        parts,
        checks,
        relabelled=_relabelled(frame, before, data.label_names),
    )


def training_rows(snapshot: Snapshot, pipeline: Pipeline, data_until: datetime) -> pd.DataFrame:
    """The train split after `train_window`, `max_train_rows` and `keep`, sorted by fingerprint.

    `newest` sorts by time, then by a hash of seed and text; `random` sorts by that hash alone, so that the choice is
    the same on any machine and changes little when rows arrive.

    Raises:
        DataError: no rows are left, or rows of one class only.
    """
    frame = _windowed(snapshot.rows("train"), pipeline, data_until)
    limit = pipeline.training.max_train_rows
    if limit and len(frame) > limit:
        seed = pipeline.training.seed
        hashes = [hashed_fraction(seed, key) for key in frame["fingerprint"]]
        order = frame.assign(hash=hashes).sort_values("hash", kind="stable")
        if pipeline.training.keep == "newest" and "time" in frame:
            order = order.sort_values("time", ascending=False, kind="stable")
        frame = frame.loc[order.index[:limit].sort_values()]
    _require_trainable(frame, pipeline)
    return frame.reset_index(drop=True)


def split_version(pipeline: Pipeline) -> str:
    """The test version, `t-` and 10 hex digits: it changes with the rules of the split and the meaning of the labels.

    It does not change when rows arrive or their labels are corrected.
    """
    return _version(_rules(pipeline))


def version_of(snapshot: Snapshot, pipeline: Pipeline) -> str:
    """The test version of a snapshot of `pipeline`; an earlier release stored one without the labels' meaning."""
    return _version(meaning_of(snapshot, pipeline).rules | snapshot.manifest["rules"])


def meaning_of(snapshot: Snapshot, pipeline: Pipeline) -> LabelMeaning:
    """What the labels of a snapshot of `pipeline` mean."""
    return _meaning(pipeline, snapshot.manifest["rules"].get("classes", ()))


def _meaning(pipeline: Pipeline, classes: Sequence[str]) -> LabelMeaning:
    return LabelMeaning(pipeline.data.label, labels_by_value(pipeline.data.labels), tuple(classes))


def _version(rules: Mapping[str, Any]) -> str:
    # Without the source's names of class numbers, which snapshots of earlier releases lack: `changes` of
    # `nightgate.metrics.comparability` says where they change.
    counted = {name: rule for name, rule in rules.items() if name != "classes"}
    return f"t-{hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:10]}"


def _rules(pipeline: Pipeline, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Rules that decide the split and the class index of a row: part of the snapshot id.

    Args:
        classes: the source's names of the class numbers that are labels.
    """
    data, split = pipeline.data, pipeline.split
    shares = _hashed_shares(pipeline)
    by_hash = {"seed": split.seed, **shares, "by": data.group or "text"}
    return {
        "normalisation": NORMALISATION_VERSION,
        "text": list(data.text_columns),
        "labels": list(data.label_names),
        "split": by_hash if any(shares.values()) else "given",
        **_meaning(pipeline, classes).rules,
    }


def _given_splits(pipeline: Pipeline) -> Collection[str]:
    """The splits that the source names; none where all rows are split by hash."""
    source = pipeline.data.source
    if pipeline.split.column:
        return SPLITS
    return (source.splits or ()) if isinstance(source, config.HubSource) else ()


def _hashed_shares(pipeline: Pipeline) -> dict[str, float]:
    """Shares split off by hash from all rows, or from the training rows for a split that the source lacks."""
    given = _given_splits(pipeline)
    return {part: 0.0 if part in given else getattr(pipeline.split, part) for part in ("validation", "test")}


def _divided(rows: Sequence[Row], pipeline: Pipeline) -> pd.DataFrame:
    """The rows as a frame with the columns of a snapshot and `split`."""
    seed, shares = pipeline.split.seed, _hashed_shares(pipeline)
    sides = [
        row.given if row.given in ("validation", "test") else side_of(row.group or row.fingerprint, seed=seed, **shares)
        for row in rows
    ]
    return as_frame(rows, pipeline.data, sides)


def _windowed(train: pd.DataFrame, pipeline: Pipeline, data_until: datetime) -> pd.DataFrame:
    window = duration(pipeline.data.train_window)
    return train if window is None else train[train["time"] >= pd.Timestamp(data_until - window)]


def _facts(frame: pd.DataFrame, pipeline: Pipeline, night: Night, quarantined: int, duplicate: int) -> dict[str, Any]:
    names = pipeline.data.label_names
    counts = frame.groupby(["split", "label"]).size()
    has_time = "time" in frame
    return {
        "pipeline": pipeline.name,
        "label_names": list(names),
        "slices": list(pipeline.data.slices),
        "group": pipeline.data.group is not None,
        "rows": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "rows_total": len(frame),
        "rows_quarantined": quarantined,
        "rows_duplicate": duplicate,
        "label_counts": {
            split: {name: int(counts.get((split, index), 0)) for index, name in enumerate(names)} for split in SPLITS
        },
        "test_version": split_version(pipeline),
        "data_until": night.data_until.astimezone(UTC).isoformat(),
        "first_time": frame["time"].min().isoformat() if has_time else None,
        "last_time": frame["time"].max().isoformat() if has_time else None,
    }


@dataclass(frozen=True)
class _Before:
    """What the previous snapshot says."""

    labels: Mapping[str, int]
    """Label name by fingerprint."""
    recent: tuple[Statistics, ...]
    rows_quarantined: int


def _read_before(previous: Path | None) -> _Before:
    if previous is None:
        return _Before({}, (), 0)
    try:
        before = open_snapshot(previous, verify=False)
        frames = [before.rows(split, ["fingerprint", "label"]) for split in SPLITS]
    except SnapshotError as error:
        log.warning("all rows count as new: the previous snapshot cannot be read: %s", error.reason)
        return _Before({}, (), 0)
    known = pd.concat(frames)
    names = before.manifest["label_names"]
    labels = {mark: names[label] for mark, label in zip(known["fingerprint"], known["label"], strict=True)}
    recent = tuple(Statistics.from_json(one) for one in before.manifest.get("recent", ()))
    return _Before(labels, recent, before.manifest["rows_quarantined"])


def _statistics(
    frame: pd.DataFrame,
    usable: Sequence[Row],
    quarantined: int,
    before: _Before,
    pipeline: Pipeline,
    night: Night,
) -> Statistics:
    names = pipeline.data.label_names
    new = frame[~frame["fingerprint"].isin(before.labels.keys())]
    unknown = [row for row in usable if row.fingerprint not in before.labels]
    common = Counter(row.fingerprint for row in unknown).most_common(1)
    newly_quarantined = max(quarantined - before.rows_quarantined, 0)
    return Statistics(
        night=night.date,
        rows_total=len(frame),
        rows_new=len(new),
        rows_read=len(unknown) + newly_quarantined,
        rows_quarantined=newly_quarantined,
        labels=dict(Counter(names[index] for index in new["label"])),
        splits={str(split): int(count) for split, count in frame["split"].value_counts().items()},
        commonest=common[0][1] if common else 0,
        commonest_text=next((row.text[:60] for row in unknown if row.fingerprint == common[0][0]), ""),
        is_first=not before.labels,
    )


def _relabelled(frame: pd.DataFrame, before: _Before, names: Sequence[str]) -> int | None:
    if not before.labels:
        return None
    test = frame[frame["split"] == "test"]
    pairs = zip(test["fingerprint"], test["label"], strict=True)
    return sum(1 for mark, label in pairs if before.labels.get(mark, names[label]) != names[label])


def _require_usable(rows: Sequence[Row], quarantined: Sequence[Quarantined], unseen: int, pipeline: Pipeline) -> None:
    num_classes = len(pipeline.data.label_names)
    if len(rows) >= num_classes:
        return
    if rows:
        problem = f"{len(rows)} usable rows with different texts for {num_classes} labels"
        next_step = "add rows, or name fewer labels in data.labels"
    elif quarantined:
        problem = f"none of {len(quarantined):,} rows is usable"
        next_step = "check text, label, labels, time and split in the pipeline file against the source"
    elif unseen:
        problem = f"all {unseen:,} rows are later than the night's data limit"
        next_step = "run a later night, or check data.time and data.timezone"
    else:
        problem = "the source has no rows"
        next_step = "check data.source: the files may hold nothing but a header"
    raise DataError(f"pipeline {pipeline.name}: {problem}{quarantine_summary(quarantined)}", next_step=next_step)


def _require_splits(frame: pd.DataFrame, pipeline: Pipeline) -> None:
    counts = frame["split"].value_counts()
    empty = [split for split in SPLITS if split not in counts]
    if not empty:
        return
    found = ", ".join(f"{split} {int(counts.get(split, 0)):,}" for split in SPLITS)
    message = f"pipeline {pipeline.name}: the {' and the '.join(empty)} split is empty ({found} rows)"
    if _given_splits(pipeline):
        next_step = (
            "add rows of that split to the source, or remove split.column or data.source.splits to split all rows "
            "by hash"
        )
    elif pipeline.data.group:
        groups = frame["group"].value_counts()
        message += f"; {len(groups):,} groups, the largest ({groups.index[0]!r}) has {groups.iloc[0]:,} rows"
        next_step = "group by a column with more and smaller groups, or remove data.group"
    else:
        next_step = "add rows (a few hundred are a start), or raise split.validation and split.test"
    raise DataError(message, next_step=next_step)


def _require_trainable(train: pd.DataFrame, pipeline: Pipeline) -> None:
    names = pipeline.data.label_names
    if train.empty:
        raise DataError(
            f"pipeline {pipeline.name}: no training rows are left within train_window {pipeline.data.train_window!r}",
            next_step="widen data.train_window, or check that the source still gets new rows",
        )
    counts = train["label"].value_counts()
    if len(counts) == 1:
        raise DataError(
            f"pipeline {pipeline.name}: all {len(train):,} training rows have the label {names[counts.index[0]]!r}",
            next_step="add rows of the other labels, check data.label and data.labels, or raise max_train_rows or "
            "train_window, which can also leave one label",
        )
    absent = [name for index, name in enumerate(names) if index not in counts.index]
    if absent:
        log.warning("labels without a training row: %s", ", ".join(absent))
