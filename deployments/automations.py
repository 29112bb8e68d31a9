"""Automations of the Prefect server: end runs without a heartbeat, start nights on alarms, call a webhook about nights.

    python -m deployments.automations                # after `nightgate deploy`; may be repeated
    NIGHTGATE_WEBHOOK_URL=https://... python -m deployments.automations

Any event `prefect.flow-run.*` counts as life: our runs end in states of their own names (Promoted, Held, ...), which a
list of Prefect's names would miss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_UI_URL

from deployments.catalog import NIGHTLY, TAG
from flows.events import ENDED_NIGHTS, HEARTBEAT, LATE_NIGHTS, LOST_CANCELLATIONS, LOST_RUNS, STARTED_NIGHTS, STARTING
from flows.server.connection import running_server
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.settings import read_settings

WEBHOOK = "nightgate"
"""Name of the block that stores the webhook's address as a secret."""
SETTING = "NIGHTGATE_WEBHOOK_URL"

SILENCE = timedelta(seconds=900)
"""How long a run may be without a heartbeat before it counts as crashed. Flows send one every 30 s (Prefect's own 180 s
would do), and `reconcile` sends one for suspended runs every 300 s, so two may be lost. A server that was away for
longer crashes every run, and those that live end Completed. The database does not wait for this: it counts a silent run
as dead after two minutes, and `reconcile` updates Prefect."""
LATE = timedelta(minutes=60)
"""How late a night may be before the webhook is called."""
REPORTED = (
    *("promoted", "rolled_back", "frozen", "unfrozen", "held", "waiting", "failed", "missed", "stalled"),
    *STARTING.values(),
)
"""Events that call the webhook. Nights that are skipped, superseded or cancelled need no action."""

_NIGHTS = {"prefect.resource.name": NIGHTLY, "prefect.resource.role": "flow"}


FORMER_NAMES = {
    LOST_RUNS: "nightgate: a run without a sign of life has crashed",
    LOST_CANCELLATIONS: "nightgate: a run that is being cancelled without a sign of life is cancelled",
    ENDED_NIGHTS: "nightgate: tell how a night ended",
    LATE_NIGHTS: "nightgate: tell that a night does not start",
}
"""An automation that an earlier version installed is updated and renamed."""


@dataclass(frozen=True)
class Installed:
    """What was done with one automation."""

    name: str
    outcome: Literal["created", "updated", "unchanged", "not installed"]
    note: str = ""


def install(
    *, webhook_url: str | None = None, silence: timedelta = SILENCE, late: timedelta = LATE, tag: str = TAG
) -> list[Installed]:
    """Create our automations on the server, or update them by name; one that was disabled stays disabled.

    Args:
        webhook_url: Address to call; None: `NIGHTGATE_WEBHOOK_URL`, else the address that was stored before. It is
            stored as a secret and never shown.
        silence, late: See SILENCE and LATE; Prefect accepts 10 s or more.
        tag: Runs with this tag are watched.

    Raises:
        ConfigurationError: No server answers, or the webhook's address is none.
    """
    with running_server() as api_url, get_client(sync_client=True) as client:
        always = (lost_runs(silence, tag), lost_cancellations(silence, tag), started_nights())
        installed = [_put(client, one) for one in always]
        block_id = _webhook(client, webhook_url or read_settings().webhook_url.get_secret_value())
        if block_id is None:
            note = f"{SETTING} is not set"
            return installed + [Installed(name, "not installed", note) for name in (ENDED_NIGHTS, LATE_NIGHTS)]
        ui_url = _without_user(str(PREFECT_UI_URL.value() or api_url.removesuffix("/api")))
        webhooks = (ended_nights(block_id, ui_url), late_nights(block_id, ui_url, late, tag))
        return [*installed, *(_put(client, one) for one in webhooks)]


def lost_runs(silence: timedelta = SILENCE, tag: str = TAG) -> AutomationCore:
    """Crash the runs of a lost machine, which would stay Running for ever.

    Runs that are suspended, paused or wait for a retry are left alone.
    """
    return AutomationCore(
        name=LOST_RUNS,
        description=f"No heartbeat and no change of state for {silence.total_seconds():.0f} s. "
        "A run that lives is fenced by the database, and Completed when it ends.",
        # Running too, for a process that dies before its first heartbeat.
        trigger=_silent({"prefect.flow-run.heartbeat", "prefect.flow-run.Running"}, silence, tag),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {silence.total_seconds():.0f} s: its machine or process is gone. "
                "Retry resumes after the last epoch.",
            )
        ],
    )


