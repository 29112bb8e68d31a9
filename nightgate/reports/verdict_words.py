"""What a verdict was decided on, in sentences that the report and the terminal share."""

from __future__ import annotations

from collections.abc import Iterable

from nightgate.gate.words import percent, points
from nightgate.reports.facts import ReportFacts, Row
from nightgate.reports.parts import number, rows, score
from nightgate.seeds import told_margin

FAILED_SLICES = 10
"""Classes and slices that failed, of which a verdict tells no more."""


def evidence(facts: ReportFacts) -> list[tuple[str, str]]:
    """Names and sentences: the window, what it could have seen, who else was scored, what the seed alone moves."""
    told = [
        ("Test window", window(facts)),
        ("Power", _power(facts.run)),
        ("Anchor", _anchor(facts.run)),
        ("Champion, fresh rows", _fresh(facts)),
        ("Seeds", _seeds(facts)),
    ]
    return [(name, sentence) for name, sentence in told if sentence]


def told_checks(checks: Iterable[Row]) -> tuple[list[Row], str]:
    """The checks of the whole, and of the classes and slices the first that failed; a sentence about more of these.

    Their check `slices` sums them up, and a table of their own has them all.
    """
    shown = [check for check in checks if not check["slice_name"] or check["outcome"] not in ("passed", "underpowered")]
    left_out = [check for check in shown if check["slice_name"]][FAILED_SLICES:]
    more = f"and {len(left_out):,} more classes and slices; the report lists them" if left_out else ""
    return [check for check in shown if check not in left_out], more


def interval(facts: ReportFacts, low: float | None, high: float | None) -> str:
    """Such as ` (95 % interval 0.5301 to 0.5570)`; '' where there is none."""
    if low is None or high is None:
        return ""
    return f" ({percent(facts.pipeline.gate.confidence)} interval {low:.4f} to {high:.4f})"


def window(facts: ReportFacts) -> str:
    """Which test rows decided."""
    run = facts.run
    if run["test_rows_all"] is None:
        return ""
    if run["window_start"] is None:
        told = f"all {rows(run['test_rows'])} of the test split"
    else:
        told = (
            f"{number(run['test_rows'])} test rows since {run['window_start']:%Y-%m-%d}; all "
            f"{number(run['test_rows_all'])} beside it: F1 {score(run['test_f1_all'])}"
        )
    left_out = run["rows_left_out"]
    return told + (f"; {rows(left_out)} more count nowhere, a side was trained on them" if left_out else "")


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
    run = facts.run
    if run["champion_fresh_f1"] is None:
        return ""
    within = interval(facts, run["fresh_ci_low"], run["fresh_ci_high"])
    return (
        f"F1 {score(run['champion_fresh_f1'])}{within} of version {run['champion_version']} on the "
        f"{rows(run['champion_fresh_rows'])} that came after it was chosen: the only number without selection"
    )


def _seeds(facts: ReportFacts) -> str:
    study = facts.seed_study
    if study is None:
        return ""
    spread = study["f1_spread"]
    return f"spread {score(spread)} of {study['num_seeds']} seeds: {told_margin(facts.pipeline.gate, spread)}"
