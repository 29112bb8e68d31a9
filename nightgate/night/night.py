"""A whole night, in the order of its steps. The nightly flow calls `run_steps` with the steps wrapped as Prefect tasks.

run_night(load_pipeline("sample"), tonight(pipeline.schedule))       # nightgate run sample --no-prefect
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.data.snapshots import Snapshot
from nightgate.errors import InternalError, NightgateError
from nightgate.night import ending, scoring, steps, verdict
from nightgate.night.run import NightRun, open_night
from nightgate.night.values import Evaluated, Judged, Scored, Served, Trained
from nightgate.prediction.predict import Predicted, is_left, predict_configured
from nightgate.runs.run_row import RunRow
from nightgate.schedule import Night
from nightgate.training.protocol import EpochReport

log = logging.getLogger(__name__)

ENDS_THAT_PREDICT = {"promoted", "held", "skipped", "waiting"}


@dataclass(frozen=True)
class Steps:
    """The functions that a night calls: the library's own, or wrappers of them."""

    refresh: Callable[[NightRun], Snapshot] = steps.refresh
    evaluate: Callable[[NightRun, Snapshot], Evaluated] = steps.evaluate
    decide: Callable[[NightRun, Snapshot, Evaluated], RunRow | None] = steps.decide
    fine_tune: Callable[[NightRun, Snapshot, Callable[[EpochReport], object]], Trained] = steps.fine_tune
    record_epoch: Callable[[NightRun, Snapshot, EpochReport], None] = steps.record_epoch
    score_on_test: Callable[[NightRun, Snapshot, Trained], Scored] = scoring.score_on_test
    try_serving: Callable[[NightRun, Snapshot, Scored], Served] = scoring.try_serving
    judge: Callable[[NightRun, Snapshot, Trained, Scored, Served], Judged] = verdict.judge
    register: Callable[[NightRun, Snapshot, Trained, Judged], int] = steps.register_candidate
    finish: Callable[[NightRun, Scored, Judged, int], RunRow] = ending.finish
    predict: Callable[[Pipeline], Predicted | None] = predict_configured


def run_steps(run: NightRun, call: Steps) -> RunRow:
    """Run all steps of an open night; returns its row as it ended, or as it waits for an approval."""
    with steps.slot(run):
        snapshot = call.refresh(run)
        evaluated = call.evaluate(run, snapshot)
        if ended := call.decide(run, snapshot, evaluated):
            return ended
        trained = call.fine_tune(run, snapshot, partial(call.record_epoch, run, snapshot))
        scored = call.score_on_test(run, snapshot, trained)
        served = call.try_serving(run, snapshot, scored)
        judged = call.judge(run, snapshot, trained, scored, served)
        version = call.register(run, snapshot, trained, judged)
        return call.finish(run, scored, judged, version)


def run_night(
    pipeline: Pipeline, night: Night, *, force: bool = False, dry_run: bool = False, allowed: Allowed = NONE_ALLOWED
) -> RunRow:
    """Claim and run a night without Prefect.

    Raises:
        NightgateError: what broke; the run's row says so too.
    """
    with open_night(pipeline, night, force=force, dry_run=dry_run, allowed=allowed) as run:
        row = run.ended or run_steps(run, Steps())
    predict_after(run, row, Steps())
    return row


def predict_after(run: NightRun, row: RunRow, call: Steps) -> NightgateError | None:
    """Predict the rows of `[predict]`, which has no cron of its own, once the night has ended and is closed.

    A night that had ended before predicts where an earlier prediction did not come to its end.

    Returns what broke: it is logged, and changes nothing of the night, whose result stands.
    """
    pipeline = run.pipeline
    if row.status not in ENDS_THAT_PREDICT or run.dry_run or not pipeline.predicts_after_nights:
        return None
    if run.ended is not None and not is_left(run.home, pipeline.name, pipeline.predict.output):
        return None
    try:
        if done := call.predict(pipeline):
            log.info("predicted %s", done)
    except Exception as error:  # noqa: BLE001 - the night has ended
        failure = InternalError.of(error)
        log.error("nothing was predicted: %s; next: %s", failure.reason, failure.next_step)
        return failure
    except BaseException as stop:  # Ctrl-C, or Prefect's signal
        stop.add_note(
            f"the night is {row.status}, its prediction was stopped: nightgate predict {pipeline.name} --input source"
        )
        raise
    return None
