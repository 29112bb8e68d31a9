"""The rules that make a snapshot of a source: what a label means, which split a row is in, and the test version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.config.data import Data
from nightgate.config.pipeline import Pipeline
from nightgate.config.sources import HubSource
from nightgate.config.values import labels_by_value
from nightgate.label_meaning import LabelMeaning
from nightgate.text_rules import NORMALISATION_VERSION

SPLITS = ("train", "validation", "test")


def split_version(pipeline: Pipeline) -> str:
    """The test version, `t-` and 10 hex digits: it changes with the rules of the split and the meaning of the labels.

    It does not change when rows arrive or their labels are corrected.
    """
    return version_of_rules(rules_of(pipeline))


def rules_of(pipeline: Pipeline, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Rules that decide the split and the class index of a row: part of the snapshot id.

    Args:
        classes: the source's names of the class numbers that are labels.
    """
    data, split = pipeline.data, pipeline.split
    shares = hashed_shares(pipeline)
    by_hash = {"seed": split.seed, **shares, "by": data.group or "text"}
    return {
        "normalisation": NORMALISATION_VERSION,
        "text": list(data.text_columns),
        "labels": list(data.label_names),
        "split": by_hash if any(shares.values()) else "given",
        **label_meaning(pipeline, classes).rules,
    }


def reading_rules(pipeline: Pipeline) -> str:
    """A hash of all that a row of the index follows from besides the row itself: another one means another reading."""
    how = {"source", "lag", "sweep", "train_window", "golden", "golden_rows", "checks"}
    data = pipeline.data.model_dump(mode="json", exclude=how)
    rules = [1, data, pipeline.split.column, rules_of(pipeline)]
    if columns := pipeline.data.checks.columns:
        rules.append({name: column.model_dump(mode="json") for name, column in columns.items()})
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def snapshot_columns(data: Data) -> list[str]:
    """The columns of a snapshot's rows."""
    optional = (("time", data.time), ("group", data.group))
    slices = (f"slice_{name}" for name in data.slices)
    return ["row_id", "fingerprint", "text", "label", *(name for name, column in optional if column), *slices]


def memory_of(rules: Mapping[str, Any]) -> str:
    """The name of the memory of splits that rows of these rules have: other labels or texts change no split."""
    return hashlib.sha256(json.dumps(rules["split"], sort_keys=True).encode()).hexdigest()[:10]


def source_of(pipeline: Pipeline) -> str:
    """A hash of where the rows come from."""
    return hashlib.sha256(pipeline.data.source.model_dump_json().encode()).hexdigest()[:16]


def given_splits(pipeline: Pipeline) -> Collection[str]:
    """The splits that the source names; none where all rows are split by hash."""
    source = pipeline.data.source
    if pipeline.split.column:
        return SPLITS
    return (source.splits or ()) if isinstance(source, HubSource) else ()


def hashed_shares(pipeline: Pipeline) -> dict[str, float]:
    """Shares split off by hash from all rows, or from the training rows for a split that the source lacks."""
    given = given_splits(pipeline)
    return {part: 0.0 if part in given else getattr(pipeline.split, part) for part in ("validation", "test")}


def sides_of(keys: Iterable[str], *, seed: int, validation: float, test: float) -> NDArray[np.int8]:
    """The splits of fingerprints or groups by their hash alone: 0 train, 1 validation, 2 test.

    Test comes first, so that another `validation` share moves no row in or out of it.
    """
    seeded = hashlib.sha256(f"{seed}\n".encode())

    def hashed() -> Iterator[int]:
        for key in keys:
            digest = seeded.copy()
            digest.update(key.encode())
            yield int.from_bytes(digest.digest()[:6], "big")

    places = np.fromiter(hashed(), np.float64) / 2**48
    return np.where(places < test, 2, np.where(places < test + validation, 1, 0)).astype(np.int8)


def label_meaning(pipeline: Pipeline, classes: Sequence[str]) -> LabelMeaning:
    """What the labels mean; `classes`: the source's names of the class numbers that are labels."""
    return LabelMeaning(pipeline.data.label, labels_by_value(pipeline.data.labels), tuple(classes))


def version_of_rules(rules: Mapping[str, Any]) -> str:
    """The test version of a snapshot with these rules."""
    # Without the source's names of class numbers, which snapshots of earlier releases lack: `changes` of
    # `nightgate.metrics.comparability` says where they change.
    counted = {name: rule for name, rule in rules.items() if name != "classes"}
    return f"t-{hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:10]}"
