"""Drift: how far one sample of rows lies from another, beside the distance that chance alone gives.

    found = measure_drift(tonight, {"champion": rows}, unknown_tokens)

Samples are data frames with label, text and a slice_<name> for each slice, in random order. The threshold of a
statistic is its constant in `LIMITS`, or what two samples of these sizes from the same rows exceed once in 1,000 times
if that is more: few rows need a large distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

LIMITS = {"label_shares": 0.1, "slice_shares": 0.15, "text_length": 0.1, "unknown_tokens": 0.01, "new_words": 0.05}
"""Distances below which a statistic never warns, however many rows there are."""
CHANCE = 0.001
_DRAWS = 2_000
_VALUES = 50
"""Values of a slice that are counted one by one; the rarer ones count as one."""
_WORD = re.compile(r"[^\W\d_]+")

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""What was counted in each text, and out of how many."""


@dataclass(frozen=True)
class DriftStatistic:
    statistic: str
    """A key of `LIMITS`."""
    distance: str
    """total_variation: the share of rows that would have to change their value; kolmogorov_smirnov: the largest gap
    between two cumulative distributions; increase: tonight's rate minus the reference's."""
    value: float
    threshold: float
    rows_used: int
    reference_rows: int
    reason: str
    slice_name: str = ""
    """The slice whose shares these are."""
    tonight_value: float | None = None
    """The median length or the rate of tonight's rows; None for shares."""
    reference_value: float | None = None

    @property
    def outcome(self) -> str:
        return "warning" if self.value > self.threshold else "passed"


def measure_drift(
    tonight: pd.DataFrame,
    references: Mapping[str, pd.DataFrame],
    unknown_tokens: Callable[[Sequence[str]], Counts] | None = None,
) -> list[tuple[str, DriftStatistic]]:
    """The statistics of tonight's rows against each reference of at least two rows, with its name.

    Args:
        unknown_tokens: counts the unknown tokens and all tokens of each text; None: not measured.
    """
    if len(tonight) < 2:
        return []
    texts = tonight["text"].tolist()
    words, tokens = _words(texts), unknown_tokens(texts) if unknown_tokens else None
    found: list[tuple[str, DriftStatistic]] = []
    for name, reference in references.items():
        if len(reference) < 2:
            continue
        others = reference["text"].tolist()
        statistics = [_shares("label_shares", "", tonight["label"], reference["label"]), _lengths(texts, others)]
        for column in tonight.columns.intersection(reference.columns):
            if column.startswith("slice_"):
                slice_name = column.removeprefix("slice_")
                statistics.append(_shares("slice_shares", slice_name, tonight[column], reference[column]))
        if unknown_tokens is not None and tokens is not None:
            statistics.append(_rise("unknown_tokens", "of the tokens are unknown", tokens, unknown_tokens(others)))
        found += [(name, one) for one in (*statistics, *_new_words(words, _words(others)))]
    return found


def _shares(statistic: str, name: str, tonight: pd.Series, reference: pd.Series) -> DriftStatistic:
    """The total variation distance of the shares of the values."""
    from scipy.spatial.distance import cityblock

    now, then = tonight.value_counts(), reference.value_counts()
    pooled = now.add(then, fill_value=0).sort_values(ascending=False, kind="stable")
    known = pooled.index[:_VALUES]
    counts = np.array([side.reindex(known, fill_value=0) for side in (now, then)], dtype=np.int64)
    sizes = np.array([len(tonight), len(reference)])
    counts = np.column_stack([counts, sizes - counts.sum(axis=1)])
    shares = counts / sizes[:, None]
    # Both as if drawn from one: of the pooled rows, as many as came tonight.
    pooled_counts = counts.sum(axis=0)
    draws = np.random.default_rng(0).multivariate_hypergeometric(pooled_counts, sizes[0], size=_DRAWS)
    by_chance = np.abs(draws / sizes[0] - (pooled_counts - draws) / sizes[1]).sum(axis=1) / 2
    most = int(np.abs(shares[0] - shares[1]).argmax())
    value = known[most] if most < len(known) else "(rare values)"
    return DriftStatistic(
        statistic=statistic,
        slice_name=name,
        distance="total_variation",
        value=float(cityblock(*shares)) / 2,
        threshold=max(LIMITS[statistic], float(np.quantile(by_chance, 1 - CHANCE))),
        rows_used=len(tonight),
        reference_rows=len(reference),
        reason=f"{name or 'label'} {value}: {shares[0][most]:.1%} of the rows, was {shares[1][most]:.1%}",
    )


def _lengths(tonight: Sequence[str], reference: Sequence[str]) -> DriftStatistic:
    """The Kolmogorov-Smirnov distance of the lengths in characters."""
    from scipy.stats import ks_2samp, kstwobign

    lengths = [np.array([len(text) for text in texts]) for texts in (tonight, reference)]
    now, then = (float(np.median(side)) for side in lengths)
    by_chance = kstwobign.isf(CHANCE) * np.sqrt(1 / len(tonight) + 1 / len(reference))
    return DriftStatistic(
        statistic="text_length",
        distance="kolmogorov_smirnov",
        value=float(ks_2samp(*lengths, method="asymp").statistic),
        threshold=max(LIMITS["text_length"], float(by_chance)),
        rows_used=len(tonight),
        reference_rows=len(reference),
        reason=f"median {now:,.0f} characters, was {then:,.0f}",
        tonight_value=now,
        reference_value=then,
    )


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [_WORD.findall(text.casefold()) for text in texts]


def _new_words(tonight: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> Iterator[DriftStatistic]:
    """How much more often words are new tonight than in a quarter of the reference; its other rows make them known.

    Any text has words that are new to a sample: what that quarter has is what the absence of drift looks like.
    """
    rest = len(reference) // 4
    known = {word for text in reference[rest:] for word in text}

    def counts(texts: Sequence[Sequence[str]]) -> Counts:
        new = np.array([sum(word not in known for word in text) for text in texts])
        return new, np.array([len(text) for text in texts])

    if rest >= 2:
        found = _rise("new_words", "of the words are new", counts(tonight), counts(reference[:rest]))
        yield replace(found, reference_rows=len(reference))


def _rise(statistic: str, what: str, tonight: Counts, reference: Counts) -> DriftStatistic:
    """How much a rate per token or word rose. Texts vary as wholes, so the error is that of a ratio over texts."""
    from scipy.stats import t

    rates, variance = [], 0.0
    for counted, of in (tonight, reference):
        rate = counted.sum() / max(1, of.sum())
        variance += len(of) / (len(of) - 1) * float(((counted - rate * of) ** 2).sum()) / max(1, of.sum()) ** 2
        rates.append(float(rate))
    sizes = [len(of) for _, of in (tonight, reference)]
    by_chance = t.isf(CHANCE, min(sizes) - 1) * variance**0.5
    return DriftStatistic(
        statistic=statistic,
        distance="increase",
        value=rates[0] - rates[1],
        threshold=max(LIMITS[statistic], float(by_chance)),
        rows_used=sizes[0],
        reference_rows=sizes[1],
        reason=f"{rates[0]:.2%} {what}, was {rates[1]:.2%}",
        tonight_value=rates[0],
        reference_value=rates[1],
    )
