"""Nights from their verdict on, without training: the model and predictions of the first night, judged as tonight's.

`killed` runs such a night in a process of its own, which is killed before a chosen write behind the verdict.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from nightgate.data.golden_rows import golden_set
from nightgate.data.refresh import Refreshed
from nightgate.data.snapshots import Snapshot, open_snapshot
from nightgate.database.transactions import Database
from nightgate.gate.evidence import Serving
from nightgate.home import open_home
from nightgate.night import steps, verdict
from nightgate.night.night import Steps, run_steps
from nightgate.night.run import NightRun, open_night
from nightgate.night.values import Evaluated, Judged, Model, Scored, Served, Trained
from nightgate.pipeline_files import load_pipeline
from nightgate.registry import champion_link, versions
from nightgate.runs import records
from nightgate.runs.run_row import RunRow, read_run
from nightgate.schedule import chosen_night
from nightgate.training.protocol import ScoreResult, TrainResult
from tests.support.dying import Death
from tests.support.first_night import first_night

CHECKPOINTS = {"checkpoint", "weights", "best"}
"""What only a resume needs."""


@dataclass(frozen=True)
class Case:
    """A night of the pipeline `small` in the home of the environment."""

    day: int = 6
    """Of January 2026."""
    min_f1: float = 0.0
    """1: it is held."""
    approval: bool = False
    scheduled: bool = False
    """And skipped, if the night before had the same settings."""
    is_registered: bool = False
    """It is killed behind the registration of its version, not behind the verdict."""
    flow_run_id: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {"gate.min_f1": self.min_f1, "gate.approval": self.approval, "retention.models": 1}

    @property
    def date(self) -> date:
        return date(2026, 1, self.day)

    def run(self, at_verdict: Callable[[], object] = lambda: None, **real: Any) -> RunRow:
        """Run the night, or do what is left of it; `real` steps replace those that return what is stored."""
        pipeline = load_pipeline(first_night().pipeline, self.settings)
        night = chosen_night(pipeline.schedule, self.date)
        if self.scheduled:
            night = replace(night, trigger="schedule")
        with open_night(pipeline, night, prefect_flow_run_id=self.flow_run_id) as run:
            return run.ended or run_steps(run, replace(self._steps(at_verdict), **real))

    def _steps(self, at_verdict: Callable[[], object]) -> Steps:
        [source] = (first_night().home / "runs").iterdir()

        def refresh(run: NightRun) -> Snapshot:
            if run.snapshot_path is not None:
                return steps.refresh(run)
            stored = records.previous_snapshot(run.db, run.pipeline.name)
            assert stored is not None
            snapshot = open_snapshot(stored)
            total = snapshot.manifest["rows_total"]
            refreshed = Refreshed(snapshot, quarantined=(), rows_new=0, rows_total=total, rows_duplicate=0)
            records.record_snapshot(run.db, run.run_id, run.attempt, refreshed)
            if self.scheduled:
                at_verdict()
            return snapshot

        def fine_tune(run: NightRun, _: Snapshot, __: object) -> Trained:
            best = next(run.directory.glob("attempt-*/best/epoch-0002"), None) or self._checkpoint(run)
            result = TrainResult(2, best, 2, False, 0, "cpu", "fp32", "", 1, "packed", "", 1)
            records.record_training(run.db, run.run_id, run.attempt, result)
            return Trained(result, None, None)

        def score(run: NightRun, snapshot: Snapshot, trained: Trained) -> Scored:
            champion = versions.champion(run.db, run.pipeline.name)
            assert champion is not None
            models = {"candidate": Model(trained.result.best_model)}
            models["champion"] = Model(champion.folder(run.home), champion)
            golden = golden_set(run.pipeline, run.home, snapshot, run.night)
            written = dict.fromkeys(models, source / "attempt-1" / "test" / "candidate.npz")
            of_golden = dict.fromkeys(models, source / "attempt-1" / "test" / "candidate.golden.npz")
            result = ScoreResult(written, of_golden if golden.path else {}, dict.fromkeys(models, 32), "fp32", written)
            return Scored(champion, versions.anchor(run.db, run.pipeline.name), models, golden, result)

        def judge(*given: Any) -> Judged:
            judged = verdict.judge(*given)
            if not self.is_registered:
                at_verdict()
            return judged

        def register(*given: Any) -> int:
            version = steps.register_candidate(*given)
            if self.is_registered:
                at_verdict()
            return version

        serving = Serving(rows=64, logit_difference=0.0, latency_ms=5.0, size_bytes=1_000_000)
        return Steps(
            refresh=refresh,
            evaluate=lambda *_: Evaluated(()),
            fine_tune=fine_tune,
            score_on_test=score,
            try_serving=lambda *_: Served(serving, serving),
            judge=judge,
            register=register,
        )

    def _checkpoint(self, run: NightRun) -> Path:
        """Files as a finished training leaves them."""
        attempt = run.directory / f"attempt-{run.attempt}"
        for name in ("checkpoint/epoch-0002/state.json", "weights/epoch-0002.safetensors"):
            (attempt / name).parent.mkdir(parents=True)
            (attempt / name).write_bytes(b"{}")
        model = first_night().home / "models" / "small" / "v0001"
        best = attempt / "best" / "epoch-0002"
        shutil.copytree(model, best, ignore=shutil.ignore_patterns("nightgate.json", "README.md"))
        return best


def announce(server: str) -> None:
    """Publish the ends of nights at a Prefect server, as the flow of a night does behind it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.nightly import announce_own_ends

    with temporary_settings({PREFECT_API_URL: server}):
        announce_own_ends()


