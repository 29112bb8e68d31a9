"""Joint counts of (true, reference, candidate) labels: sufficient statistics for every paired comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nightgate.gate.decision import Measured
from nightgate.gate.evidence import Evidence, Labels, Mask


def joint_outcomes(evidence: Evidence, measured: Measured) -> list[dict[str, Any]]:
    """The rows of `joint_outcome` of one night, without cells of no rows.

    Scopes are the window, all test rows, the golden rows, and every slice value within the window. Slices are counted
    against the champion, the others against champion and anchor; the candidate is counted alone if there is neither.
    """
    test, candidate, labels = evidence.test, evidence.candidate, evidence.label_names
    if candidate.predictions is None:
        return []
    clean = np.ones(len(test), dtype=np.bool_)
    for side in (candidate, evidence.champion, evidence.anchor):
        if side is not None and side.trained_on is not None:
            clean &= ~side.trained_on
    roles = (("champion", evidence.champion), ("anchor", evidence.anchor))
    references = [(name, side) for name, side in roles if side is not None and side.predictions is not None]
    cells: list[dict[str, Any]] = []
    for number, (name, side) in enumerate(references or [("", None)]):
        sides = (test.true, side.predictions if side else None, candidate.predictions)
        cells += _cells(labels, *sides, measured.window, scope="window", reference=name)
        cells += _cells(labels, *sides, clean, scope="all", reference=name)
        for one in test.slices if number == 0 else ():
            for code, value in enumerate(one.values):
                place = {"scope": "slice", "reference": name, "slice_name": one.name, "slice_value": value}
                cells += _cells(labels, *sides, measured.window & (one.codes == code), **place)
        golden = evidence.golden
        if golden is not None and candidate.golden is not None and (side is None or side.golden is not None):
            sides = (golden.true, side.golden if side else None, candidate.golden)
            cells += _cells(labels, *sides, np.ones(len(golden), dtype=np.bool_), scope="golden", reference=name)
    return cells


def _cells(
    label_names: tuple[str, ...],
    true: Labels,
    given: Labels | None,
    candidate: Labels,
    mask: Mask,
    /,
    **place: str,
) -> Iterator[dict[str, Any]]:
    alone = np.zeros_like(candidate)
    triples, counts = np.unique(
        np.stack([true, alone if given is None else given, candidate])[:, mask], axis=1, return_counts=True
    )
    for (right, theirs, ours), count in zip(triples.T.tolist(), counts.tolist(), strict=True):
        yield {
            "slice_name": "",
            "slice_value": "",
            **place,
            "true_label": label_names[right],
            "reference_label": "" if given is None else label_names[theirs],
            "candidate_label": label_names[ours],
            "count": count,
        }
