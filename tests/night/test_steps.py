"""The steps of a night in this process: the values that they return, and how a disturbed night ends."""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file, save_file

from nightgate.config.pipeline import Pipeline
from nightgate.data.golden_rows import GoldenSet
from nightgate.data.tip import hold_data
from nightgate.database.connection import database_url
from nightgate.database.gate_schema import TestPrediction
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import (
    CrashedError,
    DataError,
    ModelError,
    NightgateError,
    NonFiniteLossError,
    OutOfMemoryError,
    RegistryError,
    StalledError,
)
from nightgate.frames import champions as frames
from nightgate.frames.nights import history
from nightgate.gate.decide import decide
from nightgate.gate.decision import Measured
from nightgate.gate.evidence import Evidence, Serving
from nightgate.home import Home, open_home
from nightgate.label_meaning import LabelMeaning
from nightgate.models import serving_check
from nightgate.night import ending, scoring, steps
from nightgate.night.evidence import gather_evidence
from nightgate.night.night import Steps, run_night, run_steps
from nightgate.night.run import NightRun, open_night
from nightgate.night.values import Evaluated, Judged, Scored, Served, Trained
from nightgate.pipeline_files import load_pipeline
from nightgate.registry import anchors, approvals, champions, promotion, versions
from nightgate.runs import evidence_store, inputs, lifecycle, records
from nightgate.runs.run_row import RunRow
from nightgate.schedule import Night, chosen_night, scheduled_night
from nightgate.training.predictions import read_predictions
from nightgate.training.protocol import ScoreJob, ScoreResult, TrainResult
from tests.support import night_rows
from tests.support.after_verdict import Case
from tests.support.first_night import copy_first_night, first_night, held_night
from tests.support.tiny import tiny_pipeline, write_tiny_model, write_tiny_reviews

pytestmark = pytest.mark.process

SHORT = {"training.epochs": 1, "data.source.rows_per_day": 15}


def night_of(pipeline: Pipeline, day: int) -> Night:
    return chosen_night(pipeline.schedule, date(2026, 1, day))


@pytest.fixture
def site(environment: Path) -> Path:
    """The pipeline's file; version 1 is the champion since the night of 5 January."""
    return copy_first_night(environment).pipeline


@pytest.fixture
def empty_site(home: Home) -> Path:
    """The same pipeline in a new home."""
    upgrade(database_url(home))
    return first_night().pipeline


@contextmanager
def broken_by(kind: type[BaseException], said: str = "") -> Iterator[None]:
    """The block must end with this error."""
    with pytest.raises(kind) as raised:
        yield
    assert said in str(raised.value)


def the_row(run: NightRun | RunRow) -> dict[str, Any]:
    with Database.open(open_home()) as db:
        return night_rows.one(db, run.run_id)


def evidence_of(run: RunRow) -> Evidence:
    with Database.open(open_home()) as db:
        return evidence_store.load_evidence(db, run.run_id)


# --- the champion ---


def test_a_first_night_that_should_go_on_trains_in_full_and_says_why() -> None:
    held = held_night()
    assert "trains in full: there is no version of an earlier night" in held.done.stderr
    assert re.search(r"Training +in full, [\d,]+ rows: there is no version of an earlier night", held.done.stdout)
    run_report = max((held.home / "runs").iterdir(), key=lambda path: path.stat().st_mtime) / "report.html"
    assert "there is no version of an earlier night" in run_report.read_text()


