"""Evaluate the champion, and the anchor, on labelled rows that became known after they were chosen.

    for found in evaluate_newest(db, pipeline):
        print(found.f1, found.alarms)

Rows of all splits count, but for those that the version or an ancestor learnt. What counts is the refresh that a row
came with, not its time: a label that comes late is known late. Predictions are kept beside the version's run, so that
each row is scored once, or again when the precision has changed. `docs/evaluate.md` explains the alarms.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray

from nightgate import locks
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import Snapshot, meaning_of, open_snapshot
from nightgate.data.tip import hold_data, read_tip
from nightgate.database import schema
from nightgate.database.label_meanings import meaning_of_run
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.durable_files import write_whole
from nightgate.errors import ModelError, RegistryError, SnapshotError
from nightgate.gate.measurements import DECIDING, Case
from nightgate.home import Home
from nightgate.metrics import classification
from nightgate.metrics.bootstrap import FEW, Resampling, f1_difference, f1_estimate, group_numbers
from nightgate.metrics.calibration import nonfinite_rows
from nightgate.metrics.fall import LIMIT, Predicted, largest_fall
from nightgate.models import version_folder
from nightgate.night.scoring import score_with_flaws
from nightgate.registry import versions
from nightgate.registry.leakage import keys_of, known_to, line_of, trained_on
from nightgate.registry.versions import VersionRow
from nightgate.runs import evaluations, evidence_store
from nightgate.runs.evaluations import Alarm, Evaluation
from nightgate.training import supervisor
from nightgate.training.predictions import load_logits
from nightgate.training.protocol import Progress, ScoreJob, ScoreResult

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class _Side:
    """A version, and the rows that came since it was chosen."""

    version: VersionRow
    role: str
    chosen_on: Snapshot
    rows: pd.DataFrame
    """Columns of the snapshot, with text_key, seen, split, and place among those of the split."""
    flaw: str = ""
    """Why it cannot be scored, as a clause behind its name; '' if it can."""
    predictions: NDArray[np.int64] | None = None
    """Class indices in the pipeline's order, shape [rows]."""
    precision: str | None = None
    """In which they were computed."""

    @property
    def name(self) -> str:
        return f"version {self.version.version}"


def newest_snapshot(home: Home, pipeline: str) -> Snapshot:
    """The snapshot of the pipeline's newest refresh.

    Raises:
        SnapshotError: there is none, or it is damaged.
    """
    folder = home.snapshots / pipeline
    nights = read_tip(folder).nights
    if not nights:
        raise SnapshotError(
            f"{pipeline} has no snapshot to evaluate its champion on",
            next_step=f"take in its rows: nightgate refresh {pipeline}",
        )
    return open_snapshot(folder / nights[-1].snapshot, verify=False)


def evaluate_newest(db: Database, pipeline: Pipeline) -> tuple[Evaluation, ...]:
    """`evaluate_champion` on the snapshot of the newest refresh, outside of a night. Without a champion ().

    Its rows are held meanwhile: retention, which leaves those of a night at work alone, may join or remove them.
    """
    if versions.champion(db, pipeline.name) is None:
        return ()  # nor need there be a snapshot
    with hold_data(db.home, pipeline.name, f"nightgate evaluate {pipeline.name}"):
        return evaluate_champion(db, pipeline, newest_snapshot(db.home, pipeline.name))


def evaluate_champion(
    db: Database,
    pipeline: Pipeline,
    snapshot: Snapshot,
    *,
    run_id: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_restart: Callable[[str], None] | None = None,
) -> tuple[Evaluation, ...]:
    """Evaluate the champion, then the anchor where it is another version, and store what was found.

    Idempotent: what was evaluated on this snapshot by these rules is returned as it is stored. Without a champion ().

    Args:
        run_id: the night that this is a part of.
        on_progress, on_restart: as of `supervisor.score_models`.

    Raises:
        NightgateError: database, snapshot or home cannot be used, or the scoring process ran out of memory or stalled.
    """
    champion, anchor = versions.champion(db, pipeline.name), versions.anchor(db, pipeline.name)
    if champion is None:
        return ()
    roles = {"champion": champion}
    if anchor is not None and anchor.version != champion.version:
        roles["anchor"] = anchor
    policy = pipeline.gate.model_dump(mode="json", include={"average", "confidence", "min_f1"})
    with locks.hold(
        db.home, f"evaluate-{pipeline.name}", holder=run_id or f"nightgate evaluate {pipeline.name}", on_wait=log.info
    ):
        known: dict[str, Evaluation] = {}
        sides: list[_Side] = []
        for role, version in roles.items():
            chosen_on = _chosen_on(db, version)
            key = (pipeline.name, snapshot.id, version.version, role)
            found = evaluations.find(db, key, _data_until(chosen_on), policy)
            if found is not None:
                known[role] = found
            else:
                sides.append(_side(db, pipeline, snapshot, version, role, chosen_on))
        score = partial(supervisor.score_models, on_progress=on_progress, on_restart=on_restart)
        for side in _scored(db.home, pipeline, snapshot, sides, score):
            known[side.role] = _evaluate(db, pipeline, snapshot, side, run_id, policy)
            log.info("%s", known[side.role].reason)
    return tuple(known[role] for role in roles)


