"""The flow `evaluate`: the champion on labelled rows that came since it was chosen, without training."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.events import announce_own_ends
from flows.run_end import announce_crash, run_part
from flows.run_form import PipelineName
from nightgate.config.pipeline import Pipeline
from nightgate.runs.evaluations import Evaluation
from tasks import parts


@flow(name="evaluate", flow_run_name="{pipeline} evaluate", persist_result=False, on_crashed=[announce_crash])
def evaluate(pipeline: PipelineName) -> State[Any]:
    """Evaluate a pipeline's champion, and the anchor, on the newest snapshot; alarms are events.

    Args:
        pipeline: Name of the pipeline.
    """

    def work(configuration: Pipeline) -> str:
        found = parts.evaluate(configuration)
        announce_own_ends()
        return _summary(found)

    return run_part("evaluate", pipeline, work)


def _summary(found: tuple[Evaluation, ...]) -> str:
    if not found:
        return "no champion yet"
    champion, *_ = found
    f1 = "no new rows" if champion.is_whole else f"not evaluated on {champion.rows:,} rows"
    f1 = f1 if champion.f1 is None else f"F1 {champion.f1:.4f} on {champion.rows:,} rows"
    return ", ".join([f"version {champion.model_version}", f1, *(alarm.replace("_", " ") for alarm in champion.alarms)])
