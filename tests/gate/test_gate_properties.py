"""Properties of every decision, tested by hypothesis on random nights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nightgate.config.gate import Blockable, Gate
from nightgate.config.pipeline import Pipeline
from nightgate.database.gate_schema import SIDES
from nightgate.database.transactions import Database
from nightgate.gate.decide import decide
from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Evidence, Rows, Serving, Side, Slice
from nightgate.gate.near_miss import near_miss
from nightgate.runs.evidence_store import add, load_evidence, pack
from nightgate.runs.lifecycle import fenced
from tests.support import night_rows
from tests.support.gate_night import DAY, SERVED, TONIGHT, UNTIL, check, outcomes

# The same examples on every run, so that the suite cannot fail by chance.
QUICK = settings(max_examples=12, derandomize=True)
NAMES = ("bad", "fair", "good", "better")


@st.composite
def nights(draw: st.DrawFn, anchors: tuple[str, ...] = ("champion", "another", "none")) -> Evidence:
    """A night of 2 to 4 uneven classes, with or without groups, golden rows and an anchor that is not the champion.

    One of 3 or 4 classes may have no rows.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_labels = draw(st.integers(2, 4))
    num_seen = draw(st.integers(max(2, num_labels - 1), num_labels))
    test = rows(rng, draw(st.integers(20, 200)), num_seen, draw(st.sampled_from([0, 0, 15])))
    golden = draw(st.sampled_from([None, rows(rng, 64, num_seen, 0)]))
    quality = st.floats(0.3, 0.95)
    champion = side(rng, draw(quality), test, golden, num_labels, version=7)
    anchor = {
        "champion": champion,
        "none": None,
        "another": side(rng, draw(quality), test, golden, num_labels, version=2),
    }
    candidate = side(rng, draw(quality), test, golden, num_labels, data_until=TONIGHT)
    if draw(st.booleans()):
        agree = rng.random(len(test)) < 0.7
        candidate = replace(candidate, predictions=np.where(agree, champion.predictions, candidate.predictions))
    return Evidence(
        label_names=NAMES[:num_labels],
        test_version="t-0011223344",
        data_until=TONIGHT,
        test=test,
        candidate=candidate,
        champion=champion,
        anchor=anchor[draw(st.sampled_from(anchors))],
        golden=golden,
        champion_nights=draw(st.sampled_from([None, 3, 40])),
        seed_spread=draw(st.sampled_from([None, 0.006])),
    )


def rows(rng: np.random.Generator, num_rows: int, num_labels: int, num_groups: int) -> Rows:
    share = rng.dirichlet(np.full(num_labels, 3.0))
    return Rows(
        true=rng.choice(num_labels, num_rows, p=share),
        seen_at=UNTIL - 1 - rng.integers(0, 120, num_rows) * DAY,
        fingerprints=tuple(rng.bytes(16).hex() for _ in range(num_rows)),
        groups=rng.integers(0, num_groups, num_rows) if num_groups else None,
        slices=(Slice("language", ("", "de", "en"), rng.integers(0, 3, num_rows)),),
    )