def lost_cancellations(silence: timedelta = SILENCE, tag: str = TAG) -> AutomationCore:
    """End a run that was cancelled after its machine was lost: Prefect lets it end as Cancelled only."""
    return AutomationCore(
        name=LOST_CANCELLATIONS,
        description=f"Cancelling, and then no heartbeat and no change of state for {silence.total_seconds():.0f} s.",
        trigger=_silent({"prefect.flow-run.Cancelling"}, silence, tag),
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLED, message="Cancelled, and no heartbeat since: its machine or process is gone."
            )
        ],
    )


def _silent(after: set[str], within: timedelta, tag: str, *more: dict[str, str]) -> EventTrigger:
    """Trigger for a run of ours without any event for so long after one of these."""
    return EventTrigger(
        after=after,
        expect={"prefect.flow-run.*", HEARTBEAT},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=[{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}, *more],
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def started_nights() -> AutomationCore:
    """Start a night on an alarm of the champion's evaluation, if the event names the deployment that starts it.

    It does where the pipeline's `train_on` has the alarm, and the evaluation is not a night's own.
    """
    return AutomationCore(
        name=STARTED_NIGHTS,
        description="Starts a night on an alarm of the champion's evaluation that is in the pipeline's train_on.",
        trigger=EventTrigger(
            expect={f"nightgate.{name}" for name in STARTING.values()},
            match={"prefect.resource.id": "nightgate.pipeline.*"},
            match_related=[{"prefect.resource.id": "prefect.deployment.*", "prefect.resource.role": "deployment"}],
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="inferred",
                parameters={
                    "pipeline": "{{ event.resource.name }}",
                    "alarm": "{{ event.event | replace('nightgate.', '') }}",
                },
            )
        ],
    )


def ended_nights(block_id: Any, ui_url: str) -> AutomationCore:
    """Call the webhook for ends of nights and manual changes that may need a person."""
    return AutomationCore(
        name=ENDED_NIGHTS,
        description=f"Calls the webhook on nightgate.{', nightgate.'.join(REPORTED)}.",
        trigger=EventTrigger(
            expect={f"nightgate.{status}" for status in REPORTED},
            match={"prefect.resource.id": "nightgate.pipeline.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=block_id,
                payload=_ENDED_PAYLOAD.replace("UI_URL", ui_url).replace("LONGEST", f"{LONGEST}"),
            )
        ],
    )


def late_nights(block_id: Any, ui_url: str, late: timedelta = LATE, tag: str = TAG) -> AutomationCore:
    """Call the webhook for a night that nothing starts: without a worker no process of ours could report it."""
    minutes = f"{late.total_seconds() / 60:.0f}"
    return AutomationCore(
        name=LATE_NIGHTS,
        description=f"Calls the webhook when a night has been late for {minutes} minutes.",
        # Nights only: `reconcile` is due every few minutes and would repeat the report as often.
        trigger=_silent({"prefect.flow-run.Late"}, late, tag, _NIGHTS),
        actions=[
            CallWebhook(
                block_document_id=block_id, payload=_LATE_PAYLOAD.replace("UI_URL", ui_url).replace("MINUTES", minutes)
            )
        ],
    )


LONGEST = 300
"""Most characters of a reason in `text`; `reason` has all of them."""