def test_a_night_in_bf16_says_so_on_every_row_and_its_model_is_served_in_fp32() -> None:
    with Database.open(open_home(held_night().home)) as db:
        [run_id] = db.frame("SELECT run_id FROM nightly_runs WHERE status = 'held'")["run_id"]
        for view, column in (
            *((name, "precision") for name in ("nightly_runs", "gate_checks", "gate_sides", "test_predictions")),
            *((name, "compute_precision") for name in ("epoch_results", "slice_metrics", "confusion")),
            *((name, "scoring_precision") for name in ("nightly_runs", "model_versions")),
        ):
            found = db.frame(f"SELECT {column} FROM {view} WHERE run_id = :run", {"run": run_id})[column]
            assert set(found) == {"bf16"}, (view, column)
        query = "SELECT * FROM gate_checks WHERE check_name = 'serving' AND run_id = :run"
        [served] = db.frame(query, {"run": run_id}).to_dict("records")
    assert served["outcome"] == "passed"
    assert served["candidate_value"] < 1e-4
    assert "scored in bf16" in served["reason"]


@pytest.mark.slow
def test_new_labels_lead_to_a_held_night_that_says_what_to_do(site: Path, environment: Path) -> None:
    three = {"1": "bad", "2": "bad", "3": "fine", "4": "good", "5": "good"}
    pipeline = load_pipeline(site, {**SHORT, "data.labels": three, "gate.policy": "superior"})
    run = run_night(pipeline, night_of(pipeline, 6))
    row = the_row(run)
    assert (row["status"], row["verdict"], row["model_version"]) == ("held", "hold", 2)
    assert (
        "the champion (version 1) knows the labels 1, 2, 3, 4, 5 and the pipeline has bad, fine, good" in row["reason"]
    )
    assert row["next_step"].endswith("nightgate promote small 2 --reason TEXT")
    with Database.open(open_home()) as db:
        checks = db.frame(f"SELECT * FROM gate_checks WHERE run_id = '{run.run_id}'").set_index("check_name")
        assert checks.loc["beats_champion", "outcome"] == "failed"
        assert checks.loc["min_f1", "outcome"] == "passed"
        champions.promote_manually(db, db.home, "small", 2, reason="three labels from now on", by="a test")
    assert champions.load_champion("small").label_names == ("bad", "fine", "good")
    assert environment.is_dir()


@pytest.mark.slow
def test_a_mapping_that_means_something_else_is_held_under_every_policy_until_a_person_accepts_it(
    site: Path, environment: Path
) -> None:
    swapped = {"5": "1", "2": "2", "3": "3", "4": "4", "1": "5"}
    pipeline = load_pipeline(site, {"data.labels": swapped, "gate.policy": "threshold_only"})
    assert set(pipeline.data.label_names) == set("12345")
    row = run_with(environment / "models/small/v0001", pipeline, day=6)
    assert row.status == "held"
    assert "'1' was 1 and is 5, '5' was 5 and is 1" in row.reason
    assert str(row.next_step).endswith("nightgate promote small 2 --reason TEXT")
    found = evidence_of(row)
    assert found.champion is not None
    assert (found.champion.relabelled, found.champion.predictions, found.champion.golden) == (True, None, None)
    assert (row.champion_version, the_row(row)["champion_f1"]) == (1, None)
    broken = history("small")["break_before"].iloc[1]
    assert "labels mean something else" in broken
    assert len(list((environment / "golden/small").iterdir())) == 2, "not judged by old labels"
    with Database.open(open_home()) as db:
        champions.promote_manually(db, db.home, "small", 2, reason="so it is meant", by="a test")
    assert champion_and_anchor() == (2, 2)


def test_drift_of_the_new_rows_is_recorded_once_a_run(site: Path) -> None:
    # Another shop, so that all rows are new, whose stars are counted backwards.
    turned = {"data.source.seed": 7, "data.labels": {str(star): 6 - star for star in range(1, 6)}}
    pipeline = load_pipeline(site, {**turned, "data.checks.max_label_shift": 1.0})
    with broken_by(DataError, "enough"), open_night(pipeline, night_of(pipeline, 6)) as run:
        snapshot = steps.refresh(run)
        steps.refresh(replace(run, snapshot_path=snapshot.path))
        raise DataError("enough")
    with Database.open(open_home()) as db:
        found = db.frame("SELECT * FROM data_drift ORDER BY reference")
        rows = db.frame("SELECT rows_new, rows_trained FROM nights ORDER BY night")
    assert set(found["run_id"]) == {run.run_id}, "the first night has nothing to compare with"
    statistics = ["label_shares", "new_words", "slice_shares", "text_length", "unknown_tokens"]
    by_reference = {name: sorted(one["statistic"]) for name, one in found.groupby("reference")}
    assert by_reference == {"champion": statistics, "last_week": statistics}
    assert set(found[found["outcome"] == "warning"]["statistic"]) == {"label_shares"}
    assert set(found["rows_used"]) == {rows["rows_new"].iloc[1]}
    used = found.groupby("reference")["reference_rows"].max()
    assert used["champion"] == rows["rows_trained"].iloc[0]
    assert 150 < used["last_week"] < rows["rows_new"].iloc[0]


