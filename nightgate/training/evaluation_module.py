"""The module that `evaluate.load` opens for the metrics of every epoch, and for those that the package ships.

    evaluate.load("nightgate/training/evaluation_module.py")                            # the fields of `Scores`
    evaluate.load("nightgate/training/evaluation_module.py", "matthews_correlation")    # a name of `SHIPPED`

The hub's own need the network. `evaluate` executes a copy of this file, so nothing imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import datasets
import evaluate
import numpy as np

from nightgate.metrics.confusion import confusion_counts, overall_scores
from nightgate.metrics.from_counts import SHIPPED


class ClassificationMetrics(evaluate.Metric):  # type: ignore[misc]
    """`compute(predictions=[...], references=[...], num_labels=5)` of class indices."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Metrics of single-label classification.",
            citation="",
            inputs_description="predictions, references: class indices (int64); num_labels: how many there are.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int], num_labels: int) -> dict[str, Any]:
        true, predicted = np.asarray(references, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
        counts = confusion_counts(true, predicted, num_labels)
        if self.config_name not in SHIPPED:
            return asdict(overall_scores(counts))
        value = SHIPPED[self.config_name](counts)
        return {self.config_name: value} if isinstance(value, float) else dict(value)
