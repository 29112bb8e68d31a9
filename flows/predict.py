"""The flow `predict`: the champion over the rows of `[predict]`, on its own or at the end of each night."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.run_end import announce_crash, run_part
from flows.run_form import PipelineName
from nightgate.config.pipeline import Pipeline
from tasks import parts


@flow(name="predict", flow_run_name="{pipeline} predict", persist_result=False, on_crashed=[announce_crash])
def predict(pipeline: PipelineName, all_rows: bool = False) -> State[Any]:
    """Predict the rows of a pipeline's [predict] with its champion, into the file or table that it names.

    Args:
        pipeline: Name of the pipeline.
        all_rows: Predict all rows again, also where the file asks for new ones only.
    """

    def work(configuration: Pipeline) -> str:
        return str(parts.predict(configuration, all_rows=all_rows) or "no champion yet")

    return run_part("predict", pipeline, work)
