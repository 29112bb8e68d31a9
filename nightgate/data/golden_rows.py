"""Golden rows: a fixed set of examples on which no candidate should get worse. Test rows, in contrast, change.

    home/golden/<pipeline>/frozen-<labels>/     test rows of the first night whose labels mean this; they never change
    home/golden/<pipeline>/<id>/                rows of the file that `data.golden` names; the id is a hash of them

Both are written atomically and verified by checksum, as all folders of `nightgate.data.snapshots`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nightgate.config.data import Data
from nightgate.config.pipeline import Pipeline
from nightgate.config.sources import FilesSource
from nightgate.data.refresh import usable_rows
from nightgate.data.snapshots import MANIFEST_FILE, Snapshot, meaning_of, open_snapshot, write_snapshot
from nightgate.errors import DataError, SnapshotError
from nightgate.home import Home
from nightgate.label_meaning import LabelMeaning
from nightgate.schedule import Night
from nightgate.sources.source_table import quarantine_summary

log = logging.getLogger(__name__)

_FROZEN = "frozen-"
_SIDE = "test"
"""The split that all golden rows are stored under."""


@dataclass(frozen=True)
class GoldenSet:
    id: str
    """Hash of the rows; '' where there are none."""
    path: Path | None
    """Folder of the rows; None where there are none, for the reason in `note`."""
    note: str
    """What is special tonight; '' on most nights."""
    label_names: tuple[str, ...]
    """Labels of the pipeline, in the order of their class indices."""

    def rows(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows, verified, with the pipeline's class indices: see `golden_rows`."""
        assert self.path is not None, "there are no golden rows"
        return golden_rows(self.path, self.label_names, columns)


def golden_set(
    pipeline: Pipeline,
    home: Home,
    snapshot: Snapshot,
    night: Night,
    meaning_on: Callable[[date], LabelMeaning | None] = lambda _: None,
) -> GoldenSet:
    """Tonight's golden rows: those of the file that `data.golden` names, or frozen test rows.

    Up to `data.golden_rows` test rows, chosen by hash, are frozen on the first night. Later changes in the source do
    not affect them. Each meaning of the labels has frozen rows of its own. Damaged frozen rows are reported, not
    replaced.

    Args:
        meaning_on: what labels meant on an earlier night, for frozen rows that do not say so; None: unknown.

    Raises:
        DataError: the file cannot be read, or holds no usable row.
        StorageError: the rows cannot be written.
    """
    if pipeline.data.golden:
        return _of_file(pipeline, home, night)
    return _frozen(pipeline, home.golden / pipeline.name, snapshot, night, meaning_on)


