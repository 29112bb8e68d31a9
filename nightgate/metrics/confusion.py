"""Accuracy, precision, recall and F1 from confusion counts, with numpy alone.

Averages run over the classes that have true rows, whatever is predicted, so that they are over the same classes for all
models that are scored on the same rows: scikit-learn's with `labels=np.unique(references)`. A prediction of another
class is an error of the true class alone. A ratio with denominator 0 is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Average = Literal["weighted", "macro"]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Metrics of `support` rows; all None without rows."""

    support: int
    accuracy: float | None
    f1_weighted: float | None
    f1_macro: float | None
    precision_weighted: float | None
    precision_macro: float | None
    recall_weighted: float | None
    recall_macro: float | None

    def f1(self, average: Average) -> float | None:
        return self.f1_weighted if average == "weighted" else self.f1_macro

    def precision(self, average: Average) -> float | None:
        return self.precision_weighted if average == "weighted" else self.precision_macro

    def recall(self, average: Average) -> float | None:
        return self.recall_weighted if average == "weighted" else self.recall_macro


def confusion_counts(references: NDArray[np.int64], predictions: NDArray[np.int64], num_labels: int) -> Counts:
    """Counts of shape [num_labels, num_labels]: row true class, column predicted class.

    Raises:
        ValueError: an index is not in `range(num_labels)`.
    """
    for name, values in (("reference", references), ("prediction", predictions)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_labels:
            raise ValueError(f"a {name} is not in 0..{num_labels - 1}: they span {values.min()}..{values.max()}")
    joint = references.astype(np.int64) * num_labels + predictions.astype(np.int64)
    return np.bincount(joint, minlength=num_labels * num_labels).reshape(num_labels, num_labels).astype(np.int64)


NOTHING = Scores(0, None, None, None, None, None, None, None)


def _per_class(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class, 0 where a denominator is 0."""
    hits = np.diag(counts).astype(np.float64)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)
    f1 = np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)
    return precision, recall, f1


def overall_scores(counts: Counts) -> Scores:
    """Scores of all rows of a confusion matrix."""
    support = int(counts.sum())
    if support == 0:
        return NOTHING
    true = counts.sum(axis=1)
    by_class = dict(zip(("precision", "recall", "f1"), _per_class(counts), strict=True))
    weighted = {f"{name}_weighted": float(np.dot(values, true) / support) for name, values in by_class.items()}
    macro = {f"{name}_macro": float(values[true > 0].mean()) for name, values in by_class.items()}
    return Scores(support=support, accuracy=float(np.trace(counts) / support), **weighted, **macro)


def class_scores(counts: Counts, index: int) -> Scores:
    """Scores of one class: both averages are its own value, accuracy is its recall; all None without true rows."""
    support = int(counts[index].sum())
    if support == 0:
        return NOTHING
    precision, recall, f1 = (float(values[index]) for values in _per_class(counts))
    return Scores(support, recall, f1, f1, precision, precision, recall, recall)
