"""A candidate that passed the gate and waits for a person: the run is suspended, its process gone, the form open."""

from __future__ import annotations

from typing import Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, ValidationError

from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.home import open_home
from nightgate.registry import approvals


class Approval(RunInput):
    """The form behind Resume."""

    decision: Literal["approve", "reject"] = Field(
        description="Approve promotes the candidate, reject holds it.", json_schema_extra={"position": 0}
    )
    name: str = Field(
        min_length=1,
        max_length=100,
        pattern=r"\S",
        description="Who decides. It is stored with the promotion.",
        json_schema_extra={"position": 1},
    )
    reason: str = Field(
        min_length=1,
        max_length=1000,
        pattern=r"\S",
        description="Why. It is stored with the promotion.",
        json_schema_extra={"position": 2},
    )


def decide_when_resumed(run_id: str) -> None:
    """Suspend this Prefect run until somebody fills in the form; then do what the form says.

    The first call ends the process by a signal of Prefect's. When the run is resumed the flow comes here again, and the
    call returns. A decision that was made elsewhere meanwhile, or a time that has run out, stands.
    """
    with Database.open(open_home()) as db:
        waiting = next((one for one in approvals.open_approvals(db) if one.run_id == run_id), None)
    if waiting is None:
        return
    answer = _answer(run_id, evidence(waiting))
    with Database.open(open_home()) as db:
        try:
            decide = approvals.approve if answer.decision == "approve" else approvals.reject
            decide(db, run_id, by=answer.name, reason=answer.reason)
        except NightgateError:
            # Decided elsewhere in the meantime: the row says how, and the run ends as it says.
            still = [one.run_id for one in approvals.open_approvals(db)]
            if run_id in still:
                raise


def _answer(run_id: str, description: str) -> Approval:
    """What the form says; without a word yet, this ends the process."""
    form = Approval.with_initial_data(description=description)
    asked = 1
    while True:
        key = f"approval-{run_id}" + (f"-{asked}" if asked > 1 else "")
        try:
            # No timeout of Prefect's: it would end the run as failed. The deadline is ours, see
            # `approvals.hold_overdue`.
            return suspend_flow_run(wait_for_input=form, timeout=None, key=key)
        except ValidationError:
            # Retry of a run that Prefect took for dead while it waited: there the key counts as resumed, and has no
            # answer. Under another one the form comes back.
            asked += 1


def evidence(waiting: approvals.Waiting) -> str:
    """What the form shows, as markdown."""
    lines = [f"**{waiting.pipeline}, night of {waiting.night}: version {waiting.version} waits for your word.**"]
    if waiting.test_f1 is not None:
        against = "there is no champion yet"
        if waiting.champion_version is not None and waiting.champion_f1 is not None:
            against = (
                f"the champion, version {waiting.champion_version}, has {waiting.champion_f1:.4f} on the same rows"
            )
        lines.append(f"F1 on tonight's test rows: **{waiting.test_f1:.4f}**; {against}.")
    lines.append(f"The gate: {waiting.reason.removeprefix(approvals.WAITS)}")
    lines.append(f"Unless somebody decides by {waiting.deadline:%Y-%m-%d %H:%M} UTC it is held.")
    lines.append("The whole report is among the run's artifacts.")
    return "\n\n".join(lines)
