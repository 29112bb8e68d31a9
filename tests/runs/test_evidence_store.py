"""The gate's evidence is loaded as it was stored, on both engines."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.analysis import replay
from nightgate.config.gate import Gate
from nightgate.database.gate_schema import GateCheck, GateSide
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence, Rows
from nightgate.gate.joint_counts import joint_outcomes
from nightgate.home import Home
from nightgate.reports import report
from nightgate.runs import evidence_store, lifecycle, records, test_sets
from tests.support import evidence as made_up
from tests.support import night_rows


def same(one: Any, other: Any) -> bool:
    """Equality of what holds arrays."""
    if isinstance(one, np.ndarray):
        return bool(isinstance(other, np.ndarray) and np.array_equal(one, other))
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def judged(db: Database, evidence: Evidence, day: int = 0, champion_run: str | None = None) -> str:
    """Judge and end a run by `evidence`; returns its id."""
    opened = night_rows.open_run(db, night_rows.pipeline(), replace(night_rows.night(day), trigger="backfill"))
    of = dict.fromkeys(("champion", "anchor"), champion_run or opened.run_id) | {"candidate": opened.run_id}
    decision = decide(evidence, Gate(min_f1=0.5))
    records.record_decision(db, opened.run_id, opened.attempt, decision, evidence, of, night_rows.scores())
    lifecycle.finish_run(db, opened.run_id, opened.attempt, "held")
    return opened.run_id


def bare(test: Rows, until: datetime) -> Evidence:
    """A candidate on these rows, without champion, anchor or golden rows."""
    candidate = made_up.side(test, None, 1.0, 1)
    lacks = dict.fromkeys(("golden", "champion", "anchor", "champion_nights"))
    return made_up.evidence(data_until=until, test=test, candidate=candidate, **lacks)


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the made-up pipeline the labels of the made-up evidence."""
    plain = night_rows.pipeline()
    data = plain.data.model_copy(update={"labels": made_up.LABELS})
    data.__dict__.pop("label_names", None)
    changed = plain.model_copy(update={"data": data})
    monkeypatch.setattr(night_rows, "pipeline", lambda: changed)


pytestmark = pytest.mark.usefixtures("labelled")


@pytest.mark.parametrize("groups", [0, 40])
def test_evidence_is_loaded_as_it_was_stored(database: Database, groups: int) -> None:
    until = night_rows.night().data_until
    test = made_up.rows(500, num_groups=groups)
    golden = made_up.rows(90, seed=4)
    trained_on = np.zeros(500, dtype=np.bool_)
    trained_on[[3, 77]] = True
    evidence = made_up.evidence(
        500,
        data_until=until,
        test=test,
        golden=golden,
        candidate=made_up.side(test, golden, 0.7, 1, data_until=until, calibration_error=None, nonfinite_rows=2),
        champion=made_up.side(test, golden, 0.6, 2, version=3, trained_on=trained_on),
        anchor=made_up.side(test, golden, 0.5, 3, version=1, trained_on=None, unknown_line="its snapshot is gone"),
        seed_spread=0.006,
        golden_note="two rows of the file could not be used",
    )
    assert same(evidence_store.load_evidence(database, judged(database, evidence)), evidence)


def test_an_anchor_that_is_the_champion_is_loaded_as_the_champion(database: Database) -> None:
    evidence = made_up.evidence(300, data_until=night_rows.night().data_until)
    loaded = evidence_store.load_evidence(database, judged(database, evidence))
    assert loaded.anchored_by_champion
    assert same(loaded, evidence)


def test_evidence_needs_no_champion_anchor_or_golden_rows(database: Database) -> None:
    evidence = bare(made_up.rows(300), night_rows.night().data_until)
    assert same(evidence_store.load_evidence(database, judged(database, evidence)), evidence)


