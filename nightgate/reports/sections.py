"""The other sections of a report, each a function from facts to blocks. A section without content is an empty list."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from nightgate.config.training import Training
from nightgate.frames.epochs import own_rows, published_rows
from nightgate.plain_text import with_form_fields
from nightgate.reports import charts
from nightgate.reports.confusion_chart import confusion_matrix
from nightgate.reports.facts import ReportFacts, Row, epoch_facts
from nightgate.reports.page import (
    Block,
    Callout,
    Code,
    Facts,
    Mark,
    Query,
    Span,
    Spans,
    Strong,
    Table,
    Text,
    Tile,
    Tiles,
    Tone,
    duration,
    first_of,
    gap,
    mark,
    moment,
    number,
    percent,
    rows,
    score,
    unstated,
)
from nightgate.reports.shares import SnapshotShares, length_edges
from nightgate.reports.terminal_summary import EXAMPLE_QUERY, diagnosis_sentences
from nightgate.training.continued import continued_recipe

TABLE_ROWS = 60
CHART_COLUMNS = 6
"""Slice columns with charts, so that an artifact stays small."""
FEW_EPOCHS = 30
COMMON_CONFUSIONS = 8
_WARN = Mark("", "warn")


def head(facts: ReportFacts) -> list[Block]:
    run = facts.run
    blocks: list[Block] = [Text((run["reason"] or "No reason was recorded.",), "lead")]
    if run["next_step"]:
        blocks.append(Callout(("Next: ", *_with_commands(run["next_step"])), _WARN))
    if run["dry_run"]:
        blocks.append(Callout(("A dry run: nothing was promoted, whatever the gate decided.",), Mark("", "calm")))
    tiles = []
    if run["test_f1"] is not None:
        # The colour is that of the check: a night may be held with an F1 above the threshold.
        is_good = all(check["outcome"] == "passed" for check in facts.checks if check["check_name"] == "min_f1")
        name, least = f"{run['average'].capitalize()} F1 on test", f"min_f1 {score(run['min_f1'])}"
        tiles.append(Tile(name, score(run["test_f1"]), least, _tone(is_good)))
    if run["f1_delta"] is not None:
        champion = f"version {run['champion_version']}: {score(run['champion_f1'])}"
        tiles.append(Tile("Against champion", gap(run["f1_delta"]), champion, _tone(run["f1_delta"] >= 0)))
    if run["best_epoch"] is not None:
        tiles.append(Tile("Best epoch", f"{run['best_epoch']}", f"of {len(facts.epochs)}, by validation F1"))
    if run["test_rows"] is not None:
        since = run["window_start"]
        of = number(run["rows_total"] if since is None else run["test_rows_all"])
        tiles.append(
            Tile("Test rows", number(run["test_rows"]), f"since {since:%Y-%m-%d}, of {of}" if since else f"of {of}")
        )
    if run["duration_seconds"] is not None:
        tiles.append(Tile("Took", duration(run["duration_seconds"]), run["device"] or ""))
    return [*blocks, Tiles(tiles)] if tiles else blocks


def diagnosis(facts: ReportFacts) -> list[Block]:
    return [Callout(_with_commands(sentence), _WARN) for sentence in diagnosis_sentences(facts)]


def epochs(facts: ReportFacts) -> list[Block]:
    if not facts.epochs:
        return []
    run = facts.run
    header, cells = published_rows(pd.DataFrame(list(facts.epochs)))
    best = next((at for at, epoch in enumerate(facts.epochs) if epoch["epoch"] == run["best_epoch"]), None)
    table: list[Sequence[Span]] = [
        [Strong(cell) for cell in row] if at == best else row for at, row in enumerate(cells)
    ]
    note = f"F1, precision and recall are {run['average']} averages on the validation rows"
    if best is not None and len(facts.epochs) > 1:
        note += f", which chose epoch {run['best_epoch']}: its row is optimistic. Nothing was chosen on the test rows"
    if run["champion_f1"] is not None:
        note += ". The champion's line is its F1 on tonight's test rows"
    curves = charts.curves(
        epoch_facts(facts.epochs), best_epoch=run["best_epoch"], min_f1=run["min_f1"], champion_f1=run["champion_f1"]
    )
    blocks: list[Block] = [curves, Table(header, table, "centre", _brief(table, best)), Text((f"{note}.",), "small")]
    if facts.own_metrics:
        names, own = own_rows(facts.own_metrics)
        blocks.append(Text((Strong("Metrics of the pipeline file"), ", on the validation rows and on all test rows")))
        blocks.append(Table(names, own, "centre", _brief([*own], None)))
    return blocks


def _brief(table: list[Sequence[Span]], best: int | None) -> list[Sequence[Span]] | None:
    """The first 5 epochs, those around the best and the last 15, with an ellipsis for each gap."""
    if len(table) <= FEW_EPOCHS:
        return None
    around = [] if best is None else [best - 1, best, best + 1]
    kept = sorted({*range(5), *range(len(table) - 15, len(table)), *around} & set(range(len(table))))
    brief: list[Sequence[Span]] = []
    for before, place in zip([-1, *kept], kept, strict=False):
        brief += [["…"] * len(table[0])] if place > before + 1 else []
        brief.append(table[place])
    return brief


def test_rows(facts: ReportFacts) -> list[Block]:
    if not facts.confusion:
        return []
    run, labels = facts.run, facts.label_names
    total = sum(map(sum, facts.confusion))
    right = sum(row[at] for at, row in enumerate(facts.confusion))
    blocks: list[Block] = [
        Text((f"{number(right)} of {rows(total)} got their label (accuracy {score(run['test_accuracy'])}).",)),
        confusion_matrix(labels, facts.confusion),
    ]
    pairs = [
        (count, labels[true], labels[guess], count / sum(counts))
        for true, counts in enumerate(facts.confusion)
        for guess, count in enumerate(counts)
        if true != guess and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    if pairs and len(labels) > 2:
        table = [[true, guess, number(count), percent(share)] for count, true, guess, share in pairs]
        blocks.append(Text((Strong("Most frequent confusions"),)))
        header = ("true label", "predicted", "rows", "of the true label's")
        blocks.append(Table(header, table[:COMMON_CONFUSIONS]))
    classes = [row for row in facts.slices if row["slice_name"] == "label"]
    classes.sort(key=lambda row: labels.index(row["slice_value"]) if row["slice_value"] in labels else len(labels))
    return blocks + _scored("label", classes, run["test_f1"])


def slices(facts: ReportFacts) -> list[Block]:
    found = sorted((row for row in facts.slices if row["slice_name"] != "label"), key=lambda row: row["slice_name"])
    blocks: list[Block] = []
    for place, (name, group) in enumerate(groupby(found, key=lambda row: str(row["slice_name"]))):
        ordered = sorted(group, key=lambda row: (-row["support"], row["slice_value"]))
        blocks += _scored(name, ordered, facts.run["test_f1"], chart=place < CHART_COLUMNS)
    return blocks


def _scored(name: str, found: list[Row], overall: float | None, *, chart: bool = True) -> list[Block]:
    if not found:
        return []
    blocks: list[Block] = []
    if chart and len(found) > 1:
        bars = [(str(row["slice_value"]), row["f1"], row["support"]) for row in found]
        blocks.append(charts.score_bars(name, bars, overall))
    shown, left_out = first_of(found, TABLE_ROWS, f"values of {name}, by their test rows")
    table = [
        [str(row["slice_value"]), number(row["support"]), *(score(row[key]) for key in ("f1", "precision", "recall"))]
        for row in shown
    ]
    return [*blocks, Table((name, "test rows", "F1", "precision", "recall"), table, "right"), *left_out]


def data(facts: ReportFacts) -> list[Block]:
    run, tonight, before = facts.run, facts.tonight, facts.before
    counts: list[tuple[str, Spans]] = []
    if run["snapshot_id"]:
        counts.append(("Snapshot", [Code(run["snapshot_id"])]))
    if run["rows_total"] is not None:
        counts.append(("Rows", [f"{number(run['rows_total'])}, of which {number(run['rows_new'])} are new"]))
    if facts.quarantined:
        counts.append(
            ("Quarantined", [", ".join(f"{count:,} {reason}" for reason, count in facts.quarantined.items())])
        )
    for check in facts.broken_data:
        why = f": {check['allowed_reason']}" if check["allowed_reason"] else ""
        allowed = f" (allowed by {check['allowed_by']}{why})" if check["outcome"] == "allowed" else ""
        counts.append((f"Data check {check['check_name']}", [f"{check['outcome']}: {check['reason']}{allowed}"]))
    if tonight:
        counts.append(("Length of texts", [_lengths(tonight)]))
    if before:
        counts.append(("Champion's snapshot", [Code(before.snapshot_id), f", {rows(before.rows)}"]))
        counts.append(("Length of its texts", [_lengths(before)]))
    if not counts:
        return []
    blocks: list[Block] = [Facts(counts)]
    if facts.shares_note:
        blocks.append(Text((facts.shares_note,), "small"))
    if not tonight or not tonight.rows:
        return blocks
    blocks += _shares("label", tonight.labels, before.labels if before else None, list(tonight.labels))
    blocks.append(charts.length_curves(length_edges(), tonight.lengths, before.lengths if before else None))
    for name, values in list(tonight.slices.items())[:CHART_COLUMNS]:
        # None: the champion's snapshot has no such column.
        then = before.slices.get(name) if before else None
        blocks += _shares(name, values, then, sorted(values, key=lambda value: (-values[value], value)))
    return blocks


def _shares(name: str, tonight: Mapping[str, int], before: Mapping[str, int] | None, order: list[str]) -> list[Block]:
    order += [value for value in before or {} if value not in tonight]
    if len(order) < 2:
        return []
    _, left_out = first_of(order, charts.BARS, f"values of {name}, by tonight's rows")
    return [charts.share_bars(name, tonight, before, order=order), *left_out]


def _lengths(shares: SnapshotShares) -> str:
    return f"median {shares.median_length:,} characters, 95 % have no more than {shares.long_length:,}"


def drift(facts: ReportFacts) -> list[Block]:
    """Tonight's new rows against the champion's training rows and last week's; statistics that warn come first."""
    if not facts.drift:
        return []
    found = sorted(facts.drift, key=lambda row: (row["outcome"] != "warning", row["reference"]))
    warned = sum(row["outcome"] == "warning" for row in found)
    new = rows(found[0]["rows_used"])
    sentence = f"{warned} of {len(found)} statistics warn, on {new} that are new. Drift decides nothing."
    shown, left_out = first_of(found, TABLE_ROWS, "statistics of drift")
    table: list[list[Span]] = [
        [mark(row["outcome"]), _drift_name(row), str(row["reference"]).replace("_", " "), str(row["reason"])]
        for row in shown
    ]
    # In the order in which they were measured, so that a statistic has the same place every night.
    distances = [
        charts.Distance(_drift_name(row), row["value"], row["threshold"], row["reference"] == "champion")
        for row in facts.drift
        if row["value"] is not None and row["threshold"]
    ]
    picture = [charts.drift_bars(distances[: 2 * charts.BARS])] if distances else []
    header = ("outcome", "statistic", "against", "new rows")
    return [Text((sentence,)), *picture, Table(header, table), *left_out]


