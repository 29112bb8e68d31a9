"""What stands in each section of a report. A section that has nothing to say is an empty list."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from itertools import groupby

import pandas as pd

from nightgate.config import Training
from nightgate.query import published_rows
from nightgate.reports import bar_charts, charts
from nightgate.reports.document import Block, Callout, Facts, Mono, Span, Strong, Table, Text, Tile, Tiles, Tone
from nightgate.reports.facts import ReportFacts, Row, epoch_facts
from nightgate.reports.parts import (
    duration,
    first_of,
    gap,
    moment,
    number,
    percent,
    rows,
    score,
    status_mark,
)
from nightgate.reports.shares import length_edges

TABLE_ROWS = 60
PICTURED_SLICES = 6
"""Slice columns with pictures: an artifact has to stay small."""
FEW_EPOCHS = 30
COMMON_CONFUSIONS = 8


def tiles(facts: ReportFacts) -> list[Block]:
    run = facts.run
    found = []
    if run["test_f1"] is not None:
        # A threshold met is no promotion: the colour is the check's, not the night's.
        tone: Tone = "good" if run["test_f1"] >= run["min_f1"] else "bad"
        found.append(Tile("F1 on test", score(run["test_f1"]), f"min_f1 {score(run['min_f1'])}", tone))
    if run["f1_delta"] is not None:
        tone = "good" if run["f1_delta"] >= 0 else "bad"
        champion = f"version {run['champion_version']}: {score(run['champion_f1'])}"
        found.append(Tile("Against champion", gap(run["f1_delta"]), champion, tone))
    if run["best_epoch"] is not None:
        found.append(Tile("Best epoch", f"{run['best_epoch']}", f"of {len(facts.epochs)}, by validation F1"))
    if run["test_rows"] is not None:
        found.append(Tile("Test rows", number(run["test_rows"]), _of_which(run)))
    if run["duration_seconds"] is not None:
        found.append(Tile("Took", duration(run["duration_seconds"]), run["device"] or ""))
    return [Tiles(found)] if found else []


def _of_which(run: Row) -> str:
    """Of how many rows the test rows that decided are."""
    if run["window_start"] is None:
        return f"of {number(run['rows_total'])}"
    return f"since {run['window_start']:%Y-%m-%d}, of {number(run['test_rows_all'])}"


def diagnosis(facts: ReportFacts) -> list[Block]:
    return [Callout((f"{finding.text} ", *_remedy(finding.remedy)), tone="warn") for finding in facts.findings]


def epochs(facts: ReportFacts) -> list[Block]:
    if not facts.epochs:
        return []
    run = facts.run
    header, cells = published_rows(pd.DataFrame(list(facts.epochs)))
    best = next((at for at, epoch in enumerate(facts.epochs) if epoch["epoch"] == run["best_epoch"]), None)
    told = f"F1, precision and recall are {run['average']} averages on the validation rows"
    if run["best_epoch"] is not None:
        told += (
            f"; they picked epoch {run['best_epoch']}, so its row is optimistic. Nothing was chosen on the test rows"
        )
    if run["champion_f1"] is not None:
        told += ". The champion's line is its F1 on tonight's test rows"
    picture = charts.curves(
        epoch_facts(facts.epochs),
        best_epoch=run["best_epoch"],
        min_f1=run["min_f1"],
        champion_f1=run["champion_f1"],
    )
    last = len(cells) - 1
    brief = {*range(5), *range(last - 14, last + 1), *([best - 1, best, best + 1] if best is not None else [])}
    table = Table(
        header,
        cells,
        centred=True,
        highlight=best,
        brief=sorted(at for at in brief if 0 <= at <= last) if len(cells) > FEW_EPOCHS else None,
    )
    return [picture, table, Text((f"{told}.",), kind="small")]


def test_rows(facts: ReportFacts) -> list[Block]:
    if not facts.confusion:
        return []
    run, labels = facts.run, facts.label_names
    total = sum(map(sum, facts.confusion))
    right = sum(row[at] for at, row in enumerate(facts.confusion))
    blocks: list[Block] = [
        Text((f"{number(right)} of {rows(total)} were given their label (accuracy {score(run['test_accuracy'])}).",)),
        charts.confusion_matrix(labels, facts.confusion),
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
        blocks += _scored(name, ordered, facts.run["test_f1"], pictured=place < PICTURED_SLICES)
    return blocks


def _scored(name: str, found: list[Row], overall: float | None, *, pictured: bool = True) -> list[Block]:
    if not found:
        return []
    blocks: list[Block] = []
    if pictured and len(found) > 1:
        bars = [(str(row["slice_value"]), row["f1"], row["support"]) for row in found]
        blocks.append(bar_charts.score_bars(name, bars, overall))
    shown, left_out = first_of(found, TABLE_ROWS, f"values of {name}, by their test rows")
    table = [
        [str(row["slice_value"]), number(row["support"]), *(score(row[key]) for key in ("f1", "precision", "recall"))]
        for row in shown
    ]
    blocks.append(Table((name, "test rows", "F1", "precision", "recall"), table, numbers=True))
    return [*blocks, Text((left_out,), kind="small")] if left_out else blocks


def data(facts: ReportFacts) -> list[Block]:
    run, tonight, before = facts.run, facts.tonight, facts.before
    blocks: list[Block] = []
    counts: list[tuple[str, list[Span]]] = []
    if run["snapshot_id"]:
        counts.append(("Snapshot", [Mono(run["snapshot_id"])]))
    if run["rows_total"] is not None:
        counts.append(("Rows", [f"{number(run['rows_total'])}, of which {number(run['rows_new'])} are new"]))
    if facts.quarantined:
        told = ", ".join(f"{count:,} {reason}" for reason, count in facts.quarantined.items())
        counts.append(("Quarantined", [told]))
    if tonight:
        counts.append(("Length of texts", [_lengths(tonight.median_length, tonight.long_length)]))
    if before:
        counts.append(("Champion's snapshot", [Mono(before.snapshot_id), f", {rows(before.rows)}"]))
        counts.append(("Length of its texts", [_lengths(before.median_length, before.long_length)]))
    if counts:
        blocks.append(Facts(counts))
    if facts.shares_note and blocks:
        blocks.append(Text((facts.shares_note,), kind="small"))
    if not tonight or not tonight.rows:
        return blocks
    blocks += _shares("label", tonight.labels, before.labels if before else None, list(tonight.labels))
    blocks.append(bar_charts.length_curves(length_edges(), tonight.lengths, before.lengths if before else None))
    for name, values in list(tonight.slices.items())[:PICTURED_SLICES]:
        # A slice that the champion's snapshot has no column of cannot be compared.
        earlier = before.slices.get(name) if before else None
        blocks += _shares(name, values, earlier, sorted(values, key=lambda value: (-values[value], value)))
    return blocks


def _shares(name: str, tonight: Mapping[str, int], before: Mapping[str, int] | None, order: list[str]) -> list[Block]:
    order += [value for value in before or {} if value not in tonight]
    if not order:
        return []
    blocks: list[Block] = []
    if len(order) > 1:
        blocks.append(bar_charts.share_bars(name, tonight, before, order=order))
    total, earlier = max(1, sum(tonight.values())), max(1, sum((before or {}).values()))
    shown, left_out = first_of(order, TABLE_ROWS, f"values of {name}, by tonight's rows")
    table = []
    for value in shown:
        share = tonight.get(value, 0) / total
        cells = [value, number(tonight.get(value, 0)), percent(share)]
        if before is not None:
            then = before.get(value, 0) / earlier
            cells += [percent(then), f"{100 * (share - then):+.1f}"]
        table.append(cells)
    header = (name, "rows", "share", *(("champion's", "points") if before is not None else ()))
    blocks.append(Table(header, table, numbers=True))
    return [*blocks, Text((left_out,), kind="small")] if left_out else blocks


def how_it_ran(facts: ReportFacts) -> list[Block]:
    run = facts.run
    last = facts.attempts[-1] if facts.attempts else None
    told: list[tuple[str, list[Span]]] = [
        ("Run", [Mono(run["run_id"]), f", {run['trigger']}"]),
        ("Started", [moment(run["started_at"])]),
        ("Took", [duration(run["duration_seconds"]) if run["finished_at"] else "not ended yet"]),
        ("Data until", [moment(run["data_until"])]),
    ]
    if run.get("slot") is not None:
        wait = run.get("slot_wait_seconds")
        told.append(
            ("Slot", [Mono(run["slot"]), f", waited {duration(wait)} for it" if wait is not None else ", waiting"])
        )
    if run["device"]:
        reason = next((row["precision_reason"] for row in reversed(facts.attempts) if row["precision_reason"]), None)
        told.append(("Device", [f"{run['device']}{_threads(facts.attempts)}"]))
        told.append(("Precision", [run["precision"] or "n/a", f" ({reason})" if reason else ""]))
    if run["engine"]:
        why = next((row["engine_reason"] for row in reversed(facts.attempts) if row["engine_reason"]), None)
        told.append(("Engine", [run["engine"], f" ({why})" if why else ""]))
    if (run["micro_batches"] or 1) > 1:
        told.append(("Parts of a batch", [f"{run['micro_batches']}, for lack of memory"]))
    speeds = [epoch["examples_per_second"] for epoch in facts.epochs if epoch["examples_per_second"]]
    if speeds:
        within = f", epochs from {min(speeds):,.1f} to {max(speeds):,.1f}" if len(speeds) > 1 else ""
        told.append(("Training speed", [f"{statistics.median(speeds):,.1f} examples/s{within}"]))
    restarts = sum(attempt["restarts"] for attempt in facts.attempts)
    if last:
        told.append(("Attempts", [f"{len(facts.attempts)}, restarts after a stall: {restarts}"]))
    told.append(("Base model", [Mono(run["base_model"])]))
    told.append(("Settings", _settings(facts.pipeline.training)))
    told.append(("Configuration", [Mono(run["config_hash"]), f", Nightgate {run['code_version']}"]))
    if run["prefect_flow_run_id"]:
        told.append(("Flow run", [Mono(run["prefect_flow_run_id"])]))
    blocks: list[Block] = [Facts(told)]
    if len(facts.attempts) > 1 or restarts:
        blocks.append(_attempts(facts.attempts))
    return blocks


def _attempts(attempts: Iterable[Row]) -> Table:
    table = [
        [
            f"{attempt['attempt']}",
            status_mark(attempt["status"]),
            moment(attempt["started_at"]),
            "" if not attempt["resumed_from_epoch"] else f"epoch {attempt['resumed_from_epoch']}",
            f"{attempt['restarts']}",
            attempt["host"],
            attempt["reason"] or "",
        ]
        for attempt in attempts
    ]
    return Table(("attempt", "status", "started", "went on from", "restarts", "host", "reason"), table)


def _settings(training: Training) -> list[Span]:
    """What differs from the published recipe."""
    defaults = Training()
    spans: list[Span] = []
    for name in Training.model_fields:
        value = getattr(training, name)
        if name != "base_model" and value != getattr(defaults, name):
            spans += [", "] if spans else []
            spans.append(Mono(f"{name}={value}"))
    return [*spans, "; the rest as in the published recipe"] if spans else ["the published recipe"]


def _threads(attempts: Iterable[Row]) -> str:
    threads = [attempt["threads"] for attempt in attempts if attempt["threads"]]
    return f", {threads[-1]} thread{'' if threads[-1] == 1 else 's'}" if threads else ""


def _lengths(median: int, long: int) -> str:
    return f"median {median:,} characters, 95 % have no more than {long:,}"


def _remedy(remedy: str) -> list[Span]:
    """The remedy with its setting as something to copy."""
    words, separator, setting = remedy.partition("--set ")
    return [words, Mono(f"{separator}{setting}")] if separator else [remedy]