def side(
    rng: np.random.Generator, share_right: float, test: Rows, golden: Rows | None, num_labels: int, **changes: Any
) -> Side:
    def guessed(true: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(rng.random(len(true)) < share_right, true, rng.integers(0, num_labels, len(true)))

    facts: dict[str, Any] = {
        "predictions": guessed(test.true),
        "data_until": TONIGHT - timedelta(days=1),
        "golden": None if golden is None else guessed(golden.true),
        "trained_on": rng.random(len(test)) < 0.05,
        "calibration_error": 0.05,
        "serving": SERVED,
    }
    return Side(**(facts | changes))


def policies(**fixed: Any) -> st.SearchStrategy[Gate]:
    """Policies under which some nights are promoted and some are held."""
    free = {
        "average": st.sampled_from(["weighted", "macro"]),
        "min_f1": st.sampled_from([0.0, 0.5]),
        "min_f1_on": st.sampled_from(["estimate", "lower"]),
        "policy": st.sampled_from(["superior", "non_inferior", "threshold_only"]),
        "margin": st.sampled_from([0.01, 0.2]),
        "test_window": st.sampled_from(["", "30d"]),
        "min_test_rows": st.sampled_from([1, 50]),
        "slice_floor": st.sampled_from([0.0, 0.3]),
        "min_slice_rows": st.just(20),
        "max_share_gap": st.just(1.0),
        "golden_blocks": st.booleans(),
    }
    chosen = free | {name: st.just(value) for name, value in fixed.items()}
    return st.fixed_dictionaries(chosen).map(Gate.model_validate)


def same(one: Decision, other: Decision) -> None:
    """Assert equality in every digit, except for the order of the window's rows."""
    assert (one.verdict, one.reason, one.checks) == (other.verdict, other.reason, other.checks)
    windows = [replace(known.measured, window=known.measured.window.sum()) for known in (one, other)]
    assert windows[0] == windows[1]


# --- rows, labels ---


def changed(
    evidence: Evidence,
    of_test: Callable[[Rows], Rows],
    of_golden: Callable[[Rows], Rows],
    of_side: Callable[[Side], Side],
) -> Evidence:
    champion = evidence.champion and of_side(evidence.champion)
    anchor = evidence.anchor and of_side(evidence.anchor)
    return replace(
        evidence,
        test=of_test(evidence.test),
        golden=evidence.golden and of_golden(evidence.golden),
        candidate=of_side(evidence.candidate),
        champion=champion,
        anchor=champion if evidence.anchored_by_champion else anchor,
    )


@QUICK
@given(nights(), policies(), st.data())
def test_the_order_of_classes_changes_nothing(evidence: Evidence, policy: Gate, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(evidence.label_names))))
    place = np.argsort(order)
    names = tuple(evidence.label_names[index] for index in order)

    def of_rows(known: Rows) -> Rows:
        return replace(known, true=place[known.true])

    def of_side(known: Side) -> Side:
        golden = None if known.golden is None else place[known.golden]
        return replace(known, predictions=place[known.predictions], golden=golden)

    other = replace(changed(evidence, of_rows, of_rows, of_side), label_names=names)
    one, two = decide(evidence, policy), decide(other, policy)
    assert (one.verdict, one.measured.detectable_gain) == (two.verdict, two.measured.detectable_gain)
    # Only the order of classes among the failures differs.
    overall = [check for check in one.checks if not check.slice_name and check.name != "slices"]
    assert overall == [check for check in two.checks if not check.slice_name and check.name != "slices"]
    assert set(one.checks) - {check(one, "slices")} == set(two.checks) - {check(two, "slices")}
    assert check(one, "slices").outcome == check(two, "slices").outcome


@QUICK
@given(nights(), policies())
def test_a_class_without_rows_changes_nothing(evidence: Evidence, policy: Gate) -> None:
    # Its name sorts before all others.
    other = replace(evidence, label_names=(*evidence.label_names, "absent"))
    one, two = decide(evidence, policy), decide(other, policy)
    assert one.verdict == two.verdict
    assert replace(one.measured, window=0) == replace(two.measured, window=0)
    added = {check for check in two.checks if check.slice_value == "absent"}
    assert {check.outcome for check in added} <= {"underpowered"}
    assert set(one.checks) - {check(one, "slices")} == set(two.checks) - added - {check(two, "slices")}
    assert check(one, "slices").outcome == check(two, "slices").outcome


@QUICK
@given(nights(), policies(), st.data())
def test_other_names_of_the_classes_change_no_score(evidence: Evidence, policy: Gate, data: st.DataObject) -> None:
    """Intervals are within the noise of their draws, which are ordered by name."""
    names = tuple(data.draw(st.permutations(evidence.label_names)))
    one, two = (decide(known, policy).measured for known in (evidence, replace(evidence, label_names=names)))
    scores = [[one.candidate, one.candidate_all, one.champion, one.anchor] for one in (one, two)]
    first, second = ([score.f1 for score in known if score and score.f1 is not None] for known in scores)
    assert first == pytest.approx(second, rel=1e-12)
    if one.difference:
        noise = 0.2 * (one.difference.high - one.difference.low) / 3.92 + 2 / len(evidence.test)
        assert tuple(one.difference) == pytest.approx(tuple(two.difference), abs=noise)


@QUICK
@given(nights(), policies(), st.integers(0, 2**32 - 1))
def test_the_order_of_rows_changes_nothing(evidence: Evidence, policy: Gate, seed: int) -> None:
    rng = np.random.default_rng(seed)
    test, golden = (rng.permutation(len(known or ())) for known in (evidence.test, evidence.golden))

    def of_rows(order: NDArray[np.int64], known: Rows) -> Rows:
        return replace(
            known,
            true=known.true[order],
            seen_at=known.seen_at[order],
            fingerprints=tuple(known.fingerprints[at] for at in order),
            groups=None if known.groups is None else known.groups[order],
            slices=tuple(replace(one, codes=one.codes[order]) for one in known.slices),
        )

    def of_side(known: Side) -> Side:
        of_golden = None if known.golden is None else known.golden[golden]
        return replace(known, predictions=known.predictions[test], golden=of_golden, trained_on=known.trained_on[test])

    other = changed(evidence, partial(of_rows, test), partial(of_rows, golden), of_side)
    same(decide(evidence, policy), decide(other, policy))


# --- monotone ---


