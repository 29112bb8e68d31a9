"""Seed studies: rows and files, what they leave unchanged, and resuming."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import psutil
import pytest
import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from nightgate.analysis import seed_runs, seed_study
from nightgate.analysis.seed_study import SeedScore, Study
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline, Retention
from nightgate.data.refresh import Refreshed
from nightgate.data.rules import split_version
from nightgate.data.snapshots import Snapshot, open_snapshot
from nightgate.database.schema import Snapshot as SnapshotRow
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, DataError, StorageError, TrainingError
from nightgate.home import Home, open_home
from nightgate.pipeline_files import load_pipeline
from nightgate.registry.data_retention import kept_snapshots
from nightgate.registry.redaction import redact_deltas
from nightgate.runs import lifecycle, records
from nightgate.training import launch, supervisor
from nightgate.training.protocol import Progress, TrainJob
from tests.conftest import free_port
from tests.support import night_rows
from tests.support.first_night import FirstNight, copy_first_night, first_night
from tests.support.night import command, nightgate

pytestmark = pytest.mark.process

LEFT_BY_NIGHTS = ("nightly_runs", "epoch_results", "gate_checks", "model_versions", "champion_timeline", "promotions")


# --- studies in the database ---


def night_with_snapshot(db: Database, day: int = 0, pipeline: Pipeline | None = None) -> str:
    """Store a finished night with a snapshot on disk; returns the snapshot's id."""
    pipeline = pipeline or night_rows.pipeline()
    made = night_rows.refreshed(db, f"s-{day:016d}").snapshot
    until = night_rows.night(day).data_until.isoformat()
    manifest = {**made.manifest, "test_version": split_version(pipeline), "data_until": until}
    opened = night_rows.open_run(db, pipeline, night_rows.night(day))
    records.record_snapshot(db, opened.run_id, 1, Refreshed(Snapshot(made.id, made.path, manifest), (), 1, 100, 0))
    lifecycle.finish_run(db, opened.run_id, 1, "held")
    return made.id


def scored(seed: int, f1: float | None = 0.6) -> SeedScore:
    return SeedScore(seed, 3, 0.61, f1, f1, 12.5)


def store(db: Database, study: Study, *f1s: float) -> None:
    for seed, f1 in zip(study.seeds, f1s, strict=True):
        seed_study.record_score(db, study, scored(seed, f1))
    seed_study.finish_study(db, study.study_id)


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ({"training": {"seed": 7, "learning_rate": 5e-5, "metrics": ["mae"]}}, True),
        ({"gate": {"margin": 0.02, "min_f1": 0.1}}, True),
        ({"gate": {"average": "macro"}}, False),
        ({"training": {"learning_rate": 1e-5}}, False),
        ({"split": {"seed": 7}}, False),
    ],
)
def test_the_configuration_of_a_study_leaves_out_the_seed_and_the_gates_policy(
    setting: dict[str, Any], same: bool
) -> None:
    usual = night_rows.pipeline()
    other = Pipeline.model_validate({**usual.record(), **setting})
    assert (seed_study.config_hash(other) == seed_study.config_hash(usual)) is same


def test_seeds_begin_with_the_configured_one_and_stay_within_bounds() -> None:
    pipeline = night_rows.pipeline()
    assert seed_study.seeds_of(pipeline, 3) == (42, 43, 44)
    last = Pipeline.model_validate({**pipeline.record(), "training": {"seed": 2**32 - 1}})
    assert seed_study.seeds_of(last, 2) == (2**32 - 1, 0)


def test_a_pipeline_without_a_snapshot_names_the_command(database: Database) -> None:
    with pytest.raises(DataError, match="reviews") as raised:
        seed_study.open_study(database, night_rows.pipeline(), 3)
    assert raised.value.next_step.endswith("nightgate run reviews")


def test_the_newest_snapshot_on_disk_is_taken_or_that_of_a_night(database: Database, home: Home) -> None:
    made = [night_with_snapshot(database, day) for day in range(3)]
    pipeline = night_rows.pipeline()
    study = seed_study.open_study(database, pipeline, 2)
    assert (study.snapshot_id, study.data_until) == (made[2], "2026-03-03T03:15:00+00:00")
    shutil.rmtree(home.snapshots / "reviews" / made[2])
    assert seed_study.open_study(database, pipeline, 2).snapshot_id == made[1]
    assert seed_study.open_study(database, pipeline, 2, date(2026, 3, 1)).snapshot_id == made[0]
    with pytest.raises(DataError, match="2026-03-03") as raised:
        seed_study.open_study(database, pipeline, 2, date(2026, 3, 3))
    assert raised.value.next_step.endswith("nightgate run reviews --night 2026-03-03")