def killed(case: Case, at: int, what: str, note: Path, server: str = "") -> bool:
    """Run the case in another process, killed before the write number `at` of those that contain `what`.

    Args:
        note: Gets the description of that write.
        server: Where the end is announced; '': nowhere.

    Returns:
        Whether it was killed; False: there are fewer such writes.
    """
    process = _processes().Process(target=_die, args=(case, at, what, note, os.environ["NIGHTGATE_HOME"], server))
    process.start()
    process.join(120)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode != 0


@cache
def _processes() -> Any:
    """Processes that have imported this module, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "nightgate.reports.report"])
    return context


def _die(case: Case, at: int, what: str, note: Path, home: str, server: str) -> None:
    os.environ["NIGHTGATE_HOME"] = home
    death = Death(at, open_home(), what, note)
    case.run(death.begin)
    if server:
        announce(server)


@dataclass(frozen=True)
class State:
    """What the end of a night changes."""

    status: str
    report: str
    """The status in its title; '' without a report."""
    is_closed: bool
    is_announced: bool
    champions: tuple[int, ...]
    link: str
    """How it differs from the champion."""
    checkpoints: tuple[str, ...]
    left: tuple[str, ...]
    """Folders of versions without a row, rows without a folder, and temporary files."""

    @classmethod
    def of(cls, case: Case) -> State:
        home = open_home()
        with Database.open(home) as db:
            query = "SELECT run_id, announced_at, closed_at FROM run WHERE night = :night ORDER BY started_at LIMIT 1"
            [run] = db.frame(query, {"night": str(case.date)}).to_dict("records")
            row, known = read_run(db, run["run_id"]), versions.versions(db, "small")
            champions = db.frame("SELECT version FROM promotion WHERE valid_to IS NULL")["version"]
            link = champion_link.disagreement(db, home, "small")
        folder, models = home.runs / row.run_id, home.models / "small"
        report = folder / "report.html"
        title = re.search(r": (\w+)</title>", report.read_text(encoding="utf-8")) if report.is_file() else None
        kept = {Path(one.path).name for one in known if one.files_removed_at is None}
        there = {path.name for path in models.iterdir()} - {champion_link.NAME}
        return cls(
            status=row.status,
            report=title[1] if title else "",
            is_closed=run["closed_at"] is not None,
            is_announced=run["announced_at"] is not None,
            champions=tuple(map(int, champions)),
            link=link,
            checkpoints=tuple(sorted({path.name for path in folder.glob("attempt-*/*")} & CHECKPOINTS)),
            left=tuple(sorted([*(there ^ kept), *(path.name for path in folder.rglob(".*"))])),
        )
