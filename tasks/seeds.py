"""The task of a seed study: train one seed, in any process or machine that the task runner chooses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from nightgate.analysis import seed_runs
from nightgate.analysis.seed_study import SeedScore, Study
from nightgate.errors import NightgateError
from nightgate.logs import TerminalFormatter, night_context, without_secrets
from tasks.logs import readable_logs
from tasks.progress import LiveProgress


@task(task_run_name="seed {seed}", cache_policy=NO_CACHE, persist_result=False)
def train_seed(study: Study, seed: int) -> SeedScore | State[Any]:
    """The seed's score; a failed state with the error's text where there is none."""
    name = study.pipeline.name
    with (
        readable_logs(),
        _named_lines(),
        night_context(pipeline=name, night=f"seed {seed}", run_id=study.study_id),
        LiveProgress(f"{name.replace('_', '-')}-seed-{seed}") as live,
    ):
        try:
            score = seed_runs.train_seed(study, seed, live.show)
        except NightgateError as error:
            return Failed(message=without_secrets(str(error)))
        live.end(f"done in {score.duration_seconds:.0f} s, the best epoch is epoch {score.best_epoch}")
    return score


@contextmanager
def _named_lines() -> Iterator[None]:
    """Within the block each line in the terminal, which several seeds share, begins with its pipeline and seed."""
    before = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    for handler, _ in before:
        handler.setFormatter(TerminalFormatter())
    try:
        yield
    finally:
        for handler, formatter in before:
            handler.setFormatter(formatter)