# --- rows ---


def _chosen_on(db: Database, version: VersionRow) -> Snapshot:
    """The snapshot of the version's own night, or, where a person chose it, the newest one of that moment."""
    stored = schema.Snapshot
    query = sa.select(stored).where(stored.pipeline == version.pipeline)
    if version.promoting_run_id == version.run_id:
        query = query.where(stored.snapshot_id == version.snapshot_id)
    else:
        query = query.where(stored.recorded_at <= version.valid_from)
    query = query.order_by(sa.func.coalesce(stored.data_until, stored.recorded_at).desc()).limit(1)
    row = db.read(lambda session: session.scalars(query).first())
    if row is None:
        raise RegistryError(f"no snapshot is recorded that version {version.version} was chosen on")
    return Snapshot(row.snapshot_id, db.home.absolute(row.path), row.manifest)


def _data_until(snapshot: Snapshot) -> datetime | None:
    text = snapshot.manifest.get("data_until")
    return datetime.fromisoformat(text) if text else None


def _side(
    db: Database, pipeline: Pipeline, snapshot: Snapshot, version: VersionRow, role: str, chosen_on: Snapshot
) -> _Side:
    keys = [snapshot.rows(split, ["text_key"])["text_key"].to_numpy() for split in SPLITS]
    is_new = ~known_to(chosen_on, {"text": np.concatenate(keys)})
    frames = []
    for split, new in zip(SPLITS, np.split(is_new, np.cumsum([len(some) for some in keys])[:-1]), strict=True):
        at = np.flatnonzero(new)
        rows = snapshot.rows(split, [*snapshot.columns, "text_key", "seen"], at=at)
        frames.append(rows.assign(split=split, place=at))
    rows = pd.concat(frames, ignore_index=True)
    side = _Side(version, role, chosen_on, rows)
    if rows.empty:
        return side
    of_rows = keys_of(snapshot.path.parent, rows)
    learnt, unknown = trained_on(line_of(db, db.home, pipeline.name, version.version), of_rows)
    if learnt is None:
        return replace(side, flaw=f"has no record of the rows that it has learnt: {unknown}")
    rows = rows[~(learnt | known_to(chosen_on, of_rows))].reset_index(drop=True)
    flaw = db.read(lambda session: meaning_of_run(session, version.run_id)).flaw(meaning_of(snapshot, pipeline))
    return replace(side, rows=rows, flaw=flaw)


# --- predictions ---


