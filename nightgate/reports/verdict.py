"""What a report says about the verdict: pictures, what it was decided on, the checks, and a person's word."""

from __future__ import annotations

from collections.abc import Iterator

from nightgate.gate.words import percent
from nightgate.reports import verdict_charts
from nightgate.reports.document import Block, Facts, Span, Table, Text
from nightgate.reports.facts import ReportFacts, Row
from nightgate.reports.parts import first_of, gap, moment, number, outcome_mark, rows, score
from nightgate.reports.verdict_charts import Gap, Level
from nightgate.reports.verdict_words import evidence, told_checks

TABLE_ROWS = 60
PICTURED_SLICES = 6
"""Of all classes and slices, those that lost most."""


def verdict(facts: ReportFacts) -> list[Block]:
    """All of it, but for the checks of classes and slices that did not fail."""
    blocks = _pictures(facts)
    if told := evidence(facts):
        blocks.append(Facts([(name, [sentence]) for name, sentence in told]))
    shown, left_out = told_checks(facts.checks)
    if shown:
        table = [[outcome_mark(check["outcome"]), _check_name(check), check["reason"]] for check in shown]
        blocks.append(Table(("outcome", "check", "reason"), table))
    if left_out:
        blocks.append(Text((left_out,), kind="small"))
    if facts.approval:
        blocks.append(Facts(_approval(facts.approval)))
    return blocks


def slice_checks(facts: ReportFacts) -> list[Block]:
    """The checks of classes and slices, those that failed first, then those of the greatest loss."""
    found = sorted((check for check in facts.checks if check["slice_name"]), key=_by_loss)
    shown, left_out = first_of(found, TABLE_ROWS, "checks of classes and slices, by their loss")
    if not shown:
        return []
    table: list[list[Span]] = [
        [
            outcome_mark(check["outcome"]),
            _slice_name(check),
            str(check["check_name"]),
            number(check["rows_used"]),
            score(check["candidate_value"]),
            score(check["champion_value"]),
            gap(_difference(check)),
            _interval(check),
        ]
        for check in shown
    ]
    header = ("outcome", "class or slice", "check", "rows", "F1", "champion's", "difference", "interval of it")
    blocks: list[Block] = [Table(header, table)]
    return [*blocks, Text((left_out,), kind="small")] if left_out else blocks


def _check_name(check: Row) -> str:
    """Such as `slice_floor (product: kettle)`."""
    name = str(check["check_name"])
    return f"{name} ({check['slice_name']}: {check['slice_value']})" if check["slice_name"] else name


def _pictures(facts: ReportFacts) -> list[Block]:
    run = facts.run
    if run["test_f1"] is None:
        return []
    on = f"F1 on the {number(run['test_rows'])} test rows that decided"
    blocks: list[Block] = [verdict_charts.levels(list(_levels(run)), run["min_f1"], decided_on=on)]
    if gaps := list(_gaps(facts)):
        blocks.append(verdict_charts.differences(gaps, _worst_slices(facts)))
    told = f"Bars and brackets are {percent(facts.pipeline.gate.confidence)} intervals."
    if run["champion_f1"] is not None:
        same = f"the same {rows(run['test_rows'])}"
        told += f" Version {run['champion_version']}, the champion, was scored tonight on {same}."
    return [*blocks, Text((told,), kind="small")]


def _levels(run: Row) -> Iterator[Level]:
    yield Level("candidate", run["test_f1"], run["f1_ci_low"], run["f1_ci_high"])
    if run["champion_f1"] is not None:
        yield Level(f"champion (version {run['champion_version']})", run["champion_f1"])
    if run["anchor_f1"] is not None and run["anchor_version"] != run["champion_version"]:
        yield Level(f"anchor (version {run['anchor_version']})", run["anchor_f1"])
    if run["champion_fresh_f1"] is not None:
        yield Level("champion, fresh rows", run["champion_fresh_f1"], run["fresh_ci_low"], run["fresh_ci_high"])


def _gaps(facts: ReportFacts) -> Iterator[Gap]:
    """The candidate against champion, anchor and, on the golden rows, the champion again."""
    run = facts.run
    names = {
        "beats_champion": f"champion (version {run['champion_version']})",
        "anchor": f"anchor (version {run['anchor_version']})",
        "golden": "champion, golden rows",
    }
    for check in facts.checks:
        if check["check_name"] == "anchor" and run["anchor_version"] == run["champion_version"]:
            continue
        if check["check_name"] in names and (found := _gap(facts, names[check["check_name"]], check)):
            yield found


def _worst_slices(facts: ReportFacts) -> list[Gap]:
    checks = sorted((check for check in facts.checks if check["check_name"] == "slice_margin"), key=_by_loss)
    found = (_gap(facts, _slice_name(check), check) for check in checks if check["ci_low"] is not None)
    return [one for one in found if one][:PICTURED_SLICES]


def _gap(facts: ReportFacts, name: str, check: Row) -> Gap | None:
    value = _difference(check)
    if value is None:
        return None
    # The threshold of an old night is the champion's F1, which bounds no difference.
    bound = None if facts.run["test_rows_all"] is None else check["threshold"]
    return Gap(name, value, check["ci_low"], check["ci_high"], bound, check["outcome"] in ("failed", "warning"))


def _difference(check: Row) -> float | None:
    ours, theirs = check["candidate_value"], check["champion_value"]
    return None if ours is None or theirs is None else float(ours - theirs)


def _by_loss(check: Row) -> tuple[bool, bool, float]:
    """Those that failed first; those of too few rows, which show nothing, last."""
    lost = _difference(check)
    if lost is None:
        lost = float(check["candidate_value"] or 0) - float(check["threshold"] or 0)
    return check["outcome"] != "failed", check["outcome"] == "underpowered", lost


def _interval(check: Row) -> str:
    """Of the difference; of the F1 where it was held against a floor."""
    low, high = check["ci_low"], check["ci_high"]
    if low is None or high is None:
        return ""
    told = score if check["champion_value"] is None else gap
    return f"{told(low)} to {told(high)}"


def _slice_name(check: Row) -> str:
    return f"{check['slice_name']}: {check['slice_value']}"


def _approval(approval: Row) -> list[tuple[str, list[Span]]]:
    if approval["decision"] is None:
        return [("Approval", [f"waits since {moment(approval['requested_at'])}, until {moment(approval['deadline'])}"])]
    by = f" by {approval['decided_by']}" if approval["decided_by"] else ""
    why = f": {approval['reason']}" if approval["reason"] else ""
    told = str(approval["decision"]).replace("_", " ")
    return [("Approval", [f"{told}{by}, {moment(approval['decided_at'])}{why}"])]