@QUICK
@given(nights(), policies(min_f1_on="estimate"), st.data())
def test_a_wrong_prediction_turned_right_never_costs_a_candidate_a_check(
    evidence: Evidence, policy: Gate, data: st.DataObject
) -> None:
    """A prediction made right raises F1 strictly, weighted and macro, also in every resample that holds its row.

    Other counts are other draws, so that the interval's ends are monotone only up to the noise of 10,000 draws.
    """
    before = decide(evidence, policy)
    labels, true = evidence.candidate.predictions, evidence.test.true
    wrong = np.flatnonzero(before.measured.window & (labels != true))
    assume(len(wrong) > 0)
    chosen = wrong[: data.draw(st.integers(1, len(wrong)))]
    fixed = labels.copy()
    fixed[chosen] = true[chosen]
    after = decide(replace(evidence, candidate=replace(evidence.candidate, predictions=fixed)), policy)
    assert after.measured.candidate.f1 > before.measured.candidate.f1
    assert (check(before, "min_f1").outcome, check(after, "min_f1").outcome) != ("passed", "failed")
    ends = [decision.measured.difference for decision in (before, after)]
    noise = 0.0
    if ends[0] and ends[1]:
        # Each end is a quantile of 10,000 draws, whose standard error is 2.7 % of theirs; F1 moves in steps of rows.
        noise = 0.2 * max(end.high - end.low for end in ends if end) / 3.92 + 2 / len(evidence.test)
        assert ends[1].low > ends[0].low - noise
        assert ends[1].high > ends[0].high - noise
    for name in ("beats_champion", "anchor"):
        first, second = check(before, name), check(after, name)
        near = first.threshold is not None and first.ci_low is not None and first.ci_low - first.threshold <= noise
        assert near or (first.outcome, second.outcome) not in [("passed", "failed"), ("passed", "underpowered")], name


# --- evidence ---


def without(whose: str, **missing: Any) -> Callable[[Evidence], Evidence]:
    def remove(evidence: Evidence) -> Evidence:
        poorer = replace(getattr(evidence, whose), **missing)
        changes = {whose: poorer}
        if whose == "champion" and evidence.anchored_by_champion:
            changes["anchor"] = poorer
        return replace(evidence, **changes)

    return remove


PIECES: dict[str, Callable[[Evidence], Evidence]] = {
    f"{piece} of the {whose}": without(whose, **missing)
    for whose in ("candidate", "champion", "anchor")
    for piece, missing in {
        "predictions": {"predictions": None},
        "readability": {"flaw": "cannot be read"},
        "all but a few predictions": {"predictions": np.zeros(3, dtype=np.int64)},
        "training rows": {"trained_on": None},
    }.items()
}
PIECES |= {
    "test rows": lambda evidence: replace(
        evidence, candidate=replace(evidence.candidate, trained_on=np.ones(len(evidence.test), dtype=np.bool_))
    ),
    "data_until of the candidate": without("candidate", data_until=None),
    "data_until of the champion": without("champion", data_until=None),
    "serving": without("candidate", serving=None),
    "a model that opens": without("candidate", serving=Serving(flaw="it does not open")),
    "logits in serving": without("candidate", serving=replace(SERVED, logit_difference=None)),
    "latency": without("candidate", serving=replace(SERVED, latency_ms=None)),
    "size": without("candidate", serving=replace(SERVED, size_bytes=None)),
    "finite logits": without("candidate", nonfinite_rows=1),
    "a calibration error": without("candidate", calibration_error=None),
    "a calibration error that is a number": without("candidate", calibration_error=float("nan")),
}


@pytest.mark.parametrize("piece", PIECES)
@settings(QUICK, max_examples=4)
@given(nights(anchors=("another", "champion")), st.sampled_from(["superior", "non_inferior"]))
def test_without_a_piece_of_its_evidence_no_candidate_is_promoted(piece: str, evidence: Evidence, rule: str) -> None:
    # A candidate without errors, so that the missing piece alone can hold it.
    golden = evidence.golden and evidence.golden.true
    flawless = replace(evidence.candidate, predictions=evidence.test.true, golden=golden)
    evidence = replace(evidence, candidate=flawless)
    policy = Gate.model_validate({"min_f1": 0.3, "policy": rule, "max_share_gap": 1.0, "blocking": get_args(Blockable)})
    before = decide(evidence, policy)
    assume(before.verdict == "promote")
    assert decide(PIECES[piece](evidence), policy).verdict == "hold"
    # What does not block warns at least.
    after = decide(PIECES[piece](evidence), policy.model_copy(update={"blocking": ()}))
    assert outcomes(after) != outcomes(before)


STORED = [name for name in PIECES if name != "a calibration error that is a number"]
"""All pieces but a NaN calibration error, which no night produces and a database cannot store."""
RUNS = count()