# Rendered by the server (sandboxed Jinja). Chat tools show `text`; the rest is for programs.
_ENDED_PAYLOAD = """\
{%- set night = event.payload -%}
{%- set status = event.event | replace('nightgate.', '') -%}
{%- set runs = event.related | selectattr('role', 'equalto', 'flow-run') | map(attribute='id') | list -%}
{%- set run = 'UI_URL/runs/' ~ runs[0] | replace('prefect.', '') | replace('flow-run.', 'flow-run/') if runs -%}
{%- set text -%}
{{ event.resource.name }}{% if night.night %}, night of {{ night.night }}{% endif %}: {{ status | replace('_', ' ') }}.
{%- set reason = night.reason | default('', true) | truncate(LONGEST) -%}
{%- if reason %} {{ reason }}{{ '' if reason[-1] == '.' else '.' }}{% endif %}
{%- if night.next_step %} Next: {{ night.next_step }}{% endif %}
{%- if run %} {{ run }}{% endif %}
{%- endset -%}
{"text": {{ text | tojson }},
 "event": {{ event.event | tojson }},
 "status": {{ status | tojson }},
 "pipeline": {{ event.resource.name | tojson }},
 "night": {{ night.night | default(none) | tojson }},
 "reason": {{ night.reason | default(none) | tojson }},
 "next_step": {{ night.next_step | default(none) | tojson }},
 "error_type": {{ night.error_type | default(none) | tojson }},
 "test_f1": {{ night.test_f1 | default(none) | tojson }},
 "model_version": {{ night.model_version | default(none) | tojson }},
 "champion_version": {{ night.champion_version | default(none) | tojson }},
 "run_id": {{ night.run_id | default(none) | tojson }},
 "run_url": {{ run | default(none) | tojson }}}"""
_LATE_PAYLOAD = """\
{%- set names = event.related | selectattr('role', 'equalto', 'deployment') | map(attribute='name') | list -%}
{%- set pipeline = names[0].split('.')[0] if names else event.resource.name -%}
{%- set run = 'UI_URL/runs/' ~ event.resource.id | replace('prefect.', '') | replace('flow-run.', 'flow-run/') -%}
{%- set reason = 'the night is due and has not started for MINUTES minutes' -%}
{%- set step = 'start a worker; `nightgate doctor` shows what is missing' -%}
{"text": {{ (pipeline ~ ': late. ' ~ reason ~ '. Next: ' ~ step ~ ' ' ~ run) | tojson }},
 "event": {{ event.event | tojson }},
 "status": "late",
 "pipeline": {{ pipeline | tojson }},
 "night": null,
 "reason": {{ reason | tojson }},
 "next_step": {{ step | tojson }},
 "run_url": {{ run | tojson }}}"""


def _webhook(client: SyncPrefectClient, url: str) -> Any:
    """Id of the block that stores the webhook's address; None if there was never one."""
    if url:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            # Without the address, which is a secret.
            raise ConfigurationError(
                f"{SETTING} is not the address of a webhook", next_step="set it to one that begins with https://"
            )
        block: Webhook = Webhook(url=url, headers={"Content-Type": "application/json"})
        return block.save(WEBHOOK, overwrite=True)
    found = client.read_block_documents_by_type("webhook")
    return next((one.id for one in found if one.name == WEBHOOK), None)


def _without_user(url: str) -> str:
    """The address without credentials, since it is sent to others."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def _put(client: SyncPrefectClient, automation: AutomationCore) -> Installed:
    names = {automation.name, FORMER_NAMES.get(automation.name, automation.name)}
    existing = [one for name in sorted(names) for one in client.read_automations_by_name(name)]
    if not existing:
        client.create_automation(automation)
        return Installed(automation.name, "created")
    first, *others = existing
    for other in others:
        client.delete_automation(other.id)
    note = "" if first.enabled else "stays disabled"
    wanted = automation.model_copy(update={"enabled": first.enabled})
    # An update makes the server forget what it waits for, so an unchanged one is not sent.
    if _facts(first) == _facts(wanted):
        return Installed(automation.name, "unchanged", note)
    client.update_automation(first.id, wanted)
    return Installed(automation.name, "updated", note)


def _facts(automation: AutomationCore) -> Any:
    """The content of an automation without the server's ids."""
    core = AutomationCore.model_validate(automation.model_dump())
    return _without_ids(core.model_dump(mode="python"))


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(one) for key, one in value.items() if key != "id"}
    return [_without_ids(one) for one in value] if isinstance(value, list) else value


def _lines(installed: list[Installed]) -> Iterator[str]:
    for one in installed:
        yield f"{one.outcome}: {one.name}" + (f" ({one.note})" if one.note else "")


if __name__ == "__main__":
    try:
        sys.stdout.write("\n".join(_lines(install())) + "\n")
    except NightgateError as error:
        sys.exit(f"error: {error}")
