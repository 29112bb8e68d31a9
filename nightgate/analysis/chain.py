"""The champions that another policy would have promoted, one after the other, each night against the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import numpy as np

from nightgate.analysis.rescoring import Rescored
from nightgate.config.gate import Gate
from nightgate.database.label_meanings import label_meanings
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.gate.decide import decide
from nightgate.gate.decision import Verdict
from nightgate.gate.evidence import Evidence, Mask, Serving, Side
from nightgate.gate.test_window import test_window
from nightgate.registry.versions import VersionRow
from nightgate.runs.evidence_store import Given, labels_given, scorings_of

NEARLY_ALL = 0.99
"""Share of the window's rows that a version must have been scored on; the rest is left out."""

Rescorer = Callable[[str, VersionRow, tuple[str, ...], tuple[str, ...]], Rescored]
"""Scores a version on the test rows (fingerprints) of a run, and on its golden rows unless these are ()."""


@dataclass(frozen=True)
class JudgedRun:
    """A run with a verdict, as stored."""

    night: date
    run_id: str
    status: str
    verdict: Verdict
    champion_version: int | None
    test_version: str | None
    metric_key: str | None
    label_names: Sequence[str]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ChainNight:
    """The decision of one night against the chain's champion."""

    verdict: Verdict | Literal["unknown"]
    reason: str
    champion_version: int | None
    """The chain's champion before the night; None: none yet."""
    champion_f1: float | None
    """F1 on the night's window."""