def _drift_name(row: Row) -> str:
    return str(row["slice_name"] or row["statistic"].removesuffix("_shares").replace("_", " "))


def how_it_ran(facts: ReportFacts) -> list[Block]:
    run, attempts = facts.run, facts.attempts
    found: list[tuple[str, Spans]] = [
        ("Run", [Code(run["run_id"]), f", {run['trigger']}"]),
        ("Started", [moment(run["started_at"])]),
        ("Took", [duration(run["duration_seconds"]) if run["finished_at"] else "not finished"]),
        ("Data until", [moment(run["data_until"])]),
        *([("Rows trained on", [number(run["rows_trained"])])] if run["rows_trained"] is not None else []),
    ]
    if run.get("slot") is not None:
        wait = run.get("slot_wait_seconds")
        found.append(
            ("Slot", [Code(run["slot"]), ", waiting" if wait is None else f", waited {duration(wait)} for it"])
        )
    if run["device"]:
        threads = _last(attempts, "threads")
        count = f", {threads} thread{'' if threads == 1 else 's'}" if threads else ""
        found.append(("Device", [f"{run['device']}{count}"]))
        found.append(("Precision", [run["precision"] or "n/a", _because(attempts, "precision_reason")]))
    if run["engine"]:
        found.append(("Engine", [run["engine"], _because(attempts, "engine_reason")]))
    if (run["micro_batches"] or 1) > 1:
        found.append(("Parts of a batch", [f"{run['micro_batches']}, for lack of memory"]))
    speeds = [epoch["examples_per_second"] for epoch in facts.epochs if epoch["examples_per_second"]]
    if speeds:
        within = f", epochs from {min(speeds):,.1f} to {max(speeds):,.1f}" if len(speeds) > 1 else ""
        found.append(("Training speed", [f"{statistics.median(speeds):,.1f} examples/s{within}"]))
    restarts = sum(attempt["restarts"] for attempt in attempts)
    if attempts:
        found.append(("Attempts", [f"{len(attempts)}, restarts after a stall: {restarts}"]))
    found.append(("Base model", [Code(run["base_model"])]))
    recipe = facts.pipeline.training
    found.append(("Settings", _settings(continued_recipe(recipe) if run["training"] == "continued" else recipe)))
    found.append(("Configuration", [Code(run["config_hash"]), f", Nightgate {run['code_version']}"]))
    if run["prefect_flow_run_id"]:
        found.append(("Flow run", [Code(run["prefect_flow_run_id"])]))
    return [Facts(found), *([_attempts(attempts, run["reason"])] if len(attempts) > 1 or restarts else [])]


