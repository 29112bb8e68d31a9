"""Texts with labels: of a file, as Nightgate reads it, or of the sample generator."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import LABELS
from nightgate.config import Data, SampleSource
from nightgate.errors import DataError

Texts = tuple[list[str], NDArray[np.int64]]


def read_texts(path: Path, text: str, label: str) -> Texts:
    """Texts and class indices of a file's rows; rows without one of both are left out.

    Raises:
        DataError: the file cannot be read, lacks a column or holds more than five labels.
    """
    from nightgate.config import Schedule
    from nightgate.data.sources import read_source
    from nightgate.schedule import tonight

    data = Data.model_validate(
        {"source": {"kind": "files", "paths": [str(path)]}, "text": text, "label": label, "labels": list(LABELS)}
    )
    frame = read_source(data, tonight(Schedule())).frame.dropna(subset=[text, label])
    frame = frame[frame[text].astype(str).str.strip() != ""]
    values = frame[label].astype(str)
    names = sorted(set(values))
    if not 2 <= len(names) <= len(LABELS):
        raise DataError(
            f"{path}: column {label!r} holds {len(names)} different labels, the benchmark takes 2 to {len(LABELS)}",
            next_step="name another column with --label",
        )
    places = {name: place for place, name in enumerate(names)}
    return frame[text].astype(str).tolist(), np.array([places[value] for value in values], dtype=np.int64)


def sample_texts(rows: int) -> Texts:
    """Different reviews of the sample generator, at least `rows` of them."""
    from nightgate.data.sample_source import sample_reviews

    source = SampleSource(kind="sample", rows_per_day=rows // 20, days=30)
    found = sample_reviews(source, datetime(2026, 1, 5, tzinfo=UTC))
    pairs = {text: stars for text, stars in zip(found["text"], found["stars"], strict=True) if text.strip() and stars}
    return list(pairs), np.array(list(pairs.values()), dtype=np.int64) - 1