def test_a_snapshot_that_retention_is_about_to_remove_is_not_taken(database: Database) -> None:
    made = [night_with_snapshot(database, day) for day in range(2)]
    database.write(
        lambda session: session.execute(
            sa.update(SnapshotRow)
            .where(SnapshotRow.snapshot_id == made[1])
            .values(files_removed_at=night_rows.night().data_until)
        )
    )
    assert seed_study.open_study(database, night_rows.pipeline(), 1).snapshot_id == made[0]


def test_a_snapshot_of_other_rules_is_refused(database: Database) -> None:
    night_with_snapshot(database)
    other = Pipeline.model_validate({**night_rows.pipeline().record(), "split": {"seed": 7}})
    with pytest.raises(ConfigurationError, match="test version t-"):
        seed_study.open_study(database, other, 2)


def test_a_study_opened_again_misses_only_seeds_without_a_score(database: Database) -> None:
    night_with_snapshot(database)
    pipeline = night_rows.pipeline()
    study = seed_study.open_study(database, pipeline, 3)
    assert study.missing == study.seeds == (42, 43, 44)
    seed_study.record_score(database, study, scored(42))
    seed_study.record_failure(database, study, 43, TrainingError("no memory", next_step="buy some"))
    again = seed_study.open_study(database, pipeline, 4)
    assert (again.study_id, again.missing) == (study.study_id, (43, 44, 45))
    found = seed_study.read_study(database, study.study_id)
    assert list(found["seed"]) == [42, 43]
    assert found["error"][1] == "no memory\n  next: buy some"
    assert pd.isna(found["error"][0])
    # Another configuration is another study.
    assert seed_study.open_study(database, night_rows.pipeline(learning_rate=1e-4), 3).study_id != study.study_id


def test_a_score_is_stored_once_and_replaces_a_failure(database: Database) -> None:
    night_with_snapshot(database)
    study = seed_study.open_study(database, night_rows.pipeline(), 2)
    seed_study.record_failure(database, study, 42, TrainingError("no memory"))
    seed_study.record_score(database, study, scored(42, 0.6))
    seed_study.record_score(database, study, scored(42, 0.9))
    seed_study.record_failure(database, study, 42, TrainingError("too late"))
    [row] = seed_study.read_study(database, study.study_id).to_dict("records")
    assert (row["test_f1"], row["duration_seconds"], row["best_epoch"]) == (0.6, 12.5, 3)
    assert row["error"] is None


