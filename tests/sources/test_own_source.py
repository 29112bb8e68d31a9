"""A source of another package: found by its entry point, opened with its own fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightgate.data.refresh import refresh
from nightgate.errors import ConfigurationError
from nightgate.sources.kinds import open_source
from tests.support import reviews

CODE = """
import pyarrow as pa
from nightgate.sources.source import Part, Plan, RawBatch

class Tickets:
    def __init__(self, fields, data, columns, night):
        self.queue, self.columns = fields["queue"], columns

    def plan(self, before):
        return Plan.of([Part(self.queue, "1")], before)

    def read(self, part):
        rows = [{"id": str(n), "text": f"{part.name} {n}", "stars": 5 if n % 3 else 1} for n in range(120)]
        yield RawBatch(pa.Table.from_pylist(rows).select(self.columns), part.name, pa.array(range(1, 121)))

    def after(self):
        return {"seen": 120}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nightgate.sources]\ntickets = acme_tickets:Tickets\nbroken = acme_none:X\n"
    )
    (tmp_path / "acme_tickets.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_a_pipeline_names_the_source_of_an_installed_package(home: Any) -> None:
    pipeline = reviews.pipeline({"kind": "tickets", "queue": "billing"})
    refreshed = refresh(pipeline, reviews.NIGHT, home)
    assert refreshed.rows_total == 120
    assert refreshed.snapshot.rows("test")["text"].str.startswith("billing ").all()
    assert pipeline.record()["data"]["source"] == {"kind": "tickets", "queue": "billing"}


@pytest.mark.usefixtures("package")
def test_a_source_that_is_not_installed_or_cannot_be_imported_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'broken', 'files', 'hub', 'sample', 'sql', 'tickets'"):
        reviews.pipeline({"kind": "ticket"})
    with pytest.raises(ConfigurationError, match="acme_none"):
        open_source(reviews.pipeline({"kind": "broken"}).data, reviews.NIGHT)
