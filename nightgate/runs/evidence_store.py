"""Store the gate's evidence of a night in the database, and load it to decide the night again.

    packed = pack(db, run_id, evidence)
    db.write(lambda session: add(session, run, evidence, packed, {"candidate": run_id, "champion": "..."}))
    decide(load_evidence(db, run_id), policy)             # the same decision, or another policy's

Test rows are stored once for all nights that share them: see `nightgate.runs.test_sets`. Predicted labels are a byte
each, or two if a pipeline has more than 256 labels, compressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import SIDES, GateSide, TestPrediction
from nightgate.database.label_meanings import meanings_of_two
from nightgate.database.schema import Run
from nightgate.database.shared_values import add_rows
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import RegistryError
from nightgate.gate.evidence import Evidence, Labels, Mask, Rows, Serving, Side
from nightgate.gate.test_window import microseconds
from nightgate.runs import test_sets
from nightgate.runs.lifecycle import Fenced
from nightgate.runs.test_sets import StoredRows, array, compress, label_type, named

_PLACE = sa.select(Run.run_id, Run.pipeline, Run.data_until).where(Run.run_id == sa.bindparam("run_id"))

_JUDGED_BEFORE = (
    sa.select(Run.run_id, TestPrediction.test_set_id)
    .join(TestPrediction, TestPrediction.run_id == Run.run_id)
    .where(Run.pipeline == sa.bindparam("pipeline"), Run.data_until < sa.bindparam("data_until"))
    .where(Run.dry_run.is_(False), TestPrediction.side == "candidate", TestPrediction.kind == "test")
    .order_by(Run.data_until.desc(), Run.started_at.desc(), TestPrediction.attempt.desc())
    .limit(1)
)


class Packed(NamedTuple):
    """What is computed before the transaction that keeps others from writing."""

    test_sets: dict[str, dict[str, Any]]
    """By kind, as of `test_sets.pack`."""
    labels_corrected: int | None


def pack(db: Database, run_id: str, evidence: Evidence) -> Packed:
    """Prepare the evidence of a night for `add`."""
    row_sets = {"test": evidence.test} | ({"golden": evidence.golden} if evidence.golden is not None else {})

    def work(session: Session) -> Packed:
        run = session.execute(_PLACE, {"run_id": run_id}).one()
        bases = {kind: test_sets.newest_whole(session, run.pipeline, kind) for kind in row_sets}
        sets = {
            kind: test_sets.pack(session, run.pipeline, kind, rows, evidence.label_names, bases[kind])
            for kind, rows in row_sets.items()
        }
        return Packed(sets, _labels_corrected(session, run, evidence, bases["test"]))

    return db.read(work)


def add(session: Session, run: Fenced, evidence: Evidence, packed: Packed, made_by: Mapping[str, str]) -> None:
    """Store the evidence of a night.

    Args:
        made_by: by side, the run that trained its model.
    """
    for one in packed.test_sets.values():
        test_sets.add(session, one)
    place = {"run_id": run.run_id, "attempt": run.attempt}
    sides, predictions = [], []
    for name in SIDES:
        side: Side | None = getattr(evidence, name)
        if side is None:
            continue
        is_champion = name == "anchor" and evidence.anchored_by_champion
        sides.append(place | _side_row(name, side, evidence, is_champion=is_champion))
        for kind, labels in (("test", side.predictions), ("golden", side.golden)):
            if labels is None or kind not in packed.test_sets or is_champion:
                continue
            set_id = {name: packed.test_sets[kind][name] for name in ("pipeline", "test_set_id")}
            content = {"model_run_id": made_by[name], "labels": _compressed(labels, evidence.label_names)}
            predictions.append(place | {"side": name, "kind": kind} | set_id | content)
    add_rows(session, GateSide, sides)
    add_rows(session, TestPrediction, predictions)


def load_evidence(db: Database, run_id: str) -> Evidence:
    """The evidence of the run's last attempt that stored any.

    Raises:
        RegistryError: there is no such run, or it has no evidence.
    """

    run_of = (
        "SELECT r.run_id, r.pipeline, r.test_version, r.data_until, d.label_names, d.config FROM nightly_runs AS r "
        "JOIN run_documents AS d ON d.run_id = r.run_id WHERE r.run_id = :run"
    )
    predictions_of = "SELECT * FROM test_predictions WHERE run_id = :run AND attempt = :attempt"

    def work(session: Session) -> Evidence:
        run = session.execute(selecting(run_of, {"run": run_id})).one_or_none()
        of_run = session.execute(selecting("SELECT * FROM gate_sides WHERE run_id = :run", {"run": run_id}))
        sides = {row.side: row for row in of_run}
        if run is None or not sides:
            raise RegistryError(
                f"run {run_id} has no stored evidence: it was never judged",
                next_step="choose a night that was judged; `nightgate history PIPELINE` shows their verdicts",
            )
        last = {"run": run_id, "attempt": sides["candidate"].attempt}
        stored = session.execute(selecting(predictions_of, last)).all()
        predictions = {(row.side, row.kind): row for row in stored}
        rows = {row.kind: test_sets.load(session, row.pipeline, row.test_set_id).rows for row in stored}
        return _evidence(run, sides, predictions, rows)

    return db.read(work)


@dataclass(frozen=True)
class Scoring:
    """A model on the test rows of one night."""

    run_id: str
    """The night's run."""
    data_until: datetime
    """Aware, of the night."""
    label_names: tuple[str, ...]
    """By class index of `rows` and `predictions`."""
    rows: Rows
    predictions: Labels
    trained_on: Mask | None
    """The rows that the model was trained on; None if unknown."""
    precision: str
    """In which the predictions were computed."""