def test_a_stored_failure_contains_no_secret(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    night_with_snapshot(database)
    study = seed_study.open_study(database, night_rows.pipeline(), 1)
    monkeypatch.setenv("HUB_TOKEN", "not-for-your-eyes")
    seed_study.record_failure(database, study, 42, RuntimeError("401 for not-for-your-eyes"))
    assert seed_study.read_study(database, study.study_id)["error"][0] == "401 for ***"


@pytest.mark.parametrize(
    ("f1s", "mean", "spread"),
    [((), None, None), ((0.6,), 0.6, None), ((0.6, 0.62), 0.61, 0.0141421), ((0.5, 0.6, 0.7), 0.6, 0.1)],
)
def test_a_finished_study_has_mean_and_spread_of_its_scored_seeds(
    database: Database, f1s: tuple[float, ...], mean: float | None, spread: float | None
) -> None:
    night_with_snapshot(database)
    study = seed_study.open_study(database, night_rows.pipeline(), len(f1s) + 1)
    for seed, f1 in zip(study.seeds, f1s, strict=False):
        seed_study.record_score(database, study, scored(seed, f1))
    seed_study.record_failure(database, study, study.seeds[-1], TrainingError("no memory"))
    row = seed_study.finish_study(database, study.study_id)
    assert row.num_seeds == len(f1s)
    assert row.f1_mean == (None if mean is None else pytest.approx(mean))
    assert row.f1_spread == (None if spread is None else pytest.approx(spread, rel=1e-5))


def test_the_spread_is_that_of_the_newest_finished_study_with_three_seeds(database: Database) -> None:
    made = [night_with_snapshot(database, day) for day in range(4)]
    assert len(set(made)) == 4
    usual = night_rows.pipeline()
    studies = [seed_study.open_study(database, usual, 3, night_rows.night(day).date) for day in range(3)]
    assert seed_study.newest_spread(database, usual) is None
    store(database, studies[1], 0.5, 0.6, 0.7)
    store(database, studies[0], 0.58, 0.6, 0.62)
    store(database, replace(studies[2], seeds=(42, 43)), 0.1, 0.9)
    macro = seed_study.open_study(database, night_rows.pipeline(average="macro"), 3)
    store(database, macro, 0.2, 0.4, 0.6)
    assert seed_study.newest_spread(database, usual) == pytest.approx(0.02)
    assert seed_study.newest_spread(database, night_rows.pipeline(average="macro")) == pytest.approx(0.2)
    assert seed_study.newest_spread(database, night_rows.pipeline("other")) is None
    # Finished again without new seeds it is not the newest, with a new seed it is.
    seed_study.finish_study(database, studies[1].study_id)
    assert seed_study.newest_spread(database, usual) == pytest.approx(0.02)
    seed_study.record_score(database, studies[1], scored(45, 0.6))
    seed_study.finish_study(database, studies[1].study_id)
    assert seed_study.newest_spread(database, usual) == pytest.approx(statistics.stdev([0.5, 0.6, 0.7, 0.6]))


def test_a_study_that_grows_keeps_its_snapshot_and_its_spread_until_it_is_finished_again(database: Database) -> None:
    snapshots = [night_with_snapshot(database, day) for day in range(2)]
    pipeline, night = night_rows.pipeline(), night_rows.night(0).date

    def kept() -> bool:
        limits = Retention(snapshots=1)
        return snapshots[0] in database.read(lambda session: kept_snapshots(session, pipeline.name, limits))

    study = seed_study.open_study(database, pipeline, 3, night)
    assert kept()
    store(database, study, 0.5, 0.6, 0.7)
    seed_study.open_study(database, pipeline, 3, night)
    assert not kept()
    grown = seed_study.open_study(database, pipeline, 4, night)
    assert kept()
    assert seed_study.newest_spread(database, pipeline) == pytest.approx(0.1)
    seed_study.record_failure(database, grown, 45, TrainingError("no memory"))
    seed_study.finish_study(database, grown.study_id)
    assert not kept()


def test_a_study_of_another_configuration_is_no_unit_of_this_ones_margin(database: Database) -> None:
    usual = night_rows.pipeline()
    night_with_snapshot(database)
    store(database, seed_study.open_study(database, usual, 3), 0.58, 0.6, 0.62)
    # Newer: `nightgate seeds reviews --set training.epochs=1`, and other labels with a test version of their own.
    short = Pipeline.model_validate({**usual.record(), "training": {"epochs": 1}})
    store(database, seed_study.open_study(database, short, 3), 0.1, 0.5, 0.9)
    record = usual.record()
    relabelled = Pipeline.model_validate({**record, "data": {**record["data"], "labels": ["bad", "fine"]}})
    night_with_snapshot(database, 1, relabelled)
    store(database, seed_study.open_study(database, relabelled, 3), 0.2, 0.5, 0.8)
    assert seed_study.newest_spread(database, usual) == pytest.approx(0.02)
    assert seed_study.newest_spread(database, short) == pytest.approx(0.4)
    assert seed_study.newest_spread(database, relabelled) == pytest.approx(0.3)
    # Policy and seed do not identify a study; a configuration without a study has no spread.
    aside = {"training": {"seed": 7}, "gate": {"margin": 1, "margin_unit": "seed_spread"}}
    assert seed_study.newest_spread(database, Pipeline.model_validate({**record, **aside})) == pytest.approx(0.02)
    assert seed_study.newest_spread(database, night_rows.pipeline(learning_rate=1e-4)) is None


@pytest.mark.parametrize(
    ("gate", "spread", "number"),
    [
        ({}, 0.0059, "1.7 times the spread"),
        ({}, 0.0, "a spread of 0"),
        ({"margin": 1.5, "margin_unit": "seed_spread"}, 0.006, "0.0090"),
    ],
)
def test_the_margin_is_described_in_relation_to_the_spread(gate: dict[str, Any], spread: float, number: str) -> None:
    assert number in seed_study.describe_margin(Gate(**gate), spread)


@pytest.mark.parametrize(
    ("environment", "num_seeds", "asked", "expected", "reason"),
    [
        ({"OMP_NUM_THREADS": "8"}, 5, 0, [{"OMP_NUM_THREADS": "1"}] * 5, "5 seeds at a time with 1 thread each"),
        ({"OMP_NUM_THREADS": "8"}, 5, 2, [{"OMP_NUM_THREADS": "4"}] * 2, "2 seeds at a time with 4 threads each"),
        ({"OMP_NUM_THREADS": "1"}, 5, 0, [{"OMP_NUM_THREADS": "1"}], "one seed at a time with 1 thread each"),
        ({"OMP_NUM_THREADS": "2"}, 1, 4, [{"OMP_NUM_THREADS": "2"}], "one seed at a time with 2 threads each"),
        (
            {"CUDA_VISIBLE_DEVICES": "2,5"},
            5,
            0,
            [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}],
            "2 seeds at a time on 2 GPUs",
        ),
        ({"CUDA_VISIBLE_DEVICES": "7"}, 2, 2, [{"CUDA_VISIBLE_DEVICES": "7"}] * 2, "2 seeds at a time on 1 GPU"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "NIGHTGATE_PROCESSES": "gpus"}, 5, 0, [{}], "2 processes train one model"),
    ],
)
def test_this_machine_has_a_worker_for_each_gpu_or_core_and_says_why(
    environment: dict[str, str],
    num_seeds: int,
    asked: int,
    expected: list[dict[str, str]],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"CUDA_VISIBLE_DEVICES": "", **environment}.items():
        monkeypatch.setenv(name, value)
    workers, why = seed_runs.local_workers(num_seeds, asked)
    assert workers == expected
    assert reason in why