def test_a_night_that_was_stored_with_its_reused_predictions_is_read_and_decided_again(
    database: Database, home: Home
) -> None:
    """Earlier versions reused logits of the champion, under a check of its own."""
    evidence = made_up.evidence(400, data_until=night_rows.night().data_until)
    run_id = judged(database, evidence)
    reuse = {"rows": 400, "reused": 0, "recomputed": 8, "differing": 1}

    def as_it_was_stored(session: Session) -> None:
        for side in session.scalars(sa.select(GateSide).where(GateSide.run_id == run_id)):
            side.facts = {**side.facts, "reuse": reuse if side.side == "champion" else None}
        check = session.scalars(sa.select(GateCheck).filter_by(run_id=run_id, check_name="not_older")).one()
        check.check_name, check.outcome, check.reason = "reused_predictions", "failed", "1 of 8 rows differs"

    database.write(as_it_was_stored)
    assert same(evidence_store.load_evidence(database, run_id), evidence)
    [night] = replay.replay(database, "reviews")
    assert (night.verdict, night.replayed) == ("promote", "promote")
    page = report.write(home, run_id).read_text(encoding="utf-8")
    assert "reused_predictions" in page
    assert "1 of 8 rows differs" in page


def test_nights_with_the_same_rows_share_them(database: Database) -> None:
    evidence = made_up.evidence(300)
    first = judged(database, replace(evidence, data_until=night_rows.night(0).data_until))
    judged(database, replace(evidence, data_until=night_rows.night(1).data_until), 1, first)
    assert len(database.frame("SELECT * FROM test_set WHERE kind = 'test'")) == 1
    assert len(database.frame("SELECT * FROM test_prediction WHERE kind = 'test'")) == 4


def test_a_set_that_differs_a_little_is_stored_as_its_difference_and_loaded_as_it_was(database: Database) -> None:
    """Of tonight's rows some are new, some gone, and some have another label, slice or group; they are in any order."""
    first = made_up.rows(1200, num_groups=400)
    judged(database, bare(first, night_rows.night().data_until))
    order = np.random.default_rng(1).permutation(1200)[10:]
    kept = first.only(np.ones(1200, dtype=np.bool_))
    [language] = kept.slices
    assert kept.groups is not None
    second = Rows(
        true=np.r_[(kept.true[order] + (np.arange(1190) % 300 == 0)) % 3, 2],
        seen_at=np.r_[kept.seen_at[order], -5],
        fingerprints=(*(kept.fingerprints[row] for row in order), "ff" * 16),
        groups=np.r_[kept.groups[order] - 7, 0],
        slices=(replace(language, values=("de", "en", "fr"), codes=np.r_[language.codes[order], 2]),),
    )
    evidence = bare(second, night_rows.night(1).data_until)
    assert same(evidence_store.load_evidence(database, judged(database, evidence, 1)), evidence)
    third = bare(first.only(np.arange(1200) > 5), night_rows.night(2).data_until)
    assert same(evidence_store.load_evidence(database, judged(database, third, 2)), third)
    [small] = database.frame(
        "SELECT num_rows, LENGTH(fingerprints) AS bytes FROM test_sets WHERE base_id IS NOT NULL AND num_rows = 1194"
    ).to_dict("records")
    assert small["bytes"] < 50


def test_recorded_evidence_is_not_overwritten(database: Database) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    evidence = made_up.evidence(300, data_until=night_rows.night().data_until)
    of = dict.fromkeys(("candidate", "champion"), opened.run_id)
    for share in (0.64, 0.2):
        found = replace(evidence, candidate=made_up.side(evidence.test, evidence.golden, share, seed=5))
        records.record_decision(database, opened.run_id, 1, decide(found, Gate(min_f1=0.5)), found, of)
    stored = evidence_store.load_evidence(database, opened.run_id).candidate.predictions
    assert stored is not None
    assert (stored == evidence.test.true).mean() > 0.5


def test_labels_of_a_model_are_collected_over_its_nights(database: Database) -> None:
    first = made_up.evidence(300, data_until=night_rows.night(0).data_until, champion=None, anchor=None)
    champion_run = judged(database, first)
    test = made_up.rows(200, seed=8)
    later = made_up.evidence(
        200,
        data_until=night_rows.night(1).data_until,
        test=test,
        candidate=made_up.side(test, first.golden, 0.6, 2),
        champion=made_up.side(test, first.golden, 0.6, 3, version=1),
        anchor=None,
    )
    judged(database, later, 1, champion_run)
    scorings = list(evidence_store.scorings_of(database, "reviews", champion_run))
    assert [len(one.rows) for one in scorings] == [200, 300]
    found = evidence_store.labels_given(scorings, "fp32")
    assert len(found) == 500
    assert later.champion is not None
    assert later.champion.predictions is not None
    given = [made_up.LABELS.index(found[name].label) for name in test.fingerprints]
    assert given == later.champion.predictions.tolist()
    assert not any(one.trained_on for one in found.values())
    assert evidence_store.labels_given(scorings, "bf16") == {}


