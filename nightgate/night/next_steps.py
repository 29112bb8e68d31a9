"""The next step after a held night: what helps against the check that failed, which is not always another training."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nightgate.config.gate import Gate
from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Evidence
from nightgate.gate.near_miss import near_miss
from nightgate.night.run import NightRun
from nightgate.reports.facts import gather
from nightgate.runs import evidence_store

log = logging.getLogger(__name__)

REMEDIES = {
    "clean_test": "bring back the files that it names, which prove what each side was trained on",
    "serving": "see the end of the night's log, which holds the output of the fresh process",
    "not_older": "run the newest night: this one saw older data than the champion",
}
"""By failed check; the first counts. For the other checks the diagnosis of the training knows more."""


def next_step(run: NightRun, decision: Decision, version: int) -> str:
    """What to do about a held night; never empty."""
    evidence, number = evidence_store.load_evidence(run.db, run.run_id), None if run.dry_run else version
    return remedy(evidence, run.pipeline.gate, decision, run.pipeline.name, number, lambda: _diagnosis(run))


def remedy(
    evidence: Evidence,
    policy: Gate,
    decision: Decision,
    pipeline: str,
    version: int | None,
    diagnosis: Callable[[], str],
) -> str:
    """The next step for a decision.

    Args:
        version: None: of a dry run, which is not to be promoted.
        diagnosis: returns what the training would need, or ''.
    """
    promote = f"nightgate promote {pipeline} {version or 'VERSION'} --reason TEXT"
    if version is None:
        promote = f"run the same without --dry-run, then `{promote}`"
    manual = f"to promote it all the same: {promote}"
    champion, anchor = evidence.champion, evidence.anchor
    if champion is not None and champion.relabelled:
        return (
            f"restore label and labels in [data] if they were not meant to change; else accept the new ones: {promote}"
        )
    if champion is not None and champion.flaw:
        return manual
    if champion is not None and anchor is not None and anchor.flaw:
        command = f"nightgate promote {pipeline} {champion.version} --anchor --reason TEXT"
        return f"`{command}` makes the champion the anchor; {manual}"
    setting = near_miss(evidence, policy, decision)
    missed = f"; --set {setting}" if setting else ""
    failed = [check.name for check in decision.checks if check.outcome == "failed" and not check.slice_name]
    for name, step in REMEDIES.items():
        # `serving` also fails by time and size, which a setting would allow.
        if name in failed and not setting:
            return f"{step}; {manual}"
    if decision.verdict == "underpowered":
        return f"`nightgate gate power {pipeline}` shows how many test rows would be enough{missed}; {manual}"
    if found := diagnosis():
        return f"{found}{missed}"
    stays = "the champion stays, and the next night tries again" if champion else "the next night tries again"
    return f"{stays}{missed}; {manual}"


def _diagnosis(run: NightRun) -> str:
    """The first remedy in the diagnosis of the training; '' where it finds nothing."""
    try:
        findings = gather(run.home, run.run_id, snapshots=False).findings
    except Exception as error:  # noqa: BLE001 - a hint, on which no verdict may depend
        log.warning("run %s has no diagnosis: %s", run.run_id, error)
        return ""
    return findings[0].step(run.pipeline.name) if findings else ""