def _last(attempts: Sequence[Row], column: str) -> object:
    return next((attempt[column] for attempt in reversed(attempts) if attempt[column]), None)


def _because(attempts: Sequence[Row], column: str) -> str:
    reason = _last(attempts, column)
    return f" ({reason})" if reason else ""


def _attempts(attempts: Iterable[Row], stated: str | None) -> Table:
    table = [
        [
            f"{attempt['attempt']}",
            mark(attempt["status"]),
            moment(attempt["started_at"]),
            f"epoch {attempt['resumed_from_epoch']}" if attempt["resumed_from_epoch"] else "",
            f"{attempt['restarts']}",
            attempt["host"],
            unstated(attempt["reason"] or "", stated),
        ]
        for attempt in attempts
    ]
    return Table(("attempt", "status", "started", "resumed from", "restarts", "host", "reason"), table)


def _settings(training: Training) -> Spans:
    """What differs from the published recipe; of a night that goes on, what was in use."""
    changed = {
        name: value
        for name, value in training.model_dump().items()
        if name not in ("base_model", "metrics") and value != getattr(Training(), name)
    }
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in changed.items()}
    spans = [span for name, value in shown.items() for span in (", ", Code(f"{name}={value}"))]
    return [*spans[1:], "; the rest as in the published recipe"] if spans else ["the published recipe"]


