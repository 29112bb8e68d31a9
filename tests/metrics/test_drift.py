"""Drift of one sample against another: what moved is found, chance is not, and few rows need a large distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nightgate.metrics.drift import LIMITS, Counts, DriftStatistic, measure_drift

WORDS = [f"{one}{other}" for one in "bdfgklmnprst" for other in ("aro", "elin", "ikt", "omu", "urn")]


def sample(rows: int, seed: int, *, length: int = 12, words: Sequence[str] = WORDS, one_star: float = 0.2) -> Any:
    """Rows of random words, with 1 star in a share of `one_star` and 2 to 5 in equal parts of the rest."""
    rng = np.random.default_rng(seed)
    shares = [one_star, *[(1 - one_star) / 4] * 4]
    return pd.DataFrame(
        {
            "label": rng.choice(["1", "2", "3", "4", "5"], rows, p=shares),
            "text": [" ".join(rng.choice(words, 1 + rng.poisson(length - 1))) for _ in range(rows)],
            "slice_product": rng.choice(["kettle", "lamp"], rows),
        }
    )


def unknown_tokens(texts: Sequence[str]) -> Counts:
    """As with a vocabulary that lacks what begins with a question mark."""
    return np.array([text.count("?") for text in texts]), np.array([len(text.split()) for text in texts])


def measured(tonight: pd.DataFrame, reference: pd.DataFrame, *options: Any) -> list[DriftStatistic]:
    return [one for _, one in measure_drift(tonight, {"champion": reference}, *options)]


def warned(tonight: pd.DataFrame, reference: pd.DataFrame) -> dict[str, DriftStatistic]:
    found = measured(tonight, reference, unknown_tokens)
    assert [one.statistic for one in found] == [*("label_shares", "text_length", "slice_shares"), *list(LIMITS)[3:]]
    assert all((one.rows_used, one.reference_rows) == (len(tonight), len(reference)) for one in found)
    return {one.statistic: one for one in found if one.outcome == "warning"}


@pytest.mark.parametrize("rows", [2, 20, 200, 2000])
def test_rows_of_the_same_kind_do_not_warn(rows: int) -> None:
    reference = sample(2000, 0)
    assert [warned(sample(rows, seed), reference) for seed in range(1, 6)] == [{}] * 5


def test_a_shift_of_labels_is_found_and_named() -> None:
    found = warned(sample(300, 1, one_star=0.6), sample(2000, 0))
    assert set(found) == {"label_shares"}
    shift = found["label_shares"]
    assert shift.value == pytest.approx(0.4, abs=0.06)
    assert shift.reason.startswith("label 1: ")
    assert shift.distance == "total_variation"


def test_a_value_of_a_slice_that_is_new_is_found() -> None:
    tonight = sample(300, 1).assign(slice_product="toaster")
    found = warned(tonight, sample(2000, 0))
    assert found["slice_shares"].value == 1
    assert found["slice_shares"].slice_name == "product"


def test_texts_cut_in_half_are_found() -> None:
    found = warned(sample(300, 1, length=6), sample(2000, 0))
    assert set(found) == {"text_length"}
    tonight, reference = found["text_length"].tonight_value, found["text_length"].reference_value
    assert tonight is not None
    assert reference is not None
    assert tonight / reference == pytest.approx(0.5, abs=0.05)


def test_new_words_and_unknown_tokens_are_found() -> None:
    foreign = [*WORDS[:40], *(f"?{word}" for word in ("zabo", "zelu", "zirk", "zont"))]
    found = warned(sample(300, 1, words=foreign), sample(2000, 0))
    assert set(found) == {"unknown_tokens", "new_words"}
    for one in found.values():
        assert one.value == pytest.approx(4 / 44, abs=0.02)


def test_the_same_distance_warns_with_many_rows_and_not_with_few() -> None:
    reference = sample(2000, 0)
    many = {one.statistic: one for one in measured(sample(2000, 1, one_star=0.35), reference)}["label_shares"]
    few = {one.statistic: one for one in measured(sample(20, 5, one_star=0.35), reference)}["label_shares"]
    assert (many.outcome, many.threshold) == ("warning", LIMITS["label_shares"])
    assert few.outcome == "passed"
    assert few.threshold > 2 * LIMITS["label_shares"]


def test_rare_values_of_a_slice_count_as_one() -> None:
    tonight, reference = (sample(500, seed) for seed in (1, 0))
    for place, rows in enumerate((tonight, reference)):
        rows["slice_product"] = [f"{place}-{number}" if number % 2 else "lamp" for number in range(500)]
    [shares] = [one for one in measured(tonight, reference) if one.statistic == "slice_shares"]
    assert shares.value < 0.1


def test_nothing_is_measured_without_two_rows_on_either_side() -> None:
    assert measured(sample(1, 1), sample(50, 0)) == []
    assert measured(sample(50, 1), sample(0, 0)) == []
    assert {one.statistic for one in measured(sample(2, 1), sample(2, 0))} == {*LIMITS} - {
        "unknown_tokens",
        "new_words",
    }
