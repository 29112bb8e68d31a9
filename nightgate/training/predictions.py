"""Read the logits that training and scoring leave as files, and the classes that they predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightgate.errors import NonFiniteLossError
from nightgate.metrics.calibration import nonfinite_rows

Logits = NDArray[np.float32]


def load_logits(path: Path) -> Logits:
    """Shape [rows, labels], as the scoring process left them."""
    with np.load(path, allow_pickle=False) as stored:
        logits: Logits = stored["logits"]
    return logits


def read_predictions(path: Path) -> NDArray[np.int64]:
    """Predicted class indices, shape [rows], of a file of logits.

    Raises:
        NonFiniteLossError: a logit is NaN or infinite. It would count as a prediction like any other.
    """
    logits = load_logits(path)
    broken = nonfinite_rows(logits)
    if broken:
        raise NonFiniteLossError(
            f"the logits of {broken:,} of {len(logits):,} rows are NaN or infinite ({path})",
            next_step="lower training.learning_rate, or set training.precision = 'fp32'",
        )
    predicted: NDArray[np.int64] = logits.argmax(axis=1)
    return predicted
