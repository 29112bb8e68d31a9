"""How a night with `start_from = "champion"` trains: on from the last version, or in full, and why."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.cli import read
from nightgate.config.pipeline import Pipeline
from nightgate.data.snapshots import Snapshot, open_snapshot
from nightgate.database.connection import database_url
from nightgate.database.evaluation_schema import ChampionEvaluation
from nightgate.database.gate_schema import GateCheck
from nightgate.database.schema import ModelVersion, Promotion, Run
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import DataError
from nightgate.home import open_home
from nightgate.models import version_folder
from nightgate.night import starting, steps
from nightgate.night.night import run_night
from nightgate.night.run import NightRun, open_night
from nightgate.night.starting import Start
from nightgate.night.values import Evaluated, Judged, Trained
from nightgate.registry import champions, forgetting, retention
from nightgate.registry.leakage import keys_of, line_of, trained_on
from nightgate.reports.terminal_summary import as_text
from nightgate.runs import records
from nightgate.schedule import chosen_night
from nightgate.training.continued import LabelledKeys, labelled_keys, lost, read_learnt, write_learnt
from nightgate.training.protocol import TrainResult
from tests.support import night_rows, reviews
from tests.support.tiny import write_tiny_model
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process


@dataclass
class Shop:
    """A pipeline over a file that grows, in which version 1, of 1 March, is the champion and was trained in full."""

    folder: Path
    model: Path

    def pipeline(self, rows: int = 400, **settings: Any) -> Pipeline:
        file = self.folder / "reviews.csv"
        pd.DataFrame(reviews.rows(rows)).to_csv(file, index=False)
        own = {"data__time": "created_at", "training__base_model": str(self.model.parent / "base")}
        own |= {"training__start_from": "champion"}
        return reviews.pipeline(reviews.files(file), **own | settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training would leave, without what its line has learnt."""
    return write_trained_model(tmp_path_factory.mktemp("model"), ("1", "5"))


@pytest.fixture
def shop(environment: Path, model: Path) -> Shop:
    shop = Shop(environment.parent, model)
    upgrade(database_url(open_home()))
    first = night(shop, 1)
    assert str(first) == "trains in full: there is no version of an earlier night"
    with Database.open(open_home()) as db:
        champions.promote_manually(db, db.home, "kettles", 1, reason="so it is", by="a test")
    return shop


def night(
    shop: Shop, day: int, *, end: Callable[[NightRun], object] | None = None, rows: int = 0, **more: Any
) -> Start:
    """A night of March whose training takes no time; how it started. `more` are settings, with __ for the dot."""
    options = {name: more.pop(name) for name in ("force", "dry_run") if name in more}
    pipeline = shop.pipeline(rows or 400 + 8 * day, **more)
    with open_night(pipeline, chosen_night(pipeline.schedule, date(2026, 3, day)), **options) as run:
        snapshot = steps.refresh(run)
        steps.decide(run, snapshot, Evaluated(()))
        start = starting.choose(run, snapshot)
        started_from = start.version.version if start.version else None
        if start.reason:
            records.record_start(run.db, run.run_id, run.attempt, started_from, start.reason)
        if end is not None:
            end(run)
            return start
        best = shutil.copytree(shop.model, run.directory / "attempt-1" / "best")
        learnt = labelled_keys(snapshot)
        if start.version is not None:
            learnt = read_learnt(start.version.folder(run.home)).joined(learnt)
        write_learnt(best, learnt)
        result = TrainResult(1, best, 1, False, 0, "cpu", "fp32", "", 1, "packed", "", 1, rows_trained=1)
        records.record_training(run.db, run.run_id, run.attempt, result)
        run.db.write(lambda session: _judged(session, run.run_id, snapshot))
        judged = Judged(night_rows.decision("hold"), night_rows.scores())
        steps.register_candidate(run, snapshot, Trained(result, started_from, None), judged)
        run.finish("held", "so it is")
    return start


def begun(start: Start) -> int | None:
    return start.version.version if start.version else None


def _judged(session: Session, run_id: str, snapshot: Snapshot) -> None:
    session.get_one(Run, run_id).test_version = snapshot.manifest["test_version"]


def skip(run: NightRun) -> None:
    run.finish("skipped", "so it is")


def fail(_: NightRun) -> None:
    raise DataError("enough")