def scorings_of(db: Database, pipeline: str, model_run_id: str, kind: str = "test") -> Iterator[Scoring]:
    """Every scoring of the model of this run, newest night first, each loaded when it is iterated.

    Args:
        kind: 'test', or 'golden' for the golden rows, which have no `trained_on`.
    """
    # Of the last attempt that stored any, as all rows of `gate_sides`.
    scored_by = (
        "FROM test_predictions AS p JOIN gate_sides AS g ON g.run_id = p.run_id AND g.attempt = p.attempt "
        "AND g.side = p.side JOIN nightly_runs AS r ON r.run_id = p.run_id "
        "WHERE p.pipeline = :pipeline AND p.model_run_id = :model_run AND p.kind = :kind"
    )
    chosen = {"pipeline": pipeline, "model_run": model_run_id, "kind": kind}
    keys = f"SELECT p.run_id, p.side {scored_by} ORDER BY r.data_until DESC, r.started_at DESC, p.side"
    columns = "p.test_set_id, p.labels, p.precision, g.facts, r.data_until"
    one = f"SELECT {columns} {scored_by} AND p.run_id = :run AND p.side = :side"

    def scoring(session: Session, run_id: str, side: str) -> Scoring:
        stored = session.execute(selecting(one, chosen | {"run": run_id, "side": side})).one()
        scored = test_sets.load(session, pipeline, stored.test_set_id)
        trained_on = stored.facts["trained_on"] if kind == "test" else None
        return Scoring(
            run_id,
            stored.data_until,
            scored.label_names,
            scored.rows,
            labels_of(stored, scored.label_names),
            _mask(trained_on, len(scored.rows)),
            stored.precision,
        )

    for run_id, side in db.read(lambda session: session.execute(selecting(keys, chosen)).all()):
        yield db.read(partial(scoring, run_id=run_id, side=side))


@dataclass(frozen=True)
class Given:
    """The label that a model last gave to a row."""

    label: str
    trained_on: bool | None
    """Whether the model or one of its ancestors was trained on the row; None if unknown."""


def labels_given(scorings: Iterable[Scoring], precision: str) -> dict[str, Given]:
    """The newest label of every row of a model's `scorings_of` in this precision, by fingerprint."""
    found: dict[str, Given] = {}
    for scoring in (one for one in scorings if one.precision == precision):
        trained_on = scoring.trained_on.tolist() if scoring.trained_on is not None else [None] * len(scoring.rows)
        for row, label, trained in zip(
            scoring.rows.fingerprints, scoring.predictions.tolist(), trained_on, strict=True
        ):
            found.setdefault(row, Given(scoring.label_names[label], trained))
    return found


def first_seen(db: Database, pipeline: str, fingerprints: list[str], tonight: datetime) -> NDArray[np.int64]:
    """When each row first was in a test set of the pipeline, shape [rows], in microseconds since 1970.

    For sources whose rows have no time. New rows get `tonight`; only nights before it count, so that a backfill ignores
    later nights.
    """
    names, place = np.unique(named(fingerprints), return_inverse=True)

    def work(session: Session) -> NDArray[np.int64]:
        earliest = np.full(len(names), microseconds(tonight), dtype=np.int64)
        # All earlier sets: a row that was missing from the last night's set is in older ones only.
        for stored in test_sets.load_before(session, pipeline, tonight):
            at = np.searchsorted(names, stored.names)
            at[at == len(names)] = 0
            same = names[at] == stored.names
            np.minimum.at(earliest, at[same], stored.seen_at[same])
        return earliest

    return db.read(work)[place] if fingerprints else np.empty(0, dtype=np.int64)


