"""Replay: decide past nights again on their stored evidence under another policy.

    nights = replay(db, "reviews", {"gate.policy": "non_inferior"})

A night's verdict is replayed against the champion of that night. The chain follows the champions that the other policy
would have promoted: it starts with that of the first night, and each candidate is compared with the chain's own
champion on that night's rows. If no night has scored that champion on these rows, the night is unknown and the chain
keeps its champion, unless a rescorer scores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import TYPE_CHECKING, Any

from nightgate.analysis.chain import Chain, ChainNight, JudgedRun, Rescorer
from nightgate.config.gate import Gate
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ConfigurationError
from nightgate.gate.decide import decide
from nightgate.gate.decision import Decision, Verdict
from nightgate.label_meaning import LabelMeaning
from nightgate.metrics.comparability import ScoredNight, averages_predicted_classes, breaks, metric_key
from nightgate.pipeline_files import check_pipeline
from nightgate.registry.versions import VersionRow, versions
from nightgate.runs.evidence_store import load_evidence

if TYPE_CHECKING:
    import pandas as pd

NO_CONFIG: Mapping[str, Any] = {"gate": {}}
"""Configuration of defaults, to validate overrides without a night."""


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
