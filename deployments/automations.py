"""Automations of the Prefect server: runs that died are told from runs that live, and people are told what happened.

    python -m deployments.automations                # after `nightgate deploy`; may be given again at any time
    NIGHTGATE_WEBHOOK_URL=https://... python -m deployments.automations

A run that lives is known by `prefect.flow-run.*`, anything that happens to it: ours end under names of their own
(Promoted, Held, ...), and a list of Prefect's names would take every one of them for dead.
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
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_UI_URL

from deployments.catalog import NIGHTLY, TAG
from flows.server_connection import running_server
from flows.signs import SIGN_OF_LIFE, TELL, TELL_LATE, UNCANCELLED, ZOMBIES
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.settings import read_settings

WEBHOOK = "nightgate"
"""Name of the block that holds the webhook's address, as a secret."""
SETTING = "NIGHTGATE_WEBHOOK_URL"

SILENCE = timedelta(seconds=900)
"""For how long a run may give no sign of life before it counts as crashed. Heartbeats come every 30 s (Prefect's own
180 s would do), and `reconcile` vouches for suspended runs every 300 s, so that two may be lost. When a server was away
for longer, it finds every run silent; one that lives all the same ends as Completed. The ledger does not wait for this:
there a silent run is dead after two minutes, and `reconcile` tells Prefect."""
LATE = timedelta(minutes=60)
"""For how long a night may be late before somebody is told."""
TOLD = ("promoted", "rolled_back", "frozen", "unfrozen", "held", "waiting", "failed", "missed", "stalled")
"""What somebody is told of. Nights that are skipped, superseded or cancelled ask nothing of anybody."""

_NIGHTS = {"prefect.resource.name": NIGHTLY, "prefect.resource.role": "flow"}


@dataclass(frozen=True)
class Installed:
    name: str
    outcome: Literal["created", "updated", "unchanged", "not installed"]
    note: str = ""


def install(
    *, webhook_url: str | None = None, silence: timedelta = SILENCE, late: timedelta = LATE, tag: str = TAG
) -> list[Installed]:
    """Create our automations at the server, or bring them up to date by name; one that a person disabled stays so.

    Args:
        webhook_url: where people are told; None: of `NIGHTGATE_WEBHOOK_URL`, and where that is not set either, the
            address that was stored before. It is stored as a secret and never told.
        silence, late: see SILENCE and LATE; Prefect takes 10 s at least.
        tag: runs with this tag are watched.

    Raises:
        ConfigurationError: no server, or no address of a webhook.
    """
    with running_server() as api_url, get_client(sync_client=True) as client:
        installed = [_put(client, zombies(silence, tag)), _put(client, uncancelled(silence, tag))]
        block_id = _webhook(client, webhook_url or read_settings().webhook_url.get_secret_value())
        if block_id is None:
            note = f"{SETTING} is not set: nobody is told"
            return installed + [Installed(name, "not installed", note) for name in (TELL, TELL_LATE)]
        ui_url = _without_user(str(PREFECT_UI_URL.value() or api_url.removesuffix("/api")))
        return [*installed, _put(client, tell(block_id, ui_url)), _put(client, tell_late(block_id, ui_url, late, tag))]


def zombies(silence: timedelta = SILENCE, tag: str = TAG) -> AutomationCore:
    """A machine that is lost leaves its run Running for ever: nobody is left to say otherwise.

    What is suspended, paused or waits for its retry has said so, and gives no sign until it goes on.
    """
    return AutomationCore(
        name=ZOMBIES,
        description=f"No heartbeat and no change of state for {silence.total_seconds():.0f} s. "
        "A run that lives all the same is fenced by the ledger, and Completed once it has come to its end.",
        # Running as well: a process that dies before its first heartbeat would be waited for by nobody.
        trigger=_silent({"prefect.flow-run.heartbeat", "prefect.flow-run.Running"}, silence, tag),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {silence.total_seconds():.0f} s: its machine or process is gone. "
                "Retry goes on from the last epoch.",
            )
        ],
    )


def uncancelled(silence: timedelta = SILENCE, tag: str = TAG) -> AutomationCore:
    """The same for a run that is cancelled when its machine is gone: Prefect lets it end as Cancelled only."""
    return AutomationCore(
        name=UNCANCELLED,
        description=f"Cancelling, and then no heartbeat and no change of state for {silence.total_seconds():.0f} s.",
        trigger=_silent({"prefect.flow-run.Cancelling"}, silence, tag),
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLED, message="Cancelled; its machine or process gave no sign of life any more."
            )
        ],
    )