def test_a_driver_that_hangs_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    with pytest.raises(TrainingError, match="nvidia-smi"):
        seed_runs.local_workers(3)


# --- seeds that are trained ---


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstNight:
    """Night one, in a home in which this module trains seeds."""
    return copy_first_night(tmp_path_factory.mktemp("seeds") / "home")


@pytest.fixture
def site(first: FirstNight, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("NIGHTGATE_HOME", str(first.home))
    with Database.open(open_home()) as db:
        yield db


@pytest.fixture
def pipeline(first: FirstNight) -> Pipeline:
    return load_pipeline(first.pipeline)


def one_epoch(pipeline: Pipeline, **training: object) -> Pipeline:
    record = pipeline.record()
    return Pipeline.model_validate({**record, "training": {**record["training"], "epochs": 1, **training}})


def left_by_nights(db: Database) -> dict[str, list[dict[str, Any]]]:
    return {view: db.frame(f"SELECT * FROM {view}").astype(str).to_dict("records") for view in LEFT_BY_NIGHTS}


def folder_of(db: Database, study: Study, seed: int) -> Path:
    return db.home.runs / f"seeds-{study.study_id}" / f"seed-{seed}"


def file_in_the_way(db: Database, study: Study, seed: int) -> Path:
    """Lets the training of a seed fail: a file where its folder should be."""
    folder = folder_of(db, study, seed)
    folder.parent.mkdir()
    folder.touch()
    return folder


@pytest.mark.slow
def test_seeds_are_trained_and_scored_and_nights_stay_unchanged(site: Database, first: FirstNight) -> None:
    before = left_by_nights(site)
    arguments = ("seeds", first.pipeline, "-n", 2, "--no-prefect")
    done = nightgate(*arguments, cwd=first.home.parent, env={"NIGHTGATE_HOME": str(first.home)})
    assert done.returncode == 0, done.stderr
    [study] = site.frame("SELECT * FROM seed_studies").to_dict("records")
    rows = seed_study.read_study(site, str(study["study_id"]))
    assert list(rows["seed"]) == [42, 43]
    # The configured seed on the night's snapshot repeats that night.
    [night] = before["nightly_runs"]
    assert rows["test_f1"][0] == pytest.approx(float(night["test_f1"]), abs=1e-9)
    assert rows["best_epoch"][0] == int(night["best_epoch"])
    [best] = [epoch for epoch in before["epoch_results"] if epoch["epoch"] == night["best_epoch"]]
    assert rows["validation_f1"][0] == pytest.approx(float(best["f1"]), abs=1e-9)
    assert (study["num_seeds"], study["average"], study["snapshot_id"]) == (2, "weighted", night["snapshot_id"])
    assert study["f1_spread"] == pytest.approx(statistics.stdev(rows["test_f1"]))
    assert "mean F1" in done.stdout
    margin = seed_study.describe_margin(load_pipeline(first.pipeline).gate, float(study["f1_spread"]))
    assert f"spread {study['f1_spread']:.4f} (standard deviation): {margin}" in done.stdout
    assert left_by_nights(site) == before
    # Checkpoints are removed, logs and predictions stay.
    logits = []
    for seed in (42, 43):
        folder = first.home / "runs" / f"seeds-{study['study_id']}" / f"seed-{seed}"
        assert {file.name for file in (folder / "attempt-1").iterdir()} == {"epochs", "job.json", "log.txt"}
        logits.append(np.load(folder / "test" / "candidate.npz")["logits"])
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.slow
def test_a_study_run_again_trains_what_is_missing_and_a_failed_seed_stops_no_other(
    site: Database, pipeline: Pipeline
) -> None:
    short = one_epoch(pipeline)
    study = seed_study.open_study(site, short, 2)
    in_the_way = file_in_the_way(site, study, 42)
    seed_runs.run_study(site, study)
    rows = seed_study.read_study(site, study.study_id)
    assert "File exists" in rows["error"][0]
    assert rows["test_f1"].notna().tolist() == [False, True]
    in_the_way.unlink()
    again = seed_study.open_study(site, short, 2)
    assert again.missing == (42,)
    job_of_43 = (folder_of(site, study, 43) / "attempt-1" / "job.json").stat().st_mtime_ns
    seed_runs.run_study(site, again)
    assert seed_study.read_study(site, study.study_id)["test_f1"].notna().all()
    assert [folder.name for folder in folder_of(site, study, 43).glob("attempt-*")] == ["attempt-1"]
    assert (folder_of(site, study, 43) / "attempt-1" / "job.json").stat().st_mtime_ns == job_of_43
    # A command killed before it stored a score in SQL has left it on disk.
    assert seed_runs.train_seed(again, 42).test_f1 == seed_study.read_study(site, study.study_id)["test_f1"][0]


@pytest.mark.slow
def test_a_seed_is_scored_whose_rows_were_written_anew_while_it_trained(site: Database, pipeline: Pipeline) -> None:
    study = seed_study.open_study(site, one_epoch(pipeline), 1)
    path = site.home.absolute(study.snapshot)
    forgotten = open_snapshot(path).rows("train", ["row_id"])["row_id"].tolist()[:1]

    def forget(progress: Progress) -> None:
        if progress.phase == "train" and forgotten:
            redact_deltas(path.parent, {forgotten.pop()})

    score = seed_runs.train_seed(study, 42, forget)
    assert (forgotten, score.test_f1 is None) == ([], False)


@pytest.mark.faults
def test_an_interrupted_seed_resumes_from_its_checkpoint_to_the_same_score(site: Database, pipeline: Pipeline) -> None:
    study = seed_study.open_study(site, pipeline, 1)
    folder = folder_of(site, study, 50)
    job = TrainJob(
        run_dir=folder,
        attempt=1,
        snapshot=site.home.absolute(study.snapshot),
        pipeline=study.record_of(50),
        data_until=study.data_until,
    )
    folder.mkdir(parents=True)
    begun = supervisor.train(job)
    assert next(begun).epoch == 1
    begun.close()
    interrupted = seed_runs.train_seed(study, 50)
    assert (folder / "attempt-2" / "job.json").is_file()
    assert "resuming after epoch 1" in (folder / "attempt-2" / "log.txt").read_text()
    shutil.rmtree(folder)
    whole = seed_runs.train_seed(study, 50)
    assert replace(interrupted, duration_seconds=0) == replace(whole, duration_seconds=0)


def test_a_worker_with_another_home_is_refused(
    site: Database, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = seed_study.open_study(site, pipeline, 1)
    open_home(tmp_path / "other")
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "other"))
    with pytest.raises(StorageError, match="study small-") as raised:
        seed_runs.train_seed(study, 42)
    assert str(site.home.root) in raised.value.reason


