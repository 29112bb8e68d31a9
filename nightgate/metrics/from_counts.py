"""Metrics that a pipeline file may name besides F1 and its kin, from confusion counts; scikit-learn's definitions.

The names are those of the hub, so that `training.metrics` needs no network for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nightgate.metrics.confusion import Counts, overall_scores


def matthews_correlation(counts: Counts) -> float:
    """The multi-class coefficient, 0 where all rows have one class or one prediction."""
    true, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    covariance = np.trace(counts) * total - np.dot(true, predicted)
    spread = float(total**2 - np.dot(true, true)) * float(total**2 - np.dot(predicted, predicted))
    return float(covariance / np.sqrt(spread)) if spread else 0.0


def cohen_kappa(counts: Counts) -> float:
    """Agreement beyond chance; NaN where chance agrees on every row."""
    total = counts.sum()
    observed, by_chance = np.trace(counts) / total, np.dot(counts.sum(axis=1), counts.sum(axis=0)) / total**2
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")


def mean_error(counts: Counts, power: int) -> float:
    """Mean of |true - predicted| ** `power` over class indices: for labels in an order, such as stars."""
    places = np.arange(len(counts))
    return float((counts * np.abs(places[:, None] - places) ** power).sum() / counts.sum())


def _by_average(name: str) -> Callable[[Counts], Mapping[str, float]]:
    def averages(counts: Counts) -> Mapping[str, float]:
        scores = vars(overall_scores(counts))
        return {average: scores[f"{name}_{average}"] for average in ("weighted", "macro")}

    return averages


SHIPPED: Mapping[str, Callable[[Counts], float | Mapping[str, float]]] = {
    "accuracy": lambda counts: float(np.trace(counts) / counts.sum()),
    "balanced_accuracy": lambda counts: _by_average("recall")(counts)["macro"],
    "cohen_kappa": cohen_kappa,
    "f1": _by_average("f1"),
    "mae": lambda counts: mean_error(counts, 1),
    "matthews_correlation": matthews_correlation,
    "mse": lambda counts: mean_error(counts, 2),
    "precision": _by_average("precision"),
    "recall": _by_average("recall"),
}
"""By name; those with two averages give two numbers."""
