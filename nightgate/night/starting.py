"""Choose how a night trains: in full from the base model, or on from the trunk, on what its line has not learnt.

The trunk is the newest version of an earlier night with the same recipe, whatever the gate said of it. What the choice
depends on is stored before the night trains, so an attempt that is resumed chooses the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from nightgate.config.training import Training
from nightgate.config.values import duration
from nightgate.data.snapshots import Snapshot, meaning_of, version_of
from nightgate.database.evaluation_schema import ChampionEvaluation
from nightgate.database.label_meanings import meaning_of_run
from nightgate.database.schema import Run
from nightgate.database.views import selecting
from nightgate.errors import ModelError, RegistryError
from nightgate.models import version_folder
from nightgate.night.run import NightRun
from nightgate.registry import versions
from nightgate.registry.versions import VersionRow
from nightgate.runs.inputs import MISSING
from nightgate.training.continued import labelled_keys, lost, read_learnt

log = logging.getLogger(__name__)

MOST_LOST = 0.01
"""Share of the rows learnt that may be gone or corrected: training on does not unlearn them."""
_OF_A_NIGHT = {"start_from", "replay", "continued_rate", "full_every", "eval_batch_size", "precision", "metrics"}
"""Settings that may differ between the nights of a line."""
_WORSE = (
    "SELECT check_name, slice_value FROM gate_checks WHERE run_id = :run_id AND ci_high < 0 "
    "AND (outcome = 'failed' OR check_name IN ('beats_champion', 'anchor')) ORDER BY position"
)


@dataclass(frozen=True)
class Start:
    version: VersionRow | None = None
    """To go on from; None: the night trains in full."""
    reason: str = ""
    """'' where the pipeline always trains in full."""

    def __str__(self) -> str:
        begun = "trains in full" if self.version is None else f"goes on from version {self.version.version}"
        return f"{begun}: {self.reason}" if self.reason else begun


def choose(run: NightRun, snapshot: Snapshot) -> Start:
    """What the night starts from, and why."""
    if run.pipeline.training.start_from == "base":
        return Start()
    rows = versions.versions(run.db, run.pipeline.name)
    trunk, why = _trunk(run, snapshot, rows)
    if trunk is None:
        return Start(None, why)
    by_number = {row.version: row for row in rows}
    line = [trunk]
    while line[-1].started_from is not None:
        line.append(by_number[line[-1].started_from])
    if why := next(_reasons(run, snapshot, line), ""):
        return Start(None, why)
    return Start(trunk, f"the last full training is version {line[-1].version} of {line[-1].night}")


def _trunk(run: NightRun, snapshot: Snapshot, rows: list[VersionRow]) -> tuple[VersionRow | None, str]:
    """The newest version of an earlier night that tonight's recipe would have made, or why there is none."""
    earlier = [row for row in rows if row.night < run.night.date and not row.dry_run]
    if not earlier:
        return None, "there is no version of an earlier night"
    earlier.sort(key=lambda row: (row.night, row.version), reverse=True)
    why = _due(run, earlier[0])
    inputs = sa.select(Run.inputs).where(Run.run_id == run.run_id)
    tonight = _recipe(run.pipeline.record(), run.db.read(lambda session: session.scalar(inputs)))
    for row in takewhile(lambda one: not _due(run, one), earlier):
        differ = _differences(run, snapshot, tonight, row)
        if not differ:
            return row, ""
        why = why or ", ".join(differ)
    return None, why


def _differences(run: NightRun, snapshot: Snapshot, tonight: Mapping[str, str], row: VersionRow) -> list[str]:
    """How tonight's recipe, labels and division of the rows differ from those of a version."""
    of_run = sa.select(Run.config, Run.inputs).where(Run.run_id == row.run_id)
    then = _recipe(*run.db.read(lambda session: session.execute(of_run).one()))
    # What one of the two does not know is no difference.
    differ = [
        f"{name} was {then[name]} and is {value}"
        for name, value in tonight.items()
        if name in then and then[name] != value
    ]
    if row.test_version != version_of(snapshot, run.pipeline):
        meant = run.db.read(partial(meaning_of_run, run_id=row.run_id))
        flaw = meant.flaw(meaning_of(snapshot, run.pipeline))
        differ.insert(0, f"version {row.version} {flaw}" if flaw else "rows are divided anew")
    return differ


