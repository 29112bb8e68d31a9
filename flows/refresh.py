"""The flow `refresh`: take in what is new in the source, without a night. The next night goes on from there."""

from __future__ import annotations

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State

from flows.run_end import announce_crash, run_part
from flows.run_form import AllowedChecks, FreeText, PipelineName
from nightgate.config.checks import Allowed
from nightgate.config.pipeline import Pipeline
from tasks import parts


@flow(name="refresh", flow_run_name="{pipeline} refresh", persist_result=False, on_crashed=[announce_crash])
def refresh(pipeline: PipelineName, allow_failed_checks: AllowedChecks = (), reason: FreeText = "") -> State[Any]:
    """Take in what is new in a pipeline's source: a snapshot, counts, data checks and drift, without training.

    Args:
        pipeline: Name of the pipeline.
        allow_failed_checks: Data checks that may fail this time.
        reason: Why they may; stored with this run's id.
    """

    def work(configuration: Pipeline) -> str:
        run_id = runtime.flow_run.id
        allowed = Allowed.named(allow_failed_checks, f"Prefect run {run_id}", reason)
        found = parts.refresh(configuration, allowed=allowed, prefect_flow_run_id=run_id)
        return f"{found.rows_new:,} new rows"

    return run_part("refresh", pipeline, work)
