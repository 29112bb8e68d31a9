"""What tests ask a Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.support.night_rows import within


@contextmanager
def client(api_url: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as prefect:
        yield prefect


def deployment(api_url: str, full_name: str) -> DeploymentResponse:
    with client(api_url) as prefect:
        return prefect.read_deployment_by_name(full_name)


def events(api_url: str, name: str, pipeline: str, flow_run_id: object = None) -> list[dict[str, Any]]:
    """The events of a name about a pipeline, once there is one: the server stores them a moment later.

    Args:
        flow_run_id: of one Prefect run alone, where other tests' runs of this pipeline may be at the same server.
    """
    about: dict[str, Any] = {"event": {"name": [name]}, "resource": {"id": [f"nightgate.pipeline.{pipeline}"]}}
    if flow_run_id is not None:
        about["related"] = {"id": [f"prefect.flow-run.{flow_run_id}"]}

    def stored() -> list[dict[str, Any]]:
        return list(prefect.request("POST", "/events/filter", json={"filter": about}).json()["events"])

    with client(api_url) as prefect:
        found: list[dict[str, Any]] = within(20, stored)
    return found
