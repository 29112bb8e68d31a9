"""A metric for the library `evaluate` that needs neither network nor cache.

`evaluate.load("f1")` fetches a script from the hub and fails offline. `evaluate` imports torch and transformers, so it
is used in the training process alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from nightgate.metrics.confusion import Scores, confusion_counts, overall_scores


def evaluated_scores(references: NDArray[np.int64], predictions: NDArray[np.int64], num_labels: int) -> Scores:
    """Scores of predicted against true class indices, both [rows], at least one row."""
    # The base class makes a folder even with keep_in_memory; the user's cache may be read-only.
    with TemporaryDirectory() as folder:
        metric = ClassificationScores(keep_in_memory=True, cache_dir=folder)
        return Scores(**metric.compute(predictions=predictions, references=references, num_labels=num_labels))


class ClassificationScores(evaluate.Metric):  # type: ignore[misc]
    """`compute(predictions=[...], references=[...], num_labels=5)` of class indices: the fields of `Scores`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Accuracy, and F1, precision and recall with weighted and macro averages.",
            citation="",
            inputs_description="predictions, references: class indices (int64); num_labels: how many there are.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int], num_labels: int) -> dict[str, Any]:
        true, predicted = np.asarray(references, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
        return asdict(overall_scores(confusion_counts(true, predicted, num_labels)))