def test_seeds_of_a_pipeline_that_goes_on_train_in_full(site: Database, pipeline: Pipeline) -> None:
    goes_on = one_epoch(pipeline, start_from="champion", replay=2)
    assert (
        seed_study.open_study(site, goes_on, 1).study_id == seed_study.open_study(site, one_epoch(pipeline), 1).study_id
    )


@pytest.mark.parametrize("options", [("--no-prefect", "--workers", 2), ("--address", "tcp://x:1", "--workers", 2)])
def test_options_that_exclude_each_other_are_refused(
    first: FirstNight, options: tuple[object, ...], tmp_path: Path
) -> None:
    done = nightgate("seeds", first.pipeline, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert str(options[0]) in done.stderr


def test_without_a_night_the_command_names_the_next_one(tmp_path: Path) -> None:
    done = nightgate("seeds", first_night().pipeline, cwd=tmp_path)
    assert done.returncode == 1
    assert "nightgate run small" in done.stderr


# --- on Dask ---


def test_without_dask_the_extra_and_the_alternative_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.seeds import dask

    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(ConfigurationError, match="Dask") as raised, dask(2):
        pass
    assert "pip install 'nightgate[dask]'" in raised.value.next_step
    assert "--no-prefect" in raised.value.next_step


def test_an_address_without_a_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import seeds as flow

    monkeypatch.setattr(flow, "SECONDS_TO_CONNECT", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigurationError, match=address), flow.dask(2, address=address):
        pass


def task_runs(api_url: str, state: State[Any]) -> dict[str, str]:
    """Name and state name of each task run of a flow run."""
    ours = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[UUID(str(state.state_details.flow_run_id))]))
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        return {str(run.name): str(run.state_name) for run in client.read_task_runs(task_run_filter=ours)}


