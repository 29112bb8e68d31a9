"""The page on Python and the notebook show what they give on the year of `benchmarks.fleet`.

pytest tests/project/test_python_page.py --snapshot-update      # writes both anew
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import nightgate
from tests.support.doc_examples import executed

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.usefixtures("year")
def test_the_examples_give_what_the_page_shows_on_both_engines(request: pytest.FixtureRequest) -> None:
    page = DOCS / "python.md"
    shown = page.read_text(encoding="utf-8")
    found = executed(shown)
    if request.config.getoption("--snapshot-update"):
        page.write_text(found, encoding="utf-8")
    else:
        assert found == shown
    assert "Traceback" not in found


def test_every_function_of_the_package_is_on_the_page() -> None:
    shown = (DOCS / "python.md").read_text(encoding="utf-8")
    missing = [name for name in nightgate.__all__ if f"`{name}(" not in shown]
    assert missing == ["__version__"]


def outputs(notebook: Any) -> list[list[Any]]:
    """What each cell gave, as text; pictures, whose bytes depend on fonts, by their type."""
    return [
        [one.get("text") or one.get("data", {}).get("text/plain") or one for one in cell.outputs]
        + [kind for one in cell.outputs for kind in one.get("data", {}) if kind.startswith("image/")]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.usefixtures("year")
def test_the_notebook_gives_what_it_shows(request: pytest.FixtureRequest) -> None:
    page = DOCS / "history.ipynb"
    shown = nbformat.read(page, as_version=4)
    found = nbformat.read(page, as_version=4)
    nbclient.NotebookClient(found, timeout=120, record_timing=False).execute()
    if request.config.getoption("--snapshot-update"):
        found.metadata = shown.metadata
        nbformat.write(found, page)
    else:
        assert outputs(found) == outputs(shown)
    assert json.dumps(outputs(found)).count("image/png") == 3
