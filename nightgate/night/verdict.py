"""The verdict of a night: the gate decides by the evidence, and both are stored."""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from nightgate.gate.decide import decide
from nightgate.metrics import classification, confusion
from nightgate.night.run import NightRun
from nightgate.runs import evidence_store, records

log = logging.getLogger(__name__)

DECIDED = "the gate decided in %.2f s"
"""What `benchmarks.orchestration` reads."""


def judge(run: NightRun) -> None:
    """Run the gate's checks on the evidence; store both, and the verdict."""
    evidence = run.evidence
    made_by = {"candidate": run.run_id}
    for name, version in (("champion", run.champion), ("anchor", run.anchor)):
        if version is not None:
            made_by[name] = version.run_id
    evidence_store.record_evidence(run.db, run.run_id, run.attempt, evidence, made_by)
    began = time.monotonic()
    run.decision = decide(evidence, run.pipeline.gate)
    log.info(DECIDED, time.monotonic() - began)
    assert run.decision.measured is not None, "there are rows and predictions"
    _record_test(run, run.decision.measured.window)
    records.record_decision(run.db, run.run_id, run.attempt, run.decision, evidence, run.test_scores)
    log.info("verdict: %s: %s", run.decision.verdict, run.decision.reason)


def _record_test(run: NightRun, window: NDArray[np.bool_]) -> None:
    """What the candidate showed on the rows that decide, by class and slice."""
    frame, names = run.snapshot.rows("test")[window], run.pipeline.data.label_names
    references = frame["label"].to_numpy(dtype=np.int64)
    predictions = run.evidence.candidate.predictions
    assert predictions is not None, "a candidate is always scored"
    predictions = predictions[window]
    run.test_scores = classification.score(references, predictions, len(names))
    records.record_test(
        run.db,
        run.run_id,
        run.attempt,
        run.trained.best_epoch,
        classification.slice_scores(frame, references, predictions, len(names), names),
        confusion.confusion_counts(references, predictions, len(names)),
    )
