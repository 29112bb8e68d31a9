"""The one list of deployments, from which `serve`, `deploy` and prefect.yaml are made.

    python -m deployments.catalog > deployments/prefect.yaml    # after a pipeline file or a flow has changed

Each part of a night, and the night, is deployed once, as `nightgate`, with the pipeline as a choice, and once more for
each pipeline whose file has a cron for it, by its name. The operations are deployed as `nightgate`. With
`NIGHTGATE_NAME=shop` these names are `shop` and `PIPELINE.shop`, beside those of other homes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its types do not

from nightgate.config.pipeline import Pipeline
from nightgate.config.schedule import Schedule
from nightgate.pipeline_files import load_by_name, pipeline_files
from nightgate.settings import read_settings

TAG = "nightgate"
"""Tag of all our deployments and runs, by which automations and `deploy --prune` find them."""
SLUG = "nightgate"
"""Name of a deployment's one schedule, so that it is updated in place and stays paused if it was."""
NIGHTLY = "nightly"
GRACE_SECONDS = 600
"""How long Prefect keeps a deployment's slot for a submitted run that has not begun, such as a container that pulls its
image. A running one renews its slot itself, every 225 s for 300 s."""
RECONCILE_CRON = "*/10 * * * *"
"""For workers that do not reconcile themselves (`flows.reconcile`)."""


OPERATIONS = "operations"
SHORT = "parts"
"""Slot of the parts that do not train: a training takes hours, and they need not wait for it."""
SHORT_LIMIT = 2
"""By default; with one, a long part would hold up the short ones of other pipelines."""


@dataclass(frozen=True)
class Queue:
    """A work queue: runs in it wait without a process of theirs, which takes 200 MB."""

    slot: str = ""
    """The slot that its runs share; '': no limit, and nothing delays them."""
    priority: int = 0
    """The highest one starts first. Prefect orders queues, not runs: each priority in use has a queue of its own, and
    between these the lock of the slot holds the limit."""

    @property
    def name(self) -> str:
        if not self.slot:
            return OPERATIONS
        return f"{self.slot}.{self.priority}" if self.priority else self.slot

    @property
    def limit(self) -> int | None:
        if self.name == OPERATIONS:
            return None
        return read_settings().slot_limits.get(self.slot, SHORT_LIMIT if self.slot == SHORT else 1)

    @property
    def order(self) -> tuple[bool, int, str]:
        return bool(self.slot), -self.priority, self.slot


@dataclass(frozen=True)
class Deployment:
    """One deployment, without anything that depends on where it runs."""

    flow: str
    name: str
    entrypoint: str
    """A module and not a path, which would put flows/ on sys.path, where its modules could hide libraries."""
    description: str
    collision: Literal["ENQUEUE", "CANCEL_NEW"] | None = "ENQUEUE"
    """What happens to a second run of this deployment, where one runs at a time; None: they run beside each other."""
    tags: tuple[str, ...] = (TAG,)
    queue: Queue = Queue()
    parameters: dict[str, Any] = field(default_factory=dict)
    pipelines: tuple[str, ...] = ()
    """The choices of its parameter `pipeline`, where it is one."""
    cron: str = ""
    timezone: str = "UTC"
    form_of: Pipeline | None = None
    """Whose values the form of a custom run shows; None: it cannot know them."""

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"


@dataclass(frozen=True)
class Part:
    """What can be started for any pipeline: a night, or a part of one."""

    flow: str
    entrypoint: str
    about: str
    """Description, with `{}` for the pipeline."""
    collision: Literal["ENQUEUE", "CANCEL_NEW"] = "CANCEL_NEW"
    """Of a pipeline's own deployment. After an outage several are due at once, and one does the work of all."""

    def cron(self, schedule: Schedule) -> str:
        return schedule.cron if self.flow == NIGHTLY else str(getattr(schedule, self.flow).cron)

    def own(self, pipeline: Pipeline) -> Deployment:
        """The deployment of one pipeline: its cron in its timezone, one run at a time."""
        return Deployment(
            flow=self.flow,
            name=own_name(pipeline.name),
            entrypoint=self.entrypoint,
            description=self.about.format(pipeline.name),
            collision=self.collision,
            # A pipeline may be called nightgate: each tag once.
            tags=tuple(dict.fromkeys((TAG, pipeline.name))),
            queue=self.queue([pipeline]),
            parameters={"pipeline": pipeline.name},
            cron=self.cron(pipeline.schedule),
            timezone=pipeline.schedule.timezone,
            form_of=pipeline if self.flow == NIGHTLY else None,
        )

    def shared(self, pipelines: Sequence[Pipeline]) -> Deployment:
        """The deployment in which the pipeline is chosen. Locks keep runs of one pipeline apart, and only those."""
        return Deployment(
            flow=self.flow,
            name=read_settings().name,
            entrypoint=self.entrypoint,
            description=self.about.format("the pipeline that is chosen"),
            collision=None,
            queue=self.queue(pipelines),
            pipelines=tuple(one.name for one in pipelines),
        )

    def queue(self, pipelines: Sequence[Pipeline]) -> Queue:
        """That of their slot. Nights of several slots that share a deployment wait for these at work, as by hand."""
        if self.flow != NIGHTLY:
            return Queue(SHORT)
        slots = {one.resources.slot for one in pipelines}
        return Queue(slots.pop(), max(one.resources.priority for one in pipelines)) if len(slots) == 1 else Queue()


