"""Which home a deployment and its runs belong to, on a Prefect server that several homes may share.

Deployments carry the tag `home:ID`, and their runs inherit it. Without the tag, as from `prefect deploy` or an earlier
version, they belong to any home.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from prefect import runtime, tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse

from nightgate.errors import ConfigurationError
from nightgate.home import Home, find_home, home_path

PREFIX = "home:"
PLACE = " Its home is "
"""What stands before the home's place in the description of a deployment."""
PAGE = 200


def tag_of(home: Home) -> str:
    """The tag of a home; '' where its id is not known."""
    return f"{PREFIX}{home.id[:8]}" if home.id else ""


def own_tag() -> str:
    """The tag of the home of this process; '' where there is none yet."""
    home = find_home()
    return tag_of(home) if home else ""


def tagged(pipeline: str) -> AbstractContextManager[Any]:
    """Give the runs that begin in the block, and belong to no deployment, the tags that they would inherit from one."""
    return tags(*filter(None, ("nightgate", pipeline, own_tag())))


def home_in(tags: Iterable[str] | None) -> str:
    """The tag of a home among tags; '' if none is."""
    return next((tag for tag in tags or () if tag.startswith(PREFIX)), "")


def is_foreign(tags: Iterable[str] | None, ours: str) -> bool:
    """Whether tags name another home, and not that of the tag `ours`."""
    return bool(home_in(tags)) and ours not in (tags or ())


def check_home_of_run() -> None:
    """Refuse a flow run of another home.

    Raises:
        ConfigurationError: this run is one.
        StorageError: the home of this process cannot be read.
    """
    tags, ours = runtime.flow_run.tags, own_tag()
    if is_foreign(tags, ours):
        here = f"{ours or 'no home'} at {home_path()}"
        raise ConfigurationError(
            f"this run belongs to {home_in(tags)}, and its process has {here}: nothing was done",
            next_step="start its worker with NIGHTGATE_HOME of that home, or let this home have the deployment: "
            "`nightgate deploy --take-over`",
        )


def deployments_of(client: SyncPrefectClient, flow: str) -> list[DeploymentResponse]:
    """All deployments of a flow, of every home."""
    named = FlowFilter(name=FlowFilterName(any_=[flow]))
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(flow_filter=named, limit=PAGE, offset=len(found)):
        found += page
        if len(page) < PAGE:
            break
    return found


def nights_of(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments of single pipelines' nights, of every home: not those in which the pipeline is chosen."""
    found = deployments_of(client, "nightly")
    return [one for one in found if (one.parameters or {}).get("pipeline") or one.schedules]


def own(found: Iterable[DeploymentResponse], ours: str) -> list[DeploymentResponse]:
    """The deployments that are not another home's, those with this home's tag first."""
    return sorted(
        (one for one in found if not ours or not is_foreign(one.tags, ours)), key=lambda one: ours not in one.tags
    )


def pipeline_of(deployment: DeploymentResponse) -> str:
    """The pipeline of a deployment of one, whose own name may have a suffix."""
    return str((deployment.parameters or {}).get("pipeline") or deployment.name)


def described(deployment: DeploymentResponse) -> str:
    """The home of a deployment, with its place where the description has it."""
    _, found, place = (deployment.description or "").rpartition(PLACE)
    return home_in(deployment.tags) + (f" at {place}" if found else "")
