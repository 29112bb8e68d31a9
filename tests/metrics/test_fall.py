"""A fall of F1 since the promotion: by simulated years, against the bootstrap, and under shifts that are no fault."""

from __future__ import annotations

import numpy as np
import pytest

from nightgate.metrics.bootstrap import Floats, f1_estimate
from nightgate.metrics.confusion import Average
from nightgate.metrics.fall import LIMIT, Predicted, largest_fall

NUM_LABELS = 3
RATES = np.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])
"""Shares of the predictions for rows of each class."""
SHARES = np.array([0.5, 0.3, 0.2])


def drawn(rng: np.random.Generator, num_rows: int, rates: Floats = RATES, shares: Floats = SHARES) -> Predicted:
    true = rng.choice(NUM_LABELS, num_rows, p=shares)
    return Predicted(true, (rng.random(num_rows)[:, None] > rates.cumsum(axis=1)[true]).sum(axis=1))


def joined(*parts: Predicted) -> Predicted:
    return Predicted(*(np.concatenate(column) for column in zip(*(part[:2] for part in parts), strict=True)))


def z(then: Predicted, now: Predicted, arrived: np.ndarray | None = None, average: Average = "weighted") -> float:
    arrived = np.zeros(len(now.true), np.int64) if arrived is None else arrived
    fall = largest_fall(then, now, arrived, num_labels=NUM_LABELS, average=average)
    return -np.inf if fall is None else fall.z


@pytest.mark.parametrize("average", ["weighted", "macro"])
def test_labels_that_are_shuffled_from_day_4_on_alarm_on_day_4_or_5_and_never_before(average: Average) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        then, per_day = drawn(rng, 500), int(rng.integers(100, 300))
        days = [drawn(rng, per_day) for _ in range(5)]
        days[3:] = [day._replace(true=rng.permutation(day.true)) for day in days[3:]]
        alarms = []
        for last in range(1, 6):
            arrived = np.repeat(np.arange(last), per_day)
            if z(then, joined(*days[:last]), arrived, average) > LIMIT:
                alarms.append(last)
        assert alarms, seed
        assert alarms[0] in {4, 5}, seed


@pytest.mark.parametrize("average", ["weighted", "macro"])
def test_two_samples_of_one_model_lie_a_standard_error_apart(average: Average) -> None:
    found = [z(drawn(rng, 800), drawn(rng, 400), average=average) for rng in map(np.random.default_rng, range(1500))]
    assert abs(np.mean(found)) < 0.1
    assert 0.9 < np.std(found) < 1.1


def test_the_variance_is_that_of_the_bootstrap() -> None:
    # The classes of then count for nothing else if there are very many rows of them.
    rng = np.random.default_rng(0)
    then, now = drawn(rng, 2_000_000), drawn(rng, 1000)
    fall = largest_fall(then, now, np.zeros(1000, np.int64), num_labels=NUM_LABELS, average="macro")
    assert fall is not None
    own = f1_estimate(now.true, now.predictions, NUM_LABELS, "macro")
    assert fall.f1 == pytest.approx(own.value)
    assert (fall.expected - fall.f1) / fall.z == pytest.approx(own.std_error, rel=0.05)


def test_other_shares_of_the_classes_are_no_fall() -> None:
    rng = np.random.default_rng(1)
    then, now = drawn(rng, 5000), drawn(rng, 5000, shares=np.array([0.1, 0.2, 0.7]))
    before, after = (f1_estimate(rows.true, rows.predictions, NUM_LABELS, "weighted").value for rows in (then, now))
    assert before - after > 0.02, "F1 falls all the same"
    assert abs(z(then, now)) < 3


def test_rows_of_groups_weigh_as_their_groups() -> None:
    rng = np.random.default_rng(2)
    then, few = drawn(rng, 2000), drawn(rng, 150, rates=np.full((3, 3), 1 / 3))
    copies = Predicted(np.repeat(few.true, 20), np.repeat(few.predictions, 20), np.repeat(np.arange(150), 20))
    assert z(then, few) == pytest.approx(z(then, copies), rel=0.1)
    assert z(then, copies._replace(groups=None)) > 2 * z(then, copies)


def test_too_few_rows_and_rows_of_a_new_class_are_not_compared() -> None:
    rng = np.random.default_rng(3)
    then, wrong = drawn(rng, 500), np.full((3, 3), 1 / 3)
    two_classes = then.only(then.true < 2)
    assert z(then, drawn(rng, 99, rates=wrong)) == -np.inf
    assert z(then.only(np.arange(500) < 99), drawn(rng, 500, rates=wrong)) == -np.inf
    third = drawn(rng, 500, rates=wrong, shares=np.array([0, 0, 1.0]))
    assert z(two_classes, third) == -np.inf
    assert z(two_classes, joined(drawn(rng, 500), third)) < 3
