"""Wait for the approval of a candidate: the Prefect run is suspended, its process ends, and Resume opens a form."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, ValidationError

from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.home import open_home
from nightgate.registry import approvals
from nightgate.rendering import markdown
from nightgate.runs.run_row import RunRow


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
    """Suspend this Prefect run until the form is filled in; then approve or reject as it says.

    The first call ends the process by a signal of Prefect's. When the run is resumed the flow calls this again, and the
    call returns. A decision made elsewhere in the meantime, or a deadline that has passed, holds.
    """
    with Database.open(open_home()) as db:
        waiting = next((one for one in approvals.open_approvals(db) if one.run_id == run_id), None)
    if waiting is None:
        return
    answer = _answer(run_id, evidence(waiting))
    with Database.open(open_home()) as db:
        try:
            _decide(db, run_id, answer)
        except NightgateError:
            # Decided elsewhere in the meantime: the run ends as its row says.
            if run_id in [one.run_id for one in approvals.open_approvals(db)]:
                raise


def decide_orphans(db: Database, client: SyncPrefectClient) -> list[RunRow]:
    """Approve or reject as the form says where the resumed run cannot start again: its deployment was removed."""
    waiting = {UUID(one.prefect_flow_run_id): one for one in approvals.open_approvals(db) if one.prefect_flow_run_id}
    if not waiting:
        return []
    ended = []
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(waiting)))):
        if run.state is None or run.state.is_paused() or not is_orphan(client, run):
            continue
        run_id = waiting[run.id].run_id
        found = client.filter_flow_run_input(run.id, f"suspended-{_key(run_id)}", limit=100, exclude_keys=set())
        answers = [one.decoded_value for one in found if one.key.endswith("-response")]
        if answers:
            ended.append(_decide(db, run_id, Approval.model_validate(answers[-1])))
    return ended


def was_asked(client: SyncPrefectClient, flow_run_id: UUID, run_id: str) -> bool:
    """Whether a Prefect run has opened the form for the approval of a night."""
    keys = [state.state_details.pause_key or "" for state in client.read_flow_run_states(flow_run_id)]
    return any(key.startswith(_key(run_id)) for key in keys)


def is_orphan(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run's deployment was removed, so that nothing starts it again."""
    try:
        return run.deployment_id is not None and not client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        return True


def _decide(db: Database, run_id: str, answer: Approval) -> RunRow:
    decide = approvals.approve if answer.decision == "approve" else approvals.reject
    return decide(db, run_id, by=answer.name, reason=answer.reason)


def _key(run_id: str) -> str:
    return f"approval-{run_id}"


def _answer(run_id: str, description: str) -> Approval:
    """The answer in the form; while there is none, this ends the process."""
    form = Approval.with_initial_data(description=description)
    tries = 1
    while True:
        key = _key(run_id) + (f"-{tries}" if tries > 1 else "")
        try:
            # No timeout of Prefect's, which would end the run as failed: `approvals.hold_overdue` holds it.
            return suspend_flow_run(wait_for_input=form, timeout=None, key=key)
        except ValidationError:
            # A retry of a run that Prefect took for dead while it waited: its key counts as resumed without an answer.
            # Another key brings the form back.
            tries += 1


def evidence(waiting: approvals.Waiting) -> str:
    """The description above the form, as Markdown."""
    lines = [f"**{waiting.pipeline}, night of {waiting.night}: version {waiting.version} waits for an approval.**"]
    if waiting.test_f1 is not None:
        against = "there is no champion yet"
        if waiting.champion_version is not None and waiting.champion_f1 is not None:
            against = (
                f"the champion, version {waiting.champion_version}, has {waiting.champion_f1:.4f} on the same rows"
            )
        lines.append(f"F1 on tonight's test rows: **{waiting.test_f1:.4f}**; {against}.")
    lines.append(f"The gate: {markdown(waiting.reason.removeprefix(approvals.WAITS))}")
    lines.append(f"Without a decision by {waiting.deadline:%Y-%m-%d %H:%M} UTC it is held.")
    lines.append("The whole report is among the run's artifacts.")
    return "\n\n".join(lines)
