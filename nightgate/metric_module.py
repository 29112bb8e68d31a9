"""A metric module of our own for the library `evaluate`, which needs neither network nor cache.

`evaluate.load("f1")` would fetch a script from the hub and fail on a machine without a network. Import it late:
`nightgate.metrics` does, when the first epoch is scored.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from nightgate.counts import confusion_counts, overall_scores


@contextmanager
def _without_evaluators() -> Iterator[None]:
    """Within the block `evaluate` is imported without its evaluators, as where transformers and SciPy are missing.

    They alone load torch, all pipelines of transformers and scipy.stats: 5 s of CPU and 330 MB in the process that
    keeps the night's books, where metrics take 1 s and 0 MB. Where one of them is loaded already, it stays visible.
    """
    hidden = [name for name in ("transformers", "scipy.stats") if name not in sys.modules]
    if "evaluate" in sys.modules:
        hidden = []
    # None makes an import fail as if there were no such package; this is documented behaviour of sys.modules.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


with _without_evaluators():
    import evaluate


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
