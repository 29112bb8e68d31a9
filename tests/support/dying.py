"""A process that kills itself just before its k-th write: `python -m tests.support.dying K OPERATION PIPELINE [RUN]`.

A write is a statement that changes rows, the commit of a transaction that has one, a change of a file or a name
under the home, which Python reports to audit hooks, or a table that is written to a Parquet file. Exits 0 when there
were fewer than k. The operation `refresh` takes the path of a pipeline file and a date.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.database.transactions import Database
from nightgate.home import Home, open_home
from nightgate.night import steps
from nightgate.night.run import NightRun, open_night
from nightgate.pipeline_files import load_pipeline
from nightgate.registry import approvals, promotion, retention
from nightgate.schedule import Night
from tests.support import night_rows

CHANGES = {"os.rename", "os.symlink", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}


class Death:
    """Kills this process just before the write number `at` of those whose description contains `what`.

    Args:
        note: Outside the home; gets the description of the write that was not done.
    """

    def __init__(self, at: int, home: Home, what: str = "", note: Path | None = None) -> None:
        self.left, self.what, self.note = at, what, note
        self.home = os.fspath(home.root)
        self.has_written = False

    def begin(self) -> None:
        """Count from now on."""
        sa.event.listen(Engine, "before_cursor_execute", self.statement)
        sa.event.listen(Engine, "commit", self.commit)
        sys.addaudithook(self.audit)
        # Arrow opens and writes its files past Python.
        written = pq.ParquetWriter.write_table

        def write_table(writer: Any, *arguments: Any, **options: Any) -> None:
            self.write("Parquet")
            written(writer, *arguments, **options)

        pq.ParquetWriter.write_table = write_table

    def write(self, description: str) -> None:
        description = description.replace(self.home, "")
        self.left -= self.what in description
        if self.left == 0:
            self.left = -1
            if self.note is not None:
                self.note.write_text(description, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        words = statement.split(None, 3)
        if words[0] in {"INSERT", "UPDATE", "DELETE"}:
            self.has_written = True
            self.write(" ".join(statement.split()))

    def commit(self, _: Any) -> None:
        if self.has_written:
            self.has_written = False
            self.write("COMMIT")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_opened_to_write = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event not in CHANGES and not is_opened_to_write:
            return
        if event == "os.mkdir" and Path(arguments[0]).is_dir():
            return
        # Removing a tree uses names relative to an open folder.
        names = [os.fspath(one) for one in arguments if isinstance(one, str | os.PathLike)]
        if any(name.startswith(self.home) or not Path(name).is_absolute() for name in names):
            self.write(f"{event.removeprefix('os.')} {' '.join(names)}")


def keeping_one(pipeline: str) -> Pipeline:
    """A pipeline whose retention keeps one version, and 1 MB beyond what is needed."""
    return night_rows.pipeline(pipeline).model_copy(update={"retention": Retention(models=1, disk="1MB")})


def refresh(path: Path, night: date, then: Callable[[NightRun], object]) -> None:
    """The first two steps of a night that has not ended, and `then`."""
    instant = datetime.combine(night, time(3, 15), tzinfo=UTC)
    night_run = open_night(load_pipeline(path), Night(night, "backfill", instant, instant))
    with night_run as run, steps.slot(run):
        steps.refresh(run)
        then(run)


def operation(database: Database, name: str, pipeline: str, run_id: str) -> Callable[[], Any]:
    own = {"run_id": run_id, "attempt": 1, "expected": 2, "expected_anchor": 2, "moves_anchor": True}
    return {
        # What follows in a night, or ends it, is killed elsewhere.
        "refresh": lambda: refresh(Path(pipeline), date.fromisoformat(run_id), lambda _: os._exit(0)),
        "promotion": lambda: promotion.promote_candidate(database, pipeline, 3, reason="because", **own),
        "approval": lambda: approvals.approve(database, run_id, by="ada", reason="checked"),
        "rollback": lambda: promotion.roll_back(database, pipeline, 1, expected=2, by="ada", reason="because"),
        "sweep": lambda: retention.sweep(database, database.home, keeping_one(pipeline)),
    }[name]


def main(at: int, name: str, pipeline: str, run_id: str = "") -> None:
    home = open_home()
    with Database.open(home) as database:
        carry_out = operation(database, name, pipeline, run_id)
        Death(at, home).begin()
        carry_out()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
