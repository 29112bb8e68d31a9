"""Register a trained candidate as a numbered version: its folder, model card and manifest, and its row.

The folder is renamed to its place inside the transaction that inserts the row: only a crash between the two leaves a
folder without a row, and the next registration moves it aside.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.durable_files import sha256_of
from nightgate.errors import RegistryError
from nightgate.frames.epochs import markdown_table, own_metrics, own_rows, published_table
from nightgate.frames.reader import select
from nightgate.gate.decision import Decision
from nightgate.home import Home
from nightgate.metrics.bootstrap import Interval
from nightgate.models.model_card import CardFacts, model_card
from nightgate.models.version_folder import Staging, verify_version
from nightgate.provenance import library_versions
from nightgate.registry import promotion, versions
from nightgate.registry.versions import VersionRow

if TYPE_CHECKING:
    from nightgate.data.snapshots import Snapshot
    from nightgate.metrics.confusion import Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A finished fine-tuning to register. The run's epochs and settings are read from the database."""

    pipeline: Pipeline
    run_id: str
    attempt: int
    snapshot: Snapshot
    best_model: Path
    """A stock Hugging Face folder, whose files are never rewritten in place: the version links to them."""
    best_epoch: int
    test: Scores
    test_interval: Interval | None = None
    decision: Decision | None = None
    """None before the gate has decided."""
    started_from: int | None = None
    """The version that training continued from; None: the base model."""
    base_model_revision: str | None = None
    """The commit of the base model, or a hash of its weights if it has none; None: as in the pipeline file."""
    environment: dict[str, Any] | None = None
    """Python, libraries, machine and device of the training, as JSON."""


def register_candidate(db: Database, home: Home, candidate: Candidate) -> VersionRow:
    """Make the candidate a numbered version, promoted or held. Idempotent: the same run gets the same version.

    Raises:
        ModelError: the trained folder is incomplete, or this run's version exists already and is damaged.
        StorageError: the disk is full, read-only or not ours; no version is left behind.
        RegistryError: another attempt of the run has taken over, or retention removed the files of its version.
    """
    pipeline = candidate.pipeline
    existing = _version_of(db, candidate)
    if existing is not None:
        _require_same_weights(verify_version(existing.folder(home)), existing, candidate)
        log.info("run %s is version %d already", candidate.run_id, existing.version)
        return existing
    run = _run_facts(db, candidate.run_id)
    staging = Staging(home.models / pipeline.name, candidate.best_model, pipeline.data.label_names)

    def place(version: int) -> str:
        return home.relative(staging.place(version, _card(candidate, run, version), _manifest(candidate, run)))

    try:
        promotion.add_version(
            db,
            candidate.run_id,
            candidate.attempt,
            place,
            started_from=candidate.started_from,
            base_model_revision=_revision(candidate) or None,
            environment=candidate.environment,
            size_bytes=staging.size_bytes,
        )
    finally:
        staging.discard()
    row = _version_of(db, candidate)
    assert row is not None
    log.info("version %d of %s: %s", row.version, pipeline.name, home.absolute(row.path))
    return row


def _require_same_weights(manifest: dict[str, Any], existing: VersionRow, candidate: Candidate) -> None:
    """Check that the version of an earlier attempt has the weights that this attempt scored."""
    stored = {name: facts["sha256"] for name, facts in manifest["files"].items() if name.endswith(".safetensors")}
    if stored != {name: sha256_of(candidate.best_model / name) for name in stored}:
        raise RegistryError(
            f"run {candidate.run_id} is version {existing.version} already, with the weights of attempt "
            f"{manifest['attempt']} and not with those that attempt {candidate.attempt} trained and scored",
            next_step="run the night with --force: a new run gets a version of its own",
        )


@dataclass(frozen=True)
class _RunFacts:
    night: str
    code_version: str
    device: str | None
    precision: str | None
    data_until: str
    rows_trained: int | None
    epochs: list[dict[str, Any]]
    """Columns of the published table, by epoch."""
    results_table: str
    own_metrics: dict[str, dict[str, float | None]]


