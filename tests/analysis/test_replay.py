"""Replays of past nights: the same policy repeats its decisions, another one flips verdicts and champions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nightgate.analysis import rescoring as rescoring_module
from nightgate.analysis.chain import Rescorer
from nightgate.analysis.replay import ReplayedNight, breaks_before, policy_of, replay, summary
from nightgate.analysis.rescoring import Rescored, newest_judged, rescore
from nightgate.cli.app import app
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, SnapshotError
from nightgate.home import existing_home
from nightgate.registry.versions import VersionRow, versions
from nightgate.runs.evidence_store import load_evidence
from tests.support import night_rows
from tests.support.first_night import copy_first_night
from tests.support.judged_nights import Model, judged_night, rows_of

pytestmark = pytest.mark.process

LENIENT = {"gate.policy": "non_inferior", "gate.margin": 0.05}

OTHER_GOLDEN = rows_of(1).only(np.arange(800) >= 400)
"""Golden rows without any of the default ones of `judged_night`."""


def four_nights(db: Database) -> list[Model]:
    """Version 1 is champion; 2 is not significantly better, 3 replaces it, 4 is slightly below 3."""
    first = judged_night(db, 0, Model("first", 0.65))
    second = judged_night(db, 1, Model("second", 0.66), first)
    third = judged_night(db, 2, Model("third", 0.80), first)
    return [first, second, third, judged_night(db, 3, Model("fourth", 0.79), third)]


def replayed(db: Database, overrides: dict[str, Any] | None = None, **options: Any) -> list[ReplayedNight]:
    return list(replay(db, "reviews", overrides, **options))


def test_the_same_policy_says_the_same_and_its_chain_is_what_happened(database: Database) -> None:
    four_nights(database)
    nights = replayed(database)
    stored = database.frame("SELECT verdict, reason, test_f1, champion_f1 FROM nights ORDER BY night")
    assert [one.verdict for one in nights] == ["promote", "underpowered", "promote", "underpowered"]
    for one, night in zip(nights, stored.itertuples(), strict=True):
        assert (one.replayed, one.reason, one.candidate_f1) == (night.verdict, night.reason, night.test_f1)
        assert not one.flips
        assert (one.chain.verdict, one.chain.reason) == (one.verdict, one.reason)
        assert (one.chain.champion_version, one.chain.champion_f1) == (one.champion_version, one.champion_f1)
    assert summary(nights).splitlines() == ["0 of 4 verdicts flip", "the chain promotes on 2 nights, 2 did"]


def test_a_stricter_policy_flips_what_was_promoted_and_starts_its_chain_later(database: Database) -> None:
    four_nights(database)
    nights = replayed(database, {"gate.min_f1": 0.7})
    assert [one.flips for one in nights] == [True, False, False, False]
    assert [one.chain.verdict for one in nights] == ["hold", "hold", "promote", "underpowered"]
    assert [one.chain.champion_version for one in nights] == [None, None, None, 3]
    assert "2026-03-01 (promote to hold)" in summary(nights)


def test_a_champion_without_scores_on_the_rows_stays_and_leaves_the_night_unknown(database: Database) -> None:
    four_nights(database)
    nights = replayed(database, LENIENT)
    assert [one.flips for one in nights] == [False, True, False, True]
    assert [one.chain.verdict for one in nights] == ["promote", "promote", "unknown", "unknown"]
    assert [one.chain.champion_version for one in nights] == [None, 1, 2, 2]
    assert "version 2 was scored on 66.7 %" in nights[2].chain.reason
    assert f"2 are unknown, the first 2026-03-03 ({nights[2].chain.reason}" in summary(nights)


def test_labels_that_mean_something_else_are_never_compared_and_the_chain_goes_on_when_a_person_accepts_them(
    database: Database,
) -> None:
    record = night_rows.pipeline().record()
    swapped = Pipeline.model_validate(
        {**record, "data": {**record["data"], "labels": {"good": "bad", "bad": "good", "ok": "good"}}}
    )
    first = judged_night(database, 0, Model("first", 0.65))
    # As an earlier release stored it: scored, and promoted for its gain.
    second = judged_night(database, 1, Model("second", 0.80), first, pipeline=swapped)
    judged_night(database, 2, Model("third", 0.95), second, pipeline=swapped)
    nights = replayed(database, {"gate.policy": "threshold_only"})
    assert [one.chain.verdict for one in nights] == ["promote", "hold", "promote"]
    assert [one.chain.champion_version for one in nights] == [None, 1, 2]
    assert nights[1].chain.champion_f1 is None
    assert "'ok' was not used and is good" in nights[1].chain.reason
    before = breaks_before(nights)
    assert before[0] is None
    assert "labels mean something else" in str(before[1])
    assert before[2] is None
    shown = CliRunner().invoke(app, ["gate", "replay", "reviews"]).stdout
    assert shown.count("┄┄┄") == 1, "a line above this night alone"


def rescoring(models: list[Model], asked: list[tuple[str, int]]) -> Rescorer:
    """A rescorer of constructed models that records its calls."""

    def score(run_id: str, version: VersionRow, fingerprints: tuple[str, ...], golden: tuple[str, ...]) -> Rescored:
        asked.append((run_id, version.version))
        rows, model = rows_of(len(fingerprints) // 400 - 1), models[version.version - 1]
        assert rows.fingerprints == fingerprints
        of_golden = None
        if golden:
            assert golden == OTHER_GOLDEN.fingerprints
            of_golden = model.predictions(OTHER_GOLDEN)
        return Rescored(model.predictions(rows), np.zeros(len(rows), dtype=np.bool_), "", of_golden)

    return score


def test_a_rescorer_scores_what_no_night_has_stored(database: Database) -> None:
    models = four_nights(database)
    asked: list[tuple[str, int]] = []
    nights = replayed(database, LENIENT, rescorer=rescoring(models, asked))
    assert [one.chain.verdict for one in nights] == ["promote"] * 4
    assert [one.chain.champion_version for one in nights] == [None, 1, 2, 3]
    # Not for the fourth night, whose own champion was version 3.
    assert asked == [(nights[2].run_id, 2)]
    rows = rows_of(2)
    share = float((models[1].predictions(rows) == rows.true).mean())
    assert nights[2].chain.champion_f1 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("trained_on", "num_rows", "used"), [(0, 1005, "1,000"), (50, 1000, "950")])
def test_rows_that_the_chain_s_champion_was_trained_on_or_never_scored_on_are_left_out(
    trained_on: int, num_rows: int, used: str, database: Database
) -> None:
    first = judged_night(database, 0, Model("first", 0.65), num_rows=1000)
    judged_night(database, 1, Model("second", 0.65, trained_on=trained_on), first, num_rows=1000)
    judged_night(database, 2, Model("third", 0.80), first, num_rows=num_rows)
    night = replayed(database, LENIENT)[2]
    assert (night.chain.verdict, night.chain.champion_version) == ("promote", 2)
    assert f"on {used} test rows" in night.chain.reason


def test_a_champion_of_the_chain_with_unknown_training_rows_is_kept(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.65), num_rows=1000)
    second = judged_night(database, 1, Model("second", 0.65), first, num_rows=1000)
    judged_night(database, 2, Model("third", 0.80), replace(second, trained_on=None), num_rows=1000)
    judged_night(database, 3, Model("fourth", 0.80), first, num_rows=1000)
    night = replayed(database, LENIENT)[3]
    assert (night.chain.verdict, night.chain.champion_version) == ("hold", 2)
    assert "not known which test rows the champion (version 2) was trained on" in night.chain.reason


def test_small_losses_do_not_add_up_along_the_chain_wherever_it_starts(database: Database) -> None:
    gate = Gate(policy="non_inferior", margin=0.15, slice_margin=0.3, min_f1=0.5)
    lenient = night_rows.pipeline().model_copy(update={"gate": gate})
    first = judged_night(database, 0, Model("first", 0.76), pipeline=lenient)
    second = judged_night(database, 1, Model("second", 0.68), first, pipeline=lenient)
    judged_night(database, 2, Model("third", 0.60), second, anchor=first, pipeline=lenient)
    nights = replayed(database)
    assert [one.verdict for one in nights] == ["promote", "promote", "hold"]
    assert [one.chain.verdict for one in nights] == ["promote", "promote", "hold"]
    # The anchor alone holds it: it is within the margin of the champion.
    assert "of the anchor (version 1)" in nights[2].chain.reason
    assert "champion" not in nights[2].chain.reason
    [last] = replayed(database, since=night_rows.night(2).date)
    assert last.chain == nights[2].chain


def test_a_refresh_counts_the_nights_of_the_chain_s_own_champion(database: Database) -> None:
    # Of the first candidate it is not known what it was trained on, so that it was promoted without the gate.
    held = judged_night(database, 0, Model("first", 0.70, trained_on=None), num_rows=1000)
    first = replace(held, trained_on=0)
    judged_night(database, 10, Model("second", 0.69), first, num_rows=1000)
    for day in (39, 40):
        judged_night(database, day, Model("third", 0.74), first, num_rows=1000)
    nights = replayed(database, {"gate.margin": 0.1})
    assert [one.chain.champion_version for one in nights] == [None, None, 2, 2]
    assert [one.chain.verdict for one in nights] == ["hold", "promote", "hold", "promote"]
    assert nights[2].reason.endswith("refresh after 39 nights")
    assert nights[3].chain.reason.endswith("refresh after 30 nights")


def test_golden_rows_that_block_must_be_known_of_the_champion(database: Database) -> None:
    four_nights(database)
    nights = replayed(database, {"gate.golden_blocks": True, "gate.min_f1": 0.6})
    assert [one.chain.verdict for one in nights] == ["promote", "underpowered", "promote", "underpowered"]


def new_golden_rows(db: Database) -> list[Model]:
    """A third night with other golden rows, when version 2 is the champion of the lenient chain."""
    first = judged_night(db, 0, Model("first", 0.65))
    second = judged_night(db, 1, Model("second", 0.66), first)
    return [first, second, judged_night(db, 2, Model("third", 0.80), first, golden=OTHER_GOLDEN)]


def test_golden_rows_without_scores_are_rescored_if_they_block(database: Database) -> None:
    models, policy = new_golden_rows(database), LENIENT | {"gate.golden_blocks": True}
    unknown = replayed(database, policy)
    assert unknown[2].chain.verdict == "unknown"
    assert "golden" in unknown[2].chain.reason
    assert "--rescore" in summary(unknown)
    asked: list[tuple[str, int]] = []
    nights = replayed(database, policy, rescorer=rescoring(models, asked))
    assert asked == [(nights[2].run_id, 2)]
    assert [one.chain.verdict for one in nights] == ["promote"] * 3
    # The chain's champion stays if it is far better on the golden rows.
    stronger = [models[0], replace(models[1], skill=1.0), models[2]]
    blocked = replayed(database, policy | {"gate.margin": 1.0}, rescorer=rescoring(stronger, asked))
    assert (blocked[2].chain.verdict, blocked[2].chain.champion_version) == ("hold", 2)
    assert "golden" in blocked[2].chain.reason


def test_golden_rows_that_do_not_block_are_not_rescored(database: Database) -> None:
    models = new_golden_rows(database)

    def without_golden(run_id: str, version: VersionRow, fingerprints: tuple[str, ...], golden: Any) -> Rescored:
        assert golden == ()
        return rescoring(models, [])(run_id, version, fingerprints, golden)

    assert replayed(database, LENIENT, rescorer=without_golden)[2].chain.verdict == "promote"


def test_a_night_without_stored_golden_rows_is_unknown_and_does_not_suggest_to_rescore_again(
    database: Database,
) -> None:
    new_golden_rows(database)

    def fails(*_: Any) -> Rescored:
        raise SnapshotError("golden rows are missing", next_step="-")

    nights = replayed(database, LENIENT | {"gate.golden_blocks": True}, rescorer=fails)
    assert nights[2].chain.verdict == "unknown"
    assert nights[2].chain.reason.endswith("golden rows are missing")
    assert summary(nights, rescored=True).endswith(f"1 are unknown, the first 2026-03-03 ({nights[2].chain.reason})")


def test_a_spread_between_seeds_is_of_the_night_s_average_and_no_margin_of_another_one(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.65), seed_spread=0.006)
    judged_night(database, 1, Model("second", 0.80), first, seed_spread=0.006)
    policy = {"gate.policy": "non_inferior", "gate.margin_unit": "seed_spread", "gate.margin": 2}
    assert [one.replayed for one in replayed(database, policy)] == ["promote", "promote"]
    assert [one.replayed for one in replayed(database, policy | {"gate.average": "weighted"})] == ["promote"] * 2
    second = replayed(database, policy | {"gate.average": "macro"})[1]
    assert second.replayed == "hold"
    assert "nightgate seeds" in second.reason


@pytest.mark.parametrize("day", [1, 2, 3])
def test_a_chain_that_starts_later_starts_with_the_champion_of_its_first_night(database: Database, day: int) -> None:
    four_nights(database)
    nights = replayed(database, since=night_rows.night(day).date)
    assert [one.night for one in nights] == [night_rows.night(later).date for later in range(day, 4)]
    for one in nights:
        assert (one.chain.champion_version, one.chain.champion_f1) == (one.champion_version, one.champion_f1)
        assert (one.chain.verdict, one.chain.reason) == (one.verdict, one.reason)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"gate.polcy": "superior"}, "gate.policy"),
        ({"gate.min_f1": 2}, "min_f1"),
        ({"training.epochs": 1}, "training.epochs"),
    ],
)
def test_an_invalid_policy_is_refused(overrides: dict[str, Any], named: str) -> None:
    config = night_rows.pipeline().record()
    with pytest.raises(ConfigurationError, match=named) as caught:
        policy_of(config, overrides)
    assert caught.value.next_step


def test_a_key_that_a_stored_policy_lacks_has_its_default() -> None:
    config = night_rows.pipeline().record()
    del config["gate"]["refresh_after"]
    policy = policy_of(config, {"gate.margin": 0.02})
    assert (policy.refresh_after, policy.margin) == (30, 0.02)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_command_prints_nights_and_saves_a_picture(database: Database, home: Any) -> None:
    four_nights(database)
    command = ["gate", "replay", "reviews", "--set", "gate.policy=non_inferior", "--set", "gate.margin=0.05"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split()[:5] == ["night", "verdict", "replayed", "flips", "chain_verdict"]
    assert "2 of 4 verdicts flip" in done.stderr
    picture = home.root / "reports" / "reviews" / "replay.svg"
    assert f"picture: {picture}" in done.stderr
    assert "gate.policy=non_inferior" in picture.read_text(encoding="utf-8")
    rows = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert [row["chain_version"] for row in rows] == [None, 1, 2, 2]
    assert rows[2]["chain_reason"].startswith("version 2 was scored on")
    wrong = CliRunner().invoke(app, ["gate", "replay", "reviews", "--set", "gate.min_f1=high"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("database")
def test_without_nights_commands_still_refuse_invalid_policies_and_print_their_columns() -> None:
    runner = CliRunner()
    for command in ("replay", "power"):
        wrong = runner.invoke(app, ["gate", command, "sample", "--set", "gate.polcy=superior"])
        assert (wrong.exit_code, wrong.stdout, "gate.policy" in wrong.stderr) == (2, "", True)
    rows = runner.invoke(app, ["gate", "replay", "sample", "--format", "csv"])
    assert (rows.exit_code, rows.stdout[:21]) == (0, "night,run_id,status,m")
    assert rows.stdout.endswith(",break_before,redefined\n")
    nothing = runner.invoke(app, ["gate", "replay", "sample"])
    assert "`nightgate run sample`" in nothing.stderr
    for command in ("versions", "history", "champion"):
        assert "`nightgate run sample`" in runner.invoke(app, [command, "sample"]).stderr


@pytest.mark.slow
def test_a_real_version_is_scored_again_as_the_night_scored_it(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_first_night(environment)
    monkeypatch.setenv("NIGHTGATE_HOME", str(environment))
    home = existing_home()
    with Database.open(home) as db:
        [version] = versions(db, "small")
        run_id = newest_judged(db, "small")
        evidence = load_evidence(db, run_id)
        backwards = evidence.golden.fingerprints[::-1]
        found = rescore(db, home, run_id, {"champion": version}, evidence.test.fingerprints, backwards)["champion"]
        # So small a model may predict the same for all of them.
        [golden_set] = (home.golden / "small").iterdir()
        assert rescoring_module._places(golden_set, backwards) == list(range(len(backwards)))[::-1]
        assert rescoring_module._places(golden_set, backwards[:2]) == [len(backwards) - 1, len(backwards) - 2]
        shutil.rmtree(home.golden / "small")
        with pytest.raises(SnapshotError, match=str(len(backwards))):
            rescore(db, home, run_id, {"champion": version}, evidence.test.fingerprints, backwards)
    assert found.predictions.tolist() == evidence.candidate.predictions.tolist()
    assert found.golden.tolist() == evidence.candidate.golden[::-1].tolist()
    assert not found.trained_on.any()
