"""Which home a deployment and its runs belong to, on a Prefect server that several homes may share.

Deployments carry the tag `home:ID`, and their runs inherit it. Without the tag, as from `prefect deploy` or an earlier
version, they belong to any home.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse

from nightgate.errors import ConfigurationError
from nightgate.home import Home, existing_home, home_path

PREFIX = "home:"
PAGE = 200


def tag_of(home: Home) -> str:
    """The tag of a home; '' where its id is not known."""
    return f"{PREFIX}{home.id[:8]}" if home.id else ""


def own_tag() -> str:
    """The tag of the home of this process; '' where there is none yet."""
    path = home_path()
    return tag_of(existing_home(path)) if (path / "home.json").is_file() else ""


def home_in(tags: Iterable[str] | None) -> str:
    """The tag of a home among tags; '' if none is."""
    return next((tag for tag in tags or () if tag.startswith(PREFIX)), "")


def is_foreign(tags: Iterable[str] | None, ours: str) -> bool:
    """Whether tags name another home, and not that of the tag `ours`."""
    return bool(home_in(tags)) and ours not in (tags or ())


def refusal() -> ConfigurationError | None:
    """Why this flow run may not work here: it is a run of another home. None if it may."""
    tags, ours = runtime.flow_run.tags, own_tag()
    if not is_foreign(tags, ours):
        return None
    here = f"{ours or 'no home'} at {home_path()}"
    return ConfigurationError(
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


def own(found: Iterable[DeploymentResponse], ours: str) -> list[DeploymentResponse]:
    """The deployments that are not another home's, those with this home's tag first."""
    return sorted(
        (one for one in found if not ours or not is_foreign(one.tags, ours)), key=lambda one: ours not in one.tags
    )


def pipeline_of(deployment: DeploymentResponse) -> str:
    """The pipeline of a deployment of `nightly`, whose own name may have a suffix."""
    return str((deployment.parameters or {}).get("pipeline") or deployment.name)


def described(deployment: DeploymentResponse) -> str:
    """The home of a deployment, with its place where the description has it."""
    _, found, place = (deployment.description or "").rpartition(PLACE)
    return home_in(deployment.tags) + (f" at {place}" if found else "")


PLACE = " Its home is "
"""What stands before the home's place in a description."""
