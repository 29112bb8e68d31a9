"""What to do about a night that was held: after what failed, and not always another training."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Evidence
from nightgate.night.run import NightRun
from nightgate.reports.facts import gather

log = logging.getLogger(__name__)

OTHERWISE = {
    "clean_test": "bring back the snapshots that it names, which prove what each side was trained on",
    "serving": "see the end of the night's log, which holds what the fresh process said",
    "not_older": "run the newest night: this one saw older data than the champion",
    "reused_predictions": "see what changed on this machine, then run the night again with --force",
}
"""What helps where a check failed; the first counts. Of the others, how well it learned, the diagnosis knows more."""


def of_held_night(run: NightRun) -> str:
    """The next step: never empty."""
    return next_step(run.evidence, run.decision, run.pipeline.name, run.version, lambda: _diagnosed(run))


def next_step(evidence: Evidence, decision: Decision, pipeline: str, version: int, diagnosed: Callable[[], str]) -> str:
    """What helps a night with this decision; `diagnosed` gives what its training would need, or ''."""
    anyway = f"if this version should reign all the same: nightgate promote {pipeline} {version} --reason TEXT"
    champion, anchor = evidence.champion, evidence.anchor
    if champion is not None and champion.flaw:
        return anyway
    if champion is not None and anchor is not None and anchor.flaw:
        command = f"nightgate promote {pipeline} {champion.version} --anchor --reason TEXT"
        return f"{command} makes the champion the anchor; {anyway}"
    failed = [check.name for check in decision.checks if check.outcome == "failed" and not check.slice_name]
    for name, remedy in OTHERWISE.items():
        if name in failed:
            return f"{remedy}; {anyway}"
    if decision.verdict == "underpowered":
        return f"nightgate gate power {pipeline} shows how many test rows would tell; {anyway}"
    return diagnosed() or f"the champion stays, and the next night tries again; {anyway}"


def _diagnosed(run: NightRun) -> str:
    """What the diagnosis of the training would try first; '' where it finds nothing."""
    try:
        findings = gather(run.home, run.run_id, snapshots=False).findings
    except Exception as error:  # noqa: BLE001 - a hint, on which no verdict may depend
        log.warning("run %s has no diagnosis: %s", run.run_id, error)
        return ""
    return findings[0].remedy if findings else ""
