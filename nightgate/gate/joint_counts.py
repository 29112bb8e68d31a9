"""Joint counts of (true, reference, candidate) labels: sufficient statistics for every paired comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightgate.gate.decision import Measured
from nightgate.gate.evidence import Evidence, Labels

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class JointCounts:
    """Counts of the rows of one scope, by class index."""

    scope: str
    """'window', 'all', 'golden' or 'slice'."""
    reference: str
    """'champion', 'anchor', or '' where there is neither."""
    counts: dict[Triple, int]
    """By true label, the reference's and the candidate's, of those that occur; the reference's is -1 without one."""
    slice_name: str = ""
    slice_value: str = ""


def joint_outcomes(evidence: Evidence, measured: Measured) -> list[JointCounts]:
    """The joint counts of one night, of scopes with rows.

    Scopes are the window, all test rows, the golden rows, and every slice value within the window. Slices are counted
    against the champion, the others against champion and anchor; the candidate is counted alone if there is neither.
    """
    test, candidate = evidence.test, evidence.candidate
    if candidate.predictions is None:
        return []
    clean = np.ones(len(test), dtype=np.bool_)
    for side in (candidate, evidence.champion, evidence.anchor):
        if side is not None and side.trained_on is not None:
            clean &= ~side.trained_on
    roles = (("champion", evidence.champion), ("anchor", evidence.anchor))
    references = [(name, side) for name, side in roles if side is not None and side.predictions is not None]
    found: list[JointCounts] = []
    for number, (name, side) in enumerate(references or [("", None)]):
        codes = _codes(evidence, test.true, side.predictions if side else None, candidate.predictions)
        found.append(JointCounts("window", name, _counts(evidence, codes[measured.window])))
        found.append(JointCounts("all", name, _counts(evidence, codes[clean])))
        for one in test.slices if number == 0 else ():
            for code, value in enumerate(one.values):
                counts = _counts(evidence, codes[measured.window & (one.codes == code)])
                found.append(JointCounts("slice", name, counts, one.name, value))
        golden = evidence.golden
        if golden is not None and candidate.golden is not None and (side is None or side.golden is not None):
            codes = _codes(evidence, golden.true, side.golden if side else None, candidate.golden)
            found.append(JointCounts("golden", name, _counts(evidence, codes)))
    return [one for one in found if one.counts]


def _shape(evidence: Evidence) -> tuple[int, int, int]:
    labels = len(evidence.label_names)
    return labels, labels + 1, labels


def _codes(evidence: Evidence, true: Labels, given: Labels | None, candidate: Labels) -> Labels:
    """A number for the triple of each row: those are counted 20 times as fast as rows of a matrix."""
    reference = np.zeros_like(true) if given is None else given + 1
    return np.ravel_multi_index((true, reference, candidate), _shape(evidence))


def _counts(evidence: Evidence, codes: Labels) -> dict[Triple, int]:
    found, counts = np.unique(codes, return_counts=True)
    true, reference, candidate = np.unravel_index(found, _shape(evidence))
    triples = zip(true.tolist(), (reference - 1).tolist(), candidate.tolist(), strict=True)
    return dict(zip(triples, counts.tolist(), strict=True))
