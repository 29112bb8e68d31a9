"""The steps of a night as Prefect tasks: names, retries and progress.

What the steps do and promise is in `nightgate.night`; their order is in `nightgate.night.night`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from nightgate.data.snapshots import Snapshot
from nightgate.errors import DatabaseError, SourceUnavailableError
from nightgate.night import ending, scoring, steps, verdict
from nightgate.night.night import Steps
from nightgate.night.run import NightRun
from nightgate.night.values import Trained
from nightgate.prediction.predict import predict_configured
from nightgate.training.protocol import EpochReport
from tasks.progress import LiveProgress

P = ParamSpec("P")
R = TypeVar("R")


def _database_was_away(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what may work in a minute. The same bad data or failed training would only fail again."""
    return isinstance(state.result(raise_on_failure=False), DatabaseError | SourceUnavailableError)


def step(name: str | Callable[..., str]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that is retried while the database is away, or that of the source.

    Its result is neither cached nor persisted, which would be a pickle: the library finds snapshots and checkpoints
    that can be reused by their content.
    """
    decorate: Callable[[Callable[P, R]], Task[P, R]] = task(
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=3,
        retry_delay_seconds=20,
        retry_condition_fn=_database_was_away,
    )
    return decorate


# Without retries: a killed training is resumed from its checkpoint by a new attempt of the run.
@task(task_run_name="fine-tune on {snapshot}", cache_policy=NO_CACHE, persist_result=False)
def fine_tune(run: NightRun, snapshot: Snapshot, on_epoch: Callable[[EpochReport], object]) -> Trained:
    """`steps.fine_tune`, with its progress on the run's page."""
    with LiveProgress(f"{run.pipeline.name.replace('_', '-')}-progress") as live:
        trained = steps.fine_tune(run, snapshot, on_epoch, live.show)
        live.end(str(trained))
    return trained


def _epoch_name(parameters: dict[str, Any]) -> str:
    return steps.describe_epoch(parameters["run"], parameters["report"])


STEPS = Steps(
    refresh=step("refresh")(steps.refresh),
    evaluate=step("evaluate the champion")(steps.evaluate),
    decide=step("decide whether to train: {evaluated}")(steps.decide),
    fine_tune=fine_tune,
    record_epoch=step(_epoch_name)(steps.record_epoch),
    score_on_test=step("score on test: {trained}")(scoring.score_on_test),
    try_serving=step("serve in a fresh process: {scored}")(scoring.try_serving),
    judge=step("judge")(verdict.judge),
    register=step("register: {judged}")(steps.register_candidate),
    finish=step("finish version {version}: {judged}")(ending.finish),
    predict=step("predict")(predict_configured),
)
"""Each task's name shows what earlier steps returned."""
