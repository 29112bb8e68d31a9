"""The flow of `nightgate seeds`: each seed is a task on a Dask worker of this machine or of a cluster.

Workers need the code with its extra `dask`, and the home. Results return to the command, which alone writes to the
database. Workers of an existing cluster (`--address`) must also reach the Prefect server for its pages to show them.
Started by `dask worker --nthreads 1`, they train on one CPU thread unless OMP_NUM_THREADS is set for them, and on the
GPUs of their CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner

from flows.homes import tagged
from nightgate.analysis.seed_runs import local_workers
from nightgate.analysis.seed_study import SeedScore, Study, finish_study, record_failure, record_score
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.home import open_home
from tasks.logs import failed, readable_logs
from tasks.seeds import train_seed

log = logging.getLogger("nightgate.flows")

SECONDS_TO_CONNECT = 20


def run_study(study: Study, runner: TaskRunner[Any]) -> State[Any]:
    """Run the study as a flow whose tasks `runner` runs (see `dask`), on the server of the current settings."""
    with tagged(study.pipeline.name):
        state: State[Any] = seeds.with_options(task_runner=runner)(study, return_state=True)
    return state


@flow(name="seeds", flow_run_name="{study}")
def seeds(study: Study) -> State[Any]:
    """Train the missing seeds, store each result as it arrives, and summarise them."""
    try:
        with readable_logs(), Database.open(open_home()) as db:
            submitted = {train_seed.submit(study, seed): seed for seed in study.missing}
            for done in as_completed(list(submitted)):
                _record(db, study, submitted[done], done)
            row = finish_study(db, study.study_id)
    except NightgateError as error:
        return failed(error)
    if row.f1_mean is None:
        return Failed(message="no seed was trained to its end")
    spread = "" if row.f1_spread is None else f", spread {row.f1_spread:.4f}"
    return Completed(message=f"{row.num_seeds} seeds, mean F1 {row.f1_mean:.4f}{spread}")


def _record(db: Database, study: Study, seed: int, done: PrefectFuture[Any]) -> None:
    try:
        score = done.result()
        assert isinstance(score, SeedScore), score
    except Exception as error:  # noqa: BLE001 - of the seed, or of a worker that died: the other seeds go on
        record_failure(db, study, seed, error)
    else:
        record_score(db, study, score)


@contextmanager
def dask(num_seeds: int, *, address: str = "", workers: int = 0) -> Iterator[TaskRunner[Any]]:
    """Task runner on a Dask cluster: the one at `address`, else one on this machine.

    Raises:
        ConfigurationError: Dask is not installed, or no scheduler answers at `address`.
    """
    try:
        import dask
        import distributed
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise ConfigurationError(
            f"parallel seeds need Dask, which cannot be imported: {error}",
            next_step="pip install 'nightgate[dask]', or --no-prefect for one seed after the other",
        ) from error
    if address:
        _check_scheduler(address)
        yield DaskTaskRunner(address=address)
        return
    # Its own messages would bury those of the seeds.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    environments, reason = local_workers(num_seeds, workers)
    log.info("%s", reason)
    # Dask's own settings for a worker's environment would hold for the training process as well.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        yield DaskTaskRunner(cluster_class=distributed.SpecCluster, cluster_kwargs=_cluster(environments))


def _cluster(environments: list[dict[str, str]]) -> dict[str, Any]:
    """Workers of one seed at a time, each with an environment of its own, which `LocalCluster` does not support."""
    import distributed

    place = {"host": "127.0.0.1", "dashboard": False, "silence_logs": logging.ERROR}
    # The memory is used by the training process, which Dask does not see.
    one_seed = {**place, "nthreads": 1, "memory_limit": 0}
    workers = {
        at: {"cls": distributed.Nanny, "options": {**one_seed, "env": environment}}
        for at, environment in enumerate(environments)
    }
    # Without a dashboard too it serves pages, by default on all addresses and on a port that another study may hold.
    options = {"host": place["host"], "port": 0, "dashboard": False, "dashboard_address": f"{place['host']}:0"}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    return {"workers": workers, "scheduler": scheduler, "silence_logs": logging.ERROR}


def _check_scheduler(address: str) -> None:
    import distributed

    try:
        with distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False) as client:
            workers = client.scheduler_info()["workers"]
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {address}: {error}",
            next_step="start one with `dask scheduler`, or omit --address for a cluster on this machine",
        ) from error
    if workers:
        log.info("%d Dask workers at %s", len(workers), address)
    else:
        log.warning("the Dask cluster at %s has no workers yet: the seeds wait", address)