def test_a_damaged_champion_ends_the_night_before_it_trains(site: Path, environment: Path) -> None:
    _flip_a_byte(environment / "models/small/v0001/model.safetensors")
    pipeline = load_pipeline(site, SHORT)
    with broken_by(ModelError, "model.safetensors is altered"), open_night(pipeline, night_of(pipeline, 6)) as run:
        steps.fine_tune(run, steps.refresh(run), lambda _: None)
    row = the_row(run)
    assert (row["status"], row["error_type"]) == ("failed", "model")
    assert "nightgate rollback" in row["next_step"]
    assert not list(run.directory.glob("attempt-*/job.json"))


def test_a_damaged_anchor_is_a_flaw_of_its_own_and_costs_no_night(site: Path, environment: Path) -> None:
    _flip_a_byte(environment / "models/small/v0001/model.safetensors")
    pipeline = load_pipeline(site, SHORT)
    with broken_by(DataError, "enough"), open_night(pipeline, night_of(pipeline, 6)) as run:
        version = versions.anchor(run.db, "small")
        assert version is not None
        assert (
            "model.safetensors is altered"
            in scoring._anchor(run, version, LabelMeaning.of(pipeline.record()["data"])).flaw
        )
        raise DataError("enough", next_step="-")


@pytest.mark.slow
def test_the_champion_is_scored_again_whatever_an_earlier_night_stored(site: Path, environment: Path) -> None:
    pipeline = load_pipeline(site, {"gate.min_f1": 0.0})
    # The same weights as the champion's, so the labels of both must agree.
    candidate = shutil.copytree(environment / "models/small/v0001", environment / "candidate")
    with broken_by(DataError, "enough"), open_night(pipeline, night_of(pipeline, 6)) as run:
        [first_night_s] = run.db.frame("SELECT num_rows FROM test_set WHERE kind = 'test'")["num_rows"]
        wrong = zlib.compress(bytes(int(first_night_s)))
        run.db.write(lambda session: session.execute(sa.update(TestPrediction).values(labels=wrong)))
        snapshot, trained = steps.refresh(run), trained_as(candidate)
        scored = scoring.score_on_test(run, snapshot, trained)
        found = gather_evidence(run, snapshot, trained, scored, Served(Serving()))
        champion, labels = found.champion, found.candidate.predictions
        assert champion is not None
        assert labels is not None
        assert np.array_equal(champion.predictions, labels)
        assert labels.any(), "not what was stored"
        assert champion.calibration_error == found.candidate.calibration_error
        raise DataError("enough", next_step="-")


# --- an anchor that is not the champion ---


def always(label: int, home: Path) -> Path:
    """Version 1 with a head that gives every row this label."""
    folder = shutil.copytree(home / "models/small/v0001", home / "always" / uuid.uuid4().hex)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = torch.where(torch.arange(5) == label, 99.0, 0.0)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def trained_as(model: Path) -> Trained:
    return Trained(TrainResult(1, model, 1, False, 0, "cpu", "fp32", "", 1, "packed", "", 1), None, None)


def run_with(model: Path, pipeline: Pipeline, day: int) -> RunRow:
    """A night whose training returns this model."""
    with open_night(pipeline, night_of(pipeline, day)) as run:
        return run_steps(run, Steps(fine_tune=lambda *_: trained_as(model)))