# One database serves all examples.
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@settings(QUICK, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights(anchors=("champion", "another")), policies(), st.lists(st.sampled_from(STORED), max_size=8))
def test_stored_evidence_gives_the_same_decision(
    database: Database, evidence: Evidence, policy: Gate, missing: list[str]
) -> None:
    for piece in missing:
        evidence = PIECES[piece](evidence)
    sides = (evidence.candidate, evidence.champion, evidence.anchor)
    assume(any(side is not None and side.predictions is not None for side in sides))  # some model is always scored
    source = {"source": {"kind": "sample"}, "labels": list(evidence.label_names)}
    pipeline = Pipeline.model_validate({"name": f"reviews-{next(RUNS)}", "data": source})
    opened = night_rows.open_run(database, pipeline, replace(night_rows.night(), data_until=evidence.data_until))
    packed, made_by = pack(database, opened.run_id, evidence), dict.fromkeys(SIDES, opened.run_id)
    database.write(lambda session: add(session, fenced(session, opened.run_id, 1)[0], evidence, packed, made_by))
    again, first = decide(load_evidence(database, opened.run_id), policy), decide(evidence, policy)
    same(first, again)
    assert np.array_equal(first.measured.window, again.measured.window)


# --- what would have let it pass ---

TIGHTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "min_f1": ({"min_f1": 1.0}, {}),
    "margin": ({"policy": "non_inferior", "margin": 0.0}, {}),
    "slice_margin": ({"slice_margin": 0.0}, {}),
    "slice_floor": ({"slice_floor": 1.0}, {}),
    "golden_margin": ({"golden_margin": 0.0, "blocking": ["golden"]}, {}),
    "max_share_gap": ({"max_share_gap": 0.0}, {}),
    "max_calibration_error": ({"max_calibration_error": 0.3}, {"calibration_error": 0.37}),
    "max_latency_ratio": ({"blocking": ["latency"]}, {"serving": replace(SERVED, latency_ms=17.0)}),
    "max_size_ratio": ({"max_size_ratio": 1.1}, {"serving": replace(SERVED, size_bytes=110_000_000)}),
}
"""By field a policy that a good candidate misses by it alone, and what else the candidate needs for that."""


@pytest.mark.parametrize("field", TIGHTER)
@settings(QUICK, max_examples=2)
@given(nights(anchors=("champion", "none")))
def test_a_candidate_held_by_one_limit_learns_the_value_that_promotes_it(field: str, evidence: Evidence) -> None:
    tighter, changes = TIGHTER[field]
    assume(evidence.golden or field != "golden_margin")
    easy = Gate.model_validate({"min_f1": 0.0, "policy": "threshold_only", "max_share_gap": 0.99, "blocking": ()})
    evidence = replace(evidence, candidate=replace(evidence.candidate, **changes))
    assume(decide(evidence, easy).verdict == "promote")
    policy = Gate.model_validate(easy.model_dump() | tighter)
    held = decide(evidence, policy)
    assume(held.verdict != "promote")
    found = near_miss(evidence, policy, held)
    assert found is not None
    assert found.field == field
    assert decide(evidence, Gate.model_validate(policy.model_dump() | {field: found.value})).verdict == "promote"


@settings(QUICK, max_examples=2)
@given(nights(anchors=("champion",)))
def test_a_value_beyond_the_bounds_of_its_field_would_have_let_nothing_pass(evidence: Evidence) -> None:
    policy = Gate.model_validate({"min_f1": 0.0, "policy": "threshold_only", "blocking": ["latency"]})
    slow = replace(evidence, candidate=replace(evidence.candidate, serving=replace(SERVED, latency_ms=1e307)))
    held = decide(slow, policy)
    assert "serving" in {check.name for check in held.failed}
    assert near_miss(slow, policy, held) is None


@settings(QUICK, max_examples=6)
@given(nights(), policies(min_f1=0.7, policy="superior"))
def test_what_would_have_let_a_candidate_pass_does(evidence: Evidence, policy: Gate) -> None:
    decision = decide(evidence, policy)
    found = near_miss(evidence, policy, decision)
    assert decision.verdict != "promote" or found is None
    if found is not None:
        other = Gate.model_validate(policy.model_dump() | {found.field: found.value})
        assert decide(evidence, other).verdict == "promote"


@QUICK
@given(nights(), policies())
def test_a_promotion_has_no_failed_check_and_a_hold_has_one(evidence: Evidence, policy: Gate) -> None:
    decision = decide(evidence, policy)
    assert (decision.verdict == "hold") == bool(decision.failed)
    assert all(check.reason and not check.reason.endswith(".") for check in decision.checks)
    keys = [(check.name, check.slice_name, check.slice_value) for check in decision.checks]
    assert len(set(keys)) == len(keys), "these identify the rows of gate_checks"
