"""What a night ends with: the epoch table, the verdict and its reasons, where the champion lies, where to look next."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nightgate.config import Pipeline
from nightgate.database import Database, database_url
from nightgate.diagnosis import EpochFacts, diagnose
from nightgate.home import Home
from nightgate.pipelines import pipeline_files
from nightgate.query import published_table
from nightgate.schema import Run

EXAMPLE_QUERY = (
    "SELECT night, epoch, training_loss, validation_loss, f1 FROM epoch_results "
    "WHERE pipeline = '{pipeline}' ORDER BY night, epoch"
)


@dataclass(frozen=True)
class NightFacts:
    run: dict[str, Any]
    pipeline: Pipeline
    epochs: pd.DataFrame
    checks: pd.DataFrame
    champion: dict[str, Any] | None


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
    facts = _facts(home, run_id)
    run = facts.run
    lines = ["", f"Night {run['night']} of {run['pipeline']}: {run['status'].upper()}", f"  {run['reason']}"]
    if run["next_step"]:
        lines.append(f"  next: {run['next_step']}")
    if not facts.epochs.empty:
        lines += ["", published_table(facts.epochs), "", _best_epoch(run)]
    if not facts.checks.empty:
        lines += ["", f"Verdict: {run['verdict']}", *_aligned(facts.checks)]
    lines += _findings(facts)
    if facts.champion:
        path = home.absolute(facts.champion["path"])
        lines += ["", f"Champion: version {facts.champion['version']} at {_short(path)}"]
    pipeline = run["pipeline"]
    lines += ["", "Ask the database:", f"  {_sql_command(home, EXAMPLE_QUERY.format(pipeline=pipeline))}"]
    lines += ["See it in the Prefect UI:", f"  {_program()} serve {_reference(pipeline)}"]
    return "\n".join(lines)


def as_markdown(home: Home, run_id: str) -> str:
    """The same for the run's page in the UI."""
    facts = _facts(home, run_id)
    run = facts.run
    parts = [f"# Night {run['night']} of {run['pipeline']}: {run['status']}", run["reason"]]
    if not facts.epochs.empty:
        parts += [published_table(facts.epochs), _best_epoch(run)]
    if not facts.checks.empty:
        rows = [f"| {row.outcome} | {row.check_name} | {row.reason} |" for row in facts.checks.itertuples()]
        parts.append("\n".join(["| outcome | check | reason |", "|---|---|---|", *rows]))
    parts += [line.strip() for line in _findings(facts) if line]
    parts.append(f"```sql\n{EXAMPLE_QUERY.format(pipeline=run['pipeline'])}\n```")
    return "\n\n".join(parts)


def _facts(home: Home, run_id: str) -> NightFacts:
    with Database.open(home) as db:
        run = db.frame("SELECT * FROM nightly_runs WHERE run_id = :run_id", {"run_id": run_id}).iloc[0].to_dict()
        epochs = db.frame("SELECT * FROM epoch_results WHERE run_id = :run_id ORDER BY epoch", {"run_id": run_id})
        settings = db.read(lambda session: session.get_one(Run, run_id).config)
        checks = db.frame(
            "SELECT check_name, outcome, reason FROM gate_checks WHERE run_id = :run_id ORDER BY position",
            {"run_id": run_id},
        )
        champions = db.frame(
            "SELECT v.version, v.path FROM champion_timeline c JOIN model_versions v "
            "ON v.pipeline = c.pipeline AND v.version = c.model_version "
            "WHERE c.pipeline = :pipeline AND c.valid_to IS NULL",
            {"pipeline": run["pipeline"]},
        )
    present = {str(key): None if pd.isna(value) else value for key, value in run.items()}
    reigning = {str(key): value for key, value in champions.iloc[0].items()} if len(champions) else None
    return NightFacts(present, Pipeline.model_validate(settings), epochs, checks, reigning)


def _best_epoch(run: dict[str, Any]) -> str:
    if run["best_epoch"] is None:
        return ""
    told = f"Best epoch by validation F1: {int(run['best_epoch'])}."
    if run["test_f1"] is None:
        return told
    interval = ""
    if run["f1_ci_low"] is not None:
        interval = f" (95 % interval {run['f1_ci_low']:.4f} to {run['f1_ci_high']:.4f})"
    return f"{told} F1 on {int(run['test_rows'])} test rows: {run['test_f1']:.4f}{interval}."


def _aligned(checks: pd.DataFrame) -> list[str]:
    return [f"  {row.outcome:<12} {row.check_name:<18} {row.reason}" for row in checks.itertuples()]


def _findings(facts: NightFacts) -> list[str]:
    columns = facts.epochs[["epoch", "training_loss", "validation_loss", "f1"]]
    epochs = [EpochFacts(*values) for values in columns.itertuples(index=False, name=None)]
    findings = diagnose(epochs, facts.pipeline.gate.min_f1, facts.pipeline.training)
    return ["", "Diagnosis:", *(f"  {finding.text} Try: {finding.remedy}" for finding in findings)] if findings else []


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
