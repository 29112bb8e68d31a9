"""Score the candidate, the champion and the anchor on the same rows, and serve the saved models in a fresh process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial

from nightgate.data.golden_rows import golden_set
from nightgate.data.snapshots import Snapshot, meaning_of
from nightgate.database.label_meanings import meaning_of_run, meaning_on
from nightgate.errors import ModelError, OutOfMemoryError, RegistryError, TrainingError
from nightgate.label_meaning import LabelMeaning
from nightgate.models import version_folder
from nightgate.models.serving_check import serve
from nightgate.night.run import NightRun
from nightgate.night.values import Model, Scored, Served, Trained
from nightgate.registry import versions
from nightgate.registry.versions import VersionRow
from nightgate.training import supervisor
from nightgate.training.predictions import load_logits
from nightgate.training.protocol import ScoreJob, ScoreResult
from nightgate.training.supervisor import LIFE

log = logging.getLogger(__name__)

NUM_SERVED = 64
"""Texts that the saved model is tried on in a fresh process."""


def score_on_test(run: NightRun, snapshot: Snapshot, trained: Trained) -> Scored:
    """Score all sides on tonight's test rows and on the golden rows. Scores of another night are no evidence."""
    champion = versions.champion(run.db, run.pipeline.name)
    anchor = versions.anchor(run.db, run.pipeline.name)
    meaning = meaning_of(snapshot, run.pipeline)

    def meaning_then(night: date) -> LabelMeaning | None:
        return run.db.read(lambda session: meaning_on(session, run.pipeline.name, night))

    golden = golden_set(run.pipeline, run.home, snapshot, run.night, meaning_then)
    models = {"candidate": Model(trained.result.best_model)}
    if champion is not None:
        models["champion"] = _version(run, champion, meaning)
    if anchor is not None and (champion is None or anchor.version != champion.version):
        models["anchor"] = _anchor(run, anchor, meaning)
    job = ScoreJob(
        pipeline=run.pipeline.record(),
        snapshot=snapshot.path,
        models={name: model.folder for name, model in models.items() if not model.flaw},
        # A folder per attempt: an earlier one that was given up may still be writing.
        out=run.directory / f"attempt-{run.attempt}" / "test",
        golden=golden.path,
        serve=NUM_SERVED,
    )
    score = partial(supervisor.score_models, on_progress=run.while_ours(), on_restart=run.record_restart)
    result, flaws = score_with_flaws(job, score)
    models |= {name: replace(models[name], flaw=flaw) for name, flaw in flaws.items()}
    return Scored(champion, anchor, models, golden, result)


def score_with_flaws(job: ScoreJob, score: Callable[[ScoreJob], ScoreResult]) -> tuple[ScoreResult, dict[str, str]]:
    """Scores, and why sides other than the candidate have none: a process that scores such a side alone fails too.

    A champion that no process can score any more, as after a change of the installation, must not fail every night.

    Raises:
        NightgateError: as `supervisor.score_models`, where it is the candidate that cannot be scored, or a failure
            that does not happen again; lack of memory is never a model's flaw.
    """
    try:
        return score(job), {}
    except (TrainingError, ModelError) as error:
        others = () if isinstance(error, OutOfMemoryError) else [name for name in job.models if name != "candidate"]
        flaws = {name: flaw for name in others if (flaw := _flaw(score, replace(job, models={name: job.models[name]})))}
        if not flaws:
            raise
    left = {name: folder for name, folder in job.models.items() if name not in flaws}
    return score(replace(job, models=left)), flaws


def _flaw(score: Callable[[ScoreJob], ScoreResult], job: ScoreJob) -> str:
    """Why the only model of this job cannot be scored; '' if it can."""
    try:
        score(job)
    except OutOfMemoryError:
        raise
    except (TrainingError, ModelError) as error:
        log.warning("the %s cannot be scored: %s", *job.models, error.reason)
        return f"cannot be scored: {error.reason}"
    return ""


def try_serving(run: NightRun, snapshot: Snapshot, scored: Scored) -> Served:
    """Open the saved candidate as its users will: in a fresh process, offline, without this package.

    The champion is served beside it, so that their latencies can be compared. Plain `transformers` computes in float32,
    so the night's logits of these rows are in float32 too, whatever the precision of its scores.
    """
    if scored.golden.path is None:
        written, rows = scored.result.written, snapshot.rows("test", ["text"])
    else:
        written, rows = scored.result.golden, scored.golden.rows(["text"])
    texts = rows["text"].astype(str).tolist()[:NUM_SERVED]
    models = {name: one.folder for name, one in scored.models.items() if name != "anchor" and not one.flaw}
    began = time.monotonic()
    served = serve(
        models,
        texts,
        {name: load_logits(scored.result.serve[name]) for name in models},
        scored.result.max_length,
        run.pipeline.data.label_names,
        reference="champion",
    )
    log.info(LIFE, "serving", time.monotonic() - began, "")
    for name, found in served.items():
        log.debug("%s in a fresh process: %s", name, found.flaw or f"{found.latency_ms:.1f} ms a text")
        in_fp32, as_scored = (load_logits(files[name]).argmax(axis=1) for files in (scored.result.serve, written))
        served[name] = replace(found, rounded=int((in_fp32 != as_scored[: len(texts)]).sum()))
    return Served(served["candidate"], served.get("champion"))


def _anchor(run: NightRun, version: VersionRow, meaning: LabelMeaning) -> Model:
    """An anchor without its files holds the night and does not fail it: the champion can take its place."""
    try:
        return _version(run, version, meaning)
    except (ModelError, RegistryError) as error:
        log.warning("the anchor, version %d, cannot be used: %s", version.version, error.reason)
        return Model(run.home.absolute(version.path), version, f"cannot be used: {error.reason}")


def _version(run: NightRun, version: VersionRow, meaning: LabelMeaning) -> Model:
    """A version as a side; it has a flaw where its labels do not mean what tonight's do."""
    folder = version.folder(run.home)
    version_folder.verify_version(folder)
    flaw = run.db.read(lambda session: meaning_of_run(session, version.run_id)).flaw(meaning)
    return Model(folder, version, flaw, relabelled=bool(flaw))
