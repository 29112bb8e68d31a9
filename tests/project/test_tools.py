"""Datasette and DuckDB read the history as docs/tools.md says: on SQLite, on PostgreSQL and from an export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS
from tests.support.doc_examples import EXAMPLES, executed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tools.md"


@pytest.mark.parametrize(
    ("query", "column"),
    [
        ("nights?pipeline=reviews", "test_f1"),
        ("champion_on?pipeline=reviews&date=2025-07-01", "snapshot_id"),
        ("changes?pipeline=reviews&since=2025-06-01", "before"),
    ],
)
@pytest.mark.process
@pytest.mark.slow
def test_datasette_answers_the_queries_of_its_file(query: str, column: str, year_home: Path) -> None:
    pytest.importorskip("datasette")
    assert f"`/metrics/{query}`" in PAGE.read_text(encoding="utf-8")
    name, parameters = query.split("?")
    address = f"/metrics/{name}.json?_shape=array&{parameters}"
    command = [
        sys.executable,
        "-m",
        "datasette",
        "metrics.db",
        "--metadata",
        str(ROOT / "docs/datasette.yaml"),
        "--get",
    ]
    asked = subprocess.run([*command, address], cwd=year_home, capture_output=True, text=True, timeout=60, check=False)

    assert asked.returncode == 0, asked.stderr
    rows = json.loads(asked.stdout)
    assert any(row[column] is not None for row in rows)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    """DuckDB's default connection, which the page uses, of this test's own."""
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as own:
        for name in ("sqlite", "postgres"):
            folder = Path(import_module(f"duckdb_extension_{name}_scanner").__path__[0])
            own.execute(f"LOAD '{next(folder.glob('extensions/*/*.duckdb_extension'))}'")
        monkeypatch.setattr(duckdb, "sql", own.sql)
        yield own


def test_duckdb_answers_the_same_from_an_export_and_attached(
    year: Database, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from nightgate.frames.export import export

    monkeypatch.chdir(tmp_path)
    export(year, tmp_path / "export")
    page = PAGE.read_text(encoding="utf-8")
    if request.config.getoption("--snapshot-update"):
        PAGE.write_text(executed(page), encoding="utf-8")
    else:
        assert executed(page) == page

    kind = {"sqlite": "sqlite", "postgresql": "postgres"}[year.dialect]
    assert f"(TYPE {kind}, READ_ONLY); USE history" in page
    url = year._url
    place = url.database if kind == "sqlite" else f"host={url.query['host']} dbname={url.database} user={url.username}"
    asked = [re.sub(r"^\.\.\. |\"\"\"", "", sql, flags=re.M) for sql in re.findall(r'""".*?"""', page, flags=re.S)]
    from_export = [connection.sql(sql).fetchall() for sql in asked]
    connection.sql(f"ATTACH '{place}' AS history (TYPE {kind}, READ_ONLY); USE history")
    assert [connection.sql(sql).fetchall() for sql in asked] == from_export
    assert len(asked) == len(EXAMPLES.findall(page)) - 1 == 3


def test_duckdb_knows_the_types_of_every_view_of_sqlite(year_home: Path, connection: Any) -> None:
    connection.sql(f"ATTACH '{year_home / 'metrics.db'}' AS history (TYPE sqlite, READ_ONLY); USE history")
    for view in VIEWS:
        assert connection.sql(f"SELECT * FROM {view} LIMIT 1000").fetchall() is not None, view
