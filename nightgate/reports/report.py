"""The report of a night: a Markdown artifact for Prefect's UI and an HTML file beside the run.

    path = write(home, run_id)           # runs/<run_id>/report.html, self-contained
    text = markdown(home, run_id)        # the artifact

Every run has one, whatever its status; a section without content is left out. `facts` gathers, `sections` and
`verdict_section` say what is shown, and the templates `report.html` and `report.md` write it.
"""

from __future__ import annotations

from pathlib import Path

from nightgate.durable_files import write_whole
from nightgate.home import Home
from nightgate.rendering import render
from nightgate.reports import sections, verdict_section
from nightgate.reports.facts import ReportFacts, gather
from nightgate.reports.page import Page, Section, mark


def as_page(facts: ReportFacts) -> Page:
    """The whole report, with its pictures drawn."""
    parts = {
        "Verdict": verdict_section.verdict(facts),
        "Checks of classes and slices": verdict_section.slice_checks(facts),
        "Diagnosis": sections.diagnosis(facts),
        "Epochs": sections.epochs(facts),
        "Test rows": sections.test_rows(facts),
        "Slices": sections.slices(facts),
        "Data": sections.data(facts),
        "Drift": sections.drift(facts),
        "How it ran": sections.how_it_ran(facts),
        "Where to look next": sections.links(facts),
    }
    return Page(
        title=f"Night {facts.run['night']} of {facts.run['pipeline']}",
        status=mark(facts.run["status"]),
        head=sections.head(facts),
        sections=[Section(title, blocks) for title, blocks in parts.items() if blocks],
    )


def as_markdown(page: Page) -> str:
    """The page as Markdown, with pictures as data URIs."""
    return render("report.md", page=page).strip() + "\n"


def as_html(page: Page) -> str:
    """The page as one HTML file that loads nothing, light or dark as the reader's system."""
    return render("report.html", page=page)


def write(home: Home, run_id: str) -> Path:
    """Save the HTML file as `runs/<run_id>/report.html`, whole or not at all, and return its path.

    Raises:
        DatabaseError: the database cannot be used.
        StorageError: the file cannot be written.
    """
    path = home.report(run_id)
    write_whole(path, as_html(as_page(gather(home, run_id))).encode())
    return path


def markdown(home: Home, run_id: str) -> str:
    """The same page as Markdown.

    Raises:
        DatabaseError: the database cannot be used.
    """
    return as_markdown(as_page(gather(home, run_id)))
