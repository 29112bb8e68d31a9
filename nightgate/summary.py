"""What a night ends with in a terminal: the epoch table, the verdict and its reasons, where to look next.

The facts are those of the report (`nightgate.reports.report`), which shows them in full.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nightgate.connection import database_url
from nightgate.home import Home
from nightgate.pipelines import pipeline_files
from nightgate.query import published_table
from nightgate.reports.facts import ReportFacts, Row, gather
from nightgate.reports.verdict_words import evidence, interval, told_checks

EXAMPLE_QUERY = (
    "SELECT night, epoch, training_loss, validation_loss, f1 FROM epoch_results "
    "WHERE pipeline = '{pipeline}' ORDER BY night, epoch"
)


def flow_message(run_id: str, status: str, reason: str) -> str:
    """The message of a finished flow run: what the UI shows, and what `nightgate run` reads back."""
    return f"{status}: {reason} [{run_id}]"


def run_of_flow_message(message: str) -> tuple[str, str]:
    """(status, run id) of a `flow_message`."""
    found = re.fullmatch(r"(?s)(\w+): .*\[([^\[\]]+)\]", message)
    assert found, message
    return found[1], found[2]


def as_text(home: Home, run_id: str) -> str:
    """The end of a night for a terminal."""
    facts = gather(home, run_id, snapshots=False)
    run = facts.run
    lines = ["", f"Night {run['night']} of {run['pipeline']}: {run['status'].upper()}", f"  {run['reason']}"]
    if run["next_step"]:
        lines.append(f"  next: {run['next_step']}")
    if facts.epochs:
        lines += ["", published_table(pd.DataFrame(list(facts.epochs))), "", _best_epoch(facts)]
    if facts.checks:
        lines += ["", f"Verdict: {run['verdict']}", *_checks(facts.checks)]
    if told := evidence(facts):
        lines += ["", "Decided on:", *(f"  {name:<20} {sentence}" for name, sentence in told)]
    if facts.findings:
        lines += ["", "Diagnosis:", *(f"  {finding.text} Try: {finding.remedy}" for finding in facts.findings)]
    if facts.reigning:
        lines += ["", f"Champion: version {facts.reigning.version} at {_short(facts.reigning.path)}"]
    pipeline = run["pipeline"]
    lines += ["", *_report(facts)]
    lines += ["Ask the database:", f"  {_sql_command(home, EXAMPLE_QUERY.format(pipeline=pipeline))}"]
    lines += ["See it in the Prefect UI:", f"  {_program()} serve {_reference(pipeline)}"]
    return "\n".join(lines)


def _best_epoch(facts: ReportFacts) -> str:
    run = facts.run
    if run["best_epoch"] is None:
        return ""
    told = f"Best epoch by validation F1: {run['best_epoch']}."
    if run["test_f1"] is None:
        return told
    within = interval(facts, run["f1_ci_low"], run["f1_ci_high"])
    return f"{told} F1 on {run['test_rows']:,} test rows: {run['test_f1']:.4f}{within}."


def _checks(checks: Iterable[Row]) -> list[str]:
    shown, left_out = told_checks(checks)
    lines = [f"  {check['outcome']:<12} {check['check_name']:<18} {check['reason']}" for check in shown]
    return [*lines, f"  {'':<12} {'':<18} {left_out}"] if left_out else lines


def _report(facts: ReportFacts) -> list[str]:
    path = facts.report_path
    return ["The report, with pictures:", f"  {_short(path)}"] if path and path.is_file() else []


def _sql_command(home: Home, query: str) -> str:
    url = database_url(home)
    if not url.startswith("sqlite"):
        # psql does not know SQLAlchemy's name of the driver.
        return f'psql "${{NIGHTGATE_DATABASE_URL/+psycopg/}}" -c {shlex.quote(query)}'
    path = _short(Path(url.removeprefix("sqlite:///")))
    if shutil.which("sqlite3"):
        return f'sqlite3 -header -column {path} "{query}"'
    code = f"import pandas, sqlite3; print(pandas.read_sql(\\\"{query}\\\", sqlite3.connect('{path}')))"
    return f'{_short(Path(sys.executable))} -c "{code}"'


def _program() -> str:
    """`nightgate` as it can be typed here: by its path when it is not on PATH."""
    if shutil.which("nightgate"):
        return "nightgate"
    return _short(Path(sys.executable).parent / "nightgate")


def _reference(pipeline: str) -> str:
    """The pipeline as `serve` finds it: by its name, or by the path of a file that only its owner knows."""
    return pipeline if pipeline in pipeline_files() else f"PATH/TO/{pipeline}.toml"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
