"""Replay: decide past nights again on their stored evidence under another policy.

    nights = replay(db, "reviews", {"gate.policy": "non_inferior"})

A night's verdict is replayed against the champion of that night. The chain follows the champions that the other policy
would have promoted: it starts with that of the first night, and each candidate is compared with the chain's own
champion on that night's rows. If no night has scored that champion on these rows, the night is unknown and the chain
keeps its champion, unless a rescorer scores it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nightgate.analysis.rescoring import Rescored
from nightgate.config.gate import Gate
from nightgate.database.label_meanings import label_meanings
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.gate.decide import decide
from nightgate.gate.decision import Decision, Verdict
from nightgate.gate.evidence import Evidence, Mask, Serving, Side
from nightgate.gate.test_window import test_window
from nightgate.label_meaning import LabelMeaning
from nightgate.metrics.comparability import ScoredNight, averages_predicted_classes, breaks, metric_key
from nightgate.pipeline_files import check_pipeline
from nightgate.registry.versions import VersionRow, versions
from nightgate.runs.evidence_store import Given, labels_given, load_evidence, scorings_of

if TYPE_CHECKING:
    import pandas as pd

NEARLY_ALL = 0.99
"""Share of the window's rows that a version must have been scored on; the rest is left out."""

NO_CONFIG: Mapping[str, Any] = {"gate": {}}
"""Configuration of defaults, to validate overrides without a night."""

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


@dataclass(frozen=True)
class ReplayedNight:
    night: date
    run_id: str
    status: str
    model_version: int | None
    verdict: Verdict
    """The stored verdict."""
    replayed: Verdict
    """The verdict under the other policy."""
    reason: str
    candidate_f1: float | None
    champion_version: int | None
    champion_f1: float | None
    """F1 of that night's champion, on the window of the other policy."""
    chain: ChainNight
    scored: ScoredNight
    """The scores under the other policy and how they were measured."""
    redefined: bool
    """Whether the stored scores also average classes without true rows, which the replay leaves out."""

    @property
    def flips(self) -> bool:
        """Whether the other policy promotes what was held, or holds what was promoted."""
        return (self.verdict == "promote") != (self.replayed == "promote")


def policy_of(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Gate:
    """The gate of a stored configuration with `--set gate.x=value` applied.

    Raises:
        ConfigurationError: a key is not one of the gate, or a value is invalid.
    """
    if others := [key for key in overrides if not key.startswith("gate.")]:
        raise ConfigurationError(
            f"--set {others[0]}: only fields of the gate can be changed for past nights",
            next_step="set fields of [gate], such as --set gate.policy=non_inferior",
        )
    # The rest of a stored configuration may be invalid in this version, and has no effect here.
    rest = {"name": "replay", "data": {"source": {"kind": "sample"}, "labels": ["one", "other"]}}
    return check_pipeline({**rest, "gate": dict(config["gate"])}, "the stored gate", overrides).gate


def replay(
    db: Database,
    pipeline: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    since: date | None = None,
    rescorer: Rescorer | None = None,
) -> Iterator[ReplayedNight]:
    """Every judged night of the pipeline, oldest first, each under its own policy with `overrides`.

    Args:
        overrides: such as `{"gate.policy": "non_inferior"}`; without any the stored decisions are repeated.
        since: nights from this date on; the chain starts with the champion and anchor of the first of them.
        rescorer: scores a version on rows that no night has scored it on; None leaves such nights unknown.

    Raises:
        ConfigurationError: as `policy_of`.
    """
    policy_of(NO_CONFIG, overrides or {})  # Refuses wrong overrides even without nights.
    made = {version.run_id: version for version in versions(db, pipeline)}
    chain: Chain | None = None
    for run in judged_runs(db, pipeline, since):
        policy = policy_of(run.config, overrides or {})
        version = made.get(run.run_id)
        evidence = load_evidence(db, run.run_id)
        chain = chain or Chain(db, pipeline, made.values(), evidence, rescorer)
        decision, met = decide(evidence, policy), chain.decide(run, version, evidence, policy)
        yield _night(run, version, policy, decision, met, chain.meanings[run.run_id])


def _night(
    run: JudgedRun,
    version: VersionRow | None,
    policy: Gate,
    decision: Decision,
    met: ChainNight,
    meaning: LabelMeaning,
) -> ReplayedNight:
    measured = decision.measured
    settings = {name: getattr(policy, name) for name in ("average", "test_window", "min_test_rows")}
    scored = ScoredNight(
        night=run.night,
        metric_key=metric_key(run.test_version or "", run.label_names, **settings),
        test_version=run.test_version,
        label_names=tuple(run.label_names),
        **settings,
        model_version=version.version if version else None,
        test_f1=measured.candidate.f1,
        champion_version=run.champion_version,
        champion_f1=measured.champion.f1 if measured.champion else None,
        meaning=meaning,
    )
    return ReplayedNight(
        night=run.night,
        run_id=run.run_id,
        status=run.status,
        model_version=scored.model_version,
        verdict=run.verdict,
        replayed=decision.verdict,
        reason=decision.reason,
        candidate_f1=scored.test_f1,
        champion_version=run.champion_version,
        champion_f1=scored.champion_f1,
        chain=met,
        scored=scored,
        redefined=policy.average == "macro" and averages_predicted_classes(run.metric_key),
    )


def judged_runs(db: Database, pipeline: str, since: date | None = None) -> list[JudgedRun]:
    """Runs with a verdict that count for their nights, oldest first, without dry runs."""
    query = selecting(
        "SELECT n.night, n.run_id, n.status, n.verdict, n.champion_version, n.test_version, n.metric_key, "
        "d.label_names, d.config FROM nights AS n JOIN run_documents AS d ON d.run_id = n.run_id "
        "WHERE n.pipeline = :pipeline AND n.verdict IS NOT NULL AND NOT n.dry_run AND n.night >= :since "
        "ORDER BY n.night",
        {"pipeline": pipeline, "since": since or date.min},
    )
    return db.read(lambda session: [JudgedRun(**row._mapping) for row in session.execute(query)])


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


# --- output ---


def breaks_before(nights: Sequence[ReplayedNight]) -> list[str | None]:
    """For each night why its scores do not compare with earlier ones; None if they do, or if it has none."""
    scored = [one for one in nights if one.candidate_f1 is not None]
    found = zip(scored, breaks([one.scored for one in scored]), strict=True)
    reasons = {one.run_id: str(before) for one, before in found if before}
    return [reasons.get(one.run_id) for one in nights]


def as_frame(nights: Sequence[ReplayedNight]) -> pd.DataFrame:
    """A row per night."""
    import pandas as pd

    own = [one.name for one in fields(ReplayedNight) if one.name not in ("chain", "scored", "redefined")]
    chain = ["chain_verdict", "chain_version", "chain_f1", "chain_reason"]
    rows = [
        [
            *(getattr(one, name) for name in own),
            one.flips,
            *(one.chain.verdict, one.chain.champion_version, one.chain.champion_f1, one.chain.reason),
            why,
            one.redefined,
        ]
        for one, why in zip(nights, breaks_before(nights), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[*own, "flips", *chain, "break_before", "redefined"])
    return frame.astype(dict.fromkeys(("model_version", "champion_version", "chain_version"), "Int64"))


def summary(nights: Sequence[ReplayedNight], *, rescored: bool = False) -> str:
    """The verdicts that flip, nights with other stored scores, and promotions and unknown nights of the chain.

    Args:
        rescored: the replay ran with --rescore, so it is not suggested again.
    """
    flipped = [one for one in nights if one.flips]
    text = f"{len(flipped)} of {len(nights)} verdicts flip"
    if flipped:
        text += ": " + ", ".join(f"{one.night} ({one.verdict} to {one.replayed})" for one in flipped)
    if redefined := [str(one.night) for one in nights if one.redefined]:
        text += (
            f"\nthe stored macro scores of {len(redefined)} nights also average classes that were predicted but have "
            f"no true rows; here these are left out: {', '.join(redefined)}"
        )
    promoted = sum(one.chain.verdict == "promote" for one in nights)
    really = sum(one.status == "promoted" for one in nights)
    text += f"\nthe chain promotes on {promoted} nights, {really} did"
    unknown = [one for one in nights if one.chain.verdict == "unknown"]
    if unknown:
        text += f"; {len(unknown)} are unknown, the first {unknown[0].night} ({unknown[0].chain.reason})"
        text += "" if rescored else ": --rescore scores the missing rows if files and snapshots still exist"
    return text
