"""The verdict of a report: charts, what the decision rests on, the checks, and the approval.

`summary` prints the same checks and sentences in a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

from nightgate.analysis.seed_study import describe_margin
from nightgate.gate.wording import percent, points
from nightgate.reports import charts
from nightgate.reports.charts import Gap, Level
from nightgate.reports.facts import ReportFacts, Row
from nightgate.reports.page import (
    Block,
    Facts,
    Span,
    Table,
    Text,
    first_of,
    gap,
    mark,
    moment,
    number,
    rows,
    score,
    unstated,
)

TABLE_ROWS = 60
CHART_SLICES = 6
"""Classes and slices in the chart: those that lost most."""
FAILED_SLICES = 10
"""Failed classes and slices among the checks; a table has all."""
STATED = "as stated above"


def verdict(facts: ReportFacts) -> list[Block]:
    blocks = _charts(facts)
    if sentences := evidence(facts):
        blocks.append(Facts([(name, [sentence]) for name, sentence in sentences]))
    shown, left_out = checks(facts)
    if shown:
        table: list[list[Span]] = [[mark(outcome), name, reason] for outcome, name, reason in shown]
        blocks.append(Table(("outcome", "check", "reason"), table))
    if left_out:
        blocks.append(Text((left_out,), "small"))
    if facts.approval:
        blocks.append(Facts([("Approval", [_approval(facts.approval, facts.run["reason"])])]))
    return blocks


def slice_checks(facts: ReportFacts) -> list[Block]:
    """The checks of classes and slices: those that failed, then the others by their loss."""
    found = sorted((check for check in facts.checks if check["slice_name"]), key=_by_loss)
    shown, left_out = first_of(found, TABLE_ROWS, "checks of classes and slices, by their loss")
    if not shown:
        return []
    header = ("outcome", "class or slice", "check", "rows", "F1", "champion's", "difference", "interval of it")
    table: list[list[Span]] = [
        [
            mark(check["outcome"]),
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
    return [Table(header, table), *left_out]


def checks(facts: ReportFacts) -> tuple[list[tuple[str, str, str]], str]:
    """Outcome, name and reason of the checks, and a sentence about failed slices that are left out.

    Of classes and slices only those are shown that failed or warn and that the check `slices` does not state. A clause
    of the run's reason or of an earlier check is not repeated; checks that did not run share a line per reason.
    """
    run, stated = facts.run, str(facts.run["reason"] or "")
    shown: list[tuple[str, str, str]] = []
    not_run: dict[str, list[str]] = {}
    num_slices = 0
    for check in facts.checks:
        name, outcome, reason = str(check["check_name"]), str(check["outcome"]), str(check["reason"])
        if outcome == "not_run":
            not_run.setdefault(reason, []).append(name)
            continue
        if check["slice_name"]:
            num_slices += outcome not in ("passed", "underpowered")
            if outcome in ("passed", "underpowered") or num_slices > FAILED_SLICES:
                continue
            name += f" ({_slice_name(check)})"
        # The same two models are compared when the champion is the anchor.
        version = run["champion_version"]
        same = reason.replace(f"the anchor (version {version})", f"the champion (version {version})")
        new = unstated(same, stated)
        if new or not check["slice_name"]:
            shown.append((outcome, name, new or STATED))
        stated += f"; {same}"
    shown += [("not_run", ", ".join(names), reason) for reason, names in not_run.items()]
    more = num_slices - FAILED_SLICES
    return shown, f"and {more:,} more classes and slices; the report lists them" if more > 0 else ""


def evidence(facts: ReportFacts) -> list[tuple[str, str]]:
    """Name and sentence of what the night rests on: reasons to train, test window, power, anchor, fresh rows, seeds.

    Runs of older versions of Nightgate recorded none of it.
    """
    found = {
        "Trained for": "" if facts.run["status"] == "skipped" else facts.run["reasons"],
        "Training": _training(facts.run),
        "Test window": _window(facts.run),
        "Power": unstated(_power(facts.run), facts.run["reason"]),
        "Anchor": _anchor(facts.run),
        "Champion, fresh rows": _fresh(facts),
        "Seeds": _seeds(facts),
    }
    return [(name, sentence) for name, sentence in found.items() if sentence]


def _training(run: Row) -> str:
    if not run["training_reason"]:
        return ""
    begun = "in full" if run["started_from"] is None else f"continued from version {run['started_from']}"
    learnt = "" if run["rows_trained"] is None else f", {rows(run['rows_trained'])}"
    return f"{begun}{learnt}: {run['training_reason']}"


def _window(run: Row) -> str:
    if run["test_rows_all"] is None:
        return ""
    clauses = []
    if run["window_start"] is not None:
        clauses = [
            f"{number(run['test_rows'])} test rows since {run['window_start']:%Y-%m-%d}",
            f"F1 on all {number(run['test_rows_all'])} test rows: {score(run['test_f1_all'])}",
        ]
    if run["rows_left_out"]:
        clauses.append(f"{rows(run['rows_left_out'])} left out, which a model was trained on")
    return "; ".join(clauses)


def _power(run: Row) -> str:
    if run["detectable_gain"] is None:
        return ""
    seen = f"gains of {points(run['detectable_gain'])} points or more would be seen with 80 % power"
    return seen if run["f1_delta"] is None else f"{seen}; tonight's was {points(run['f1_delta'])}"


def _anchor(run: Row) -> str:
    if run["anchor_version"] is None:
        return ""
    if run["anchor_version"] == run["champion_version"]:
        return f"version {run['anchor_version']}, the champion itself"
    return f"version {run['anchor_version']}: F1 {score(run['anchor_f1'])} on the same rows"


def _fresh(facts: ReportFacts) -> str:
    run, found = facts.run, facts.evaluation
    if found is not None:
        return f"{found['alarm']}: {found['reason']}" if found["alarm"] else str(found["reason"])
    # Of a night before there were evaluations.
    if run["champion_fresh_f1"] is None:
        return ""
    within = ""
    if run["fresh_ci_low"] is not None and run["fresh_ci_high"] is not None:
        confidence = percent(facts.pipeline.gate.confidence)
        within = f" ({confidence} interval {score(run['fresh_ci_low'])} to {score(run['fresh_ci_high'])})"
    return (
        f"F1 {score(run['champion_fresh_f1'])}{within} of version {run['champion_version']} on the "
        f"{rows(run['champion_fresh_rows'])} that came after it was chosen: free of selection"
    )


def _seeds(facts: ReportFacts) -> str:
    study = facts.seed_study
    if study is None:
        return ""
    spread = study["f1_spread"]
    return f"spread {score(spread)} of {study['num_seeds']} seeds: {describe_margin(facts.pipeline.gate, spread)}"


def _charts(facts: ReportFacts) -> list[Block]:
    run = facts.run
    if run["test_f1"] is None:
        return []
    title = f"F1 on the {number(run['test_rows'])} test rows that decided"
    blocks: list[Block] = [charts.levels(list(_levels(run)), run["min_f1"], title=title)]
    if gaps := list(_gaps(facts)):
        blocks.append(charts.differences(gaps, _worst_slices(facts)))
    note = f"Bars and brackets are {percent(facts.pipeline.gate.confidence)} intervals."
    if run["champion_f1"] is not None:
        same = f"the same {rows(run['test_rows'])}"
        note += f" Version {run['champion_version']}, the champion, was scored tonight on {same}."
    return [*blocks, Text((note,), "small")]


def _levels(run: Row) -> Iterator[Level]:
    yield Level("candidate", run["test_f1"], run["f1_ci_low"], run["f1_ci_high"])
    if run["champion_f1"] is not None:
        yield Level(f"champion (version {run['champion_version']})", run["champion_f1"])
    if run["anchor_f1"] is not None and run["anchor_version"] != run["champion_version"]:
        yield Level(f"anchor (version {run['anchor_version']})", run["anchor_f1"])
    if run["champion_fresh_f1"] is not None:
        yield Level("champion, fresh rows", run["champion_fresh_f1"], run["fresh_ci_low"], run["fresh_ci_high"])


def _gaps(facts: ReportFacts) -> Iterator[Gap]:
    """The candidate against champion, anchor and, on the golden rows, the champion."""
    run = facts.run
    names = {"beats_champion": f"champion (version {run['champion_version']})"}
    if run["anchor_version"] != run["champion_version"]:
        names["anchor"] = f"anchor (version {run['anchor_version']})"
    names["golden"] = "champion, golden rows"
    for check in facts.checks:
        if check["check_name"] in names:
            yield from _gap(facts, names[check["check_name"]], check)


def _worst_slices(facts: ReportFacts) -> list[Gap]:
    found = sorted((check for check in facts.checks if check["check_name"] == "slice_margin"), key=_by_loss)
    gaps = [_gap(facts, _slice_name(check), check) for check in found if check["ci_low"] is not None]
    return [one for some in gaps for one in some][:CHART_SLICES]


def _gap(facts: ReportFacts, name: str, check: Row) -> list[Gap]:
    value = _difference(check)
    if value is None:
        return []
    # Runs of older versions have the champion's F1 as threshold, which bounds no difference.
    bound = None if facts.run["test_rows_all"] is None else check["threshold"]
    return [Gap(name, value, check["ci_low"], check["ci_high"], bound, check["outcome"] in ("failed", "warning"))]


def _difference(check: Row) -> float | None:
    ours, theirs = check["candidate_value"], check["champion_value"]
    return None if ours is None or theirs is None else float(ours - theirs)


def _by_loss(check: Row) -> tuple[bool, bool, float]:
    """Sort failed checks first, and those of too few rows last."""
    lost = _difference(check)
    if lost is None:
        lost = float(check["candidate_value"] or 0) - float(check["threshold"] or 0)
    return check["outcome"] != "failed", check["ci_low"] is None, lost


def _interval(check: Row) -> str:
    """Of the difference; of the F1 where it was compared with a floor."""
    low, high = check["ci_low"], check["ci_high"]
    if low is None or high is None:
        return ""
    form = score if check["champion_value"] is None else gap
    return f"{form(low)} to {form(high)}"


def _slice_name(check: Row) -> str:
    return f"{check['slice_name']}: {check['slice_value']}"


def _approval(approval: Row, stated: str | None) -> str:
    if approval["decision"] is None:
        return f"waiting since {moment(approval['requested_at'])}, until {moment(approval['deadline'])}"
    by = f" by {approval['decided_by']}" if approval["decided_by"] else ""
    reason = unstated(approval["reason"] or "", stated)
    why = f": {reason}" if reason else ""
    return f"{str(approval['decision']).replace('_', ' ')}{by}, {moment(approval['decided_at'])}{why}"
