"""Store the gate's evidence of a night in the database, and load it to decide the night again.

    record_evidence(db, run_id, attempt, evidence, {"candidate": run_id, "champion": "..."})
    decide(load_evidence(db, run_id), policy)             # the same decision, or another policy's

Test rows are stored once for all nights that share them, as columns of zlib-compressed bytes: a year of nights with
5,000 test rows takes some tens of megabytes. A label is one byte, or two if a pipeline has more than 256 labels.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import SIDES, GateSide, TestPrediction, TestSet
from nightgate.database.label_meanings import meaning_of_run
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.gate.evidence import Evidence, Labels, Mask, Rows, Serving, Side, Slice
from nightgate.gate.test_window import microseconds
from nightgate.runs.lifecycle import fenced

FINGERPRINT_BYTES = 16
_NAME = f"S{FINGERPRINT_BYTES}"
"""Fingerprints in numpy. All have this width, so its padding with zeros cannot make two of them equal."""

SETS_AT_ONCE = 16
"""Test sets read at a time: bounds the memory for a year of them."""


def record_evidence(db: Database, run_id: str, attempt: int, evidence: Evidence, model_runs: Mapping[str, str]) -> None:
    """Store the evidence of a night. Idempotent: recorded evidence is not overwritten.

    Args:
        model_runs: by side, the run that trained its model.

    Raises:
        RegistryError: another attempt has taken over, or the run has ended.
    """
    row_sets = {"test": evidence.test} | ({"golden": evidence.golden} if evidence.golden is not None else {})
    packed = {kind: _packed(kind, rows, evidence.label_names) for kind, rows in row_sets.items()}

    def work(session: Session) -> None:
        run = fenced(session, run_id, attempt)
        if session.get(GateSide, (run_id, attempt, "candidate")) is not None:
            return
        for values in packed.values():
            if session.get(TestSet, (run.pipeline, values["test_set_id"])) is None:
                session.add(TestSet(pipeline=run.pipeline, recorded_at=datetime.now(UTC), **values))
        session.flush()
        run.labels_corrected = _labels_corrected(session, run, evidence)
        for name in SIDES:
            side: Side | None = getattr(evidence, name)
            if side is None:
                continue
            is_champion = name == "anchor" and evidence.anchored_by_champion
            session.add(_side_row(run_id, attempt, name, side, evidence, is_champion=is_champion))
            if is_champion:
                continue
            for kind, labels in (("test", side.predictions), ("golden", side.golden)):
                if labels is not None and kind in packed:
                    session.add(
                        TestPrediction(
                            run_id=run_id,
                            attempt=attempt,
                            side=name,
                            kind=kind,
                            pipeline=run.pipeline,
                            test_set_id=packed[kind]["test_set_id"],
                            model_run_id=model_runs[name],
                            labels=_bytes(labels, _label_type(evidence.label_names)),
                        )
                    )

    db.write(work)


def load_evidence(db: Database, run_id: str) -> Evidence:
    """The evidence of the run's last attempt that stored any.

    Raises:
        RegistryError: there is no such run, or it has no evidence.
    """

    def work(session: Session) -> Evidence:
        run = session.get(Run, run_id)
        attempt = session.scalar(sa.select(sa.func.max(GateSide.attempt)).where(GateSide.run_id == run_id))
        if run is None or attempt is None:
            raise RegistryError(
                f"run {run_id} has no stored evidence: it was never judged",
                next_step="choose a night that was judged; `nightgate history PIPELINE` shows their verdicts",
            )
        sides = {
            row.side: row for row in session.scalars(sa.select(GateSide).filter_by(run_id=run_id, attempt=attempt))
        }
        stored = session.scalars(sa.select(TestPrediction).filter_by(run_id=run_id, attempt=attempt)).all()
        predictions = {(row.side, row.kind): row for row in stored}
        sets = {row.kind: session.get_one(TestSet, (row.pipeline, row.test_set_id)) for row in stored}
        return _evidence(run, sides, predictions, sets)

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


def scorings_of(db: Database, pipeline: str, model_run_id: str, kind: str = "test") -> Iterator[Scoring]:
    """Every scoring of the model of this run, newest night first, each loaded when it is iterated.

    Args:
        kind: 'test', or 'golden' for the golden rows, which have no `trained_on`.
    """
    last = sa.select(sa.func.max(GateSide.attempt)).where(GateSide.run_id == TestPrediction.run_id).scalar_subquery()
    query = (
        sa.select(TestPrediction.run_id, TestPrediction.attempt, TestPrediction.side)
        .join(Run, Run.run_id == TestPrediction.run_id)
        .where(TestPrediction.pipeline == pipeline, TestPrediction.model_run_id == model_run_id)
        .where(TestPrediction.kind == kind, TestPrediction.attempt == last)
        .order_by(Run.data_until.desc(), Run.started_at.desc(), TestPrediction.side)
    )

    def scoring(session: Session, run_id: str, attempt: int, side: str) -> Scoring:
        stored = session.get_one(TestPrediction, (run_id, attempt, side, kind))
        rows = session.get_one(TestSet, (pipeline, stored.test_set_id))
        facts = session.get_one(GateSide, (run_id, attempt, side)).facts
        trained_on = facts["trained_on"] if kind == "test" else None
        return Scoring(
            run_id,
            session.get_one(Run, run_id).data_until,
            tuple(rows.label_names),
            _unpacked(rows),
            _array(stored.labels, _label_type(rows.label_names)),
            _mask(trained_on, rows.num_rows),
        )

    for key in db.read(lambda session: session.execute(query).tuples().all()):
        yield db.read(partial(scoring, run_id=key[0], attempt=key[1], side=key[2]))


@dataclass(frozen=True)
class Given:
    """The label that a model last gave to a row."""

    label: str
    trained_on: bool | None
    """Whether the model or one of its ancestors was trained on the row; None if unknown."""


def labels_given(scorings: Iterable[Scoring]) -> dict[str, Given]:
    """The newest label of every row of a model's `scorings_of`, by fingerprint."""
    found: dict[str, Given] = {}
    for scoring in scorings:
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
    # All earlier sets are read: a row that was missing from the last night's set is in older ones only.
    known_by_then = (
        sa.select(TestPrediction.test_set_id)
        .join(Run, Run.run_id == TestPrediction.run_id)
        .where(TestPrediction.pipeline == pipeline, TestPrediction.kind == "test", Run.data_until < tonight)
    )
    query = sa.select(TestSet.fingerprints, TestSet.seen_at).where(
        TestSet.pipeline == pipeline, TestSet.test_set_id.in_(known_by_then)
    )
    wanted = bytes.fromhex("".join(fingerprints))
    names, place = np.unique(np.frombuffer(wanted, dtype=_NAME), return_inverse=True)

    def work(session: Session) -> NDArray[np.int64]:
        earliest = np.full(len(names), microseconds(tonight), dtype=np.int64)
        for stored, seen_at in session.execute(query.execution_options(yield_per=SETS_AT_ONCE)):
            theirs = np.frombuffer(zlib.decompress(stored), dtype=_NAME)
            at = np.searchsorted(names, theirs)
            at[at == len(names)] = 0
            same = names[at] == theirs
            np.minimum.at(earliest, at[same], _array(seen_at, "<i8")[same])
        return earliest

    return db.read(work)[place] if fingerprints else np.empty(0, dtype=np.int64)


