"""The metrics compared with scikit-learn and with the library `evaluate`, and their edge cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
)

from nightgate.errors import ConfigurationError
from nightgate.metrics.classification import score, slice_scores
from nightgate.metrics.confusion import Scores, confusion_counts
from nightgate.metrics.from_counts import SHIPPED
from nightgate.training.epoch_metrics import EpochMetrics
from nightgate.training.protocol import MetricValue

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:`y1`", "ignore:A single label")
@pytest.mark.parametrize("seed", range(60))
def test_scores_and_shipped_metrics_agree_with_scikit_learn(seed: int, folder: Path) -> None:
    true, predicted, num_labels = _random_case(seed)
    metrics = EpochMetrics(num_labels, folder, tuple(SHIPPED))
    ours = score(true, predicted, num_labels)
    assert metrics.scores(true, predicted) == ours
    own = {one.metric: one.value for one in metrics.own(true, predicted)}
    kappa = float(cohen_kappa_score(true, predicted))
    assert own == pytest.approx(
        {
            "accuracy": ours.accuracy,
            "balanced_accuracy": balanced_accuracy_score(true, predicted),
            "cohen_kappa": None if np.isnan(kappa) else kappa,
            "mae": mean_absolute_error(true, predicted),
            "matthews_correlation": matthews_corrcoef(true, predicted),
            "mse": mean_squared_error(true, predicted),
        }
        | {
            f"{name}.{average}": getattr(ours, f"{name}_{average}")
            for name in ("f1", "precision", "recall")
            for average in ("weighted", "macro")
        },
        abs=1e-12,
    )
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


METRIC = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        whole = datasets.Value("int64")
        features = datasets.Features({{"predictions": whole, "references": whole}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        {body}
"""


def metric_file(folder: Path, name: str, body: str) -> str:
    """A module with a metric whose `_compute` has this body."""
    file = folder / f"{name}.py"
    file.write_text(METRIC.format(body=body), encoding="utf-8")
    return str(file)


def test_a_file_gives_a_row_for_each_number_and_a_reason_where_there_is_none(tmp_path: Path) -> None:
    bodies = {
        "one": "return {'share': sum(predictions) / len(references)}",
        "several": "return {'a': 1, 'each': [0.5, float('inf')], 'nan': float('nan')}",
        "late": "return {'value': 1 / (len(predictions) - 2)}",
        "leaves": "raise SystemExit('done')",
    }
    files = [metric_file(tmp_path, *one) for one in bodies.items()]
    metrics = EpochMetrics(3, tmp_path / "evaluate", files)
    two, three = (np.arange(rows, dtype=np.int64) for rows in (2, 3))
    for _ in range(2):
        assert metrics.own(two, two) == (
            MetricValue("one", 0.5),
            MetricValue("several.a", 1.0),
            MetricValue("several.each.0", 0.5),
            MetricValue("several.each.1", None, "inf"),
            MetricValue("several.nan", None, "nan"),
            MetricValue("late", None, "ZeroDivisionError: division by zero"),
            MetricValue("leaves", None, "SystemExit: done"),
        )
    assert metrics.own(three, three)[-2] == MetricValue("late", 1.0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return predictions[99]", "IndexError"),
        ("return 0.5", "0.5"),
        ("return {'report': 'good'}", "report"),
        ("return {'matrix': [[1, 2], [3, 4]]}", "matrix"),
        ("return {}", "{}"),
    ],
)
def test_a_metric_that_gives_no_numbers_is_refused_when_it_is_tried(body: str, why: str, tmp_path: Path) -> None:
    metrics = EpochMetrics(5, tmp_path / "evaluate", [metric_file(tmp_path, "own", body)])
    with pytest.raises(ConfigurationError, match=r"own\.py") as refused:
        metrics.try_own()
    assert why in refused.value.reason


@pytest.mark.slow
def test_the_metric_needs_no_network_and_writes_into_its_folder_alone(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy as np; from nightgate.training.epoch_metrics import EpochMetrics;"
        "metrics = EpochMetrics(2, pathlib.Path(sys.argv[1]), ['matthews_correlation', sys.argv[2]]);"
        "metrics.try_own();"
        "print(metrics.scores(np.array([0, 1]), np.array([0, 1])).f1_macro)"
    )
    folder = tmp_path / "tmp"
    folder.mkdir()
    own = metric_file(tmp_path, "own", "return {'one': 1}")
    hidden = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "evaluate", own],
        env={**os.environ, **hidden, "TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.0"]
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluate", "own.py", "tmp"]


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
