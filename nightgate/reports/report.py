"""The report of a night: what Prefect's UI shows at its end, and the same as a page beside the run.

    facts = gather(home, run_id)              # from the database and the snapshots, nothing computed again
    markdown = as_markdown(facts)             # for an artifact, pictures inside
    path = write(home, run_id)                # runs/<run_id>/report.html, self-contained

    path, markdown = publish(home, run_id)    # both, with the pictures drawn once

It comes of every run, whatever its status: what a run never came to has no section. `nightgate.reports.facts` gathers,
`nightgate.reports.sections` says what stands in each section, `nightgate.reports.document` writes it down.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import quote

from nightgate.files import write_whole
from nightgate.home import Home
from nightgate.reports import document, html_page, sections, verdict
from nightgate.reports.document import Block, Callout, Code, Document, Facts, Mono, Section, Text
from nightgate.reports.facts import REPORT_FILE, ReportFacts, gather
from nightgate.reports.parts import moment, status_mark
from nightgate.summary import EXAMPLE_QUERY

log = logging.getLogger(__name__)


def as_document(facts: ReportFacts) -> Document:
    """All that the report says, with its pictures drawn."""
    run = facts.run
    head: list[Block] = [Text((run["reason"] or "No reason was recorded.",), kind="lead")]
    if run["next_step"]:
        head.append(Callout(("Next: ", run["next_step"]), tone="warn"))
    if run["dry_run"]:
        head.append(Callout(("A dry run: nothing was promoted, whatever the gate said.",), tone="calm"))
    head += sections.tiles(facts)
    parts = [
        Section("Verdict", verdict.verdict(facts)),
        Section("Checks of classes and slices", verdict.slice_checks(facts)),
        Section("Diagnosis", sections.diagnosis(facts)),
        Section("Epochs", sections.epochs(facts)),
        Section("Test rows", sections.test_rows(facts)),
        Section("Slices", sections.slices(facts)),
        Section("Data", sections.data(facts)),
        Section("How it ran", sections.how_it_ran(facts)),
        Section("Where to look next", _links(facts)),
    ]
    return Document(
        title=f"Night {run['night']} of {run['pipeline']}",
        status=status_mark(run["status"]),
        head=head,
        sections=[part for part in parts if part.blocks],
    )


def as_markdown(facts: ReportFacts) -> str:
    """For a markdown artifact: pictures are data URIs, on a light ground of their own."""
    return document.as_markdown(as_document(facts))


def as_html(facts: ReportFacts) -> str:
    """One file that needs no other, and shows itself light or dark as the reader's system is."""
    return html_page.as_html(as_document(facts))


def write(home: Home, run_id: str) -> Path:
    """Save the page as `runs/<run_id>/report.html`, whole or not at all, and return its path.

    Raises:
        DatabaseError: the database cannot be used.
        StorageError: the file cannot be written.
    """
    return _save(home, run_id, as_document(gather(home, run_id)))


def publish(home: Home, run_id: str) -> tuple[Path, str]:
    """`write`, and `as_markdown` of the same facts. Raises as `write`."""
    page = as_document(gather(home, run_id))
    return _save(home, run_id, page), document.as_markdown(page)


def publish_if_possible(home: Home, run_id: str) -> str:
    """`publish`, for those who depend on no picture: the markdown, or '' with a warning."""
    try:
        return publish(home, run_id)[1]
    except Exception as error:  # noqa: BLE001 - nothing of a night may depend on its picture
        log.warning("run %s has no report: %s; nightgate history has all of it", run_id, error)
        return ""


def _save(home: Home, run_id: str, page: Document) -> Path:
    path = home.runs / run_id / REPORT_FILE
    write_whole(path, html_page.as_html(page).encode())
    return path


def _links(facts: ReportFacts) -> list[Block]:
    run = facts.run
    rows: list[tuple[str, list[Mono | str]]] = []
    if facts.model_path:
        rows.append((f"Model, version {run['model_version']}", [_path(facts, facts.model_path)]))
    reigning = facts.reigning
    if reigning and reigning.path != facts.model_path:
        told = f"  (since {moment(reigning.since)})"
        rows.append((f"Champion, version {reigning.version}", [_path(facts, reigning.path), told]))
    if facts.report_path:
        rows.append(("This report", [Mono(str(facts.report_path), href=facts.report_path.name)]))
    history = f"nightgate history {run['pipeline']} --run {run['run_id']}"
    rows += [("Its epochs", [Mono(history)])] if facts.epochs else []
    rows += [("Its slices", [Mono(f"{history} --slices")])] if facts.slices else []
    # A line for each part: the column of an artifact is narrow.
    query = re.sub(r" (?=FROM |WHERE |ORDER BY )", "\n", EXAMPLE_QUERY.format(pipeline=run["pipeline"]))
    blocks: list[Block] = [Facts(rows)] if rows else []
    return [*blocks, Text(("Ask the database, here for the epochs of all nights:",)), Code(query, "sql")]


def _path(facts: ReportFacts, path: Path) -> Mono:
    if facts.report_path is None:
        return Mono(str(path))
    return Mono(str(path), href=quote(os.path.relpath(path, facts.report_path.parent)) + "/")