def links(facts: ReportFacts) -> list[Block]:
    run = facts.run
    found: list[tuple[str, Spans]] = []
    if facts.model_path:
        found.append((f"Model, version {run['model_version']}", [_path(facts, facts.model_path)]))
    champion = facts.current_champion
    if champion and champion.path != facts.model_path:
        since = f"  (since {moment(champion.since)})"
        found.append((f"Champion, version {champion.version}", [_path(facts, champion.path), since]))
    found.append(("This report", [Code(str(facts.report_path), href=facts.report_path.name)]))
    page = _path(facts, facts.page_path)
    found.append(("All nights in pictures", [page, ", written anew by ", Code(f"nightgate report {run['pipeline']}")]))
    history = f"nightgate history {run['pipeline']} --run {run['run_id']}"
    found += [("Its epochs", [Code(history)])] if facts.epochs else []
    found += [("Its slices", [Code(f"{history} --slices")])] if facts.slices else []
    # The column of an artifact is narrow.
    query = re.sub(r" (?=FROM |WHERE |ORDER BY )", "\n", EXAMPLE_QUERY.format(pipeline=run["pipeline"]))
    return [Facts(found), Text(("The epochs of all nights, from the database:",)), Query(query)]


def _path(facts: ReportFacts, path: Path) -> Code:
    end = "" if path.suffix == ".html" else "/"
    return Code(str(path), href=quote(os.path.relpath(path, facts.report_path.parent)) + end)


def _tone(is_good: bool) -> Tone:
    return "good" if is_good else "bad"


def _with_commands(sentence: str) -> Spans:
    """The sentence, with settings and commands as something to copy."""
    parts = re.split(r"(--set \S+|(?<=: )nightgate (?:(?! \()[^;])+|`[^`]+`)", with_form_fields(sentence))
    return [Code(part.strip("`")) if at % 2 else part for at, part in enumerate(parts) if part]