def measured(row: RunRow, pipeline: Pipeline) -> Measured:
    found = decide(evidence_of(row), pipeline.gate).measured
    assert found is not None
    return found


@pytest.fixture
def blind_anchor(site: Path, environment: Path) -> Pipeline:
    """Version 1 is the champion, and version 2 the anchor, which gives every row the rarest label."""
    # So few rows separate models at no higher confidence.
    pipeline = load_pipeline(site, {"gate.confidence": 0.5})
    with open_night(pipeline, night_of(pipeline, 6)) as run:
        judged = Judged(night_rows.decision("hold"), night_rows.scores())
        steps.register_candidate(run, steps.refresh(run), trained_as(always(RAREST, environment)), judged)
        run.finish("held", "it is blind")
        for version, move_anchor in ((2, True), (1, False)):
            champions.promote_manually(
                run.db, run.home, "small", version, reason="so it is", by="a test", move_anchor=move_anchor
            )
    return pipeline


RAREST, ANOTHER = 1, 4
"""Labels of the test rows, as their classes are numbered."""


def champion_and_anchor() -> tuple[int, int]:
    with Database.open(open_home()) as db:
        champion, anchor = versions.champion(db, "small"), versions.anchor(db, "small")
    assert champion is not None
    assert anchor is not None
    return champion.version, anchor.version


@pytest.mark.slow
def test_an_anchor_that_is_not_the_champion_is_a_side_of_its_own_and_moves_when_the_gate_says_so(
    blind_anchor: Pipeline, environment: Path
) -> None:
    row = run_with(always(RAREST, environment), blind_anchor, day=7)
    found, figures = evidence_of(row), measured(row, blind_anchor)
    assert found.champion is not None
    assert found.anchor is not None
    assert (found.champion.version, found.anchor.version) == (1, 2)
    assert found.champion.predictions is not None
    assert found.anchor.predictions is not None
    assert set(found.anchor.predictions.tolist()) == {RAREST}
    assert RAREST not in found.champion.predictions
    with Database.open(open_home()) as db:
        [stored] = db.frame("SELECT * FROM run WHERE run_id = :run", {"run": row.run_id}).to_dict("records")
    assert figures.champion is not None
    assert figures.anchor is not None
    assert (stored["champion_version"], stored["champion_f1"]) == (1, figures.champion.f1)
    assert (stored["anchor_version"], stored["anchor_f1"]) == (2, figures.anchor.f1)
    assert stored["anchor_f1"] != stored["champion_f1"]
    assert not figures.moves_anchor
    assert (row.status, champion_and_anchor()) == ("promoted", (3, 2))
    row = run_with(always(ANOTHER, environment), blind_anchor, day=8)
    assert measured(row, blind_anchor).moves_anchor
    assert (row.status, champion_and_anchor()) == ("promoted", (4, 4))


def test_a_candidate_whose_anchor_was_moved_after_it_was_judged_is_held(
    blind_anchor: Pipeline, environment: Path
) -> None:
    with open_night(blind_anchor, night_of(blind_anchor, 7)) as run:
        snapshot, trained = steps.refresh(run), trained_as(always(ANOTHER, environment))
        champion, anchor = versions.champion(run.db, "small"), versions.anchor(run.db, "small")
        scored = Scored(champion, anchor, {}, GoldenSet("", None, "", ()), ScoreResult({}, {}, {}, "fp32", {}))
        judged = Judged(night_rows.decision(), night_rows.scores())
        records.record_decision(run.db, run.run_id, run.attempt, judged.decision, scores=judged.test)
        version = steps.register_candidate(run, snapshot, trained, judged)
        anchors.move(run.db, "small", 1, by="ada", reason="2 is blind")
        row = ending.finish(run, scored, judged, version)
    assert (row.status, champion_and_anchor()) == ("held", (1, 1))
    assert "the anchor version 2, but now that is version 1" in row.reason


