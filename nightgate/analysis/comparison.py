"""Compare two versions of a pipeline: `nightgate compare reviews 3 4`.

Scores of different nights do not compare. Evidence comes from the paired comparison on the newest test rows that both
versions were scored on, and of these on the rows newer than all that either was trained on or selected by.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, cast

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from nightgate.analysis.rescoring import newest_judged, rescore
from nightgate.config.pipeline import Pipeline
from nightgate.database.label_meanings import label_meanings, meaning_of_run
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.gate.evidence import Rows
from nightgate.gate.test_window import microseconds
from nightgate.gate.wording import percent
from nightgate.home import Home
from nightgate.label_meaning import LabelMeaning
from nightgate.metrics.bootstrap import f1_difference
from nightgate.metrics.comparability import ScoredNight, changes
from nightgate.metrics.confusion import Average, class_scores, confusion_counts, overall_scores
from nightgate.registry.versions import VersionRow
from nightgate.runs.evidence_store import labels_given, load_evidence, scorings_of

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Pair:
    """One fact of both versions; `difference` is the second minus the first, None if that has no meaning."""

    name: str
    first: Any
    second: Any
    difference: float | None = None


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    pairs: tuple[Pair, ...] = ()
    note: str = ""
    """Conclusion from the numbers, or why there are none."""


@dataclass(frozen=True)
class Comparison:
    pipeline: str
    first: int
    second: int
    sections: tuple[Section, ...]

    def record(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        sections = {
            section.name: {
                "note": section.note,
                "facts": {
                    pair.name: {"a": _plain(pair.first), "b": _plain(pair.second), "difference": pair.difference}
                    for pair in section.pairs
                },
            }
            for section in self.sections
        }
        return {"pipeline": self.pipeline, "a": self.first, "b": self.second, **sections}


@dataclass(frozen=True)
class Scored:
    """Predictions of both versions on the same rows."""

    rows: Rows
    label_names: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    where: str
    """Description of the rows."""
    cautions: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Facts:
    row: VersionRow
    run: sa.Row[Any]
    """Of `nightly_runs`, with its `label_names`, `config` and `environment`."""
    snapshot: sa.Row[Any] | None
    """Of `snapshots`."""
    meaning: LabelMeaning

    @property
    def night(self) -> ScoredNight:
        run, policy = self.run, self.run.config["gate"]
        return ScoredNight(
            run.night,
            run.metric_key,
            run.test_version,
            tuple(run.label_names),
            run.average,
            policy["test_window"],
            policy["min_test_rows"],
            meaning=self.meaning,
        )


def compare(db: Database, first: VersionRow, second: VersionRow, scored: Scored | None = None) -> Comparison:
    """Compare scores, classes, data, configuration and environment of two versions of a pipeline.

    Args:
        scored: predictions of both from `scored_now`; None uses those that nights have stored.
    """
    a, b = _facts(db, first), _facts(db, second)
    scored = scored or rows_in_common(db, first, second)
    average = cast("Average", b.run.average)
    return Comparison(
        first.pipeline,
        first.version,
        second.version,
        (
            _versions(a, b),
            _own_nights(a, b),
            *_paired(a, b, scored, average),
            _classes_of_own_nights(db, a, b) if scored is None else _classes(scored),
            _data(a, b),
            _configuration(a.run.config, b.run.config),
            _made_by(a, b),
        ),
    )


def rows_in_common(db: Database, first: VersionRow, second: VersionRow) -> Scored | None:
    """The newest test rows that both versions were scored on in one precision, on any nights; None: there are none.

    Rows that either was trained on are left out, and nights on which labels meant something else.
    """
    meanings = db.read(lambda session: label_meanings(session, first.pipeline))
    scorings = [
        [
            night
            for night in scorings_of(db, version.pipeline, version.run_id)
            if not meanings[version.run_id].change(meanings[night.run_id])
        ]
        for version in (first, second)
    ]
    if not all(scorings) or meanings[first.run_id].change(meanings[second.run_id]):
        return None
    newest = max((nights[0] for nights in scorings), key=lambda scoring: scoring.data_until)
    given = [labels_given(nights, newest.precision) for nights in scorings]
    place = {name: index for index, name in enumerate(newest.label_names)}
    names = newest.rows.fingerprints
    shared = [
        all(name in labels and labels[name].label in place and not labels[name].trained_on for labels in given)
        for name in names
    ]
    if not any(shared):
        return None
    both = np.flatnonzero(shared)
    cautions = [
        f"it is not known which of these rows version {version.version} was trained on"
        for version, labels in zip((first, second), given, strict=True)
        if any(labels[names[at]].trained_on is None for at in both)
    ]
    one, other = (np.array([place[labels[names[at]].label] for at in both]) for labels in given)
    where = f"test rows of the night of {newest.data_until:%Y-%m-%d} that both were scored on, then or before"
    return Scored(newest.rows.only(np.array(shared)), newest.label_names, one, other, where, tuple(cautions))


def scored_now(db: Database, home: Home, first: VersionRow, second: VersionRow) -> Scored:
    """Score both versions on the test rows of the newest judged night, without storing the result.

    Raises:
        RegistryError: no night was judged, or the files of a version are gone.
        ModelError, SnapshotError, TrainingError: as `rescoring.rescore`.
    """
    run_id = newest_judged(db, first.pipeline)
    evidence = load_evidence(db, run_id)
    found = rescore(db, home, run_id, {"a": first, "b": second}, evidence.test.fingerprints)
    chosen = np.ones(len(evidence.test), dtype=np.bool_)
    cautions = []
    for name, version in (("a", first), ("b", second)):
        trained_on = found[name].trained_on
        if trained_on is None:
            why = found[name].unknown_line
            cautions.append(f"it is not known which of these rows version {version.version} was trained on: {why}")
        else:
            chosen &= ~trained_on
    a, b = (found[name].predictions[chosen] for name in ("a", "b"))
    where = f"test rows of the night of {evidence.data_until:%Y-%m-%d}, scored just now"
    return Scored(evidence.test.only(chosen), evidence.label_names, a, b, where, tuple(cautions))


def _facts(db: Database, row: VersionRow) -> _Facts:
    run = selecting(
        "SELECT r.*, d.label_names, d.config, d.environment FROM nightly_runs AS r "
        "JOIN run_documents AS d ON d.run_id = r.run_id WHERE r.run_id = :run",
        {"run": row.run_id},
    )
    snapshot = selecting(
        "SELECT * FROM snapshots WHERE pipeline = :pipeline AND snapshot_id = :snapshot",
        {"pipeline": row.pipeline, "snapshot": row.snapshot_id},
    )

    def work(session: Session) -> _Facts:
        return _Facts(
            row,
            session.execute(run).one(),
            session.execute(snapshot).one_or_none(),
            meaning_of_run(session, row.run_id),
        )

    return db.read(work)


# --- sections ---


def _versions(a: _Facts, b: _Facts) -> Section:
    pairs = _pairs(a.row, b.row, "version", "night", "status", "run_id", "best_epoch")
    pairs += _pairs(a.row, b.row, "started_from")
    return Section("versions", "Versions", tuple(pairs))


def _pairs(a: object, b: object, *names: str) -> list[Pair]:
    return [Pair(name, getattr(a, name), getattr(b, name)) for name in names]


def _own_nights(a: _Facts, b: _Facts) -> Section:
    changed = changes(a.night, b.night)
    pairs = []
    for name in ("test_f1", "f1_ci_low", "f1_ci_high", "test_accuracy", "test_precision", "test_recall"):
        first, second = getattr(a.run, name), getattr(b.run, name)
        known = first is not None and second is not None and not changed and "_ci_" not in name
        pairs.append(Pair(name, first, second, second - first if known else None))
    pairs += _pairs(a.run, b.run, "test_rows", "test_version", "average")
    note = "each on the test rows of its own night, which differ: no evidence that one is better"
    if changed:
        note = f"these scores do not compare: {changed}"
    return Section("own_nights", "On their own nights", tuple(pairs), note)


def _paired(a: _Facts, b: _Facts, scored: Scored | None, average: Average) -> list[Section]:
    title = "On the same rows"
    if change := a.meaning.change(b.meaning):
        return [Section("paired", title, note=f"not compared, because labels mean something else: {change}")]
    if scored is None:
        note = (
            f"versions {a.row.version} and {b.row.version} were never scored on the same rows; next: score both now on "
            f"the newest test rows with `nightgate compare {a.row.pipeline} {a.row.version} {b.row.version} --rescore`"
        )
        return [Section("paired", title, note=note)]
    new = fresh(scored.rows, max(a.run.data_until, b.run.data_until))
    sections = [_scores("paired", title, scored, average, a, b)]
    if new.any() and not new.all():
        newer = Scored(
            scored.rows.only(new),
            scored.label_names,
            scored.first[new],
            scored.second[new],
            "of these rows are newer than all that either was trained on or selected by",
        )
        sections.append(_scores("paired_fresh", "On rows newer than both", newer, average, a, b))
    return sections


def fresh(rows: Rows, data_until: datetime) -> NDArray[np.bool_]:
    """Mask of rows newer than the data of models that were trained on rows before this instant.

    Strictly newer: a row without a time has that of the night that first saw it, which may have selected by it.
    """
    return rows.seen_at > microseconds(data_until)


def _scores(name: str, title: str, scored: Scored, average: Average, a: _Facts, b: _Facts) -> Section:
    count, true = len(scored.label_names), scored.rows.true
    first, second = (overall_scores(confusion_counts(true, one, count)) for one in (scored.first, scored.second))
    interval = f1_difference(
        true, scored.first, scored.second, count, average, groups=scored.rows.groups, confidence=CONFIDENCE
    ).interval
    pairs = [Pair("rows", len(true), len(true))]
    for metric in ("f1", "accuracy", "precision", "recall"):
        key = metric if metric == "accuracy" else f"{metric}_{average}"
        one, other = getattr(first, key), getattr(second, key)
        pairs.append(Pair(metric, one, other, other - one))
    hits, misses = scored.first == true, scored.second == true
    pairs.append(Pair("right_where_other_is_wrong", int((hits & ~misses).sum()), int((misses & ~hits).sum())))
    gap = cast("float", pairs[1].difference)
    note = f"{len(true):,} {scored.where}: "
    note += f"{average} F1 of version {b.row.version} minus version {a.row.version} is {gap:+.4f}"
    if interval is not None:
        pairs.append(Pair("f1_ci_low", None, None, interval.low))
        pairs.append(Pair("f1_ci_high", None, None, interval.high))
        note += f", {percent(CONFIDENCE)} interval {interval.low:+.4f} to {interval.high:+.4f}"
        better = b.row.version if interval.low > 0 else a.row.version if interval.high < 0 else None
        note += f": version {better} is better" if better else ": the difference is not significant"
    return Section(name, title, tuple(pairs), "; ".join([note, *scored.cautions]))


def _classes(scored: Scored) -> Section:
    count, true = len(scored.label_names), scored.rows.true
    first, second = (confusion_counts(true, one, count) for one in (scored.first, scored.second))
    pairs = []
    for index, label in enumerate(scored.label_names):
        one, other = class_scores(first, index).f1_weighted, class_scores(second, index).f1_weighted
        gap = None if one is None or other is None else other - one
        pairs.append(Pair(label, one, other, gap))
    return Section("classes", "F1 by class, on the same rows", tuple(pairs))


def _classes_of_own_nights(db: Database, a: _Facts, b: _Facts) -> Section:
    query = (
        "SELECT slice_value, f1 FROM slice_results WHERE run_id = :run_id AND split = 'test' AND slice_name = 'label'"
    )
    first, second = (
        dict(db.frame(query, {"run_id": one.run.run_id}).itertuples(index=False, name=None)) for one in (a, b)
    )
    names = dict.fromkeys([*a.run.label_names, *b.run.label_names])
    pairs = tuple(Pair(name, first.get(name), second.get(name)) for name in names)
    return Section("classes", "F1 by class, on their own nights", pairs, "each on other rows: no evidence")


def _data(a: _Facts, b: _Facts) -> Section:
    pairs = _pairs(a.run, b.run, "snapshot_id", "data_until", "rows_new", "rows_trained", "training")
    for name in ("rows_total", "rows_train", "rows_validation", "rows_test", "first_time", "last_time"):
        first, second = (getattr(one.snapshot, name, None) for one in (a, b))
        gap = second - first if isinstance(first, int) and isinstance(second, int) else None
        pairs.append(Pair(name, first, second, gap))
    return Section("data", "Data", tuple(pairs))


def _configuration(first: Mapping[str, Any], second: Mapping[str, Any]) -> Section:
    # As this release reads them, if it does: a setting that it added is no difference.
    with suppress(ValueError):
        first, second = (Pipeline.model_validate(one).record() for one in (first, second))
    pairs = _differing(first, second)
    return Section("configuration", "Configuration", pairs, "" if pairs else "the same")


def _made_by(a: _Facts, b: _Facts) -> Section:
    pairs = _pairs(a.run, b.run, "code_version", "base_model")
    pairs += _pairs(a.row, b.row, "base_model_revision")
    differing = _differing(a.run.environment or {}, b.run.environment or {})
    note = "" if differing else "in the same environment"
    return Section("made_by", "Code, base model, environment", (*pairs, *differing), note)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Pair, ...]:
    one, other = flat(first), flat(second)
    names = sorted(one.keys() | other.keys())
    return tuple(Pair(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested record; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date | datetime) else value