PARTS = (
    Part(
        NIGHTLY,
        "flows.nightly.nightly",
        "Nightly retraining of {}. Custom run shows what can be changed for one run.",
        # A second run waits, and the database then decides what it does; a cancelled one would leave no reason.
        "ENQUEUE",
    ),
    Part("refresh", "flows.refresh.refresh", "Takes in what is new in the source of {}, without training."),
    Part("evaluate", "flows.evaluate.evaluate", "Evaluates the champion of {} on rows that came since it was chosen."),
    Part("predict", "flows.predict.predict", "Predicts rows without labels with the champion of {}."),
)


def own_name(pipeline: str) -> str:
    """The name of a pipeline's own deployments. No pipeline has a dot in its name."""
    name = read_settings().name
    return pipeline if name == TAG != pipeline else f"{pipeline}.{name}"


def operations(reconcile_cron: str = RECONCILE_CRON) -> tuple[Deployment, ...]:
    """Deployments without a choice of pipelines: reconciliation, and manual decisions from the UI."""
    name = read_settings().name
    return (
        Deployment(
            flow="reconcile",
            name=name,
            entrypoint="flows.reconcile.reconcile",
            description="Fails dead runs, expires approvals, records missed nights, in the database and here.",
            # After an outage dozens are due at once, and one does the work of all.
            collision="CANCEL_NEW",
            cron=reconcile_cron,
        ),
        Deployment(
            flow="promote",
            name=name,
            entrypoint="flows.manual_promotion.promote",
            description="Makes a version the champion of its pipeline, whatever the gate decided; it is audited.",
        ),
        Deployment(
            flow="rollback",
            name=name,
            entrypoint="flows.manual_promotion.rollback",
            description="Restores the previous champion and freezes the pipeline; it is audited.",
        ),
        Deployment(
            flow="freeze",
            name=name,
            entrypoint="flows.manual_promotion.freeze",
            description="Stops automatic promotion of a pipeline: its nights are held; it is audited.",
        ),
        Deployment(
            flow="unfreeze",
            name=name,
            entrypoint="flows.manual_promotion.unfreeze",
            description="Resumes automatic promotion of a pipeline; it is audited.",
        ),
    )


def catalog(
    pipelines: Iterable[Pipeline], reconcile_cron: str = RECONCILE_CRON, others: Iterable[Pipeline] = ()
) -> list[Deployment]:
    """All deployments of these pipelines: those with a cron of their own, the parts for all, and the operations.

    Args:
        others: further pipelines that can be chosen.
    """
    pipelines = list(pipelines)
    scheduled = [part.own(one) for one in pipelines for part in PARTS if part.cron(one.schedule)]
    choices = [*pipelines, *others]
    return [*scheduled, *(part.shared(choices) for part in PARTS), *operations(reconcile_cron)]


def without_cron(pipelines: Iterable[Pipeline]) -> list[str]:
    """Full names that own deployments of these pipelines would have, had their files a cron for them."""
    return [f"{part.flow}/{own_name(one.name)}" for one in pipelines for part in PARTS if not part.cron(one.schedule)]


def deployable() -> list[str]:
    """Names of the pipelines that are deployed by default: those found here, without the template.

    The package's examples are among them only in its own repository, or if there is nothing else.
    """
    return of_user() or [name for name, path in pipeline_files().items() if path.stem != "template"]


def of_user() -> list[str]:
    """Names of the pipelines that are found here, without the package's examples."""
    packaged, here = Path(str(files("deployments") / "pipelines")).resolve(), Path("deployments/pipelines").resolve()
    known = {name: path for name, path in pipeline_files().items() if path.stem != "template"}
    return [name for name, path in known.items() if path.resolve().parent != packaged or packaged == here]


def as_yaml(deployments: Iterable[Deployment]) -> str:
    """The file that `prefect deploy --all` reads."""
    document = {"name": "nightgate", "deployments": [_entry(one) for one in deployments]}
    return _HEADER + str(yaml.safe_dump(document, sort_keys=False, width=118, allow_unicode=True))


_HEADER = """\
# Made by `python -m deployments.catalog > deployments/prefect.yaml`; `nightgate deploy` registers the same without it.
#
#   prefect work-pool create nightgate --type process
#   prefect work-queue create default --pool nightgate --limit 1     # and those of other slots; operations has no limit
#   prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml     # from the folder that runs work in
#
# There is no pull step on purpose: Prefect then adds one that sets the folder of this command, and relative paths of
# pipeline files mean the same in every run. Without one, a process worker runs in a temporary folder.
"""


def _entry(one: Deployment) -> dict[str, Any]:
    schedules = [{"slug": SLUG, "cron": one.cron, "timezone": one.timezone}] if one.cron else []
    limit = {"limit": 1, "collision_strategy": one.collision, "grace_period_seconds": GRACE_SECONDS}
    return {
        "name": one.name,
        "description": one.description,
        "entrypoint": one.entrypoint,
        "tags": list(one.tags),
        "parameters": dict(one.parameters),
        "enforce_parameter_schema": True,
        "schedules": schedules,
        **({"concurrency_limit": limit} if one.collision else {}),
        "work_pool": {"name": read_settings().name, "work_queue_name": one.queue.name},
    }


def packaged_pipelines() -> list[Pipeline]:
    """The pipelines of deployments/prefect.yaml: those beside it."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("pipelines/*.toml") if path.stem != "template")
    return [load_by_name(name) for name in names]


if __name__ == "__main__":
    sys.stdout.write(as_yaml(catalog(packaged_pipelines())))
