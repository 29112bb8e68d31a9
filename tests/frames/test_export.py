"""Every view as Parquet, read back by pandas and DuckDB; the types of the views' columns."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import sqlalchemy as sa
from typer.testing import CliRunner, Result

import nightgate
from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS, kind_of
from tests.support import night_rows

KINDS = {
    "timestamp with time zone": "time",
    "date": "date",
    "boolean": "boolean",
    "smallint": "integer",
    "integer": "integer",
    "bigint": "integer",
    "double precision": "number",
    "bytea": "bytes",
    "text": "text",
    "character varying": "text",
}
"""By PostgreSQL's name of a type; text may be JSON."""


def run_export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["db", "export", *map(str, arguments)])


def two_pipelines(database: Database) -> None:
    for day in range(2):
        night_rows.held_version(database, day)
    night_rows.promote(database, 2)
    night_rows.open_run(database, night_rows.pipeline("other"), night_rows.night())


def test_the_views_are_those_of_the_database_and_their_columns_have_the_declared_types(database: Database) -> None:
    assert set(database.read(lambda session: sa.inspect(session.connection()).get_view_names())) == set(VIEWS)
    if database.dialect == "sqlite":
        return
    columns = database.frame(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = current_schema()"
    )
    found = {
        f"{view}.{column}": (KINDS[declared], kind_of(view, column).replace("json", "text"))
        for view, column, declared in columns.itertuples(index=False)
        if view in VIEWS
    }
    assert {name: kinds for name, kinds in found.items() if kinds[0] != kinds[1]} == {}


def test_pandas_and_duckdb_read_every_view_with_its_types(database: Database, tmp_path: Path) -> None:
    two_pipelines(database)
    folder = tmp_path / "parquet"
    done = run_export(folder)
    assert done.exit_code == 0, done.stderr
    assert {path.stem for path in folder.iterdir()} == set(VIEWS)
    nights = pd.read_parquet(folder / "nights.parquet")
    nights = nights[nights["pipeline"] == "reviews"].sort_values("night", ignore_index=True)
    frame = nightgate.history("reviews")
    assert list(nights["night"]) == list(frame["night"]) == [date(2026, 3, 1), date(2026, 3, 2)]
    for name in ("started_at", "test_f1", "attempts", "dry_run", "champion_version", "reason"):
        pd.testing.assert_series_equal(nights[name], frame[name], check_dtype=False)

    def ask(query: str) -> Any:
        return duckdb.sql(query.replace("FROM ", f"FROM '{folder}/").replace(" AS t", ".parquet' AS t")).fetchall()

    types = "typeof(night), typeof(dry_run), typeof(attempts), typeof(test_f1), typeof(started_at), typeof(rows_new)"
    [kinds] = ask(f"SELECT DISTINCT {types} FROM nights AS t")
    assert kinds == ("DATE", "BOOLEAN", "BIGINT", "DOUBLE", "TIMESTAMP WITH TIME ZONE", "BIGINT")
    [[since]] = ask("SELECT valid_from FROM champion_timeline AS t WHERE valid_to IS NULL")
    assert timedelta() < datetime.now(UTC) - since < timedelta(minutes=5)
    assert ask("SELECT COUNT(*) FROM nightly_runs AS t WHERE pipeline = 'other'") == [(1,)]


def test_one_pipeline_is_exported_alone_and_an_unknown_one_not_at_all(database: Database, tmp_path: Path) -> None:
    two_pipelines(database)
    assert run_export(tmp_path / "one", "--pipeline", "other").exit_code == 0
    assert set(pd.read_parquet(tmp_path / "one" / "nightly_runs.parquet")["pipeline"]) == {"other"}
    assert pd.read_parquet(tmp_path / "one" / "model_versions.parquet").empty
    assert run_export(tmp_path / "none", "--pipeline", "others").exit_code == 2
    assert not (tmp_path / "none").exists()


def test_a_folder_is_only_replaced_by_force_and_only_if_it_is_an_export(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    assert run_export(folder).exit_code == 0
    two_pipelines(database)
    refused = run_export(folder)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert pd.read_parquet(folder / "nights.parquet").empty
    assert run_export(folder, "--force").exit_code == 0
    assert len(pd.read_parquet(folder / "nights.parquet")) == 3
    for name in ("notes.txt", "reviews.parquet", "nights.parquet/part-0.parquet"):
        shutil.rmtree(folder)
        assert run_export(folder).exit_code == 0
        other = folder / name
        if other.parent != folder:
            other.parent.unlink()
            other.parent.mkdir()
        other.write_text("of a user")
        refused = run_export(folder, "--force")
        assert refused.exit_code == 2
        assert f"holds {name.split('/')[0]}" in " ".join(refused.stderr.split())
        assert other.read_text() == "of a user"
    assert "is a file" in " ".join(run_export(other, "--force").stderr.split())


def test_an_export_that_fails_leaves_nothing(database: Database, tmp_path: Path) -> None:
    database.write(lambda session: session.execute(sa.text(f"DROP VIEW {VIEWS[-2]}")))
    failed = run_export(tmp_path / "parquet")
    assert failed.exit_code == 1
    assert "nightgate db upgrade" in failed.stderr
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == []
