"""The verdict of a night: the gate decides by the evidence, and both are stored."""

from __future__ import annotations

import logging
import time

from nightgate.data.snapshots import Snapshot
from nightgate.gate.decide import decide
from nightgate.metrics import classification, confusion
from nightgate.night.evidence import gather_evidence
from nightgate.night.run import NightRun
from nightgate.night.values import Judged, Scored, Served, Trained
from nightgate.runs import records

log = logging.getLogger(__name__)

DECIDED = "the gate decided in %.2f s"
"""What `benchmarks.orchestration` reads."""


def judge(run: NightRun, snapshot: Snapshot, trained: Trained, scored: Scored, served: Served) -> Judged:
    """Gather the evidence and run the gate's checks on it; store evidence, checks and verdict."""
    evidence = gather_evidence(run, snapshot, trained, scored, served)
    sides = {"champion": scored.champion, "anchor": scored.anchor}
    made_by = {"candidate": run.run_id} | {name: row.run_id for name, row in sides.items() if row is not None}
    began = time.monotonic()
    decision = decide(evidence, run.pipeline.gate)
    log.info(DECIDED, time.monotonic() - began)
    assert evidence.candidate.predictions is not None, "a candidate is always scored"
    window = decision.measured.window
    frame, names = snapshot.rows("test")[window], run.pipeline.data.label_names
    references, predictions = evidence.test.true[window], evidence.candidate.predictions[window]
    test = classification.score(references, predictions, len(names))
    records.record_decision(
        run.db,
        run.run_id,
        run.attempt,
        decision,
        evidence,
        made_by,
        test,
        classification.slice_scores(frame, references, predictions, len(names), names),
        confusion.confusion_counts(references, predictions, len(names)),
        scored.result.metrics,
    )
    log.info("verdict: %s: %s", decision.verdict, decision.reason)
    return Judged(decision, test)
