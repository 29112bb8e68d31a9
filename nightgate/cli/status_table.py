"""The tables that `nightgate status` prints."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from nightgate.cli.tables_as_text import Format, formatted
from nightgate.operations.status import SECTIONS

COLUMNS = {
    "running": (
        *("pipeline", "night", "stage", "remedy", "step", "left", "run"),
        *("epoch", "loss", "examples/s", "since", "host"),
    ),
    "waiting": ("pipeline", "night", "waits for", "next", "until", "run", "F1", "delta", "since"),
}
"""By importance: the tables of these sections show those that fit."""


def as_text(frame: pd.DataFrame, *, moment: datetime | None = None) -> str:
    """The rows of `operations.status` as one table per section. Times are UTC."""
    moment = moment or datetime.now(UTC)
    shown = []
    for section, title in SECTIONS.items():
        rows = frame[frame["section"] == section].to_dict("records")
        table = pd.DataFrame([_shown(section, row, moment) for row in rows])
        body = formatted(table, Format.table, columns=COLUMNS.get(section, ()), indent="  ")
        shown.append(f"{title}\n{body or '  nothing'}")
    return "\n\n".join(shown)


def _shown(section: str, row: Mapping[Any, Any], moment: datetime) -> dict[str, Any]:
    cell = {key: None if _missing(value) else value for key, value in row.items()}
    named = {"pipeline": cell["pipeline"], "night": cell["night"]}
    if section == "running":
        epoch = f"{cell['epoch'] or 0} of {cell['epochs']}" if cell["epochs"] else ""
        step = f"{cell['step']}/{cell['total_steps']}" if cell["total_steps"] else ""
        speed = cell["examples_per_second"]
        return named | {
            "stage": f"{cell['status']}: {cell['stage']}" if cell["status"] == "dead" else cell["stage"],
            "epoch": epoch,
            "step": step,
            "loss": "" if cell["loss"] is None else f"{cell['loss']:.4g}",
            "examples/s": "" if speed is None else f"{speed:.3g}",
            "left": "" if cell["eta_seconds"] is None else _length(timedelta(seconds=cell["eta_seconds"])),
            "since": cell["since"],
            "host": cell["host"],
            "run": cell["run_id"],
            "remedy": f"{cell['reason']}: {cell['next_step']}" if cell["status"] == "dead" else "",
        }
    if section == "waiting":
        place = f", number {cell['position']} in the queue" if cell["position"] else ""
        return named | {
            "waits for": f"{cell['waits_for']}{place}",
            "F1": cell["test_f1"],
            "delta": _gap(cell["f1_delta"]),
            "since": cell["since"],
            "until": cell["until"],
            "run": cell["run_id"],
            "next": cell["next_step"] or cell["reason"],
        }
    if section == "last_night":
        return named | {
            "status": cell["status"],
            # As text: beside missing versions, pandas turns 1 into 1.0.
            "version": "" if cell["model_version"] is None else str(cell["model_version"]),
            "F1": cell["test_f1"],
            "delta": _gap(cell["f1_delta"]),
            "reason": cell["reason"],
        }
    if section == "champion":
        within = f" ({cell['f1_ci_low']:.4f} to {cell['f1_ci_high']:.4f})" if cell["f1_ci_low"] is not None else ""
        return {
            "pipeline": cell["pipeline"],
            "version": str(cell["model_version"]),
            "rows": f"{cell['rows']:,}",
            "since": cell["since"],
            "F1": "" if cell["f1"] is None else f"{cell['f1']:.4f}{within}",
            "alarm": f"{cell['alarm']}: {cell['next_step']}" if cell["alarm"] else "",
        }
    return {
        "pipeline": cell["pipeline"],
        "begins": cell["until"],
        "in": _length(cell["until"] - moment) if cell["until"] is not None else "",
        "schedule": cell["schedule"],
        "": f"{cell['reason']}: {cell['next_step']}" if cell["next_step"] else cell["reason"],
    }


def _gap(delta: float | None) -> str:
    return "" if delta is None else f"{delta:+.4f}"


def _missing(value: Any) -> bool:
    return bool(pd.isna(value))


def _length(span: timedelta) -> str:
    """`3 h 05 min`, `4 min`, `12 s`; '' if it is not positive."""
    seconds = round(span.total_seconds())
    if seconds <= 0:
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
