"""Two models that cost seconds: always the commonest class, and TF-IDF with a linear model.

They say what a fine-tuned model must beat, and how much two models that learnt different rows differ on the test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.config.gate import Gate
from nightgate.metrics.bootstrap import Estimate, f1_difference, f1_estimate

FITTED_ROWS = 20_000
"""Most rows that TF-IDF learns: 2 s on one core. Of 18,104 reviews in 5 classes it learns 0.02 more than of 10,000."""
SCORED_ROWS = 10_000
"""Most test rows that it is scored on."""
RESAMPLES = 2_000
_WORDS = r"[\u3040-\u30ff\u3400-\u9fff]|\w\w+"
"""Words; single characters of Chinese and Japanese, which write words without spaces."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Baseline:
    """TF-IDF on test rows, F1 by the pipeline's average."""

    f1: Estimate
    difference: Estimate
    """In F1, of two models that each learnt half of the rows."""
    disagreement: float
    """Share of the test rows to which these two give different labels."""


def commonest_f1(true: Labels, num_labels: int, gate: Gate) -> tuple[int, float]:
    """The class with the most rows, of which there is one at least, and the F1 of always predicting it.

    By the function that scores candidates: one that always predicts this class ties to the last digit.
    """
    commonest = int(np.bincount(true).argmax())
    constant = f1_estimate(true, np.full_like(true, commonest), num_labels, gate.average, resamples=2)
    return commonest, constant.value


def tfidf(
    texts: Sequence[str],
    labels: Labels,
    test_texts: Sequence[str],
    true: Labels,
    num_labels: int,
    gate: Gate,
    groups: Labels | None = None,
) -> Baseline:
    """Learn training rows, two at least and in a random order, and score test rows.

    Args:
        groups: of the test rows, as in `f1_estimate`.
    """
    # Here, because scikit-learn takes a second to import.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(token_pattern=_WORDS, dtype=np.float32)
    try:
        known = vectoriser.fit_transform(texts)
    except ValueError:  # no text has a word
        vectoriser = TfidfVectorizer(analyzer="char", dtype=np.float32)
        known = vectoriser.fit_transform(texts)
    asked = vectoriser.transform(test_texts)
    half = np.arange(len(labels)) % 2 == 0
    every, even, odd = (_predicted(known[rows], labels[rows], asked) for rows in (half | ~half, half, ~half))
    given: Any = {"groups": groups, "confidence": gate.confidence, "resamples": RESAMPLES}
    return Baseline(
        f1=f1_estimate(true, every, num_labels, gate.average, **given),
        difference=f1_difference(true, even, odd, num_labels, gate.average, **given),
        disagreement=float((even != odd).mean()),
    )


def _predicted(known: Any, labels: Labels, asked: Any) -> Labels:
    from sklearn.linear_model import SGDClassifier

    if len(np.unique(labels)) == 1:
        return np.full(asked.shape[0], labels[0])
    # Logistic regression by gradient descent: as good as L-BFGS, and 1 s for 20,000 reviews where that takes 14 s.
    model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0)
    return np.asarray(model.fit(known, labels).predict(asked), dtype=np.int64)