def _scored(
    home: Home,
    pipeline: Pipeline,
    snapshot: Snapshot,
    sides: Sequence[_Side],
    score: Callable[[ScoreJob], ScoreResult],
    anew: Collection[str] = (),
) -> list[_Side]:
    """The sides with their predictions: those that earlier evaluations kept, but for the roles `anew`, and new ones."""
    names = pipeline.data.label_names
    stores = {side.role: home.runs / side.version.run_id / "evaluation" for side in sides}
    stored: dict[str, tuple[pd.Series[Any], str]] = {
        role: (_NONE, "") if role in anew else _read(store / PREDICTIONS, names) for role, store in stores.items()
    }
    missing, models, flaws = {}, {}, dict[str, str]()
    for side in sides:
        lacks = ~np.isin(side.rows["text_key"], stored[side.role][0].index)
        if side.flaw or not lacks.any():
            continue
        try:
            folder = side.version.folder(home)
            version_folder.verify_version(folder)
            models[side.role], missing[side.role] = folder, side.rows.loc[lacks, ["split", "place", "text_key"]]
        except (ModelError, RegistryError) as error:
            flaws[side.role] = f"cannot be used: {error.reason}"
    if models:
        rows = pd.concat(missing.values()).drop_duplicates()
        # In the order of `ScoreJob.places`.
        rows = pd.concat([rows[rows["split"] == split].sort_values("place") for split in SPLITS])
        places = {split: rows.loc[rows["split"] == split, "place"].tolist() for split in SPLITS}
        out = next(iter(stores.values())) / "scores"
        job = ScoreJob(pipeline.record(), snapshot.path, models, out, places=places)
        result, broken = score_with_flaws(job, score)
        flaws |= broken
        others = [role for role in result.written if stored[role][1] not in {"", result.precision}]
        if others:  # the predictions of an evaluation have one precision
            return _scored(home, pipeline, snapshot, sides, score, {*anew, *others})
        for role, file in result.written.items():
            logits = load_logits(file)
            if count := nonfinite_rows(logits):
                flaws[role] = f"gives {count:,} rows a logit that is NaN or infinite"
                continue
            known, found = stored[role][0], pd.Series(logits.argmax(axis=1), index=rows["text_key"])
            stored[role] = pd.concat([known, found[~found.index.isin(known.index)]]), result.precision
            _write(stores[role] / PREDICTIONS, *stored[role], names)
        shutil.rmtree(out, ignore_errors=True)
    return [
        replace(side, flaw=flaw)
        if (flaw := side.flaw or flaws.get(side.role, ""))
        else _with_predictions(side, *stored[side.role])
        for side in sides
    ]


def _with_predictions(side: _Side, stored: pd.Series[Any], precision: str) -> _Side:
    predictions = np.asarray(stored.loc[side.rows["text_key"]], np.int64)
    return replace(side, predictions=predictions, precision=precision or None)


_NONE = pd.Series(np.empty(0, np.int64), index=np.empty(0, np.uint64))


def _read(file: Path, label_names: Sequence[str]) -> tuple[pd.Series[Any], str]:
    """Predicted classes by key of the text, and their precision; none where none are stored, or for other labels."""
    try:
        with np.load(file, allow_pickle=False) as found:
            if found["label_names"].tolist() == list(label_names):
                precision = str(found["precision"]) if "precision" in found else "fp32"  # as an earlier version scored
                return pd.Series(found["predictions"], index=found["text_key"]), precision
    except (OSError, ValueError, KeyError):
        pass  # missing or damaged: all are scored again
    return _NONE, ""


def _write(file: Path, predictions: pd.Series[Any], precision: str, label_names: Sequence[str]) -> None:
    content, text_key = io.BytesIO(), predictions.index.to_numpy()
    np.savez_compressed(
        content, text_key=text_key, predictions=predictions, precision=precision, label_names=np.array(label_names)
    )
    write_whole(file, content.getvalue())


# --- what they say ---


def _evaluate(
    db: Database, pipeline: Pipeline, snapshot: Snapshot, side: _Side, run_id: str | None, policy: dict[str, Any]
) -> Evaluation:
    rows_from, rows_to = _data_until(side.chosen_on), _data_until(snapshot)
    since = f"since {side.name}, the {side.role}, was chosen" + (f" on {rows_from:%Y-%m-%d}" if rows_from else "")
    found = Evaluation(
        pipeline=pipeline.name,
        snapshot_id=snapshot.id,
        model_version=side.version.version,
        role=side.role,
        evaluated_at=datetime.now(UTC),
        rows_from=rows_from,
        rows_to=rows_to,
        rows=len(side.rows),
        reason=f"no labelled rows came {since}",
        run_id=run_id,
        precision=side.precision,
    )
    clauses, alarms, slices = [found.reason], list[Alarm](), []
    if side.predictions is None:
        clauses = [f"{side.name}, the {side.role}, was not evaluated on {len(side.rows):,} rows: it {side.flaw}"]
    elif len(side.rows):
        names = pipeline.data.label_names
        true = side.rows["label"].to_numpy(np.int64)
        rows = Predicted(true, side.predictions, _groups(side.rows))
        scores = classification.score(true, side.predictions, len(names))
        slices = classification.slice_scores(side.rows, true, side.predictions, len(names), names)
        found, clauses, alarms = _judged(db, pipeline, side, rows, replace(found, accuracy=scores.accuracy))
        clauses.insert(0, f"F1 {found.f1:.4f} on {found.rows:,} labelled rows that came {since}")
    if drift := _drift(db, side, rows_to):
        alarms.append("drifted")
        clauses.append(f"the data drifted from its training rows twice in a row: {', '.join(drift)}")
    found = replace(found, alarms=tuple(alarms), reason="; ".join(clauses))
    return evaluations.record(db, found, policy, slices, pipeline.gate.average)


