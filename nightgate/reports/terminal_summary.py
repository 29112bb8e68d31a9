"""What a night prints at its end: epoch table, verdict, checks and their reasons, diagnosis, and where to look next.

The report of the same night (`nightgate.reports.report`) shows all of it with pictures.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from nightgate.database.connection import database_url
from nightgate.frames.epochs import published_table
from nightgate.home import Home
from nightgate.pipeline_files import pipeline_files, reference_to
from nightgate.reports.facts import ReportFacts, gather
from nightgate.reports.verdict_section import checks, evidence

LONGEST_REASON = 400
"""Characters of a check's reason."""
EXAMPLE_QUERY = (
    "SELECT night, epoch, training_loss, validation_loss, f1 FROM epoch_results "
    "WHERE pipeline = '{pipeline}' ORDER BY night, epoch"
)


def flow_message(run_id: str, status: str, reason: str) -> str:
    """The message of a finished flow run, which the UI shows and `nightgate run` parses."""
    return f"{status}: {reason} [{run_id}]"


def run_of_flow_message(message: str) -> tuple[str, str]:
    """(status, run id) of a `flow_message`."""
    found = re.fullmatch(r"(?s)(\w+): .*\[([^\[\]]+)\]", message)
    assert found, message
    return found[1], found[2]


def as_text(home: Home, run_id: str, reference: str = "") -> str:
    """The end of a night for a terminal.

    Args:
        reference: how the user names the pipeline, for the commands.
    """
    facts = gather(home, run_id, snapshots=False)
    text = "\n".join(["", *result_lines(facts), *_pointers(home, facts)])
    name = facts.run["pipeline"]
    return text.replace(reference_to(name), reference) if reference and name not in pipeline_files() else text


def result_lines(facts: ReportFacts) -> Iterator[str]:
    """What came of the night; a blank line ends each part."""
    run = facts.run
    yield f"Night {run['night']} of {run['pipeline']}: {run['status'].upper()}"
    if run["reason"]:
        yield _hanging("  ", run["reason"], 2)
    if run["next_step"]:
        yield f"  next: {run['next_step']}"
    yield ""
    if facts.epochs:
        yield published_table(pd.DataFrame(list(facts.epochs)))
        if run["best_epoch"] is not None and len(facts.epochs) > 1:
            yield f"\nBest epoch by validation F1 ({run['average']}): {run['best_epoch']}"
        yield ""
    shown, left_out = checks(facts)
    if shown:
        yield f"Verdict: {run['verdict']}"
        for outcome, name, reason in shown:
            name = f"{name:<18} " if len(name) <= 18 else f"{name}: "
            # The report has all of it: a check may list hundreds of rows.
            brief = textwrap.shorten(reason, LONGEST_REASON, placeholder=" …")
            yield _hanging(f"  {outcome:<12} {name}", brief, 34)
        if left_out:
            yield f"{'':<34}{left_out}"
        yield ""
    if sentences := evidence(facts):
        yield "Decided on:"
        yield from (_hanging(f"  {name:<20} ", sentence, 23) for name, sentence in sentences)
        yield ""
    if findings := diagnosis_sentences(facts):
        yield "Diagnosis:"
        yield from (_hanging("  ", sentence, 2) for sentence in findings)
        yield ""


def diagnosis_sentences(facts: ReportFacts) -> list[str]:
    """Each finding with its remedy, unless that is the run's next step and stated there."""
    stated, name = facts.run["next_step"] or "", facts.run["pipeline"]
    return [
        finding.text if stated.startswith(finding.step(name)) else f"{finding.text} Try: {finding.remedy}"
        for finding in facts.findings
    ]


def _pointers(home: Home, facts: ReportFacts) -> Iterator[str]:
    pipeline = facts.run["pipeline"]
    if facts.current_champion:
        yield f"Champion: version {facts.current_champion.version} at {_short(facts.current_champion.path)}"
    if facts.report_path.is_file():
        yield f"Report: {_short(facts.report_path)}"
    yield f"Ask the database:\n  {_sql_command(home, EXAMPLE_QUERY.format(pipeline=pipeline))}"
    program = "nightgate" if shutil.which("nightgate") else _short(Path(sys.executable).parent / "nightgate")
    yield f"See it in the Prefect UI:\n  {program} serve {reference_to(pipeline)}"


def _hanging(start: str, text: str, indent: int) -> str:
    """`text` after `start`, wrapped at the terminal's width (80 to 120) and indented."""
    width = min(120, max(80, shutil.get_terminal_size((120, 24)).columns))
    filled = textwrap.fill(
        # No line ends between an option and its value.
        text.replace("--set ", "--set\N{NO-BREAK SPACE}"),
        width,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def _sql_command(home: Home, query: str) -> str:
    url = database_url(home)
    if not url.startswith("sqlite"):
        # psql does not know SQLAlchemy's name of the driver. The URL has a password, so it is not printed.
        return f'psql "${{NIGHTGATE_DATABASE_URL/+psycopg/}}" -c {shlex.quote(query)}'
    path = _short(Path(url.removeprefix("sqlite:///")))
    if shutil.which("sqlite3"):
        return f'sqlite3 -header -column {path} "{query}"'
    code = f"import pandas, sqlite3; print(pandas.read_sql(\\\"{query}\\\", sqlite3.connect('{path}')))"
    return f'{_short(Path(sys.executable))} -c "{code}"'


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
