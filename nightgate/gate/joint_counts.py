"""Joint outcomes: how many rows have a label and were given these two, from which every paired figure follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nightgate.gate.decision import Measured
from nightgate.gate.evidence import Evidence, Labels, Mask, Side


def joint_outcomes(evidence: Evidence, measured: Measured) -> list[dict[str, Any]]:
    """The rows of `joint_outcome` of one night, cells without rows left out.

    Scopes: the window that decides, all test rows, the golden rows, and every slice value within the window. The first
    three are counted against the champion and the anchor, slices against the champion; where neither is there the
    candidate is counted alone.
    """
    test, candidate = evidence.test, evidence.candidate
    if candidate.predictions is None:
        return []
    clean = np.ones(len(test), dtype=np.bool_)
    for side in (candidate, evidence.champion, evidence.anchor):
        if side is not None and side.trained_on is not None:
            clean &= ~side.trained_on
    references = _references(evidence)
    cells: list[dict[str, Any]] = []
    for reference, side in references:
        given = side.predictions if side else None
        for scope, mask in (("window", measured.window), ("all", clean)):
            cells += _cells(evidence, test.true, given, candidate.predictions, mask, scope, reference)
    name, against = references[0]
    for one in test.slices:
        for code, value in enumerate(one.values):
            mask = measured.window & (one.codes == code)
            place = {"slice_name": one.name, "slice_value": value}
            given = against.predictions if against else None
            cells += _cells(evidence, test.true, given, candidate.predictions, mask, "slice", name, **place)
    if evidence.golden is not None and candidate.golden is not None:
        everything = np.ones(len(evidence.golden), dtype=np.bool_)
        for reference, side in references:
            given = side.golden if side else None
            if side is None or given is not None:
                cells += _cells(
                    evidence, evidence.golden.true, given, candidate.golden, everything, "golden", reference
                )
    return cells


def _references(evidence: Evidence) -> list[tuple[str, Side | None]]:
    """Whom the candidate is counted against, the champion first."""
    found: list[tuple[str, Side | None]] = []
    if evidence.champion is not None and evidence.champion.predictions is not None:
        found.append(("champion", evidence.champion))
    if evidence.anchor is not None and evidence.anchor.predictions is not None:
        found.append(("anchor", evidence.anchor))
    return found or [("", None)]


def _cells(
    evidence: Evidence,
    true: Labels,
    reference: Labels | None,
    candidate: Labels,
    mask: Mask,
    scope: str,
    name: str,
    *,
    slice_name: str = "",
    slice_value: str = "",
) -> Iterator[dict[str, Any]]:
    labels = evidence.label_names
    given = np.zeros_like(candidate) if reference is None else reference
    triples, counts = np.unique(np.stack([true, given, candidate])[:, mask], axis=1, return_counts=True)
    for (right, theirs, ours), count in zip(triples.T.tolist(), counts.tolist(), strict=True):
        yield {
            "scope": scope,
            "slice_name": slice_name,
            "slice_value": slice_value,
            "reference": name,
            "true_label": labels[right],
            "reference_label": "" if reference is None else labels[theirs],
            "candidate_label": labels[ours],
            "count": count,
        }
