"""`promote`, `rollback`, `freeze` and `unfreeze` as flows: audited like the commands of the same names.

In the UI: Deployments > promote/nightgate > Run > Custom run. Prefect has no users, so the form asks for a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.events import announce, hand_over
from flows.homes import check_home_of_run
from flows.run_end import rename_run
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.home import Home, existing_home
from nightgate.registry import champions, versions
from tasks.logs import failed, readable_logs

PipelineName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
VersionName = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,8}|previous)$")]
Reason = Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]
Person = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]


@flow(name="promote", flow_run_name="promote {pipeline} {version}")
def promote(
    pipeline: PipelineName,
    version: VersionName,
    reason: Reason,
    requested_by: Person,
    move_anchor: bool = False,
    despite_quarantine: bool = False,
) -> State[Any]:
    """Make a version the champion, whatever the gate decided.

    Args:
        pipeline: Name of the pipeline.
        version: A number as `nightgate versions` lists them, or `previous`.
        reason: Why. It is stored with name and time.
        requested_by: Your name.
        move_anchor: Make it the anchor too: no candidate may fall behind it.
        despite_quarantine: Release a version that a rollback quarantined.
    """

    def move(db: Database, home: Home) -> str:
        return champions.promote_manually(
            db,
            home,
            pipeline,
            version,
            reason=reason,
            by=requested_by,
            move_anchor=move_anchor,
            despite_quarantine=despite_quarantine,
        )

    return _moved("promoted", pipeline, move, reason, requested_by)


@flow(name="rollback", flow_run_name="roll back {pipeline}")
def rollback(pipeline: PipelineName, reason: Reason, requested_by: Person) -> State[Any]:
    """Restore the previous champion, quarantine the current one, freeze.

    Args:
        pipeline: Name of the pipeline.
        reason: Why. It is stored with name and time.
        requested_by: Your name.
    """

    def move(db: Database, home: Home) -> str:
        return champions.rollback(db, home, pipeline, reason=reason, by=requested_by)

    return _moved("rolled_back", pipeline, move, reason, requested_by)


@flow(name="freeze", flow_run_name="freeze {pipeline}")
def freeze(pipeline: PipelineName, reason: Reason, requested_by: Person) -> State[Any]:
    """Stop automatic promotion: candidates of later nights are held.

    Args:
        pipeline: Name of the pipeline.
        reason: Why. It is stored with name and time.
        requested_by: Your name.
    """

    def hold(db: Database, _: Home) -> str:
        return champions.freeze(db, pipeline, reason=reason, by=requested_by)

    return _moved("frozen", pipeline, hold, reason, requested_by)


@flow(name="unfreeze", flow_run_name="unfreeze {pipeline}")
def unfreeze(pipeline: PipelineName, reason: Reason, requested_by: Person) -> State[Any]:
    """Resume automatic promotion after `freeze` or `rollback`.

    Args:
        pipeline: Name of the pipeline.
        reason: Why. It is stored with name and time.
        requested_by: Your name.
    """

    def let(db: Database, _: Home) -> str:
        return champions.unfreeze(db, pipeline, reason=reason, by=requested_by)

    return _moved("unfrozen", pipeline, let, reason, requested_by)


def _moved(
    what: str, pipeline: str, move: Callable[[Database, Home], str], reason: str, requested_by: str
) -> State[Any]:
    """Apply the change and publish its event; a refusal fails the run with its message, without a traceback."""
    rename_run(runtime.flow_run.name, pipeline)
    try:
        with readable_logs():
            check_home_of_run()
            home = existing_home()
            with Database.open(home) as db:
                message = move(db, home)
                champion = versions.champion(db, pipeline) if what in {"promoted", "rolled_back"} else None
                model = hand_over(db, champion) if champion else {}
    except NightgateError as error:
        return failed(error)
    why = f"{message} ({requested_by.strip()}: {reason.strip()})"
    announce(what, pipeline, {"pipeline": pipeline, "status": what, "reason": why, **model}, runtime.flow_run.id)
    return Completed(name=what.replace("_", " ").capitalize(), message=message)
