"""Accuracy, precision, recall and F1 of rows: overall, per class and per slice.

`nightgate.metrics.confusion` defines averages, classes without rows and empty input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nightgate.metrics.confusion import Scores, class_scores, confusion_counts, overall_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@dataclass(frozen=True)
class SliceScore:
    """Scores of the rows that share one value of a slice; classes are slices named `label`."""

    slice_name: str
    slice_value: str
    scores: Scores


def score(references: NDArray[np.int64], predictions: NDArray[np.int64], num_labels: int) -> Scores:
    """Scores of predicted against true class indices, both of shape [rows].

    Raises:
        ValueError: the lengths differ, or an index is not in `range(num_labels)`.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references but {len(predictions)} predictions")
    return overall_scores(confusion_counts(references, predictions, num_labels))


def slice_scores(
    slices: pd.DataFrame,
    references: NDArray[np.int64],
    predictions: NDArray[np.int64],
    num_labels: int,
    label_names: Sequence[str],
) -> list[SliceScore]:
    """Scores per class and per value of each `slice_<name>` column; other columns are ignored.

    A class is the slice `label`: support is its true rows, precision, recall and F1 are its own (both averages hold the
    same number) and accuracy is its recall. All classes are listed, in order, those without rows with support 0.
    """
    total = confusion_counts(references, predictions, num_labels)
    found = [
        SliceScore("label", str(name), class_scores(total, index))
        for index, name in enumerate(label_names[:num_labels])
    ]
    for column in slices.columns:
        if not str(column).startswith("slice_"):
            continue
        values = slices[column].fillna("").astype(str).to_numpy(dtype=object)
        names, inverse = np.unique(values.astype(str), return_inverse=True)
        for index, name in enumerate(names):
            rows = inverse == index
            counts = confusion_counts(references[rows], predictions[rows], num_labels)
            found.append(SliceScore(str(column).removeprefix("slice_"), str(name), overall_scores(counts)))
    return found