@pytest.mark.flow
@pytest.mark.slow
def test_seeds_on_dask_are_parallel_tasks_and_a_failed_one_stops_no_other(
    site: Database, pipeline: Pipeline, prefect_server: str
) -> None:
    from flows import seeds as flow

    study = seed_study.open_study(site, one_epoch(pipeline, learning_rate=2e-3), 3)
    file_in_the_way(site, study, 44)
    with temporary_settings({PREFECT_API_URL: prefect_server}), flow.dask(3, workers=2) as runner:
        state = flow.run_study(study, runner)
    assert (state.type.value, str(state.message)[:16]) == ("COMPLETED", "2 seeds, mean F1")
    rows = seed_study.read_study(site, study.study_id)
    assert rows["test_f1"].notna().tolist() == [True, True, False]
    assert "File exists" in rows["error"][2]
    jobs = [json.loads((folder_of(site, study, seed) / "attempt-1/job.json").read_text()) for seed in (42, 43)]
    assert [job["pipeline"]["training"]["seed"] for job in jobs] == [42, 43]
    assert task_runs(prefect_server, state) == {"seed 42": "Completed", "seed 43": "Completed", "seed 44": "Failed"}


@pytest.mark.flow
@pytest.mark.slow
def test_an_existing_cluster_trains_seeds(site: Database, pipeline: Pipeline, prefect_server: str) -> None:
    from distributed import LocalCluster

    from flows import seeds as flow

    study = seed_study.open_study(site, one_epoch(pipeline, learning_rate=3e-3), 1)
    place: dict[str, Any] = {"protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    place |= {"n_workers": 1, "threads_per_worker": 1, "processes": False, "silence_logs": logging.ERROR}
    with (
        LocalCluster(**place) as cluster,
        temporary_settings({PREFECT_API_URL: prefect_server}),
        flow.dask(1, address=cluster.scheduler_address) as runner,
    ):
        state = flow.run_study(study, runner)
    assert state.is_completed()
    assert seed_study.read_study(site, study.study_id)["test_f1"].notna().tolist() == [True]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_stopped_leaves_no_process_behind_and_its_checkpoints(
    environment: Path, number: signal.Signals
) -> None:
    """Ctrl-C goes to all processes of a terminal, the other two to the command alone."""
    first = copy_first_night(environment)
    log = environment.parent / "stderr.txt"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command("seeds", first.pipeline, "-n", 2, "--set", "training.epochs=1000"),
            cwd=environment.parent,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        deadline = time.monotonic() + 200
        while len(list((environment / "runs").glob("seeds-*/seed-*/attempt-1/checkpoint/*"))) < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        below = psutil.Process(process.pid).children(recursive=True)
        assert sum("nightgate.training.worker" in one.cmdline() for one in below) == 2
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        began = time.monotonic()
        process.wait(120)
    assert psutil.wait_procs(below, timeout=30)[1] == []
    assert time.monotonic() - began < 60
    assert list((environment / "runs").glob("seeds-*/seed-*/attempt-1/checkpoint/*"))
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert "cancelled" in log.read_text()