def _silent(after: set[str], within: timedelta, tag: str, *more: dict[str, str]) -> EventTrigger:
    """Fires for a run of ours to which nothing happens for so long after one of these events."""
    return EventTrigger(
        after=after,
        expect={"prefect.flow-run.*", SIGN_OF_LIFE},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=[{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}, *more],
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def tell(block_id: Any, ui_url: str) -> AutomationCore:
    """A webhook for every end of a night, and every change by hand, that somebody may want to hear of."""
    return AutomationCore(
        name=TELL,
        description=f"Calls the webhook on nightgate.{', nightgate.'.join(TOLD)}.",
        trigger=EventTrigger(
            expect={f"nightgate.{status}" for status in TOLD},
            match={"prefect.resource.id": "nightgate.pipeline.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=block_id,
                payload=_NIGHT.replace("UI_URL", ui_url).replace("LONGEST", f"{LONGEST}"),
            )
        ],
    )


def tell_late(block_id: Any, ui_url: str, late: timedelta = LATE, tag: str = TAG) -> AutomationCore:
    """A webhook for a night that nothing starts: with no worker alive, no process of ours could tell it."""
    minutes = f"{late.total_seconds() / 60:.0f}"
    return AutomationCore(
        name=TELL_LATE,
        description=f"Calls the webhook when a night has been late for {minutes} minutes.",
        # The nights alone: `reconcile` is due every few minutes, and would tell the same as often.
        trigger=_silent({"prefect.flow-run.Late"}, late, tag, _NIGHTS),
        actions=[
            CallWebhook(block_document_id=block_id, payload=_LATE.replace("UI_URL", ui_url).replace("MINUTES", minutes))
        ],
    )


LONGEST = 300
"""Characters of a reason in `text`; `reason` has all of it."""

# Rendered by the server (Jinja, in a sandbox). `text` is what chat tools show; the rest is for programs.
_NIGHT = """\
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
_LATE = """\
{%- set names = event.related | selectattr('role', 'equalto', 'deployment') | map(attribute='name') | list -%}
{%- set pipeline = names[0] if names else event.resource.name -%}
{%- set run = 'UI_URL/runs/' ~ event.resource.id | replace('prefect.', '') | replace('flow-run.', 'flow-run/') -%}
{%- set reason = 'the night is due and has not started for MINUTES minutes' -%}
{%- set step = 'see that a worker runs; nightgate doctor says what is missing' -%}
{"text": {{ (pipeline ~ ': late. ' ~ reason ~ '. Next: ' ~ step ~ ' ' ~ run) | tojson }},
 "event": {{ event.event | tojson }},
 "status": "late",
 "pipeline": {{ pipeline | tojson }},
 "night": null,
 "reason": {{ reason | tojson }},
 "next_step": {{ step | tojson }},
 "run_url": {{ run | tojson }}}"""


def _webhook(client: SyncPrefectClient, url: str) -> Any:
    """The id of the block that holds the webhook's address; None where there was never one."""
    if url:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            # Without the address: what stands in it is a secret.
            raise ConfigurationError(
                f"{SETTING} is not an address of a webhook", next_step="set it to one that begins with https://"
            )
        block: Webhook = Webhook(url=url, headers={"Content-Type": "application/json"})
        return block.save(WEBHOOK, overwrite=True)
    found = client.read_block_documents_by_type("webhook")
    return next((one.id for one in found if one.name == WEBHOOK), None)


def _without_user(url: str) -> str:
    """The address without what stands before its @: it is sent to others."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def _put(client: SyncPrefectClient, automation: AutomationCore) -> Installed:
    there = client.read_automations_by_name(automation.name)
    if not there:
        client.create_automation(automation)
        return Installed(automation.name, "created")
    first, *others = there
    for other in others:
        client.delete_automation(other.id)
    note = "" if first.enabled else "disabled by hand, and left so"
    wanted = automation.model_copy(update={"enabled": first.enabled})
    # A change makes the server forget what it waits for: one that changes nothing is not sent.
    if _facts(first) == _facts(wanted):
        return Installed(automation.name, "unchanged", note)
    client.update_automation(first.id, wanted)
    return Installed(automation.name, "updated", note)


def _facts(automation: AutomationCore) -> Any:
    """What an automation does, without the ids that the server gives."""
    core = AutomationCore.model_validate(automation.model_dump())
    return _without_ids(core.model_dump(mode="python"))


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(one) for key, one in value.items() if key != "id"}
    return [_without_ids(one) for one in value] if isinstance(value, list) else value


def _told(installed: list[Installed]) -> Iterator[str]:
    for one in installed:
        yield f"{one.outcome}: {one.name}" + (f" ({one.note})" if one.note else "")


if __name__ == "__main__":
    try:
        sys.stdout.write("\n".join(_told(install())) + "\n")
    except NightgateError as error:
        sys.exit(f"error: {error}")
