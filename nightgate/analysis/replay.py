"""Past nights decided again, by their own evidence under another policy, and the champions that would have come of it.

    nights = replay(db, "reviews", {"gate.policy": "non_inferior"})

A night's verdict is replayed against the champion that really reigned. The chain goes further: it starts with the first
night that would promote, and each later candidate meets the chain's own champion on that night's rows. What that one
makes of them is known where it was scored on them, on whatever night; where it was not, the night is unknown and the
chain keeps its champion, unless somebody scores it now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import sqlalchemy as sa

from nightgate.analysis.rescoring import Rescored
from nightgate.config import Gate
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.gate.decide import decide
from nightgate.gate.decision import Decision, Verdict
from nightgate.gate.evidence import Evidence, Mask, Serving, Side
from nightgate.gate.test_window import test_window
from nightgate.metrics.comparability import ScoredNight, breaks, metric_key
from nightgate.pipeline_files import check_pipeline
from nightgate.registry.versions import VersionRow, versions
from nightgate.runs.evidence_store import Given, labels_given, load_evidence, scorings_of

if TYPE_CHECKING:
    import pandas as pd

NEARLY_ALL = 0.99
"""Share of the window's rows that a version must have been scored on; the others are left out."""

NO_CONFIG: Mapping[str, Any] = {"gate": {}}
"""Of nobody's night: under it an override is looked at by itself."""

Rescorer = Callable[[str, VersionRow, tuple[str, ...], tuple[str, ...]], Rescored]
"""Scores a version on the test rows (fingerprints) of a run, and on its golden rows, () where they are not wanted; see
`nightgate.analysis.rescoring`."""


@dataclass(frozen=True)
class ChainNight:
    """A night as the chain of champions met it."""

    verdict: Verdict | Literal["unknown"]
    reason: str
    champion_version: int | None
    """Who reigned in the chain when the night came; None: nobody yet."""
    champion_f1: float | None
    """On the night's window."""


@dataclass(frozen=True)
class ReplayedNight:
    night: date
    run_id: str
    status: str
    model_version: int | None
    verdict: Verdict
    """What the night said."""
    replayed: Verdict
    """What it says under the other policy."""
    reason: str
    candidate_f1: float | None
    champion_version: int | None
    champion_f1: float | None
    """Of the champion that really reigned, on the window of the other policy."""
    chain: ChainNight
    scored: ScoredNight
    """What its scores were measured by under the other policy."""

    @property
    def flips(self) -> bool:
        """Whether the other policy promotes what was held, or holds what was promoted."""
        return (self.verdict == "promote") != (self.replayed == "promote")