def _labels_corrected(session: Session, run: Run, evidence: Evidence) -> int | None:
    """Test rows with another label than on the judged night before; None if there is none or labels meant otherwise."""
    query = (
        sa.select(Run.run_id, TestPrediction.test_set_id)
        .join(TestPrediction, TestPrediction.run_id == Run.run_id)
        .where(Run.pipeline == run.pipeline, Run.data_until < run.data_until, Run.dry_run.is_(False))
        .where(TestPrediction.side == "candidate", TestPrediction.kind == "test")
        .order_by(Run.data_until.desc(), Run.started_at.desc(), TestPrediction.attempt.desc())
        .limit(1)
    )
    before = session.execute(query).first()
    if before is None or meaning_of_run(session, before.run_id).change(meaning_of_run(session, run.run_id)):
        return None
    stored = session.get_one(TestSet, (run.pipeline, before.test_set_id))
    rows = _unpacked(stored)
    then = dict(zip(rows.fingerprints, (stored.label_names[label] for label in rows.true.tolist()), strict=True))
    now = zip(evidence.test.fingerprints, evidence.test.true.tolist(), strict=True)
    return sum(1 for row, label in now if then.get(row, evidence.label_names[label]) != evidence.label_names[label])


# --- rows ---


def _packed(kind: str, rows: Rows, label_names: tuple[str, ...]) -> dict[str, Any]:
    """The columns of a row of `test_set`; its id is a hash of their content."""
    plain = {
        "fingerprints": bytes.fromhex("".join(rows.fingerprints)),
        "labels": rows.true.astype(_label_type(label_names)).tobytes(),
        "seen_at": rows.seen_at.astype("<i8").tobytes(),
        "groups": b"" if rows.groups is None else rows.groups.astype("<i4").tobytes(),
        "slices": json.dumps({one.name: [one.values, one.codes.tolist()] for one in rows.slices}).encode(),
    }
    digest = hashlib.sha256(json.dumps([kind, label_names]).encode())
    for name, content in plain.items():
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    columns: dict[str, Any] = {name: zlib.compress(content) for name, content in plain.items()}
    if rows.groups is None:
        columns["groups"] = None
    identity = {"test_set_id": f"e-{digest.hexdigest()[:16]}", "kind": kind, "num_rows": len(rows)}
    return identity | {"label_names": list(label_names)} | columns