def test_a_row_without_time_has_the_date_of_the_first_night_that_had_it(database: Database) -> None:
    """On the third night a file of the source is missing, and with it most of the rows."""
    names = made_up.rows(920, seed=2).fingerprints
    nights = [night_rows.night(day).data_until for day in range(4)]
    seen = np.empty(0, dtype=np.int64)
    for day, count in enumerate((900, 910, 300, 920)):
        seen = evidence_store.first_seen(database, "reviews", list(names[:count]), nights[day])
        test = Rows(np.zeros(count, dtype=np.int64), seen, names[:count])
        judged(database, bare(test, nights[day]), day)
    dates = [nights[0]] * 900 + [nights[1]] * 10 + [nights[3]] * 10
    assert seen.tolist() == [evidence_store.microseconds(moment) for moment in dates]
    backfill = evidence_store.first_seen(database, "reviews", list(names), nights[1])
    later = [nights[1]] * 20
    assert backfill.tolist() == [evidence_store.microseconds(moment) for moment in dates[:900] + later]


def test_every_byte_of_a_fingerprint_counts_and_rows_may_be_in_any_order(database: Database) -> None:
    nights = [night_rows.night(day).data_until for day in range(2)]
    zeros = "00" * 14
    known = (f"0000{zeros}", f"{zeros}0001", f"0100{zeros}", f"ff00{zeros}")
    until = evidence_store.microseconds(nights[0])
    test = Rows(np.zeros(4, dtype=np.int64), np.arange(4) + until - 9, known)
    judged(database, bare(test, nights[0]))
    asked = [known[3], f"{zeros}0100", known[1], known[0], known[1], "ff" * 16, known[2]]
    tonight = evidence_store.microseconds(nights[1])
    found = evidence_store.first_seen(database, "reviews", asked, nights[1])
    assert found.tolist() == [until - 6, tonight, until - 8, until - 9, until - 8, tonight, until - 7]
    assert evidence_store.first_seen(database, "reviews", [], nights[1]).tolist() == []
    assert evidence_store.first_seen(database, "others", asked, nights[1]).tolist() == [tonight] * 7


def test_microseconds_are_exact() -> None:
    moment = datetime(2026, 3, 1, 3, 15, 0, 123457, tzinfo=UTC)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=evidence_store.microseconds(moment)) == moment


def test_loading_evidence_that_is_not_stored_is_an_error(database: Database) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    for run_id in (opened.run_id, "no-such-run"):
        with pytest.raises(RegistryError, match=run_id):
            evidence_store.load_evidence(database, run_id)


def test_labels_beyond_a_byte_are_stored_in_two() -> None:
    names = tuple(f"label {number}" for number in range(300))
    kind = test_sets.label_type(names)
    high = np.array([0, 255, 256, 299])
    assert test_sets.array(test_sets.compress(high, kind), kind).tolist() == high.tolist()


def test_joint_outcomes_count_every_row_once_per_scope(database: Database) -> None:
    evidence = made_up.evidence(400, data_until=night_rows.night().data_until)
    run_id = judged(database, evidence)
    frame = database.frame("SELECT * FROM joint_outcomes WHERE run_id = :run", {"run": run_id})
    decision = decide(evidence, Gate(min_f1=0.5))
    assert decision.measured is not None
    assert len(frame) == sum(len(one.counts) for one in joint_outcomes(evidence, decision.measured))
    totals = frame.groupby(["scope", "reference"])["count"].sum().to_dict()
    window = int(decision.measured.window.sum())
    assert totals == {
        ("window", "champion"): window,
        ("window", "anchor"): window,
        ("all", "champion"): 400,
        ("all", "anchor"): 400,
        ("slice", "champion"): window,
        ("golden", "champion"): 200,
        ("golden", "anchor"): 200,
    }
    right = frame[(frame["scope"] == "window") & (frame["reference"] == "champion")]
    hits = right[right["true_label"] == right["candidate_label"]]["count"].sum()
    assert evidence.candidate.predictions is not None
    assert hits == (evidence.candidate.predictions == evidence.test.true)[decision.measured.window].sum()
