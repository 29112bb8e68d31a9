"""Leakage: rows that a model or any of its ancestors was trained on or selected by.

    keys = keys_of(home.snapshots / "reviews", rows)
    mask, why = trained_on(line_of(db, home, "reviews", champion.version), keys)

A row counts as seen if its id, its text or a near-copy of it was on the training or validation side: validation rows
selected the epoch. The memory of the splits that each of these was given shows it also for snapshots that are gone;
those of before it was kept show it by their rows. A version that continued from a champion inherits that one's training
rows, so the whole line of ancestors counts. Train rows that `train_window` or `max_train_rows` left out count too:
excluding a row too many is safer than one too few. Rows that came to these sides after a model's own snapshot don't.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.data.near_duplicates import NearDuplicates, canonical_keys
from nightgate.data.rules import SPLITS, memory_of
from nightgate.data.snapshots import Snapshot, open_snapshot, text_keys
from nightgate.data.split_memory import Keys, SplitMemory, hashes_of
from nightgate.data.tip import MEMORY, NEAR, Tip, read_tip
from nightgate.data.training_rows import training_positions
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import SnapshotError
from nightgate.home import Home
from nightgate.text_rules import NORMALISATION_VERSION

Mask = NDArray[np.bool_]
RowKeys = Mapping[str, Keys]
"""Keys of rows by kind: id, text, and cluster where near-duplicates are found."""


REMOVED = "removed"
"""In place of the split of a row, where a snapshot was removed."""


_LINE = """
WITH RECURSIVE line (version, started_from, snapshot_id) AS (
    SELECT v.version, v.started_from, v.snapshot_id FROM model_versions AS v
    WHERE v.pipeline = :pipeline AND v.version = :version
    UNION ALL
    SELECT v.version, v.started_from, v.snapshot_id FROM line
    JOIN model_versions AS v ON v.pipeline = :pipeline AND v.version = line.started_from)
SELECT l.version, l.started_from, s.snapshot_id, s.path, d.manifest FROM line AS l
LEFT JOIN snapshots AS s ON s.pipeline = :pipeline AND s.snapshot_id = l.snapshot_id
LEFT JOIN snapshot_documents AS d ON d.pipeline = s.pipeline AND d.snapshot_id = s.snapshot_id
"""


@dataclass(frozen=True)
class Line:
    """The snapshots of a model and of its ancestors, back to the base model."""

    snapshots: tuple[Snapshot, ...]
    """Newest first, each with the manifest that the database has; its folder may be gone."""
    unknown: str = ""
    """Why the line cannot be traced back to the base model; '' if it can."""


def line_of(db: Database, home: Home, pipeline: str, version: int | None, *, tonight: Snapshot | None = None) -> Line:
    """The line of a version, or of a candidate that has no number yet.

    Args:
        version: None for the base model, whose line is empty; for a candidate the version that it started from.
        tonight: the snapshot that a candidate was trained on.
    """
    snapshots = [] if tonight is None else [tonight]
    query = selecting(_LINE, {"pipeline": pipeline, "version": version})
    rows = db.read(lambda session: {row.version: row for row in session.execute(query)})
    while version is not None:
        row = rows.pop(version, None)
        if row is None or row.path is None:
            lack = "is not in the database" if row is None else "has no recorded snapshot"
            return Line(tuple(snapshots), f"its ancestor version {version} {lack}")
        snapshots.append(Snapshot(row.snapshot_id, home.absolute(row.path), row.manifest))
        version = row.started_from
    return Line(tuple({snapshot.path: snapshot for snapshot in snapshots}.values()))


def keys_of(folder: Path, rows: pd.DataFrame) -> RowKeys:
    """What may show that a model has seen these rows, with the columns row_id, fingerprint and text of a snapshot.

    Args:
        folder: the pipeline's snapshots.

    Raises:
        SnapshotError: the clusters of near-duplicates cannot be read.
    """
    with_id = (rows["row_id"] != rows["fingerprint"]).to_numpy()
    keys = {
        "id": np.where(with_id, hashes_of(rows["row_id"].tolist()), np.uint64(0)),
        "text": text_keys(rows["fingerprint"]),
    }
    near = read_tip(folder).near
    if near:
        clusters = NearDuplicates.open(folder / NEAR, near).clusters(canonical_keys(rows["text"].tolist()))
        keys["cluster"] = clusters
    return keys


def trained_on(line: Line, keys: RowKeys) -> tuple[Mask | None, str]:
    """Which rows are train or validation rows of a snapshot of the line, shape [rows].

    None and the reason if the line is incomplete, or a snapshot of it and the memory of its splits cannot be read.
    """
    if line.unknown:
        return None, line.unknown
    mask = np.zeros(len(keys["text"]), bool)
    memory, tip_of, looked_up = cache(SplitMemory.open), cache(read_tip), set[str]()
    known_to_all: dict[tuple[Path, tuple[str, ...]], set[str]] = {}
    try:
        for snapshot in line.snapshots:
            if snapshot.manifest["rules"]["normalisation"] != NORMALISATION_VERSION:
                return None, f"texts of its snapshot {snapshot.id} were normalised by other rules and cannot be matched"
            folder, named, files = _memory(snapshot, tip_of(snapshot.path.parent))
            if not _is_whole(named, files):
                mask |= _in_rows(open_snapshot(snapshot.path), keys, SPLITS.index("test"))
            elif not looked_up.issuperset(named):  # a later snapshot names these files, too
                mask |= memory(folder, named).has(keys)
                looked_up.update(named)
            if files:
                known_to_all.setdefault((folder, files), set(named)).intersection_update(named)
        for (folder, files), known in known_to_all.items():
            # Which of its rows had a near-copy in test was found later. Once for the whole line, of a year of nights.
            mask |= memory(folder, files).trained_on_before(keys, known)
    except SnapshotError as error:
        return None, f"a snapshot that it was trained on cannot be read: {error.reason}"
    return mask, ""


def known_to(snapshot: Snapshot, keys: RowKeys) -> Mask:
    """Which rows have an id or a text of a row that a snapshot, or one before it, had in any split; shape [rows].

    Raises:
        SnapshotError: neither the memory of its splits nor the snapshot can be read.
    """
    own = {kind: column for kind, column in keys.items() if kind != "cluster"}
    folder, named, files = _memory(snapshot, read_tip(snapshot.path.parent))
    if _is_whole(named, files):
        return SplitMemory.open(folder, named).has(own, range(len(SPLITS)))
    return _in_rows(open_snapshot(snapshot.path), own, len(SPLITS))


def _memory(snapshot: Snapshot, tip: Tip) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """The folder of the memory of a snapshot's splits, the files that it names, and those of now."""
    of = memory_of(snapshot.manifest["rules"])
    named = tuple(snapshot.manifest.get("memory", {}).get("files", ()))
    return snapshot.path.parent / MEMORY / of, named, tuple(tip.memory.get(of, named))