def golden_rows(path: Path, label_names: Sequence[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows in the folder `path`, verified, with the columns of `Snapshot.rows` at the time they were stored.

    Class index k is `label_names[k]`, also when the labels were stored in another order.

    Raises:
        SnapshotError: the rows are missing or altered.
    """
    stored = open_snapshot(path)
    frame = stored.rows(_SIDE, columns)
    if "label" in frame:
        place = [list(label_names).index(name) for name in stored.manifest["label_names"]]
        frame["label"] = np.array(place, np.int64)[frame["label"].to_numpy()]
    return frame


def stored_with(home: Home, pipeline: str, label_names: Sequence[str], fingerprints: Collection[str]) -> Path | None:
    """The folder of an intact golden set of `pipeline` with these labels and at least these rows, or None."""
    for manifest in sorted((home.golden / pipeline).glob(f"*/{MANIFEST_FILE}")):
        with suppress(SnapshotError):
            stored = open_snapshot(manifest.parent)
            if sorted(stored.manifest["label_names"]) == sorted(label_names) and set(fingerprints) <= set(
                stored.rows(_SIDE, ["fingerprint"])["fingerprint"]
            ):
                return manifest.parent
    return None


def _frozen(
    pipeline: Pipeline,
    folder: Path,
    snapshot: Snapshot,
    night: Night,
    meaning_on: Callable[[date], LabelMeaning | None],
) -> GoldenSet:
    names, meaning = pipeline.data.label_names, meaning_of(snapshot, pipeline)
    place = _place(folder, [sorted(names), meaning.rules])
    earlier = _place(folder, sorted(names))
    if earlier.exists() and not place.exists() and _still_means(earlier, meaning, meaning_on):
        place = earlier
    if place.exists():
        try:
            return GoldenSet(open_snapshot(place).id, place, "", names)
        except SnapshotError as error:
            note = f"golden rows cannot be used: {error.reason}; restore the folder, or remove it to freeze new ones"
            log.warning("%s", note)
            return GoldenSet("", None, note, names)
    others = any(folder.glob(f"{_FROZEN}*"))
    rows = snapshot.rows("test").head(pipeline.data.golden_rows).assign(split=_SIDE)
    facts = {"pipeline": pipeline.name, "label_names": list(names), "frozen": night.date.isoformat()}
    # Where another process was first, `write_snapshot` returns its rows.
    stored = write_snapshot(folder, rows, {"labels": sorted(names), **meaning.rules}, facts, name=place.name)
    note = f"{len(rows):,} test rows were frozen tonight as golden rows"
    if others:
        note += f", because earlier ones have other labels than {', '.join(names)}, or labels that mean something else"
    log.info("%s: %s", note, stored.path)
    return GoldenSet(stored.id, stored.path, note, names)


def _place(folder: Path, labels: list[Any]) -> Path:
    return folder / f"{_FROZEN}{hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:10]}"


def _still_means(earlier: Path, meaning: LabelMeaning, meaning_on: Callable[[date], LabelMeaning | None]) -> bool:
    """Whether rows that an earlier release froze, which stored the names of their labels only, have this meaning."""
    try:
        frozen = open_snapshot(earlier, verify=False).manifest["frozen"]
    except SnapshotError:
        return True  # to be reported as damaged
    then = meaning_on(date.fromisoformat(frozen))
    return then is None or not then.change(meaning)


def golden_source(data: Data) -> FilesSource:
    """The file that `data.golden` names, written as the files of the source are."""
    if isinstance(data.source, FilesSource):
        return data.source.model_copy(update={"paths": (data.golden,), "format": "auto"})
    return FilesSource(kind="files", paths=(data.golden,))


@contextmanager
def golden_errors() -> Iterator[None]:
    """Let errors of reading name the golden file's setting."""
    try:
        yield
    except DataError as error:
        next_step = error.next_step.replace("data.source.paths", "data.golden")
        raise DataError(f"data.golden: {error.reason}", next_step=next_step) from error


def _of_file(pipeline: Pipeline, home: Home, night: Night) -> GoldenSet:
    data, path = pipeline.data, pipeline.data.golden
    # All golden rows are evaluated, so the file needs no split column.
    split = pipeline.split.model_copy(update={"column": None})
    reading = pipeline.model_copy(
        update={"data": data.model_copy(update={"source": golden_source(data)}), "split": split}
    )
    with golden_errors():
        frame, quarantined, unseen = usable_rows(reading, night, home.snapshots / pipeline.name)
    late = f"; {unseen:,} later than {night.data_until:%Y-%m-%d %H:%M} UTC" if unseen else ""
    unusable = (late + quarantine_summary(quarantined)).removeprefix("; ")
    if not len(frame):
        raise DataError(
            f"data.golden: {path} has no usable row" + (f": {unusable}" if unusable else ""),
            next_step="check the file against [data]: it needs the columns and the labels of the source",
        )
    facts = {"pipeline": pipeline.name, "label_names": list(data.label_names), "file": path}
    chosen = frame.head(data.golden_rows).assign(split=_SIDE)
    stored = write_snapshot(home.golden / pipeline.name, chosen, {"labels": list(data.label_names)}, facts)
    note = f"rows of {path} that were left out: {unusable}" if unusable else ""
    return GoldenSet(stored.id, stored.path, note, data.label_names)
