"""The sql source on SQLite and PostgreSQL: what a night reads, from where, and what is refused in words."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from nightgate.data.refresh import refresh
from nightgate.data.rules import SPLITS
from nightgate.database.connection import make_engine
from nightgate.errors import ConfigurationError, DataError, NightgateError, SourceUnavailableError
from nightgate.home import Home
from nightgate.operations import readiness
from nightgate.operations.findings import Finding
from nightgate.schedule import Night
from nightgate.sources.kinds import wanted_columns
from nightgate.sources.source import BATCH_ROWS
from nightgate.sources.sql import Sql
from nightgate.sources.sql_mark import Mark, kind_of, newest_mark
from nightgate.sources.time_formats import EPOCH
from tests.support import reviews

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TABLE = sa.Table(
    "reviews",
    sa.MetaData(),
    sa.Column("id", sa.Integer),
    sa.Column("text", sa.Text),
    sa.Column("stars", sa.Numeric(3, 1)),
    sa.Column("changed", sa.DateTime(timezone=True)),
    sa.Column("gone", sa.Boolean),
    sa.Column("written", sa.DateTime(timezone=True)),
)
ALL_NAMED = {"data__updated": "changed", "data__deleted": "gone"}


@pytest.fixture
def table(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """An engine that may write, on a database with the empty table; `SHOP` names it."""
    engine = make_engine(database_url, create=True)
    TABLE.create(engine)
    monkeypatch.setenv("SHOP", database_url)
    yield engine
    engine.dispose()


def night(day: int) -> Night:
    """The night `day` days after the first, at 03:15."""
    return Night(START.date() + day * DAY, "schedule", START + day * DAY + 3.25 * HOUR, START + day * DAY + 3.25 * HOUR)


def add(engine: sa.Engine, *rows: tuple[int, datetime | None], **more: Any) -> None:
    """Insert rows of these ids and times of their last change."""
    filled = [{"id": row, "text": f"Kettle {row}", "stars": 5, "changed": at, "gone": False} | more for row, at in rows]
    with engine.begin() as connection:
        connection.execute(TABLE.insert(), filled)


def source(day: int, **changes: Any) -> Sql:
    given = {"kind": "sql", "url_env": "SHOP"} | changes.pop("given", {"table": "reviews"})
    pipeline = reviews.pipeline(given, **changes)
    return Sql(pipeline.data.source, pipeline.data, wanted_columns(pipeline.data, None), night(day))  # type: ignore[arg-type]


class Nights:
    """What a refresh keeps of the source between nights."""

    def __init__(self) -> None:
        self.before: dict[str, Any] | None = None
        self.future: datetime | None = None

    def read(self, day: int, **changes: Any) -> tuple[bool, list[int]]:
        """Whether the table was read as a whole, and the ids in order."""
        opened = source(day, **changes)
        plan = opened.plan(self.before)
        (part,) = plan.read
        ids = sorted(row for batch in opened.read(part) for row in batch.table["id"].to_pylist())
        self.before = {"parts": {part.name: part.version}, "after": opened.after()}
        if self.future:
            self.before["future"] = {part.name: (self.future - EPOCH) // timedelta(microseconds=1)}
        return part.complete, ids


def test_a_table_is_read_in_batches_with_types_that_do_not_depend_on_other_rows(table: sa.Engine) -> None:
    add(table, *[(number, START) for number in range(BATCH_ROWS + 3)], stars=Decimal("4.0"))
    opened = source(0)
    batches = list(opened.read(opened.plan(None).read[0]))
    assert [batch.table.num_rows for batch in batches] == [BATCH_ROWS, 3]
    assert batches[1].table.column_names == ["id", "text", "stars"]
    assert set(batches[1].table["stars"].to_pylist()) == {"4.0" if table.dialect.name == "postgresql" else 4}
    assert [f"{batches[1].place}:{number}" for number in batches[1].numbers.to_pylist()][-1] == "reviews:8194"


def test_by_default_every_night_reads_all_of_the_table(table: sa.Engine) -> None:
    nights = Nights()
    add(table, (1, START - 300 * DAY), (2, START))
    assert nights.read(0, data__time="changed") == (True, [1, 2])
    assert nights.read(1, data__time="changed") == (True, [1, 2])
    assert nights.read(2, data__updated="changed") == (True, [1, 2])


def test_behind_a_mark_late_boundary_and_undated_rows_are_read_and_older_ones_are_not(table: sa.Engine) -> None:
    nights = Nights()
    add(table, (1, START - 3 * DAY), (2, START - 2 * DAY), (3, START))
    assert nights.read(0, **ALL_NAMED) == (True, [1, 2, 3])
    add(table, (4, START - 2 * DAY - HOUR), (5, START - 2 * DAY), (6, START - HOUR), (7, None), (8, START + DAY))
    assert nights.read(1, **ALL_NAMED) == (False, [2, 3, 5, 6, 7, 8])
    assert nights.read(2, **ALL_NAMED, data__lag="12h") == (False, [7, 8])
    assert nights.read(40, **ALL_NAMED, data__lag="") == (False, [7, 8])


def test_a_mark_never_passes_the_time_of_the_night(table: sa.Engine) -> None:
    nights = Nights()
    add(table, (1, START), (2, START + 5 * HOUR), (3, datetime(2099, 1, 1, tzinfo=UTC)))
    nights.read(0, **ALL_NAMED)
    add(table, (4, START + 4 * HOUR))
    assert nights.read(1, **ALL_NAMED, data__lag="") == (False, [2, 3, 4])


def test_the_time_of_a_row_may_be_that_of_its_last_change(table: sa.Engine) -> None:
    nights = Nights()
    nights.future = START + 3 * DAY
    add(table, (1, START), (2, nights.future))
    columns = ALL_NAMED | {"data__time": "changed"}
    nights.read(0, **columns)
    add(table, (3, START + DAY))
    assert nights.read(3, **columns) == (False, [1, 2, 3])


def test_rows_that_had_to_wait_for_their_time_are_read_again(table: sa.Engine) -> None:
    nights = Nights()
    nights.future = START + 3 * DAY
    columns = {"data__updated": "changed", "data__deleted": "gone", "data__time": "written"}
    add(table, (1, START - 9 * DAY), (2, START - 9 * DAY), (3, START))
    with table.begin() as connection:
        connection.execute(TABLE.update().values(written=START - 9 * DAY))
        connection.execute(TABLE.update().values(written=nights.future).where(TABLE.c.id == 2))
    nights.read(0, **columns)
    assert nights.read(3, **columns) == (False, [2, 3])
    with table.begin() as connection:
        connection.execute(TABLE.update().values(written=None).where(TABLE.c.id == 2))
    assert nights.read(4, **columns) == (True, [1, 2, 3])


@pytest.mark.parametrize("columns", [{"data__time": "changed"}, {"data__updated": "changed"}], ids=["time", "updated"])
def test_a_sweep_reads_all_every_so_many_nights_where_no_columns_tell_edits_and_deletions(
    table: sa.Engine, columns: dict[str, Any]
) -> None:
    nights = Nights()
    add(table, (1, START - 30 * DAY), (2, START))
    swept = [nights.read(day, **columns, data__sweep=3) for day in (0, 1, 2, 3, 4, 8)]
    whole, marked = (True, [1, 2]), (False, [2])
    assert swept == [whole, marked, marked, whole, marked, whole]
    assert nights.read(500, **columns, data__sweep=0) == marked


def test_a_mark_that_no_longer_tells_what_is_new_is_not_used(table: sa.Engine, tmp_path: Path) -> None:
    nights = Nights()
    add(table, (1, START - 30 * DAY), (2, START))
    nights.read(0, **ALL_NAMED)
    assert nights.read(1, **ALL_NAMED, data__text="stars") == (True, [1, 2])  # another column is read
    assert nights.read(1, **ALL_NAMED, data__text="stars") == (False, [2])
    with table.begin() as connection:  # restored from an old backup
        connection.execute(TABLE.delete().where(TABLE.c.id == 2))
    assert nights.read(2, **ALL_NAMED, data__text="stars") == (True, [1])
    query = tmp_path / "reviews.sql"
    query.write_text("SELECT * FROM reviews")
    assert nights.read(3, **ALL_NAMED, given={"query_file": str(query)}) == (True, [1])
    assert nights.read(4, **ALL_NAMED, given={"query_file": str(query)}) == (False, [1])
    query.write_text("SELECT id, text, stars, CAST(changed AS VARCHAR(10)) AS changed, gone FROM reviews")
    assert nights.read(5, **ALL_NAMED, given={"query_file": str(query)}) == (True, [1])


def test_a_query_is_sent_as_it_is(table: sa.Engine, tmp_path: Path, dialect: str) -> None:
    add(table, (7, START))
    query = tmp_path / "reviews.sql"
    cast = "stars::text" if dialect == "postgresql" else "CAST(stars AS TEXT)"
    query.write_text(
        f"-- at 12:30\nSELECT id % 5 AS id, 'at :noon, 100 %' AS text, {cast} AS stars FROM reviews -- all\n"
    )
    opened = source(0, given={"query_file": str(query)})
    (batch,) = opened.read(opened.plan(None).read[0])
    assert (batch.place, batch.table["id"].to_pylist()) == ("reviews.sql", [2])
    assert batch.table["text"].to_pylist() == ["at :noon, 100 %"]


def test_nothing_can_be_written_and_a_writer_is_not_held_up(table: sa.Engine, tmp_path: Path, dialect: str) -> None:
    add(table, *[(number, START) for number in range(2 * BATCH_ROWS)])
    opened = source(0)
    batches = opened.read(opened.plan(None).read[0])
    first = next(batches)
    add(table, (10**6, START))
    assert first.table.num_rows + sum(batch.table.num_rows for batch in batches) == 2 * BATCH_ROWS
    if dialect == "postgresql":
        with table.begin() as connection:
            connection.exec_driver_sql("CREATE SEQUENCE counter")
        query = tmp_path / "writes.sql"
        query.write_text("SELECT nextval('counter') AS id, 'Kettle' AS text, 5 AS stars")
        opened = source(0, given={"query_file": str(query)})
        with pytest.raises(DataError, match="read-only transaction"):
            list(opened.read(opened.plan(None).read[0]))


@pytest.mark.usefixtures("table")
def test_a_server_keeps_the_rows_that_were_not_fetched_yet(tmp_path: Path, dialect: str) -> None:
    if dialect != "postgresql":
        pytest.skip("SQLite has no server")
    query = tmp_path / "endless.sql"
    query.write_text("SELECT generate_series(1, 1e12::bigint) AS id, 'Kettle' AS text, 5 AS stars")
    opened = source(0, given={"query_file": str(query)})
    batches = opened.read(opened.plan(None).read[0])
    assert [next(batches).table.num_rows for _ in range(3)] == [BATCH_ROWS] * 3
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "time_format", "kind", "lagged"),
    [
        (datetime(2026, 3, 1, 2, tzinfo=UTC), "", "instant", datetime(2026, 2, 28, 2, tzinfo=UTC)),
        (datetime(2026, 3, 1, 3), "", "timestamp", datetime(2026, 2, 28, 3)),
        (date(2026, 3, 1), "", "date", date(2026, 2, 28)),
        ("2026-03-01", "", "text -", "2026-02-28"),
        ("2026-03-01T03:00:10.5", "", "text T", "2026-02-28T03:00"),
        ("2026-03-01 02:00:10+00:00", "", "text  Z", "2026-02-28 02:00"),
        (1772330400, "epoch_s", "number", 1772244000),
        (Decimal("1772330400000.5"), "epoch_ms", "number", 1772244000000),
    ],
)
def test_a_mark_is_compared_as_what_the_column_holds(value: Any, time_format: str, kind: str, lagged: Any) -> None:
    pipeline = reviews.pipeline({"kind": "sql", "url_env": "SHOP", "table": "reviews"}, data__timezone="Europe/Berlin")
    data = pipeline.data.model_copy(update={"updated": "changed", "time_format": time_format})
    mark = newest_mark([None, value, float("nan")], None, data, START + 10 * DAY)
    assert mark is not None
    assert (mark.kind, mark.before(DAY, data)) == (kind, lagged)
    assert type(mark.before(DAY, data)) is type(lagged)
    assert kind_of(mark.before(None, data), data) == kind.removesuffix("Z")


@pytest.mark.parametrize("values", [[True], [17], ["2026-03-01", "2026-03-01T00:00"], [b"\0\1"], ["soon", ""]])
def test_values_that_do_not_order_rows_are_refused(values: list[Any]) -> None:
    pipeline = reviews.pipeline({"kind": "sql", "url_env": "SHOP", "table": "reviews"}, data__updated="changed")
    with pytest.raises(DataError, match="changed") as caught:
        newest_mark(values, None, pipeline.data, START)
    assert "query_file" in caught.value.next_step


def test_a_text_that_is_no_time_does_not_move_the_mark() -> None:
    pipeline = reviews.pipeline({"kind": "sql", "url_env": "SHOP", "table": "reviews"}, data__updated="changed")
    assert newest_mark(["", None], None, pipeline.data, START) is None
    mark = Mark("text -", "2026-03-01T00:00:00.000000+00:00")
    assert newest_mark(["2026-02-01", "soon"], mark, pipeline.data, START + DAY) == mark
    assert newest_mark(["soon"], mark, pipeline.data, START + DAY) == mark


def refusal(error: type[NightgateError], **changes: Any) -> NightgateError:
    with pytest.raises(error) as caught:
        source(0, **changes).plan(None)
    assert type(caught.value) is error
    assert caught.value.next_step
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize(
    ("url", "error", "step"),
    [
        ("", ConfigurationError, "export SHOP="),
        ("localhost:5432", ConfigurationError, "postgresql://user:password@host/database"),
        ("postgresql://me:se@secret@host/db", ConfigurationError, "%40"),
        ("clickhouse://me:secret@host/db", ConfigurationError, "dialect"),
        ("mysql://me:secret@host/db", ConfigurationError, "pip install 'mysqlclient'"),
        ("postgresql://me:secret@127.0.0.1:1/db", SourceUnavailableError, "SHOP"),
        ("sqlite:////nowhere/shop.db", DataError, "SHOP"),
    ],
)
def test_a_database_that_cannot_be_reached_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, error: type[NightgateError], step: str
) -> None:
    monkeypatch.setenv("SHOP", url)
    assert step in refusal(error).next_step


@pytest.mark.usefixtures("table")
def test_what_the_database_lacks_is_named(tmp_path: Path) -> None:
    assert "shop.orders" in refusal(DataError, given={"table": "shop.orders"}).reason
    assert "did you mean 'text'" in refusal(DataError, data__text="texts").reason
    assert "no_such.sql" in refusal_of_file(tmp_path / "no_such.sql")
    (tmp_path / "empty.sql").write_text(" ;\n")
    assert "empty" in refusal_of_file(tmp_path / "empty.sql")
    (tmp_path / "wrong.sql").write_text("SELECT FROM WHERE")
    assert "wrong.sql" in refusal_of_file(tmp_path / "wrong.sql")


def test_the_doctor_looks_at_the_table(table: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**changes: Any) -> Finding:
        pipeline = reviews.pipeline({"kind": "sql", "url_env": "SHOP", "table": "reviews"}, **changes)
        return readiness.source(pipeline, readiness.Hub(1))

    assert (look().status, look().found.split()[0]) == ("ok", "reviews")
    assert (look(split__column="side").status, look(data__updated="at").status) == ("problem", "problem")
    assert "'side'" in look(split__column="side").found
    monkeypatch.setenv("SHOP", "postgresql://me:secret@127.0.0.1:1/db")
    # Its server may be back when the night comes.
    assert look().status == "warning"
    assert "secret" not in look().found + look().remedy
    assert table.url


def refusal_of_file(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        source(0, given={"query_file": str(path)}).plan(None)
    assert caught.value.next_step
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "changes", "named"),
    [
        ({}, {}, "query_file"),
        ({"table": "a", "query_file": "b"}, {}, "query_file"),
        ({"table": "a", "url_env": "postgresql://me:secret@host/db"}, {}, "url_env"),
        ({"table": "a", "url": "postgresql://me:secret@host/db"}, {}, "url"),
        ({"table": "a"}, {"data__sweep": 7}, "sweep"),
        ({"table": "a"}, {"data__sweep": 7} | ALL_NAMED, "sweep"),
        ({"table": "a"}, {"data__sweep": -1}, "sweep"),
        ({"table": "a"}, {"data__lag": "soon"}, "lag"),
    ],
)
def test_settings_that_cannot_act_are_refused(given: dict[str, str], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reviews.pipeline({"kind": "sql", "url_env": "SHOP"} | given, **changes)
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"data__lag": "1d"}, {"data__sweep": 2, "data__time": "created_at"}])
def test_marks_are_refused_for_files(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="'sql'"):
        reviews.pipeline(reviews.files("a.csv"), **changes)


@pytest.mark.usefixtures("table")
def test_an_id_that_the_driver_gives_as_an_object_is_text(tmp_path: Path, dialect: str) -> None:
    if dialect != "postgresql":
        pytest.skip("SQLite has no UUIDs")
    row = uuid.uuid4()
    query = tmp_path / "ids.sql"
    query.write_text(f"SELECT '{row}'::uuid AS id, 'Kettle' AS text, 5 AS stars")
    opened = source(0, given={"query_file": str(query)})
    (batch,) = opened.read(opened.plan(None).read[0])
    assert batch.table["id"].to_pylist() == [str(row)]


def test_the_columns_of_changes_and_deletions_act_for_files_too(home: Home, tmp_path: Path) -> None:
    rows = [row | {"changed": "2026-02-01", "gone": ""} for row in reviews.rows()]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    edited = rows[1] | {"text": "Edited.", "changed": "2026-02-05"}
    removed = rows[2] | {"changed": "2026-02-05", "gone": "true"}
    outdated = rows[3] | {"text": "As it was first.", "changed": "2026-01-05"}
    pd.DataFrame([edited, removed, outdated]).to_csv(tmp_path / "b.csv", index=False)
    pipeline = reviews.pipeline(reviews.files(tmp_path / "a.csv", tmp_path / "b.csv"), **ALL_NAMED)
    refreshed = refresh(pipeline, reviews.NIGHT, home)
    found = pd.concat(refreshed.snapshot.rows(split) for split in SPLITS).set_index("row_id")["text"]
    assert found.loc[["00001", "00003"]].tolist() == ["Edited.", rows[3]["text"]]
    assert "00002" not in found
    counts = [(part.taken, part.replaced, part.deleted) for part in refreshed.parts]
    assert counts == [(118, 2, 0), (1, 1, 1)]