def _is_whole(named: Collection[str], files: Collection[str]) -> bool:
    """Whether the memory still is what the snapshot names, and more."""
    return bool(named) and set(named) <= set(files)


def _in_rows(snapshot: Snapshot, keys: RowKeys, before: int) -> Mask:
    """Which rows are in the splits of a snapshot up to that of a number."""
    stored, splits = snapshot.split_keys(with_ids=True, clusters=canonical_keys if "cluster" in keys else None)
    seen = {kind: column[splits < before] for kind, column in stored.items()}
    found = [np.isin(column, seen[kind]) & (column != 0) for kind, column in keys.items()]
    return np.asarray(np.column_stack(found).any(axis=1))


# --- which versions learnt from a row ---


@dataclass(frozen=True)
class Training:
    """What a version was trained on."""

    started_from: int | None
    snapshot: Path
    config: dict[str, Any]
    data_until: datetime
    rows: int | None
    """Training rows, where that was recorded."""

    @cached_property
    def chosen(self) -> frozenset[str] | None:
        """Ids of the rows that `train_window` and `max_train_rows` let it train on; None: all, or it is not known."""
        try:
            pipeline = Pipeline.model_validate(self.config)
            if not (pipeline.data.train_window or pipeline.training.max_train_rows):
                return None
            snapshot = open_snapshot(self.snapshot, verify=False)
            at = training_positions(snapshot, pipeline, self.data_until)
            return frozenset(snapshot.rows("train", ["row_id"], at=at)["row_id"]) if len(at) == self.rows else None
        except (ValueError, OSError):  # of a file that is damaged or of an earlier release
            return None

    def sides(self, held: dict[Path, set[str]], row_id: str) -> set[str]:
        """On which sides it saw a row that snapshots hold on these."""
        found = held.get(self.snapshot, set())
        is_left_out = "train" in found and self.chosen is not None and row_id not in self.chosen
        return found - {"train"} if is_left_out else found


def trainings(db: Database, pipeline_name: str) -> dict[int, Training]:
    """What each version was trained on, by number."""
    query = selecting(
        "SELECT v.version, v.started_from, s.path, d.config, v.data_until, v.rows_trained FROM model_versions AS v "
        "JOIN run_documents AS d ON d.run_id = v.run_id "
        "JOIN snapshots AS s ON s.pipeline = v.pipeline AND s.snapshot_id = v.snapshot_id "
        "WHERE v.pipeline = :pipeline ORDER BY v.version",
        {"pipeline": pipeline_name},
    )
    rows = db.read(lambda session: session.execute(query).all())
    return {row.version: Training(row[1], db.home.absolute(row.path), *row[3:]) for row in rows}


def learnt_from(trained: dict[int, Training], held: dict[Path, set[str]], row_id: str) -> dict[int, str]:
    """How each version learnt from a row which snapshots hold on these sides."""
    found = {}
    for version in trained:
        line, ancestor = list[set[str]](), trained.get(version)
        while ancestor is not None:
            line.append(ancestor.sides(held, row_id))
            ancestor = trained.get(ancestor.started_from or 0)
        if any("train" in one for one in line[:1]):
            found[version] = "trained on it"
        elif any("train" in one for one in line):
            found[version] = "continued from a version that was trained on it"
        elif any("validation" in one for one in line):
            found[version] = "selected by it"
        elif any(REMOVED in one for one in line):
            found[version] = "trained on it or selected by it, as far as is known: a snapshot was removed"
    return found