def _drift(db: Database, side: _Side, until: datetime | None) -> list[str]:
    since = side.version.valid_from
    if side.role != "champion" or since is None or until is None:
        return []
    return evaluations.drifted(db, side.version.pipeline, since, until)


def _judged(
    db: Database, pipeline: Pipeline, side: _Side, rows: Predicted, found: Evaluation
) -> tuple[Evaluation, list[str], list[Alarm]]:
    """The evaluation with its numbers, what is to be said of them, and the alarms of the champion."""
    gate, num_labels = pipeline.gate, len(pipeline.data.label_names)
    resampling: Resampling = {"groups": rows.groups, "confidence": gate.confidence, "resamples": DECIDING}
    score = f1_estimate(rows.true, rows.predictions, num_labels, gate.average, **resampling)
    low, high = score.interval or (None, None)
    found = replace(found, f1=score.value, f1_ci_low=low, f1_ci_high=high)
    clauses, alarms = list[str](), list[Alarm]()
    if gate.min_f1 == "majority":
        constant = np.full_like(rows.true, np.bincount(rows.true).argmax())
        found = replace(found, min_f1=f1_estimate(rows.true, constant, num_labels, gate.average, resamples=2).value)
        gain = f1_difference(rows.true, constant, rows.predictions, num_labels, gate.average, **resampling)
        is_below, what = (
            gain.interval is not None and gain.interval.high < 0,
            "of always predicting the commonest class",
        )
    else:
        found = replace(found, min_f1=gate.min_f1)
        is_below, what = high is not None and high < gate.min_f1, "of gate.min_f1"
    if side.role != "champion":
        return found, clauses, alarms
    if rows.units < FEW:
        kind = "rows" if rows.groups is None else "groups"
        return found, [f"no alarms on so few: {rows.units:,} of {FEW} {kind}"], alarms
    if is_below:
        alarms.append("below_min_f1")
        clauses.append(f"below the {found.min_f1:.4f} {what}")
    then = _at_promotion(db, side.version, pipeline.data.label_names)
    seen = side.rows["seen"].to_numpy()
    fall = None if then is None else largest_fall(then, rows, seen, num_labels=num_labels, average=gate.average)
    if fall is None:
        return found, [*clauses, "not compared with its promotion, of which too few predictions are stored"], alarms
    found = replace(found, promotion_f1=fall.expected, fall=fall.z)
    if fall.z > LIMIT:
        alarms.append("champion_dropped")
        clauses.append(
            f"F1 fell to {fall.f1:.4f} on the newest {fall.rows:,} rows from the {fall.expected:.4f} of its promotion "
            f"at these shares of the classes, by {fall.z:.1f} standard errors (alarm beyond {LIMIT:g})"
        )
    return found, clauses, alarms


def _at_promotion(db: Database, version: VersionRow, label_names: Sequence[str]) -> Predicted | None:
    """The version as a candidate on the test rows that its night decided by, with the classes of `label_names`."""
    try:
        evidence = evidence_store.load_evidence(db, version.run_id)
    except RegistryError:
        return None
    predictions = evidence.candidate.predictions
    if predictions is None or set(evidence.label_names) != set(label_names):
        return None
    config = db.read(lambda session: session.get_one(Run, version.run_id).config)
    window = Case(evidence, Gate.model_validate(config["gate"])).window
    places = np.array([label_names.index(name) for name in evidence.label_names], dtype=np.int64)
    groups = evidence.test.groups
    return Predicted(
        places[evidence.test.true[window]],
        places[predictions[window]],
        None if groups is None else np.unique(groups[window], return_inverse=True)[1],
    )


def _groups(rows: pd.DataFrame) -> NDArray[np.int64] | None:
    return group_numbers(rows["group"].tolist()) if "group" in rows else None