def _unpacked(row: TestSet) -> Rows:
    slices: dict[str, Any] = json.loads(zlib.decompress(row.slices))
    text, width = zlib.decompress(row.fingerprints).hex(), 2 * FINGERPRINT_BYTES
    return Rows(
        true=_array(row.labels, _label_type(row.label_names)),
        seen_at=_array(row.seen_at, "<i8"),
        fingerprints=tuple(text[start : start + width] for start in range(0, len(text), width)),
        groups=None if row.groups is None else _array(row.groups, "<i4"),
        slices=tuple(
            Slice(name, tuple(values), np.array(codes, dtype=np.int64)) for name, (values, codes) in slices.items()
        ),
    )


def _label_type(label_names: list[str] | tuple[str, ...]) -> str:
    return "<u1" if len(label_names) <= 256 else "<u2"


def _bytes(values: NDArray[np.int64], kind: str) -> bytes:
    return zlib.compress(values.astype(kind).tobytes())


def _array(content: bytes, kind: str) -> NDArray[np.int64]:
    return np.frombuffer(zlib.decompress(content), dtype=kind).astype(np.int64)


# --- sides ---


def _side_row(run_id: str, attempt: int, name: str, side: Side, evidence: Evidence, *, is_champion: bool) -> GateSide:
    trained_on = None if side.trained_on is None else np.flatnonzero(side.trained_on).tolist()
    served = side.serving
    facts: dict[str, Any] = {
        "trained_on": trained_on,
        "unknown_line": side.unknown_line,
        "served": None if served is None else {"rows": served.rows, "flipped": served.flipped},
    }
    if name == "candidate":
        facts |= {"seed_spread": evidence.seed_spread, "golden_note": evidence.golden_note}
    if side.relabelled:
        facts["relabelled"] = True
    if name == "champion":
        facts["nights"] = evidence.champion_nights
    if is_champion:
        facts["is_champion"] = True
    return GateSide(
        run_id=run_id,
        attempt=attempt,
        side=name,
        version=side.version,
        data_until=side.data_until,
        flaw=side.flaw,
        rows_trained_on=None if trained_on is None else len(trained_on),
        calibration_error=side.calibration_error,
        nonfinite_rows=side.nonfinite_rows,
        latency_ms=served.latency_ms if served else None,
        size_bytes=served.size_bytes if served else None,
        logit_difference=served.logit_difference if served else None,
        serving_flaw=served.flaw if served else "",
        facts=facts,
    )


def _mask(places: list[int] | None, num_rows: int) -> Mask | None:
    if places is None:
        return None
    mask = np.zeros(num_rows, dtype=np.bool_)
    mask[places] = True
    return mask


def _evidence(
    run: Run,
    sides: Mapping[str, GateSide],
    predictions: Mapping[tuple[str, str], TestPrediction],
    sets: Mapping[str, TestSet],
) -> Evidence:
    if "test" not in sets:
        raise RegistryError(
            f"run {run.run_id} has no stored predictions", next_step="choose a night whose models were scored"
        )
    rows = {kind: _unpacked(row) for kind, row in sets.items()}
    kind_of_label = _label_type(run.label_names)

    def side(name: str) -> Side:
        row, facts = sides[name], sides[name].facts
        labels = {
            kind: _array(predictions[name, kind].labels, kind_of_label) if (name, kind) in predictions else None
            for kind in ("test", "golden")
        }
        served = facts["served"]
        return Side(
            predictions=labels["test"],
            data_until=row.data_until,
            version=row.version,
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
    )
