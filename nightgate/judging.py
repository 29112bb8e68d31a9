"""Candidate and champion on tonight's test rows, and the verdict: two steps of a night."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightgate import gate, ledger, metrics, registry, startup, supervisor
from nightgate.claim import NightRun
from nightgate.errors import NonFiniteLossError
from nightgate.intervals import f1_difference_interval, f1_interval
from nightgate.jobs import ScoreJob

log = logging.getLogger(__name__)


def score_on_test(run: NightRun) -> None:
    """Score the candidate and the reigning champion on tonight's test rows: the champion's old score is no evidence."""
    models = {"candidate": run.trained.best_model}
    run.champion = ledger.champion(run.db, run.pipeline.name)
    run.champion_flaw = ""
    run.champion_reuse = None
    if run.champion is not None:
        folder = run.home.absolute(run.champion.path)
        known, wanted = registry.verify_version(folder)["label_names"], run.pipeline.data.label_names
        if sorted(known) == sorted(wanted):
            models["champion"] = folder
        else:
            run.champion_flaw = (
                f"the champion (version {run.champion.version}) knows the labels {', '.join(known)} and the "
                f"pipeline has {', '.join(wanted)}, so it cannot be scored on tonight's rows"
            )
    job = ScoreJob(
        pipeline=run.pipeline.record(),
        snapshot=run.snapshot.path,
        models=models,
        out=run.directory / "test",
        cache=run.home.cache,
    )
    # The report would wait for it.
    startup.load_early("matplotlib.figure", "matplotlib.backends.backend_svg")
    scored = supervisor.score_models(job, on_progress=run.while_ours(), on_restart=run.count_restart)
    found = scored.written
    rows = run.snapshot.rows("test")
    run.predictions = {"candidate": read_predictions(found["candidate"])}
    if run.champion is not None and "champion" in found:
        run.champion_reuse = reuse = gate.Reuse(
            len(rows), scored.reused["champion"], scored.recomputed["champion"], scored.differing["champion"]
        )
        log.info("champion: %s", f"{reuse.reused:,} of {len(rows):,} rows reused, {reuse.recomputed:,} recomputed")
        try:
            run.predictions["champion"] = read_predictions(found["champion"])
        except NonFiniteLossError as error:
            run.champion_flaw = f"the champion (version {run.champion.version}) cannot be compared: {error.reason}"
    run.test_rows = rows
    references = rows["label"].to_numpy(dtype=np.int64)
    names = run.pipeline.data.label_names
    predictions = run.predictions["candidate"]
    run.test_scores = metrics.score(references, predictions, len(names))
    ledger.record_test(
        run.db,
        run.run_id,
        run.attempt,
        run.trained.best_epoch,
        metrics.slice_scores(rows, references, predictions, len(names), names),
        metrics.confusion_counts(references, predictions, len(names)),
    )


def judge(run: NightRun) -> None:
    """Run the gate's checks and store them with the verdict."""
    rows, names, average = run.test_rows, run.pipeline.data.label_names, run.pipeline.gate.average
    references = rows["label"].to_numpy(dtype=np.int64)
    groups = rows["group"].tolist() if "group" in rows else None
    test_version = run.snapshot.manifest["test_version"]

    def measured(name: str, version: int | None, data_until: datetime) -> gate.Measured:
        return gate.Measured(
            f1=metrics.score(references, run.predictions[name], len(names)).f1(average),
            support=len(references),
            test_version=test_version,
            data_until=data_until,
            interval=f1_interval(references, run.predictions[name], len(names), average, groups=groups),
            version=version,
            reuse=run.champion_reuse if name == "champion" else None,
        )

    candidate = measured("candidate", None, run.data_until)
    champion = difference = None
    if run.champion is not None and run.champion_flaw:
        champion = gate.Measured(
            f1=None,
            support=len(references),
            test_version=test_version,
            data_until=run.champion.data_until,
            version=run.champion.version,
            reuse=run.champion_reuse,
        )
    elif run.champion is not None:
        champion = measured("champion", run.champion.version, run.champion.data_until)
        difference = f1_difference_interval(
            references,
            run.predictions["champion"],
            run.predictions["candidate"],
            len(names),
            average,
            groups=groups,
        )
    run.test_interval = candidate.interval
    run.decision = gate.decide(candidate, champion, run.pipeline.gate, difference=difference)
    if run.champion_flaw:
        run.decision = replace(run.decision, reason=f"{run.champion_flaw}; {run.decision.reason}")
    ledger.record_decision(run.db, run.run_id, run.attempt, run.decision, run.test_scores, candidate, champion)
    log.info("verdict: %s: %s", run.decision.verdict, run.decision.reason)


def read_predictions(path: Path) -> NDArray[np.int64]:
    """Predicted class indices, shape [rows], of a file of logits.

    Raises:
        NonFiniteLossError: a logit is NaN or infinite. It would count as a prediction like any other.
    """
    with np.load(path, allow_pickle=False) as stored:
        logits = stored["logits"]
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise NonFiniteLossError(
            f"the logits of {broken:,} of {len(logits):,} rows are NaN or infinite ({path})",
            next_step="lower training.learning_rate, or set training.precision = 'fp32'",
        )
    predicted: NDArray[np.int64] = logits.argmax(axis=1)
    return predicted