# --- the end of a night ---


@pytest.mark.slow
def test_a_night_whose_champion_was_promoted_after_it_was_scored_is_held(empty_site: Path) -> None:
    pipeline = load_pipeline(empty_site, {**SHORT, "gate.min_f1": 1.0})
    assert run_night(pipeline, night_of(pipeline, 5)).status == "held"
    pipeline = load_pipeline(empty_site, SHORT)

    def register_too_late(run: NightRun, *given: Any) -> int:
        version = steps.register_candidate(run, *given)
        with Database.open(run.home) as another:
            promotion.promote(another, "small", 1, expected=None, by="ada", reason="in between")
        return version

    with open_night(pipeline, night_of(pipeline, 6)) as run:
        ended = run_steps(run, Steps(register=register_too_late))
    row = the_row(run)
    assert (ended.status, row["status"], row["verdict"]) == ("held", "held", "promote")
    assert "expected to replace no champion, but now there is version 1" in row["reason"]
    assert row["error_type"] is None
    assert frames.champion("small")["version"].tolist() == [1]


def test_after_a_night_predictions_and_logs_stay_and_checkpoints_go() -> None:
    [run_dir] = (first_night().home / "runs").iterdir()
    kept = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert {"attempt-1/log.txt", "attempt-1/epochs/epoch-0001.npz", "attempt-1/epochs/epoch-0002.npz"} <= kept
    assert "attempt-1/test/candidate.npz" in kept
    assert not [name for name in kept if name.endswith(".safetensors")]


def test_a_night_that_ended_is_opened_as_it_ended(site: Path) -> None:
    pipeline = load_pipeline(site)
    with open_night(pipeline, night_of(pipeline, 5)) as run:
        assert run.ended is not None
        assert (run.ended.status, run.attempt) == ("promoted", 1)
    assert run_night(pipeline, night_of(pipeline, 5)).run_id == run.run_id
    assert the_row(run)["status"] == "promoted"


def test_a_night_whose_data_cannot_be_read_leaves_the_candidate_that_waits(home: Home, tmp_path: Path) -> None:
    upgrade(database_url(home))
    file = tmp_path / "reviews.toml"
    file.write_text(
        'name = "reviews"\n[data]\ntext = "body"\nlabel = "stars"\nlabels = ["bad", "good"]\n'
        f'source = {{ kind = "files", paths = ["{tmp_path}/header.csv"] }}\n'
        f'[training]\nbase_model = "{tmp_path}"\n',
        encoding="utf-8",
    )
    (tmp_path / "header.csv").write_text("body,stars\n")
    (tmp_path / "config.json").write_text("{}")
    with Database.open(home) as db:
        waits, _ = night_rows.judged_version(db)
        patience = timedelta(hours=18)
        approvals.request(db, waits.run_id, 1, expected=None, patience=patience, reason="better", next_step="approve")
    pipeline = load_pipeline(file)
    with broken_by(DataError, "no rows"):
        run_night(pipeline, chosen_night(pipeline.schedule, date(2026, 3, 3)))
    assert history("reviews")["status"].tolist() == ["waiting", "failed"]
    with Database.open(home) as db:
        assert approvals.find(db, "reviews").run_id == waits.run_id


def test_a_scheduled_night_without_news_is_skipped_and_a_manual_one_is_run(home: Home, tmp_path: Path) -> None:
    upgrade(database_url(home))
    pipeline = tiny_pipeline(tmp_path, rows=60, epochs=1)

    def is_skipped(night: Night, **options: bool) -> bool:
        with open_night(pipeline, night, **options) as run:
            # Else as a night that trained and was not better.
            row = steps.decide(run, steps.refresh(run), Evaluated(())) or run.finish("held", "not better")
        assert the_row(run)["status"] == row.status
        return row.status == "skipped"

    def due_on(day: int) -> Night:
        return scheduled_night(pipeline.schedule, datetime(2026, 1, day, 3, 15, tzinfo=UTC))

    assert not is_skipped(due_on(5)), "the first"
    assert is_skipped(due_on(6))
    assert not is_skipped(night_of(pipeline, 7)), "manual"
    assert not is_skipped(due_on(8), force=True)
    assert not is_skipped(due_on(9), dry_run=True)
    assert is_skipped(due_on(10))
    # The only run of the 9th was a dry run: the next run records the night as missed.
    assert history(pipeline.name).set_index("night")["status"].astype(str).to_dict()[date(2026, 1, 9)] == "missed"