class Chain:
    """The champions that a policy would have promoted, from those of the night with the evidence `first` on."""

    def __init__(
        self, db: Database, pipeline: str, made: Iterable[VersionRow], first: Evidence, rescorer: Rescorer | None
    ) -> None:
        self._by_number: dict[int | None, VersionRow] = {version.version: version for version in made}
        self._begin_with(first)
        self.meanings = db.read(lambda session: label_meanings(session, pipeline))
        self._db, self._pipeline, self._rescorer = db, pipeline, rescorer
        self._known: dict[tuple[str, str, str], dict[str, Given]] = {}

    def _begin_with(self, evidence: Evidence) -> None:
        """Take the champion and the anchor that the night really had."""
        self.champion = self._by_number.get(evidence.champion.version) if evidence.champion else None
        self.anchor = self._by_number.get(evidence.anchor.version) if evidence.anchor else None

    def decide(self, run: JudgedRun, candidate: VersionRow | None, evidence: Evidence, policy: Gate) -> ChainNight:
        """Decide the night against the chain's champion, which a promoted candidate replaces.

        Where a person has accepted labels that mean something else, the chain begins anew with that champion.
        """
        real = self._by_number.get(evidence.champion.version) if evidence.champion else None
        if self.champion and real and self._flaw(self.champion, run.run_id) and not self._flaw(real, run.run_id):
            self._begin_with(evidence)
        champion_version = self.champion.version if self.champion else None
        own = self._with_own_sides(run, evidence, policy)
        if isinstance(own, str):
            return ChainNight("unknown", own, champion_version, None)
        decision = decide(own, policy)
        measured = decision.measured
        if decision.verdict == "promote":
            if candidate is None:
                return ChainNight("unknown", "it promotes a candidate that has no version", champion_version, None)
            self.champion = candidate
            self.anchor = candidate if measured.moves_anchor else self.anchor
        f1 = measured.champion.f1 if measured.champion else None
        return ChainNight(decision.verdict, decision.reason, champion_version, f1)

    def _with_own_sides(self, run: JudgedRun, evidence: Evidence, policy: Gate) -> Evidence | str:
        """The night's evidence with the chain's champion and anchor, or why there is none."""
        bare = replace(evidence, champion=None, anchor=None, champion_nights=None)
        if self.champion is None:
            return bare
        trained_on = evidence.candidate.trained_on
        clean = np.ones(len(evidence.test), dtype=np.bool_) if trained_on is None else ~trained_on
        window, _ = test_window(
            evidence.test.seen_at, evidence.data_until, policy.test_window, policy.min_test_rows, clean
        )
        sides: list[Side | None] = []
        known = np.ones(len(evidence.test), dtype=np.bool_)
        for version in (self.champion, self.anchor):
            if version is None:
                sides.append(None)
                continue
            if sides and version.version == self.champion.version:
                sides.append(sides[0])
                continue
            found = self._side(run.run_id, version, evidence, window, needs_golden=policy.blocks("golden"))
            if isinstance(found, str):
                return found
            side, seen = found
            sides.append(side)
            known &= seen
        champion, anchor = sides
        nights = (run.night - self.champion.night).days
        whole = replace(bare, champion=champion, anchor=anchor, champion_nights=nights)
        return whole if known.all() else _only(whole, known)

    def _side(
        self, run_id: str, version: VersionRow, evidence: Evidence, window: Mask, *, needs_golden: bool
    ) -> tuple[Side, Mask] | str:
        """A version's predictions on the night's rows with the mask of known rows, or why too few are known."""
        everywhere = np.ones(len(evidence.test), dtype=np.bool_)
        if flaw := self._flaw(version, run_id):
            return Side(None, version.data_until, version=version.version, flaw=flaw, relabelled=True), everywhere
        for side in (evidence.champion, evidence.anchor):
            if side is not None and side.version == version.version:
                return side, everywhere
        golden = self._golden(version, evidence)
        lacking: tuple[str, ...] = ()
        if needs_golden and evidence.golden is not None and golden is None:
            lacking = evidence.golden.fingerprints
        if lacking and self._rescorer is None:
            return f"version {version.version} was never scored on the golden rows, which block"
        made = Side(
            predictions=None,
            data_until=version.data_until,
            version=version.version,
            golden=golden,
            serving=Serving(size_bytes=version.size_bytes),
        )
        labels = self._given(version, "test", evidence.precision)
        given = [labels.get(name) for name in evidence.test.fingerprints]
        place = {name: index for index, name in enumerate(evidence.label_names)}
        known = np.array([one is not None and one.label in place for one in given])
        share = float(known[window].mean()) if window.any() else 0.0
        if share >= NEARLY_ALL and not lacking:
            predictions = np.array([place[one.label] if one and one.label in place else 0 for one in given])
            trained_on, why = _trained_on(given, known)
            return replace(made, predictions=predictions, trained_on=trained_on, unknown_line=why), known
        if self._rescorer is None:
            return f"version {version.version} was scored on {100 * share:.1f} % of the rows that decide"
        try:
            scored = self._rescorer(run_id, version, evidence.test.fingerprints, lacking)
        except NightgateError as error:
            return f"version {version.version} cannot be scored on these rows: {error.reason}"
        whole = replace(made, predictions=scored.predictions, golden=scored.golden if lacking else golden)
        return replace(whole, trained_on=scored.trained_on, unknown_line=scored.unknown_line), everywhere

    def _flaw(self, version: VersionRow, run_id: str) -> str:
        return self.meanings[version.run_id].flaw(self.meanings[run_id])

    def _golden(self, version: VersionRow, evidence: Evidence) -> np.typing.NDArray[np.int64] | None:
        if evidence.golden is None:
            return None
        labels = self._given(version, "golden", evidence.precision)
        given = [labels.get(name) for name in evidence.golden.fingerprints]
        if any(one is None or one.label not in evidence.label_names for one in given):
            return None
        return np.array([evidence.label_names.index(one.label) for one in given if one is not None])

    def _given(self, version: VersionRow, kind: str, precision: str) -> dict[str, Given]:
        key = (version.run_id, kind, precision)
        if key not in self._known:
            scorings = scorings_of(self._db, self._pipeline, version.run_id, kind)
            self._known[key] = labels_given(scorings, precision)
        return self._known[key]


def _trained_on(given: list[Given | None], known: Mask) -> tuple[Mask | None, str]:
    if any(one.trained_on is None for one, seen in zip(given, known, strict=True) if seen and one):
        return None, "the nights that scored it did not know"
    return np.array([bool(one and one.trained_on) for one in given]), ""


def _only(evidence: Evidence, known: Mask) -> Evidence:
    """The evidence restricted to the test rows of a mask."""

    def of(side: Side) -> Side:
        return replace(
            side,
            predictions=None if side.predictions is None else side.predictions[known],
            trained_on=None if side.trained_on is None else side.trained_on[known],
        )

    assert evidence.champion is not None
    champion, anchor = of(evidence.champion), evidence.anchor
    return replace(
        evidence,
        test=evidence.test.only(known),
        candidate=of(evidence.candidate),
        champion=champion,
        anchor=champion if evidence.anchored_by_champion else anchor and of(anchor),
    )