def test_a_night_goes_on_from_the_newest_earlier_version_of_its_recipe(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # Whatever the gate said: all of these are held.
    assert str(night(shop, 2)) == "goes on from version 1: the last full training is version 1 of 2026-03-01"
    assert begun(night(shop, 3)) == 2
    assert begun(night(shop, 4, dry_run=True)) == 3, "version 4 changes nothing"
    assert begun(night(shop, 4)) == 3
    assert begun(night(shop, 4, force=True)) == 3, "the rows of the night are not learnt twice"
    with pytest.raises(DataError):
        night(shop, 5, end=fail)
    tried = night(shop, 5, training__epochs=7)
    assert (begun(tried), tried.reason) == (None, "training.epochs was 5 and is 7")
    assert begun(night(shop, 6)) == 6, "what was tried for one night is another line"
    assert begun(night(shop, 3, force=True, rows=448, end=skip)) == 2
    due = night(shop, 7, end=skip, training__full_every="4d")
    assert (begun(due), due.reason) == (None, "full_every is 4d, and version 1 is of 2026-03-01")
    assert begun(night(shop, 7, end=skip, force=True, training__replay=3, gate__confidence=0.9)) == 8
    assert night(shop, 8, end=skip, training__start_from="base") == Start()
    with Database.open(open_home()) as db:
        sides = db.frame("SELECT training, started_from, training_reason FROM nights WHERE model_version = 8")
        assert sides.values.tolist() == [["continued", 6, "the last full training is version 1 of 2026-03-01"]]
        found = db.frame("SELECT training FROM model_versions ORDER BY version")["training"].tolist()
        assert found == ["full", *["continued"] * 5, "full", "continued"]
        read.versions("kettles")
        head, *table = capsys.readouterr().out.splitlines()
        assert max(map(len, table)) <= 80
        at = head.index("training")
        shown = [line[at : at + 8].strip() for line in table]
        assert shown == ["full", *(f"from {number}" for number in (1, 2, 3, 3, 3)), "full", "from 6"]
        _proves_its_line(db)
        removed = retention.sweep(db, db.home, shop.pipeline(retention__models=1, retention__disk="1MB"))
    assert removed == [2, 3, 4, 5, 6, 7]
    assert begun(night(shop, 9, end=skip)) == 8, "the trunk and what proves its line are left"
    assert night(shop, 10, training__start_from="base") == Start()
    with Database.open(open_home()) as db:
        assert retention.sweep(db, db.home, shop.pipeline(retention__models=1, retention__disk="1MB")) == [8]
    assert begun(night(shop, 11, end=skip)) == 9, "one that gave no reason is a trunk as well"


def _proves_its_line(db: Database) -> None:
    """What any version of the line has learnt is known of the newest one."""
    folder = db.home.snapshots / "kettles"
    [row] = db.frame("SELECT path, snapshot_id FROM model_versions WHERE version = 8").to_dict("records")
    snapshot = open_snapshot(folder / row["snapshot_id"])
    assert lost(labelled_keys(snapshot), read_learnt(db.home.absolute(row["path"]))) == 0
    line = line_of(db, db.home, "kettles", 8)
    assert len(line.snapshots) == 5
    for split, is_seen in (("train", True), ("validation", True), ("test", False)):
        mask, why = trained_on(line, keys_of(folder, snapshot.rows(split)))
        assert mask is not None, why
        assert set(mask.tolist()) == {is_seen}


def test_a_night_trains_in_full_where_the_line_must_not_be_gone_on_with(shop: Shop, environment: Path) -> None:
    night(shop, 2)

    def why(**settings: Any) -> str:
        start = night(shop, 3, end=skip, force=True, **settings)
        assert (start.version is None) == ("the last full training" not in start.reason)
        return start.reason

    assert why() == "the last full training is version 1 of 2026-03-01"
    assert why(training__max_length=16) == "training.max_length was 128 and is 16"
    other = write_tiny_model(environment / "other", seed=5)
    assert "base model was" in why(training__base_model=str(other))
    assert "was trained on labels that mean something else" in why(data__labels={"1": "5", "5": "1"})
    assert why(split__seed=7) == "rows are divided anew"
    with Database.open(open_home()) as db:
        [run_id] = db.frame("SELECT run_id FROM model_versions WHERE version = 2")["run_id"]
        for name, high in (("beats_champion", -0.01), ("slices", 0.01)):
            db.write(lambda session, name=name, high=high: session.add(_failed(run_id, name, high)))
        assert why() == "version 2 was worse than the champion: beats_champion"
        db.write(lambda session: session.execute(sa.delete(GateCheck).where(GateCheck.run_id == run_id)))

        db.write(lambda session: session.add(_alarm(db, session)))
        assert why() == "the champion's evaluation raised drifted, champion_dropped since version 1"
        db.write(lambda session: session.execute(sa.delete(ChampionEvaluation)))

        for moment in (datetime(2026, 3, 2, 9, tzinfo=UTC), None):
            db.write(lambda session, moment=moment: _quarantine(session, moment))
            assert (why() == "version 2 of the line was taken back: it was rude") == (moment is not None)

        weights = environment / "models/kettles/v0002/model.safetensors"
        kept = weights.read_bytes()
        weights.chmod(0o644)
        for content in (kept[:-1] + b"x", kept):
            weights.write_bytes(content)
            assert ("model.safetensors is altered" in why()) == (content is not kept)

        rows = open_snapshot(db.home.snapshots / "kettles" / _snapshot_of(db)).rows("train", ["row_id", "time"])
        # The oldest, as if they had left the source by their age.
        found = forgetting.forget(db, "kettles", rows.nsmallest(4, "time")["row_id"].tolist(), by="a test")
        assert found.versions == {1: "trained on it", 2: "trained on it"}
    assert re.fullmatch(r"4 of the \d+ rows learnt are deleted, corrected or forgotten", why())


def _snapshot_of(db: Database) -> str:
    return str(db.frame("SELECT snapshot_id FROM model_versions WHERE version = 1")["snapshot_id"].iloc[0])


def _failed(run_id: str, name: str, high: float) -> GateCheck:
    place = {"run_id": run_id, "attempt": 1, "position": 9, "slice_name": "", "slice_value": ""}
    return GateCheck(**place, check_name=name, metric="f1", ci_low=-0.09, ci_high=high, outcome="failed", reason="so")


def _alarm(db: Database, session: Session) -> ChampionEvaluation:
    promoted = session.scalars(sa.select(Promotion.valid_from)).one()
    return ChampionEvaluation(
        pipeline="kettles",
        snapshot_id=_snapshot_of(db),
        model_version=1,
        role="champion",
        evaluated_at=promoted + timedelta(minutes=1),
        rows_to=datetime(2026, 3, 3, 3, 15, tzinfo=UTC),
        rows=30,
        alarms="drifted, champion_dropped",
        reason="so it is",
        policy={},
    )


def _quarantine(session: Session, moment: datetime | None) -> None:
    row = session.get_one(ModelVersion, ("kettles", 2))
    row.quarantined_at, row.quarantine_reason = moment, "it was rude"


@pytest.mark.slow
def test_a_whole_night_learns_what_its_line_lacks_and_says_from_what_it_went_on(shop: Shop) -> None:
    pipeline = shop.pipeline(440, training__replay=0.5, gate__min_f1=0.0)
    row = run_night(pipeline, chosen_night(pipeline.schedule, date(2026, 3, 2)))
    assert row.status in {"promoted", "held"}
    with Database.open(open_home()) as db:
        found = night_rows.one(db, row.run_id)
        assert (found["training"], found["started_from"], found["model_version"]) == ("continued", 1, 2)
        new = lost(_trained(db, found["snapshot_id"]), _trained(db, _snapshot_of(db)))
        assert found["rows_trained"] == new + round(0.5 * new)
        epochs = db.frame("SELECT epoch, learning_rate FROM epoch_results WHERE run_id = :run", {"run": row.run_id})
        assert epochs["epoch"].tolist() == [1]
        assert epochs["learning_rate"].iloc[0] < 5e-6
        assert "continued from version 1" in as_text(db.home, row.run_id)
        folder = db.home.models / "kettles/v0002"
    assert "went on from version 1" in (folder / version_folder.CARD).read_text()
    assert version_folder.verify_version(folder)["base_model"]["started_from_version"] == 1


def _trained(db: Database, snapshot_id: str) -> LabelledKeys:
    return labelled_keys(open_snapshot(db.home.snapshots / "kettles" / snapshot_id))