def policy_of(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Gate:
    """The gate of a stored configuration with `--set gate.x=value` in it.

    Raises:
        ConfigurationError: a key is not one of the gate, or a value is wrong.
    """
    if others := [key for key in overrides if not key.startswith("gate.")]:
        raise ConfigurationError(
            f"--set {others[0]}: only the gate can be another one for nights that are over",
            next_step="set fields of [gate], such as --set gate.policy=non_inferior",
        )
    # The rest of a configuration decides nothing here, and may be one that this version would not take any more.
    rest = {"name": "replay", "data": {"source": {"kind": "sample"}, "labels": ["one", "other"]}}
    return check_pipeline({**rest, "gate": dict(config["gate"])}, "--set", overrides).gate


def replay(
    db: Database,
    pipeline: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    since: date | None = None,
    rescorer: Rescorer | None = None,
) -> Iterator[ReplayedNight]:
    """Every judged night of the pipeline, oldest first, each under its own policy with `overrides` in it.

    Args:
        overrides: such as `{"gate.policy": "non_inferior"}`; none replays what was decided.
        since: nights from this date on; the chain starts there too.
        rescorer: scores a version on a night whose rows it never met; None leaves such a night unknown.

    Raises:
        ConfigurationError: as `policy_of`.
    """
    policy_of(NO_CONFIG, overrides or {})  # Also where there is no night to refuse it.
    made = {version.run_id: version for version in versions(db, pipeline)}
    chain = Chain(db, pipeline, rescorer)
    for run in judged_runs(db, pipeline, since):
        policy = policy_of(run.config, overrides or {})
        version = made.get(run.run_id)
        evidence = load_evidence(db, run.run_id)
        yield _night(run, version, policy, decide(evidence, policy), chain.meet(run, version, evidence, policy))


def _night(run: Run, version: VersionRow | None, policy: Gate, decision: Decision, met: ChainNight) -> ReplayedNight:
    measured = decision.measured
    assert measured is not None, "stored evidence has rows"
    number = version.version if version else None
    candidate_f1 = measured.candidate.f1
    champion_f1 = measured.champion.f1 if measured.champion else None
    return ReplayedNight(
        night=run.night,
        run_id=run.run_id,
        status=run.status,
        model_version=number,
        verdict=cast("Verdict", run.verdict),
        replayed=decision.verdict,
        reason=decision.reason,
        candidate_f1=candidate_f1,
        champion_version=run.champion_version,
        champion_f1=champion_f1,
        chain=met,
        scored=ScoredNight(
            night=run.night,
            metric_key=metric_key(
                run.test_version or "", run.label_names, policy.average, policy.test_window, policy.min_test_rows
            ),
            test_version=run.test_version,
            label_names=tuple(run.label_names),
            average=policy.average,
            test_window=policy.test_window,
            min_test_rows=policy.min_test_rows,
            model_version=number,
            test_f1=candidate_f1,
            champion_version=run.champion_version,
            champion_f1=champion_f1,
        ),
    )


def judged_runs(db: Database, pipeline: str, since: date | None = None) -> list[Run]:
    """Those with a verdict that count for their nights, oldest first; a dry run decided nothing."""
    counting = sa.text("SELECT run_id FROM nights WHERE pipeline = :pipeline").bindparams(pipeline=pipeline)
    query = sa.select(Run).where(Run.pipeline == pipeline, Run.verdict.is_not(None), Run.dry_run.is_(False))
    if since is not None:
        query = query.where(Run.night >= since)

    def work(session: sa.orm.Session) -> list[Run]:
        ids = set(session.scalars(counting))
        return [run for run in session.scalars(query.order_by(Run.night)) if run.run_id in ids]

    return db.read(work)


class Chain:
    """The champions that follow from one another under a policy."""

    def __init__(self, db: Database, pipeline: str, rescorer: Rescorer | None = None) -> None:
        self.champion: VersionRow | None = None
        self.anchor: VersionRow | None = None
        self._db, self._pipeline, self._rescorer = db, pipeline, rescorer
        self._known: dict[tuple[str, str], dict[str, Given]] = {}

    def meet(self, run: Run, candidate: VersionRow | None, evidence: Evidence, policy: Gate) -> ChainNight:
        """Decide the night against the chain's champion, who is replaced when the candidate is promoted."""
        met = self._with_own_sides(run, evidence, policy)
        if isinstance(met, str):
            return self.unknown(met)
        decision = decide(met, policy)
        measured = decision.measured
        assert measured is not None, "stored evidence has rows"
        reigned = self.champion.version if self.champion else None
        if decision.verdict == "promote":
            if candidate is None:
                return self.unknown("it promotes a candidate that has no version")
            self.champion = candidate
            self.anchor = candidate if measured.moves_anchor else self.anchor
        f1 = measured.champion.f1 if measured.champion else None
        return ChainNight(decision.verdict, decision.reason, reigned, f1)

    def unknown(self, reason: str) -> ChainNight:
        return ChainNight("unknown", reason, self.champion.version if self.champion else None, None)

    def _with_own_sides(self, run: Run, evidence: Evidence, policy: Gate) -> Evidence | str:
        """The night's evidence with the chain's champion and anchor in it, or why it cannot be had."""
        bare = replace(evidence, champion=None, anchor=None, champion_nights=None)
        if self.champion is None:
            return bare
        clean = np.ones(len(evidence.test), dtype=np.bool_)
        if evidence.candidate.trained_on is not None:
            clean &= ~evidence.candidate.trained_on
        window, _ = test_window(
            evidence.test.seen_at, evidence.data_until, policy.test_window, policy.min_test_rows, clean
        )
        sides: list[Side] = []
        known = np.ones(len(evidence.test), dtype=np.bool_)
        for version in (self.champion, self.anchor):
            assert version is not None, "a champion comes with an anchor"
            if sides and version.version == self.champion.version:
                sides.append(sides[0])
                continue
            found = self._side(run.run_id, version, evidence, window, needs_golden=policy.golden_blocks)
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
        """A version on the night's rows and on which of them it is known, or why it is not on enough of them."""
        everywhere = np.ones(len(evidence.test), dtype=np.bool_)
        for side in (evidence.champion, evidence.anchor):
            if side is not None and side.version == version.version:
                return side, everywhere
        golden = self._golden(version, evidence)
        lacking: tuple[str, ...] = ()
        if needs_golden and evidence.golden is not None and golden is None:
            lacking = evidence.golden.fingerprints
        if lacking and self._rescorer is None:
            return f"version {version.version} was never scored on the golden rows, and golden_blocks asks for them"
        made = Side(
            predictions=None,
            data_until=version.data_until,
            version=version.version,
            golden=golden,
            serving=Serving(size_bytes=version.size_bytes),
        )
        given = [self._given(version, "test").get(name) for name in evidence.test.fingerprints]
        place = {name: index for index, name in enumerate(evidence.label_names)}
        known = np.array([one is not None and one.label in place for one in given])
        share = float(known[window].mean()) if window.any() else 0.0
        if share >= NEARLY_ALL and not lacking:
            labels = [place[one.label] if one and one.label in place else 0 for one in given]
            trained_on, why = _trained_on(given, known)
            return replace(made, predictions=np.array(labels), trained_on=trained_on, unknown_line=why), known
        if self._rescorer is None:
            return f"version {version.version} was scored on {100 * share:.1f} % of the rows that decide"
        try:
            scored = self._rescorer(run_id, version, evidence.test.fingerprints, lacking)
        except NightgateError as error:
            return f"version {version.version} cannot be scored on these rows: {error.reason}"
        whole = replace(made, predictions=scored.predictions, golden=scored.golden if lacking else golden)
        return replace(whole, trained_on=scored.trained_on, unknown_line=scored.unknown_line), everywhere

    def _golden(self, version: VersionRow, evidence: Evidence) -> np.typing.NDArray[np.int64] | None:
        if evidence.golden is None:
            return None
        given = [self._given(version, "golden").get(name) for name in evidence.golden.fingerprints]
        if any(one is None or one.label not in evidence.label_names for one in given):
            return None
        return np.array([evidence.label_names.index(one.label) for one in given if one is not None])

    def _given(self, version: VersionRow, kind: str) -> dict[str, Given]:
        key = (version.run_id, kind)
        if key not in self._known:
            self._known[key] = labels_given(scorings_of(self._db, self._pipeline, version.run_id, kind))
        return self._known[key]


def _trained_on(given: list[Given | None], known: Mask) -> tuple[Mask | None, str]:
    if any(one.trained_on is None for one, seen in zip(given, known, strict=True) if seen and one):
        return None, "it was not known on the nights that scored it"
    return np.array([bool(one and one.trained_on) for one in given]), ""


def _only(evidence: Evidence, known: Mask) -> Evidence:
    """The evidence on some of its test rows."""

    def of(side: Side) -> Side:
        return replace(
            side,
            predictions=None if side.predictions is None else side.predictions[known],
            trained_on=None if side.trained_on is None else side.trained_on[known],
        )

    assert evidence.champion is not None
    assert evidence.anchor is not None
    champion = of(evidence.champion)
    return replace(
        evidence,
        test=evidence.test.only(known),
        candidate=of(evidence.candidate),
        champion=champion,
        anchor=champion if evidence.anchored_by_champion else of(evidence.anchor),
    )


# --- telling ---


def breaks_before(nights: Sequence[ReplayedNight]) -> list[str | None]:
    """For each night why its scores do not compare with those before it; None where they do, or it has none."""
    scored = [one for one in nights if one.candidate_f1 is not None]
    told = dict(zip((one.run_id for one in scored), breaks([one.scored for one in scored]), strict=True))
    return [told.get(one.run_id) for one in nights]


def as_frame(nights: Sequence[ReplayedNight]) -> pd.DataFrame:
    """A row per night; without nights its columns alone."""
    import pandas as pd

    own = [one.name for one in fields(ReplayedNight) if one.name not in ("chain", "scored")]
    chain = ["chain_verdict", "chain_version", "chain_f1", "chain_reason"]
    rows = [
        [
            *(getattr(one, name) for name in own),
            one.flips,
            *(one.chain.verdict, one.chain.champion_version, one.chain.champion_f1, one.chain.reason),
            told,
        ]
        for one, told in zip(nights, breaks_before(nights), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[*own, "flips", *chain, "break_before"])
    return frame.astype(dict.fromkeys(("model_version", "champion_version", "chain_version"), "Int64"))


def summary(nights: Sequence[ReplayedNight], *, rescored: bool = False) -> str:
    """What flips, and how the chain went, in a sentence each.

    Args:
        rescored: what could be scored was; whoever asks is not told to ask for it again.
    """
    flipped = [one for one in nights if one.flips]
    told = f"{len(flipped)} of {len(nights)} verdicts flip"
    if flipped:
        told += ": " + ", ".join(f"{one.night} ({one.verdict} to {one.replayed})" for one in flipped)
    promoted = sum(one.chain.verdict == "promote" for one in nights)
    really = sum(one.status == "promoted" for one in nights)
    told += f"\nthe chain promotes on {promoted} nights, {really} did"
    unknown = [one for one in nights if one.chain.verdict == "unknown"]
    if unknown:
        told += f"; {len(unknown)} are unknown, the first {unknown[0].night} ({unknown[0].chain.reason})"
        told += "" if rescored else ": --rescore scores what they lack, where files and snapshots are still there"
    return told