def _reasons(run: NightRun, snapshot: Snapshot, line: list[VersionRow]) -> Iterator[str]:
    """Why the line, from the trunk back to its full training, must not be gone on with."""
    trunk, root = line[0], line[-1]
    if why := _due(run, root):
        yield why
    for row in line:
        if row.quarantined_at is not None:
            yield f"version {row.version} of the line was taken back: {row.quarantine_reason}"
    yield from _behind(run, trunk, root)
    try:
        folder = trunk.folder(run.home)
        version_folder.verify_version(folder)
        learnt = read_learnt(folder)
    except (ModelError, RegistryError) as error:
        yield f"version {trunk.version} cannot be gone on from: {error.reason}"
        return
    # Forgotten rows count whatever their age: those that are as old as any are no trace of a source's limit.
    gone = max(lost(learnt, labelled_keys(snapshot)), _forgotten(run, line))
    if gone > MOST_LOST * len(learnt):
        yield f"{gone:,} of the {len(learnt):,} rows learnt are deleted, corrected or forgotten"


def _forgotten(run: NightRun, line: list[VersionRow]) -> int:
    """Ids that were forgotten after a version of the line had learnt them."""
    query = selecting("SELECT versions FROM forgotten_rows WHERE pipeline = :pipeline", {"pipeline": run.pipeline.name})
    numbers = {str(row.version) for row in line}
    found = run.db.read(lambda session: session.scalars(query).all())
    return sum(not numbers.isdisjoint(named.split(", ")) for named in found)


def _behind(run: NightRun, trunk: VersionRow, root: VersionRow) -> Iterator[str]:
    """How gate and evaluations show that the trunk has fallen behind, which only a full training can have mended."""
    if trunk is not root:
        worse = run.db.read(lambda session: session.execute(selecting(_WORSE, {"run_id": trunk.run_id})).first())
        if worse is not None:
            of_slice = f" of {worse.slice_value}" if worse.slice_value else ""
            yield f"version {trunk.version} was worse than the champion: {worse.check_name}{of_slice}"
    champion, evaluation = versions.champion(run.db, run.pipeline.name), ChampionEvaluation
    if champion is None:
        return
    seen = sa.func.coalesce(evaluation.rows_to, evaluation.evaluated_at)
    query = (
        sa.select(evaluation.alarms, seen.label("seen"))
        .where(evaluation.pipeline == champion.pipeline, evaluation.model_version == champion.version)
        .where(evaluation.role == "champion", evaluation.evaluated_at >= champion.valid_from, evaluation.alarms != "")
        .where(seen <= run.data_until)
        .order_by(seen)
        .limit(1)
    )
    # One alarm of a champion starts one full training.
    first = run.db.read(lambda session: session.execute(query).first())
    if first is not None and first.seen > root.data_until:
        yield f"the champion's evaluation raised {first.alarms} since version {root.version}"


def _due(run: NightRun, row: VersionRow) -> str:
    """Why a version is too old to go on from, by `full_every` and the schedule's wall clock; '' if it is not."""
    zone, full_every = ZoneInfo(run.pipeline.schedule.timezone), run.pipeline.training.full_every
    every = duration(full_every)
    if every is None or run.data_until.astimezone(zone) - row.data_until.astimezone(zone) < every:
        return ""
    return f"full_every is {full_every}, and version {row.version} is of {row.night}"


def _recipe(config: Mapping[str, Any], inputs: Mapping[str, str] | None) -> dict[str, str]:
    """What shapes the model of a run, as text by name; without the base model where that was out of reach."""
    settings = Training().model_dump(mode="json") | config["training"]
    found = {f"training.{name}": str(value) for name, value in settings.items() if name not in _OF_A_NIGHT}
    found["data.train_window"] = str(config["data"].get("train_window", ""))
    base_model = (inputs or {}).get("base model", MISSING)
    return found if base_model == MISSING else found | {"base model": base_model}
