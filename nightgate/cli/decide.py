"""Commands that decide: promote, rollback, freeze, unfreeze, approve, reject and reconcile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import PipelineName, Reason, RunId, VersionName, name_of, person, say

if TYPE_CHECKING:
    from nightgate.database.transactions import Database
    from nightgate.home import Home
    from nightgate.runs.run_row import RunRow


def promote(
    pipeline: PipelineName,
    version: VersionName,
    reason: Reason,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Make it the anchor too: no candidate may fall behind it.")
    ] = False,
    despite_quarantine: Annotated[
        bool, typer.Option("--despite-quarantine", help="Release a version that a rollback quarantined.")
    ] = False,
) -> None:
    """Make a version the champion, whatever the gate decided."""
    from nightgate.registry import champions

    _change(
        lambda db, home: champions.promote_manually(
            db,
            home,
            name_of(pipeline),
            version,
            reason=reason,
            by=person(),
            move_anchor=anchor,
            despite_quarantine=despite_quarantine,
        )
    )


def rollback(pipeline: PipelineName, reason: Reason) -> None:
    """Restore the previous champion, quarantine this one, freeze."""
    from nightgate.registry import champions

    _change(lambda db, home: champions.rollback(db, home, name_of(pipeline), reason=reason, by=person()))


def freeze(pipeline: PipelineName, reason: Reason) -> None:
    """Stop automatic promotion: candidates of later nights are held."""
    from nightgate.registry import champions

    _change(lambda db, _: champions.freeze(db, name_of(pipeline), reason=reason, by=person()))


def unfreeze(pipeline: PipelineName, reason: Reason) -> None:
    """Resume automatic promotion after `freeze` or `rollback`."""
    from nightgate.registry import champions

    _change(lambda db, _: champions.unfreeze(db, name_of(pipeline), reason=reason, by=person()))


def approve(pipeline: PipelineName, reason: Reason, run_id: RunId = None) -> None:
    """Promote the candidate that waits for approval."""
    _decide(pipeline, run_id, reason, approved=True)


def reject(pipeline: PipelineName, reason: Reason, run_id: RunId = None) -> None:
    """Hold the candidate that waits for approval."""
    _decide(pipeline, run_id, reason, approved=False)


def reconcile() -> None:
    """Finish what dead or missed runs left, in database and Prefect.

    Fail runs of dead processes, expire approvals, record missed nights, publish pending reports and events.
    """
    from nightgate.home import existing_home

    existing_home()
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.reconcile import reconcile_now
    from flows.server.connection import usual_server

    with usual_server() as silence:
        done = reconcile_now()
    for one in done.ended:
        say(_described(one))
    for one in done.closed:
        if one.run_id not in [ended.run_id for ended in done.ended]:
            say(f"{_described(one)} (what follows its end was finished)")
    if not (done.ended or done.closed or done.failed):
        say("nothing to reconcile")
    if silence:
        say(f"{silence}: only the database was reconciled", err=True)
    done.check()


def _change(change: Callable[[Database, Home], str]) -> None:
    """Apply a change to the registry and print its description."""
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home

    home = existing_home()
    with Database.open(home) as db:
        say(change(db, home))


def _decide(pipeline: str, run_id: str | None, reason: str, *, approved: bool) -> None:
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.night.closing import close_ended
    from nightgate.registry import approvals

    with Database.open(existing_home()) as db:
        waiting = approvals.find(db, name_of(pipeline), run_id)
        decide = approvals.approve if approved else approvals.reject
        ended = decide(db, waiting.run_id, by=person(), reason=reason)
        say(_described(ended))
        close_ended(db, ended.pipeline)
    if ended.prefect_flow_run_id:
        # The flow run is suspended until it is resumed or ended.
        os.environ.setdefault("DO_NOT_TRACK", "1")
        from flows.reconcile import end_flow_runs
        from flows.server.connection import usual_server

        with usual_server():
            if problem := end_flow_runs():
                say(problem, err=True)
    if approved and ended.status != "promoted":
        raise typer.Exit(1)


def _described(ended: RunRow) -> str:
    return f"{ended.pipeline}, night {ended.night}: {ended.status}: {ended.reason}"
