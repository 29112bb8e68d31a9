"""Write a page: one HTML file that loads nothing, whose policy allows its own scripts and styles by their hashes.

write_page(db, home.page("sample"), "sample")           # the nights of one pipeline
write_page_of_all(db, home.page())
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, date, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nightgate import __version__
from nightgate.database.transactions import Database
from nightgate.durable_files import write_whole
from nightgate.errors import ConfigurationError, output_errors
from nightgate.home import Home
from nightgate.pages.columns import by_column
from nightgate.pages.data import page_of
from nightgate.pages.examples import misclassified
from nightgate.pages.fleet import page_of_all
from nightgate.rendering import render


def write_page(db: Database, path: Path, pipeline: str, since: date | None = None, *, examples: int = 0) -> None:
    """Write the page of a pipeline, whole or not at all.

    Args:
        since: its first night; None: of the last year.
        examples: so many misclassified test rows of the last night, with their texts.

    Raises:
        ConfigurationError: there is no night since then, or `path` cannot be that of a file.
        RegistryError: there are no examples.
        DatabaseError: the database cannot be used.
        StorageError: the file cannot be written.
    """
    data = page_of(db, pipeline, since)
    columns = data["nights"]["columns"]
    columns["report"] = _links(db.home, path, map(db.home.report, columns.get("run_id", [])))
    if examples:
        found = misclassified(db, pipeline, examples)
        data["examples"] = by_column(found, list(found.columns))
    # With texts it is closed to other users, as the home is.
    _write(path, as_html(f"Nights of {pipeline}", data), 0o600 if examples else 0o666)


def write_page_of_all(db: Database, path: Path, since: date | None = None) -> None:
    """Write the page of all pipelines, whole or not at all.

    Raises:
        ConfigurationError: there is no night since then, or `path` cannot be that of a file.
        DatabaseError: the database cannot be used.
        StorageError: the file cannot be written.
    """
    data = page_of_all(db, since)
    pages = _links(db.home, path, [db.home.page(one["pipeline"]) for one in data["pipelines"]])
    data["pipelines"] = [one | {"page": page} for one, page in zip(data["pipelines"], pages, strict=True)]
    _write(path, as_html("All pipelines", data))


def _write(path: Path, page: str, mode: int = 0o666) -> None:
    with output_errors(path):
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder", next_step=f"name a file, such as {path / 'history.html'}")
        write_whole(path, page.encode(), mode)


def as_html(title: str, data: dict[str, Any]) -> str:
    """The page; `data["kind"]` names its template and its script."""
    kind = data["kind"]
    style = _read("style.css") + _read("uplot/uPlot.min.css") + _read("page/page.css")
    scripts = [_read("uplot/uPlot.iife.min.js"), _read("page/charts.js") + _read(f"page/{kind}.js")]
    ours = f"script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}"
    return render(
        "page/page.html",
        kind=kind,
        title=title,
        pipeline=data.get("pipeline"),
        earlier=data.get("earlier"),
        policy=f"default-src 'none'; {ours}; base-uri 'none'; form-action 'none'",
        style=style,
        scripts=scripts,
        # A text of the data must not end the element that it is in.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
    )


def _links(home: Home, page: Path, targets: Iterable[Path]) -> list[str | None]:
    """Addresses relative to a page of the home, of files that are there; a page elsewhere may travel, and has none."""
    inside = page.resolve().is_relative_to(home.root)
    return [quote(os.path.relpath(file, page.parent)) if inside and file.is_file() else None for file in targets]


def _read(name: str) -> str:
    return (files("nightgate") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
