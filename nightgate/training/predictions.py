"""Read files of logits, which training and scoring write, and the classes that they predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightgate.errors import NonFiniteLossError
from nightgate.metrics.calibration import nonfinite_rows

Logits = NDArray[np.float32]


def load_logits(path: Path) -> Logits:
    """Logits of a file, [rows, labels]."""
    with np.load(path, allow_pickle=False) as stored:
        logits: Logits = stored["logits"]
    return logits


def read_predictions(path: Path) -> NDArray[np.int64]:
    """Class indices predicted by a file of logits, [rows].

    Raises:
        NonFiniteLossError: a logit is NaN or infinite, of which argmax would make an ordinary prediction.
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
