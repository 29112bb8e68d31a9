"""The end of a night: promoted in one transaction, held with a next step, or waiting for an approval."""

from __future__ import annotations

from nightgate.config.values import duration
from nightgate.errors import PromotionLostError
from nightgate.night.run import NightRun
from nightgate.night.values import Judged, Scored
from nightgate.registry import approvals, freezes, promotion
from nightgate.registry.versions import VersionRow
from nightgate.runs.run_row import RunRow


def finish(run: NightRun, scored: Scored, judged: Judged, version: int) -> RunRow:
    """End the run by its verdict; `nightgate.night.closing` does what follows."""
    decision, name = judged.decision, run.pipeline.name
    if decision.verdict != "promote":
        # Here and not above: it imports the report, which would delay the start of a night.
        from nightgate.night.next_steps import next_step

        return run.finish("held", decision.reason, next_step(run, decision, version))
    if run.dry_run:
        return run.finish("held", f"dry run, not promoted: {decision.reason}", "run the same without --dry-run")
    frozen = freezes.frozen(run.db, name)
    if frozen is not None:
        return run.finish("held", f"{frozen}; else it would have been promoted: {decision.reason}", frozen.remedy)
    if run.pipeline.gate.approval:
        return _wait_for_approval(run, scored, judged)
    return _promote(run, scored, judged, version)


def _promote(run: NightRun, scored: Scored, judged: Judged, version: int) -> RunRow:
    try:
        promotion.promote_candidate(
            run.db,
            run.pipeline.name,
            version,
            expected=_number(scored.champion),
            expected_anchor=_number(scored.anchor),
            run_id=run.run_id,
            attempt=run.attempt,
            reason=judged.decision.reason,
            moves_anchor=judged.decision.measured.moves_anchor,
        )
    except PromotionLostError as error:
        # Not a failure of this night: a person moved the champion or the anchor after it was scored.
        return run.finish("held", f"would have been promoted, but {error.reason}", error.next_step)
    return run.row()


def _wait_for_approval(run: NightRun, scored: Scored, judged: Judged) -> RunRow:
    patience = duration(run.pipeline.gate.approval_timeout)
    assert patience is not None, "a duration that may not be empty"
    approvals.request(
        run.db,
        run.run_id,
        run.attempt,
        expected=_number(scored.champion),
        patience=patience,
        reason=f"{approvals.WAITS}{judged.decision.reason}",
        next_step=approvals.command(run.pipeline.name, run.run_id),
    )
    return run.row()


def _number(version: VersionRow | None) -> int | None:
    return None if version is None else version.version