_EPOCHS = (
    "SELECT training_loss, epoch, step, validation_loss, accuracy, f1, precision, recall "
    "FROM epoch_results WHERE run_id = :run_id ORDER BY epoch"
)
_RUN = (
    "SELECT night, code_version, device, precision, data_until, rows_trained FROM nightly_runs WHERE run_id = :run_id"
)


def _run_facts(db: Database, run_id: str) -> _RunFacts:
    epochs = db.frame(_EPOCHS, {"run_id": run_id})
    [run] = select(db, _RUN, {"run_id": run_id}).to_dict("records")
    return _RunFacts(
        night=str(run["night"]),
        code_version=str(run["code_version"]),
        device=_plain(run["device"]),
        precision=_plain(run["precision"]),
        data_until=run["data_until"].isoformat(),
        rows_trained=None if pd.isna(run["rows_trained"]) else int(run["rows_trained"]),
        epochs=[{str(name): _plain(value) for name, value in row.items()} for row in epochs.to_dict("records")],
        results_table=published_table(epochs),
        own_metrics=own_metrics(db, run_id),
    )


def _test_figures(candidate: Candidate) -> dict[str, float | None]:
    average, test = candidate.pipeline.gate.average, candidate.test
    return {
        "accuracy": test.accuracy,
        "f1": test.f1(average),
        "precision": test.precision(average),
        "recall": test.recall(average),
    }


def _card(candidate: Candidate, run: _RunFacts, version: int) -> str:
    return model_card(
        CardFacts(
            pipeline=candidate.pipeline,
            version=version,
            run_id=candidate.run_id,
            night=run.night,
            best_epoch=candidate.best_epoch,
            results_table=run.results_table,
            own_table=markdown_table(*own_rows(run.own_metrics)) if run.own_metrics else "",
            own_test=run.own_metrics.get("test", {}),
            test=_test_figures(candidate),
            test_rows=candidate.test.support,
            test_interval=candidate.test_interval,
            snapshot=candidate.snapshot.manifest | {"data_until": run.data_until},
            rows_trained=run.rows_trained,
            decision=candidate.decision,
            started_from=candidate.started_from,
            code_version=run.code_version,
            libraries=library_versions(),
        )
    )


def _manifest(candidate: Candidate, run: _RunFacts) -> dict[str, Any]:
    """The content of `nightgate.json` besides version, files and seal."""
    pipeline, snapshot = candidate.pipeline, candidate.snapshot.manifest
    low, high = candidate.test_interval or (None, None)
    kept = ("id", "test_version", "rows", "data_until", "first_time", "last_time")
    return {
        "pipeline": pipeline.name,
        "run_id": candidate.run_id,
        "attempt": candidate.attempt,
        "night": run.night,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "label_names": list(pipeline.data.label_names),
        "base_model": {
            "name": pipeline.training.base_model,
            "revision": _revision(candidate),
            "started_from_version": candidate.started_from,
        },
        # Of this night: that of a snapshot is of the first night with its rows.
        "snapshot": {name: snapshot.get(name) for name in kept} | {"data_until": run.data_until},
        "rows_trained": run.rows_trained,
        "metrics": {
            "average": pipeline.gate.average,
            "best_epoch": candidate.best_epoch,
            "validation": next((row for row in run.epochs if row["epoch"] == candidate.best_epoch), {}),
            "test": {"rows": candidate.test.support, **_test_figures(candidate), "f1_ci_low": low, "f1_ci_high": high},
            "epochs": run.epochs,
        },
        "verdict": candidate.decision.verdict if candidate.decision else None,
        "checks": [asdict(check) for check in candidate.decision.checks] if candidate.decision else None,
        "configuration": pipeline.record(),
        "config_hash": pipeline.config_hash,
        "code_version": run.code_version,
        "device": run.device,
        "precision": run.precision,
        "libraries": library_versions(),
        "environment": candidate.environment,
    }


def _revision(candidate: Candidate) -> str:
    return candidate.base_model_revision or candidate.pipeline.training.base_model_revision


def _version_of(db: Database, candidate: Candidate) -> VersionRow | None:
    rows = versions.versions(db, candidate.pipeline.name)
    return next((row for row in rows if row.run_id == candidate.run_id), None)


def _plain(value: Any) -> Any:
    """Convert a value of a data frame for JSON: NaN and infinity become None."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
