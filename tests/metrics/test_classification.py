"""The metrics compared with scikit-learn and with the library `evaluate`, and their edge cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from nightgate.metrics.classification import score, slice_scores
from nightgate.metrics.confusion import Scores, confusion_counts
from nightgate.training.evaluate_metric import ClassificationScores, evaluated_scores

pytestmark = pytest.mark.process


def _random_case(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """True and predicted classes; some cases have absent classes, one class or one row."""
    rng = np.random.default_rng(seed)
    num_labels = int(rng.integers(2, 8))
    rows = int(rng.choice([1, 2, 5, 50, 400]))
    true = rng.integers(0, rng.integers(1, num_labels + 1), rows)
    noise = rng.integers(0, num_labels, rows)
    predicted = np.where(rng.random(rows) < rng.random(), true, noise)
    return true.astype(np.int64), predicted.astype(np.int64), num_labels


@pytest.mark.parametrize("seed", range(60))
def test_scores_agree_with_scikit_learn(seed: int) -> None:
    true, predicted, num_labels = _random_case(seed)
    ours = score(true, predicted, num_labels)
    assert evaluated_scores(true, predicted, num_labels) == ours
    assert ours.support == len(true)
    assert ours.accuracy == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    for average in ("weighted", "macro"):
        theirs = precision_recall_fscore_support(
            true, predicted, labels=np.unique(true), average=average, zero_division=0
        )[:3]
        assert (ours.precision(average), ours.recall(average), ours.f1(average)) == pytest.approx(theirs, abs=1e-12)


def test_macro_averages_the_classes_that_have_true_rows_whatever_is_predicted() -> None:
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 3])
    ours = score(true, predicted, 5)
    # Classes 0 and 1 have F1 1 and 2/3, precision 1 and recall 1 and 1/2. Class 3 is an error of class 1 alone.
    assert ours.f1_macro == pytest.approx((1 + 2 / 3) / 2)
    assert (ours.precision_macro, ours.recall_macro) == (1.0, 0.75)
    assert ours.f1_weighted == pytest.approx((2 * 1 + 2 * 2 / 3) / 4)


@pytest.mark.parametrize(
    ("true", "predicted", "value"),
    [([0] * 7, [0] * 7, 1.0), ([0, 1], [1, 0], 0.0), ([], [], None)],
    ids=["one class", "no hit", "no rows"],
)
def test_scores_of_one_class_are_one_without_a_hit_zero_and_without_rows_missing(
    true: list[int], predicted: list[int], value: float | None
) -> None:
    ours = score(np.array(true, np.int64), np.array(predicted, np.int64), 5)
    assert ours == Scores(len(true), *[value] * 7)


@pytest.mark.parametrize(("true", "predicted"), [([0, 5], [0, 1]), ([0, 1], [0, -1])])
def test_an_index_outside_the_labels_is_refused(true: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.4"):
        score(np.array(true), np.array(predicted), 5)


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 predictions"):
        score(np.array([0, 1]), np.array([0]), 2)


def test_the_metric_accepts_batches_like_other_metrics_of_evaluate(tmp_path: Path) -> None:
    metric = ClassificationScores(keep_in_memory=True, cache_dir=str(tmp_path))
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1], references=[0])
    result = metric.compute(num_labels=2)
    assert result["support"] == 3
    assert result["accuracy"] == pytest.approx(2 / 3)


def test_the_metric_needs_no_network_and_leaves_nothing_on_disk(tmp_path: Path) -> None:
    code = (
        "import numpy as np; from nightgate.training.evaluate_metric import evaluated_scores;"
        "print(evaluated_scores(np.array([0, 1]), np.array([0, 1]), 2).f1_macro)"
    )
    folder = tmp_path / "tmp"
    folder.mkdir()
    hidden = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hidden, "TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.0"]
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "hf" / "metrics").exists()


@pytest.mark.parametrize("seed", range(10))
def test_the_confusion_matrix_is_scikit_learns(seed: int) -> None:
    true, predicted, num_labels = _random_case(seed)
    theirs = confusion_matrix(true, predicted, labels=range(num_labels))
    assert (confusion_counts(true, predicted, num_labels) == theirs).all()


def test_slices_and_classes_are_scored_on_their_own_rows() -> None:
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    frame = pd.DataFrame({"text": list("abcd"), "slice_language": ["en", "en", "de", None]})
    found = {(s.slice_name, s.slice_value): s.scores for s in slice_scores(frame, true, predicted, 3, ["x", "y", "z"])}
    assert list(found) == [
        ("label", "x"), ("label", "y"), ("label", "z"), ("language", ""), ("language", "de"), ("language", "en"),
    ]  # fmt: skip
    one = found["label", "x"]
    assert (one.support, one.accuracy, one.recall_macro, one.precision_macro) == (2, 0.5, 0.5, 1.0)
    assert one.f1_weighted == one.f1_macro == pytest.approx(2 / 3)
    assert found["label", "y"].precision_weighted == pytest.approx(2 / 3)
    assert found["label", "z"] == Scores(0, None, None, None, None, None, None, None)
    assert (found["language", "en"].support, found["language", "en"].accuracy) == (2, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_class_slices_agree_with_scikit_learn(seed: int) -> None:
    true, predicted, num_labels = _random_case(seed)
    theirs = precision_recall_fscore_support(true, predicted, labels=range(num_labels), zero_division=0)
    found = slice_scores(pd.DataFrame(), true, predicted, num_labels, [str(k) for k in range(num_labels)])
    for index, item in enumerate(found):
        assert item.scores.support == theirs[3][index]
        if item.scores.support:
            ours = (item.scores.precision_macro, item.scores.recall_macro, item.scores.f1_macro)
            assert ours == pytest.approx([column[index] for column in theirs[:3]], abs=1e-12)
