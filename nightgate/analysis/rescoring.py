"""Score versions on rows of a night that did not score them, on request and without storing the result.

They are computed in the precision of that night's own scores, which they are compared with.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nightgate.data import golden_rows as golden
from nightgate.data.snapshots import open_snapshot
from nightgate.database.label_meanings import meaning_of_run
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ModelError, RegistryError, SnapshotError
from nightgate.gate.evidence import Labels, Mask
from nightgate.home import Home
from nightgate.models.version_folder import verify_version
from nightgate.registry import leakage
from nightgate.registry.versions import VersionRow
from nightgate.training.predictions import read_predictions
from nightgate.training.progress import progress_line
from nightgate.training.protocol import ScoreJob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescored:
    """Predictions of a version on the test rows of a night's snapshot, in their order."""

    predictions: Labels
    """Class indices by the night's label names."""
    trained_on: Mask | None
    """Test rows that it or an ancestor was trained on or selected by; None: unknown, for the reason `unknown_line`."""
    unknown_line: str
    golden: Labels | None = None
    """Predictions on the requested golden rows, in the order of their fingerprints; None: none were requested."""


def rescore(
    db: Database,
    home: Home,
    run_id: str,
    versions: Mapping[str, VersionRow],
    fingerprints: tuple[str, ...],
    golden_fingerprints: tuple[str, ...] = (),
) -> dict[str, Rescored]:
    """Score versions on the test rows that a run was decided on, and on golden rows; the result has the same keys.

    Args:
        fingerprints: of the test rows, in the order of the run's evidence.
        golden_fingerprints: of its golden rows, in the order of the run's evidence; () scores none.

    Raises:
        RegistryError: retention has removed a version's files.
        ModelError: a version is altered, or its labels do not mean what those of the run do.
        NonFiniteLossError: a version gives a row a logit that is NaN or infinite.
        SnapshotError: the night's snapshot is missing, damaged or another one, or no stored set of golden rows has all
            that were requested.
        TrainingError: the scoring process ended without a result.
    """
    # Imported here because most comparisons and replays score nothing.
    from nightgate.training import supervisor

    meaning = db.read(lambda session: meaning_of_run(session, run_id))
    for version in versions.values():
        change = db.read(partial(meaning_of_run, run_id=version.run_id)).change(meaning)
        if change:
            raise ModelError(
                f"version {version.version} was trained on labels that mean something else than those of run {run_id}: "
                f"{change}",
                next_step="choose versions whose labels mean what they do now",
            )
    folders = {name: version.folder(home) for name, version in versions.items()}
    for folder in folders.values():
        verify_version(folder)
    query = selecting(
        "SELECT d.pipeline, d.config, d.label_names, s.path, g.precision FROM run_documents AS d "
        "JOIN snapshots AS s ON s.pipeline = d.pipeline AND s.snapshot_id = d.snapshot_id "
        "JOIN gate_sides AS g ON g.run_id = d.run_id AND g.side = 'candidate' WHERE d.run_id = :run",
        {"run": run_id},
    )
    pipeline, config, label_names, path, precision = db.read(lambda session: session.execute(query).one())
    config = config | {"training": config["training"] | {"precision": precision}}
    snapshot = home.absolute(path)
    rows = open_snapshot(snapshot).rows("test", ["row_id", "fingerprint", "text"])
    if tuple(rows["fingerprint"]) != fingerprints:
        raise SnapshotError(
            f"the test rows of {snapshot} are not those that run {run_id} was decided on",
            next_step="restore that folder from a backup",
        )
    golden_set = golden.stored_with(home, pipeline, label_names, golden_fingerprints) if golden_fingerprints else None
    if golden_fingerprints and golden_set is None:
        raise SnapshotError(
            f"no stored set of golden rows has all {len(golden_fingerprints):,} that run {run_id} was decided on",
            next_step=f"restore the folders of {home.golden / pipeline} from a backup",
        )
    with tempfile.TemporaryDirectory(prefix="nightgate-rescore-") as out:
        job = ScoreJob(pipeline=config, snapshot=snapshot, models=folders, out=Path(out), golden=golden_set)
        scored = supervisor.score_models(job, on_progress=lambda progress: log.debug("%s", progress_line(progress)))
        predictions = {name: read_predictions(path) for name, path in scored.written.items()}
        of_golden = {name: read_predictions(path) for name, path in scored.golden.items()}
    chosen = [] if golden_set is None else _places(golden_set, golden_fingerprints)
    found = {}
    keys = leakage.keys_of(snapshot.parent, rows)
    for name, version in versions.items():
        line = leakage.line_of(db, home, version.pipeline, version.version)
        golden_labels = of_golden[name][chosen] if golden_fingerprints else None
        found[name] = Rescored(predictions[name], *leakage.trained_on(line, keys), golden=golden_labels)
    return found


def rescorer(db: Database, home: Home) -> Callable[[str, VersionRow, tuple[str, ...], tuple[str, ...]], Rescored]:
    """A function for `nightgate.analysis.replay` that rescores one version."""

    def score(
        run_id: str, version: VersionRow, fingerprints: tuple[str, ...], golden_fingerprints: tuple[str, ...]
    ) -> Rescored:
        log.info("scoring version %d on the rows of run %s", version.version, run_id)
        return rescore(db, home, run_id, {"version": version}, fingerprints, golden_fingerprints)["version"]

    return score


def newest_judged(db: Database, pipeline: str) -> str:
    """The newest run of the pipeline whose evidence is stored.

    Raises:
        RegistryError: there is none.
    """
    query = selecting(
        "SELECT run_id FROM nightly_runs WHERE pipeline = :pipeline AND run_id IN "
        "(SELECT g.run_id FROM gate_sides AS g WHERE g.pipeline = :pipeline) "
        "ORDER BY data_until DESC, started_at DESC LIMIT 1",
        {"pipeline": pipeline},
    )
    found: str | None = db.read(lambda session: session.execute(query).scalar())
    if found is None:
        raise RegistryError(f"no night of {pipeline} has stored evidence", next_step=f"run `nightgate run {pipeline}`")
    return found


def _places(golden_set: Path, fingerprints: tuple[str, ...]) -> list[int]:
    """Index of each row in the stored set, of which the evidence leaves out rows that a model was trained on."""
    stored = golden.golden_rows(golden_set, (), ["fingerprint"])["fingerprint"]
    place = {fingerprint: row for row, fingerprint in enumerate(stored)}
    return [place[fingerprint] for fingerprint in fingerprints]
