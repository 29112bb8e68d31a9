"""Measure drift on samples: tonight's new rows against the champion's training rows and against those of last week.

On at most 1,000 rows a side, so that it costs some half a second, and a warning at most: no night fails for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import Snapshot, open_snapshot
from nightgate.data.training_rows import training_positions
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.engine import base_model_folder
from nightgate.errors import NightgateError
from nightgate.home import Home
from nightgate.metrics.drift import Counts, DriftStatistic, measure_drift
from nightgate.registry import versions
from nightgate.registry.versions import VersionRow
from nightgate.runs import records

log = logging.getLogger(__name__)

SAMPLE = 1_000
"""The most rows of a side: chance then moves shares and lengths by no more than their limits."""
WEEK = timedelta(days=7)
_NAMES = {"champion": "the champion's training rows", "last_week": "the rows of last week"}

Places = Mapping[str, NDArray[np.intp]]
"""Rows by split: their places, ascending, as `Snapshot.rows` takes them."""


def drift_of(
    db: Database, pipeline: Pipeline, snapshot: Snapshot, data_until: datetime
) -> list[tuple[str, DriftStatistic]]:
    """The drift of the rows that the last night before `data_until` lacks; each statistic with its reference's name."""
    try:
        found = _measure(db, pipeline, snapshot, data_until)
    except (NightgateError, OSError) as error:
        log.warning("drift was not measured: %s", error)
        return []
    for reference, one in found:
        if one.outcome == "warning":
            log.warning("drift from %s: %s", _NAMES[reference], one.reason)
    return found


def _measure(
    db: Database, pipeline: Pipeline, snapshot: Snapshot, data_until: datetime
) -> list[tuple[str, DriftStatistic]]:
    folder = records.previous_snapshot(db, pipeline.name, before=data_until)
    if folder is None:
        return []
    before = open_snapshot(folder, verify=False)
    tonight = _sample(snapshot, _unknown_to(before, snapshot))
    if tonight.empty:
        return []
    older = partial(records.previous_snapshot, db, pipeline.name, before=data_until - WEEK)
    references = {"last_week": _sample(before, _last_week(before, older))}
    champion = versions.champion(db, pipeline.name)
    if champion is not None and champion.snapshot_id is not None:
        references["champion"] = _trained_on(db, champion, champion.snapshot_id)
    return measure_drift(tonight, references, _unknown_tokens(_tokenizer(db.home, pipeline, champion)))


def _sample(snapshot: Snapshot, places: Places) -> pd.DataFrame:
    """At most `SAMPLE` of the rows, with names of labels.

    Those with the smallest fingerprints: a random choice and order, the same on every night and machine.
    """
    columns = ["text_key", "text", "label", *(name for name in snapshot.columns if name.startswith("slice_"))]
    # A split is sorted by fingerprint, so that no others can be among the smallest.
    rows = pd.concat([snapshot.rows(split, columns, at=at[:SAMPLE]) for split, at in places.items()])
    names = dict(enumerate(snapshot.manifest["label_names"]))
    return rows.sort_values("text_key").head(SAMPLE).assign(label=lambda chosen: chosen["label"].map(names))


def _unknown_to(known: Snapshot, snapshot: Snapshot) -> Places:
    """The rows whose texts the other snapshot lacks."""
    keys = known.text_keys()
    return {
        split: np.flatnonzero(~np.isin(snapshot.rows(split, ["text_key"])["text_key"].to_numpy(), keys))
        for split in SPLITS
    }


def _last_week(before: Snapshot, older: Callable[[], Path | None]) -> Places:
    """The rows of the seven days up to the newest one of before tonight; without times, those that a snapshot lacks
    that is a week older than tonight.

    Args:
        older: finds that snapshot.
    """
    if "time" in before.columns:
        times = {split: before.rows(split, ["time"])["time"] for split in SPLITS}
        since = max(column.max() for column in times.values() if len(column)) - WEEK
        return {split: np.flatnonzero(column > since) for split, column in times.items()}
    folder = older()
    if folder is None:
        return {split: np.arange(len(before.rows(split, ["text_key"]))) for split in SPLITS}
    return _unknown_to(open_snapshot(folder, verify=False), before)


def _trained_on(db: Database, champion: VersionRow, snapshot_id: str) -> pd.DataFrame:
    """The rows that the champion was trained on."""
    config = db.read(lambda session: session.get_one(Run, champion.run_id).config)
    snapshot = open_snapshot(db.home.snapshots / champion.pipeline / snapshot_id, verify=False)
    places = training_positions(snapshot, Pipeline.model_validate(config), champion.data_until)
    return _sample(snapshot, {"train": places})


def _tokenizer(home: Home, pipeline: Pipeline, champion: VersionRow | None) -> Path | None:
    """The file of the base model's tokenizer; of a name on the hub that in the champion's folder."""
    folder = base_model_folder.local_folder(pipeline.training.base_model)
    if folder is None and champion is not None:
        folder = home.absolute(champion.path)
    file = None if folder is None else folder / "tokenizer.json"
    return file if file is not None and file.is_file() else None


def _unknown_tokens(file: Path | None) -> Callable[[Sequence[str]], Counts] | None:
    """A function that counts the unknown tokens and all tokens of each text; None without a tokenizer, or with one that
    has a token for every byte.
    """
    if file is None:
        return None
    from tokenizers import Tokenizer

    tokenizer, model = Tokenizer.from_file(str(file)), json.loads(file.read_text(encoding="utf-8"))["model"]
    unknown = tokenizer.token_to_id(model.get("unk_token") or "") if "unk_id" not in model else model["unk_id"]
    if unknown is None:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> Counts:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        return np.array([text.count(unknown) for text in ids]), np.array([len(text) for text in ids])

    return count
