"""Classification metrics: a metric module of our own for `evaluate`, per class, per slice, and the confusion matrix.

`evaluate.load("f1")` would fetch a script from the hub and fail on a machine without a network; this module needs
neither network nor cache. `nightgate.counts` says how averages, absent classes and empty input are defined.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from nightgate.counts import NOTHING, class_scores, overall_scores
from nightgate.counts import Average as Average
from nightgate.counts import Scores as Scores
from nightgate.counts import confusion_counts as confusion_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@dataclass(frozen=True)
class SliceScore:
    """Scores of the rows that share one value of a slice; classes are slices named `label`."""

    slice_name: str
    slice_value: str
    scores: Scores


class ClassificationScores(evaluate.Metric):  # type: ignore[misc]
    """`compute(predictions=[...], references=[...], num_labels=5)`: class indices in, the fields of `Scores` out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Accuracy, and F1, precision and recall with weighted and macro averages.",
            citation="",
            inputs_description="predictions, references: class indices (int64); num_labels: how many there are.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the user's cache, which may be read-only; in memory none is needed.
        return super()._build_data_dir() if not self.keep_in_memory else str(Path(tempfile.gettempdir()))

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], num_labels: int | None = None
    ) -> dict[str, Any]:
        true = np.asarray(references, dtype=np.int64)
        predicted = np.asarray(predictions, dtype=np.int64)
        size = num_labels or int(max(true.max(initial=-1), predicted.max(initial=-1))) + 1
        return asdict(overall_scores(confusion_counts(true, predicted, size)))


def score(references: NDArray[np.int64], predictions: NDArray[np.int64], num_labels: int) -> Scores:
    """Scores of predicted against true class indices, both of shape [rows].

    Raises:
        ValueError: the lengths differ, or an index is not in `range(num_labels)`.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references but {len(predictions)} predictions")
    if not len(references):
        # `evaluate` cannot hold an empty batch: Arrow's stream stays without a schema.
        return NOTHING
    values = ClassificationScores().compute(predictions=predictions, references=references, num_labels=num_labels)
    return Scores(**values)


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
