"""Calibration error and non-finite logits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nightgate.metrics.calibration import calibration_error, nonfinite_rows


def logits_of(probabilities: list[list[float]]) -> NDArray[np.float32]:
    return np.log(np.array(probabilities)).astype(np.float32)


def test_the_error_is_the_mean_distance_between_accuracy_and_confidence_over_bins() -> None:
    # Bins of 15: 0.9 and 0.9 share one (right once, so 0.4 too sure), 0.6 has its own (right, 0.4 too unsure).
    logits = logits_of([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert calibration_error(logits, np.array([0, 0, 0])) == pytest.approx((2 * 0.4 + 0.4) / 3, abs=1e-6)
    # In one bin, over- and underconfidence cancel.
    assert calibration_error(logits, np.array([0, 0, 0]), bins=1) == pytest.approx(abs(2 - 2.4) / 3, abs=1e-6)


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([1, 1, 1], 200_000)
    labels = (rng.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=2)
    logits = np.log(probabilities) + rng.normal(size=(len(probabilities), 1))
    found = calibration_error(logits, labels)
    assert found < 0.01
    sharper = calibration_error(3 * logits, labels)
    assert sharper > 0.1


def test_huge_logits_with_confidence_1_have_a_bin() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert calibration_error(logits, np.array([0, 1])) == 0
    assert calibration_error(logits, np.array([1, 0])) == 1


def test_rows_that_are_not_finite_are_counted_and_left_out() -> None:
    logits = np.array([[np.nan, 0], [np.inf, 0], [0, -np.inf], [1e4, -1e4]], np.float32)
    assert nonfinite_rows(logits) == 3
    assert calibration_error(logits, np.array([1, 1, 1, 0])) == 0
    assert calibration_error(logits[:3], np.array([1, 1, 1])) is None
    assert calibration_error(logits[:0], np.zeros(0, np.int64)) is None
    assert nonfinite_rows(logits[:0]) == 0