@pytest.mark.slow
def test_other_weights_another_library_and_another_golden_file_are_news(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(database_url(home))
    plain = tiny_pipeline(tmp_path, rows=60, epochs=1)
    golden = write_tiny_reviews(tmp_path / "golden.csv", rows=20, seed=1)
    pipeline = plain.model_copy(update={"data": plain.data.model_copy(update={"golden": str(golden)})})
    libraries = inputs.library_versions()

    def status(day: int) -> str:
        return run_night(pipeline, scheduled_night(pipeline.schedule, datetime(2026, 1, day, 3, 15, tzinfo=UTC))).status

    assert status(5) in {"promoted", "held"}
    assert status(6) == "skipped"
    write_tiny_model(tmp_path / "base", seed=1)
    assert status(7) in {"promoted", "held"}
    monkeypatch.setattr(inputs, "library_versions", lambda: libraries | {"torch": "99.0"})
    assert status(8) in {"promoted", "held"}
    write_tiny_reviews(golden, rows=20, seed=2)
    assert status(9) in {"promoted", "held"}
    assert status(10) == "skipped"
    news = [line.split(" was ")[0] for line in caplog.messages if line.startswith("trains: ") and " was " in line]
    assert news == ["trains: base model", "trains: torch", "trains: golden file"]


@pytest.mark.parametrize("thrown", [DataError("no rows", next_step="bring rows"), ZeroDivisionError("a fault")])
def test_a_night_that_breaks_has_a_report_unless_another_attempt_has_taken_it_over(
    home: Home, tmp_path: Path, thrown: Exception
) -> None:
    upgrade(database_url(home))
    pipeline = tiny_pipeline(tmp_path, rows=60, epochs=1)

    def begun() -> AbstractContextManager[NightRun]:
        return open_night(pipeline, night_of(pipeline, 5), prefect_flow_run_id="flow-1")

    def reported() -> str:
        [path] = home.runs.glob("*/report.html")
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return text

    with broken_by(type(thrown)), begun():
        raise thrown
    assert ": failed</title>" in reported()
    with broken_by(RegistryError, "attempt 3 has taken over"), begun() as given_up:
        with broken_by(type(thrown)), begun():
            raise thrown
        assert ": failed</title>" in reported()
        lifecycle.record_attempt(given_up.db, given_up.run_id, given_up.attempt, threads=1)
    assert list(home.runs.glob("*/report.html")) == [], "nothing of attempt 2"


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_second_run_is_recorded_as_superseded_and_names_the_first(empty_site: Path, dry_run: bool) -> None:
    pipeline = load_pipeline(empty_site)
    night = night_of(pipeline, 5)
    with broken_by(DataError), open_night(pipeline, night) as first:
        with open_night(pipeline, night_of(pipeline, 6), dry_run=dry_run) as second:
            assert second.ended is not None
            assert (second.ended.status, second.dry_run) == ("superseded", dry_run)
            assert f"run {first.run_id} (process " in second.ended.reason
        raise DataError("the first goes on to fail on its own")
    assert the_row(first)["status"] == "failed"


@pytest.mark.parametrize(
    ("thrown", "status", "error_type", "reason"),
    [
        (DataError("no rows", next_step="bring rows"), "failed", "data", "no rows"),
        (ZeroDivisionError("division by zero"), "failed", "internal", "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "cancelled", "cancelled", "stopped by Ctrl-C or SIGTERM before the first checkpoint"),
        (SystemExit(1), "cancelled", "cancelled", "stopped by SystemExit before the first checkpoint"),
        # How Prefect ends a run whose lease on its deployment is lost.
        (asyncio.CancelledError(), "failed", "crashed", "before the first checkpoint"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_or_a_signal_ends_the_run_in_its_row(
    empty_site: Path, thrown: BaseException, status: str, error_type: str, reason: str
) -> None:
    pipeline = load_pipeline(empty_site)
    with broken_by(type(thrown)), open_night(pipeline, night_of(pipeline, 5)) as run:
        raise thrown
    row = the_row(run)
    assert (row["status"], row["error_type"]) == (status, error_type)
    assert reason in row["reason"]
    assert row["next_step"]
    with broken_by(DataError), open_night(pipeline, night_of(pipeline, 5)) as again:
        assert (again.run_id, again.attempt, again.ended) == (run.run_id, 2, None)
        raise DataError("enough")


def test_ctrl_c_says_whether_there_is_a_checkpoint_to_go_on_from(empty_site: Path) -> None:
    pipeline = load_pipeline(empty_site)

    def stopped() -> tuple[str, str]:
        with pytest.raises(KeyboardInterrupt) as raised, open_night(pipeline, night_of(pipeline, 5)) as run:
            raise KeyboardInterrupt
        assert raised.value.__notes__ == [the_row(run)["next_step"]]
        (run.directory / "attempt-1/checkpoint/epoch-0001").mkdir(parents=True, exist_ok=True)
        (run.directory / "attempt-1/checkpoint/epoch-0001/state.json").touch()
        return the_row(run)["reason"], the_row(run)["next_step"]

    assert ("nothing to resume" in stopped()[0], "last checkpoint is kept" in stopped()[0]) == (True, True)
    assert "goes on from the last checkpoint" in stopped()[1]


def test_what_to_do_next_is_stored_without_secrets(empty_site: Path) -> None:
    pipeline = load_pipeline(empty_site)
    with broken_by(DataError), open_night(pipeline, night_of(pipeline, 5)) as run:
        raise DataError("no rows", next_step="look at postgresql://me:hush-hush@db/rows")
    assert the_row(run)["next_step"] == "look at postgresql://***@db/rows"


def test_a_resumed_night_waits_for_what_writes_its_rows_anew(empty_site: Path) -> None:
    pipeline = load_pipeline(empty_site)
    with broken_by(ModelError), open_night(pipeline, night_of(pipeline, 5)) as run:
        taken_in = steps.refresh(run)
        raise ModelError("no model")
    with broken_by(DataError), open_night(pipeline, night_of(pipeline, 5)) as again, ThreadPoolExecutor() as pool:
        with hold_data(again.home, pipeline.name, "retention"):
            resuming = pool.submit(steps.refresh, again)
            with pytest.raises(TimeoutError):
                resuming.result(timeout=0.3)
        assert resuming.result() == taken_in
        raise DataError("enough")


def test_a_night_that_failed_with_another_configuration_is_not_resumed_but_run_anew(empty_site: Path) -> None:
    pipeline, other = load_pipeline(empty_site), load_pipeline(empty_site, {"training.seed": 7})
    with broken_by(DataError), open_night(pipeline, night_of(pipeline, 5)) as first:
        raise DataError("no rows")
    with broken_by(DataError), open_night(other, night_of(other, 5)) as second:
        assert second.run_id != first.run_id
        raise DataError("no rows either")


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_logit_that_is_not_finite_is_no_prediction(tmp_path: Path) -> None:
    np.savez(tmp_path / "sound.npz", logits=np.array([[0.0, 2.0], [1.0, 0.0]], np.float32))
    assert read_predictions(tmp_path / "sound.npz").tolist() == [1, 0]
    for value in (np.nan, np.inf):
        np.savez(tmp_path / "broken.npz", logits=np.array([[0.0, value], [1.0, 0.0]], np.float32))
        with pytest.raises(NonFiniteLossError, match="1 of 2 rows"):
            read_predictions(tmp_path / "broken.npz")


# --- a process that says nothing of the candidate ---


class Scoring:
    """Scores jobs, except those with a model that kills the process."""

    def __init__(self, *kills: str, by: NightgateError | None = None) -> None:
        self.kills, self.error, self.jobs = kills, by or CrashedError("died of SIGSEGV"), list[list[str]]()

    def __call__(self, job: ScoreJob) -> ScoreResult:
        self.jobs.append(list(job.models))
        if set(self.kills) & set(job.models):
            raise self.error
        return ScoreResult(dict(job.models), {}, {}, "fp32", {})


SIDES = {name: Path(name) for name in ("candidate", "champion", "anchor")}


@pytest.mark.parametrize("kills", [("champion",), ("anchor",), ("champion", "anchor")])
def test_sides_that_no_process_can_score_are_left_out_with_the_reason(kills: tuple[str, ...]) -> None:
    for error in (StalledError("made no step"), ModelError("has no config.json")):
        result, flaws = scoring.score_with_flaws(ScoreJob({}, Path(), SIDES, Path()), Scoring(*kills, by=error))
        assert set(result.written) == set(SIDES) - set(kills)
        assert flaws == dict.fromkeys(kills, f"cannot be scored: {error.reason}")


def test_a_candidate_that_cannot_be_scored_and_a_lack_of_memory_stay_failures() -> None:
    job = ScoreJob({}, Path(), SIDES, Path())
    for kills in (("candidate",), ("candidate", "champion")):
        with pytest.raises(CrashedError):
            scoring.score_with_flaws(job, Scoring(*kills))
    starved = Scoring("champion", by=OutOfMemoryError("was killed (SIGKILL)"))
    with pytest.raises(OutOfMemoryError):
        scoring.score_with_flaws(job, starved)
    assert len(starved.jobs) == 1


@pytest.mark.slow
def test_a_champion_that_kills_every_scoring_process_is_held_and_not_failed(
    site: Path, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def aborts(event, given):\n"
        "    if event == 'open' and 'v0001' in str(given[0]) and 'config.json' in str(given[0]):\n"
        "        os.abort()\n"
        "sys.addaudithook(aborts)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pipeline = load_pipeline(site, {"gate.policy": "non_inferior"})
    row = run_with(always(RAREST, environment), pipeline, day=7)
    assert (row.status, row.error_type) == ("held", None)
    assert "SIGABRT" in row.reason
    assert "nightgate promote small 2 --reason" in row.next_step
    champion = evidence_of(row).champion
    assert champion is not None
    assert "cannot be scored: the scoring process died of SIGABRT" in champion.flaw
    assert not champion.relabelled


def test_a_serving_process_that_is_killed_fails_the_night_without_a_verdict(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    case = Case()
    with monkeypatch.context() as patch, broken_by(OutOfMemoryError, "SIGKILL"):
        patch.setattr(serving_check, "SCRIPT", probe)
        case.run(try_serving=scoring.try_serving)
    [row] = history("small", since=case.date).to_dict("records")
    assert (row["status"], row["error_type"], row["verdict"]) == ("failed", "out_of_memory", None)
    assert "run the same command again" in row["next_step"]
    # A champion that kills every process does not keep the candidate from being judged.
    probe.write_text(
        "import json, os, sys\n"
        "if 'champion' in json.load(open(sys.argv[1]))['models']: os.abort()\n"
        "for answer in ({'model': 'candidate', 'flaw': 'its weights lack all'}, {'latency_ms': {}}):\n"
        "    print(json.dumps(answer))"
    )
    monkeypatch.setattr(serving_check, "SCRIPT", probe)
    resumed = case.run(try_serving=scoring.try_serving)
    assert (resumed.run_id, resumed.attempt, resumed.status) == (row["run_id"], 2, "held")
    assert "its weights lack all" in resumed.reason
    assert site.is_file()
