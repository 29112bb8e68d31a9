"""Expected calibration error of logits, and the number of rows with non-finite logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def calibration_error(logits: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15) -> float | None:
    """Expected calibration error, from 0 (calibrated) to 1; None where no row has finite logits.

    Rows are put into `bins` of equal width by confidence, the largest of their softmax probabilities. The error is the
    mean over rows of |accuracy - mean confidence| of their bin (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3).

    Args:
        logits: shape [rows, labels]; rows that are not finite are ignored.
        labels: true class indices, shape [rows].
    """
    finite = np.isfinite(logits).all(axis=1)
    wide, true = logits[finite].astype(np.float64), labels[finite]
    if not len(wide):
        return None
    confidence = 1 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    # Bins are open below and closed above, as in the paper; confidence is never 0.
    place = np.ceil(confidence * bins).astype(np.int64) - 1
    surplus = (wide.argmax(axis=1) == true) - confidence
    return float(np.abs(np.bincount(place, surplus, minlength=bins)).sum() / len(wide))


def nonfinite_rows(logits: NDArray[np.floating]) -> int:
    """Rows of [rows, labels] with a logit that is NaN or infinite."""
    return int((~np.isfinite(logits)).any(axis=1).sum())