def _labels_corrected(session: Session, run: sa.Row[Any], evidence: Evidence, base: StoredRows | None) -> int | None:
    """Test rows with another label than on the judged night before; None if there is none or labels meant otherwise.

    Args:
        base: the newest whole test set, of which most others are differences.
    """
    before = session.execute(_JUDGED_BEFORE, {"pipeline": run.pipeline, "data_until": run.data_until}).first()
    if before is None:
        return None
    earlier, ours = meanings_of_two(session, before.run_id, run.run_id)
    if earlier.change(ours):
        return None
    stored = test_sets.load(session, run.pipeline, before.test_set_id, base)
    at = stored.find(evidence.test.fingerprints)
    then = np.array(stored.label_names)[stored.true[at[at >= 0]]]
    return int((then != np.array(evidence.label_names)[evidence.test.true[at >= 0]]).sum())


def _compressed(labels: Labels, label_names: Sequence[str]) -> bytes:
    """Predicted labels as bytes. Rows are in the order of their hashes, where looking for repetitions costs 20 %."""
    return compress(labels, label_type(label_names), zlib.Z_HUFFMAN_ONLY)


def labels_of(stored: sa.Row[Any], label_names: Sequence[str]) -> Labels:
    return array(stored.labels, label_type(label_names)).astype(np.int64)


# --- sides ---


def _side_row(name: str, side: Side, evidence: Evidence, *, is_champion: bool) -> dict[str, Any]:
    trained_on = None if side.trained_on is None else np.flatnonzero(side.trained_on).tolist()
    served = side.serving
    facts: dict[str, Any] = {
        "trained_on": trained_on,
        "unknown_line": side.unknown_line,
        "served": None
        if served is None
        else {"rows": served.rows, "flipped": served.flipped, "rounded": served.rounded},
    }
    if name == "candidate":
        facts |= {"seed_spread": evidence.seed_spread, "golden_note": evidence.golden_note}
    if side.relabelled:
        facts["relabelled"] = True
    if name == "champion":
        facts["nights"] = evidence.champion_nights
    if is_champion:
        facts["is_champion"] = True
    return {
        "side": name,
        "version": side.version,
        "data_until": side.data_until,
        "flaw": side.flaw,
        "rows_trained_on": None if trained_on is None else len(trained_on),
        "calibration_error": side.calibration_error,
        "nonfinite_rows": side.nonfinite_rows,
        "latency_ms": served.latency_ms if served else None,
        "size_bytes": served.size_bytes if served else None,
        "logit_difference": served.logit_difference if served else None,
        "serving_flaw": served.flaw if served else "",
        "facts": facts,
    }


def _mask(places: list[int] | None, num_rows: int) -> Mask | None:
    if places is None:
        return None
    mask = np.zeros(num_rows, dtype=np.bool_)
    mask[places] = True
    return mask


def _evidence(
    run: sa.Row[Any],
    sides: Mapping[str, sa.Row[Any]],
    predictions: Mapping[tuple[str, str], sa.Row[Any]],
    rows: Mapping[str, Rows],
) -> Evidence:
    if "test" not in rows:
        raise RegistryError(
            f"run {run.run_id} has no stored predictions", next_step="choose a night whose models were scored"
        )

    def side(name: str) -> Side:
        row, facts = sides[name], sides[name].facts
        labels = {
            kind: labels_of(predictions[name, kind], run.label_names) if (name, kind) in predictions else None
            for kind in ("test", "golden")
        }
        served = facts["served"]
        return Side(
            predictions=labels["test"],
            data_until=row.data_until,
            version=row.model_version,
            flaw=row.flaw,
            relabelled=facts.get("relabelled", False),
            golden=labels["golden"],
            trained_on=_mask(facts["trained_on"], len(rows["test"])),
            unknown_line=facts["unknown_line"],
            calibration_error=row.calibration_error,
            nonfinite_rows=row.nonfinite_rows,
            serving=None
            if served is None
            else Serving(
                flaw=row.serving_flaw,
                logit_difference=row.logit_difference,
                latency_ms=row.latency_ms,
                size_bytes=row.size_bytes,
                **served,
            ),
        )

    candidate = side("candidate")
    champion = side("champion") if "champion" in sides else None
    anchor = None
    if "anchor" in sides:
        anchor = champion if sides["anchor"].facts.get("is_champion") else side("anchor")
    return Evidence(
        label_names=tuple(run.label_names),
        test_version=run.test_version or "",
        data_until=run.data_until,
        test=rows["test"],
        candidate=candidate,
        champion=champion,
        anchor=anchor,
        golden=rows.get("golden"),
        champion_nights=sides["champion"].facts["nights"] if champion is not None else None,
        seed_spread=sides["candidate"].facts["seed_spread"],
        # A night uses seed studies of its own configuration only.
        seed_average=run.config["gate"]["average"],
        golden_note=sides["candidate"].facts["golden_note"],
        precision=sides["candidate"].precision,
    )
