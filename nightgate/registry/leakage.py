"""Leakage: test rows that a model or any of its ancestors was trained on or selected by, found in the snapshots.

    line = line_of(db, home, "reviews", champion.version)
    mask, why = trained_on(line, fingerprints)

A version that continued from a champion inherits that one's training rows, so the whole line of ancestors counts.
Validation rows count because they selected the epoch. Train rows that `train_window` or `max_train_rows` left out count
too: excluding a test row too many is safer than one too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from nightgate.data.snapshots import open_snapshot
from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.errors import SnapshotError
from nightgate.home import Home
from nightgate.text_rules import NORMALISATION_VERSION

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Line:
    """The snapshots of a model and of its ancestors, back to the base model."""

    snapshots: tuple[Path, ...]
    """Folders, newest first."""
    unknown: str = ""
    """Why the line cannot be traced back to the base model; '' if it can."""


def line_of(db: Database, home: Home, pipeline: str, version: int | None, *, tonight: Path | None = None) -> Line:
    """The line of a version, or of a candidate that has no number yet.

    Args:
        version: None for the base model, whose line is empty; for a candidate the version that it started from.
        tonight: the snapshot that a candidate was trained on.
    """
    snapshots = [] if tonight is None else [tonight]
    query = (
        sa.select(ModelVersion.version, ModelVersion.started_from, Snapshot.path.label("snapshot"))
        .join(Run, Run.run_id == ModelVersion.run_id)
        .outerjoin(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
        .where(ModelVersion.pipeline == pipeline)
    )
    rows = db.read(lambda session: {row.version: row for row in session.execute(query)})
    while version is not None:
        row = rows.pop(version, None)
        if row is None or row.snapshot is None:
            lack = "is not in the database" if row is None else "has no recorded snapshot"
            return Line(tuple(snapshots), f"its ancestor version {version} {lack}")
        snapshots.append(home.absolute(row.snapshot))
        version = row.started_from
    return Line(tuple(dict.fromkeys(snapshots)))


def trained_on(line: Line, fingerprints: Sequence[str]) -> tuple[Mask | None, str]:
    """Which of `fingerprints` are train or validation rows of a snapshot of the line, shape [fingerprints].

    None and the reason if the line is incomplete or one of its snapshots is missing or damaged.
    """
    if line.unknown:
        return None, line.unknown
    wanted = np.array([int(mark[:16], 16) for mark in fingerprints], np.uint64)
    mask = np.zeros(len(fingerprints), bool)
    for folder in line.snapshots:
        try:
            snapshot = open_snapshot(folder)
            normalisation = snapshot.manifest["rules"]["normalisation"]
            seen = [snapshot.rows(split, ["text_key"])["text_key"] for split in ("train", "validation")]
        except SnapshotError as error:
            return None, f"a snapshot that it was trained on cannot be read: {error.reason}"
        if normalisation != NORMALISATION_VERSION:
            return None, f"texts of its snapshot {folder.name} were normalised by other rules and cannot be matched"
        mask |= np.isin(wanted, np.concatenate(seen))
    return mask, ""
