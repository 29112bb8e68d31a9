"""The gate's evidence, gathered: candidate, champion and anchor on the same rows, and the saved model in a process of
its own. Two steps of a night."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nightgate.analysis import seed_study
from nightgate.data.golden_rows import golden_set
from nightgate.errors import ModelError, RegistryError
from nightgate.gate.evidence import Evidence, Mask, Rows, Side, Slice
from nightgate.metrics.bootstrap import group_numbers
from nightgate.metrics.calibration import calibration_error, nonfinite_rows
from nightgate.models import version_folder
from nightgate.models.serving_check import serve
from nightgate.night.run import NightRun
from nightgate.registry import versions
from nightgate.registry.leakage import Line, line_of, trained_on
from nightgate.registry.versions import VersionRow
from nightgate.runs import evidence_store
from nightgate.training import supervisor
from nightgate.training.predictions import load_logits
from nightgate.training.protocol import ScoreJob
from nightgate.training.supervisor import LIFE

log = logging.getLogger(__name__)

NUM_SERVED = 64
"""Texts that the saved model is tried on in a fresh process."""


@dataclass(frozen=True)
class _Model:
    """A side to be scored."""

    folder: Path
    line: Line
    version: VersionRow | None = None
    """None: the candidate."""
    flaw: str = ""
    """Why it cannot be scored."""


@dataclass(frozen=True)
class _Frames:
    """What all sides are scored on, with the columns of a snapshot's rows."""

    test: pd.DataFrame
    golden: pd.DataFrame | None

    def fingerprints(self) -> list[str]:
        """Those of the test rows, then those of the golden ones."""
        frames = [self.test] if self.golden is None else [self.test, self.golden]
        return [str(mark) for frame in frames for mark in frame["fingerprint"]]


def score_on_test(run: NightRun) -> None:
    """Score the candidate, the reigning champion and the anchor on tonight's test rows and on the golden rows.

    No score of another night is evidence. What each side was trained on is looked up as well.
    """
    run.champion = versions.champion(run.db, run.pipeline.name)
    run.anchor = versions.anchor(run.db, run.pipeline.name)
    run.golden = golden_set(run.pipeline, run.home, run.snapshot, run.night)
    models = _models(run)
    run.folders = {name: model.folder for name, model in models.items() if not model.flaw}
    job = ScoreJob(
        pipeline=run.pipeline.record(),
        snapshot=run.snapshot.path,
        models=run.folders,
        # The attempt's own: one that was given up for dead may still be writing.
        out=run.directory / f"attempt-{run.attempt}" / "test",
        golden=run.golden.path,
    )
    run.scored = supervisor.score_models(job, on_progress=run.while_ours(), on_restart=run.count_restart)
    frames = _Frames(run.snapshot.rows("test"), None if run.golden.path is None else run.golden.rows())
    seen = {name: trained_on(model.line, frames.fingerprints()) for name, model in models.items()}
    unlearned = _unlearned(frames, [mask for mask, _ in seen.values() if mask is not None])
    sides = {name: _side(run, name, model, frames, *seen[name], unlearned) for name, model in models.items()}
    champion = sides.get("champion")
    golden = frames.golden if frames.golden is None or unlearned is None else frames.golden[unlearned]
    run.evidence = Evidence(
        label_names=run.pipeline.data.label_names,
        test_version=run.snapshot.manifest["test_version"],
        data_until=run.data_until,
        test=_rows(run, frames.test),
        candidate=sides["candidate"],
        champion=champion,
        anchor=champion if _reigns(run.anchor, run) else sides.get("anchor"),
        golden=None if golden is None or golden.empty else _rows(run, golden),
        champion_nights=(run.night.date - run.champion.night).days if run.champion else None,
        seed_spread=seed_study.newest_spread(run.db, run.pipeline),
        seed_average=run.pipeline.gate.average,
        golden_note=_golden_note(run, frames, golden),
    )


def try_serving(run: NightRun) -> None:
    """Open the saved candidate as its users will: in a fresh process, offline, without our code.

    The champion is opened beside it, for what a text takes there.
    """
    evidence = run.evidence
    written, frame = run.scored.golden, None if run.golden.path is None else run.golden.rows(["text"])
    if frame is None:
        written, frame = run.scored.written, run.snapshot.rows("test", ["text"])
    texts = frame["text"].astype(str).tolist()[:NUM_SERVED]
    models = {name: folder for name, folder in run.folders.items() if name != "anchor"}
    began = time.monotonic()
    served = serve(
        models,
        texts,
        {name: load_logits(written[name])[: len(texts)] for name in models},
        run.scored.max_length,
        run.pipeline.data.label_names,
    )
    log.info(LIFE, "serving", time.monotonic() - began, "")
    for name, found in served.items():
        log.info("%s in a fresh process: %s", name, found.flaw or f"{found.latency_ms:.1f} ms a text")
    champion = evidence.champion
    if champion is not None:
        champion = replace(champion, serving=served.get("champion"))
    run.evidence = replace(
        evidence,
        candidate=replace(evidence.candidate, serving=served["candidate"]),
        champion=champion,
        anchor=champion if evidence.anchored_by_champion else evidence.anchor,
    )


# --- sides ---


def _models(run: NightRun) -> dict[str, _Model]:
    """By side; an anchor that reigns is no side of its own."""
    line = line_of(run.db, run.home, run.pipeline.name, run.started_from, tonight=run.snapshot.path)
    found = {"candidate": _Model(run.trained.best_model, line)}
    for name, version in (("champion", run.champion), ("anchor", run.anchor)):
        if version is not None and not (name == "anchor" and _reigns(version, run)):
            found[name] = _of_version(run, version) if name == "champion" else _of_anchor(run, version)
    return found


def _reigns(version: VersionRow | None, run: NightRun) -> bool:
    return version is not None and run.champion is not None and version.version == run.champion.version


def _of_anchor(run: NightRun, version: VersionRow) -> _Model:
    """Without its files the night is held, and not lost: the champion can take its place."""
    try:
        return _of_version(run, version)
    except (ModelError, RegistryError) as error:
        log.warning("the anchor, version %d, cannot be used: %s", version.version, error.reason)
        line = line_of(run.db, run.home, run.pipeline.name, version.version)
        return _Model(run.home.absolute(version.path), line, version, f"cannot be used: {error.reason}")


def _of_version(run: NightRun, version: VersionRow) -> _Model:
    folder = version.folder(run.home)
    known, wanted = version_folder.verify_version(folder)["label_names"], run.pipeline.data.label_names
    flaw = ""
    if sorted(known) != sorted(wanted):
        flaw = (
            f"knows the labels {', '.join(known)} and the pipeline has {', '.join(wanted)}, "
            "so it cannot be scored on tonight's rows"
        )
    return _Model(folder, line_of(run.db, run.home, run.pipeline.name, version.version), version, flaw)


def _side(
    run: NightRun,
    name: str,
    model: _Model,
    frames: _Frames,
    seen: Mask | None,
    unknown_line: str,
    unlearned: Mask | None,
) -> Side:
    """What one side showed.

    Args:
        seen: rows of `frames.fingerprints()` that it was trained on; None where `unknown_line` says why.
        unlearned: golden rows that count.
    """
    version = model.version
    side = Side(
        predictions=None,
        data_until=version.data_until if version else run.data_until,
        chosen_at=version.valid_from if version and name == "champion" and version.promoting_run_id is None else None,
        version=version.version if version else None,
        flaw=model.flaw,
        trained_on=None if seen is None else seen[: len(frames.test)],
        unknown_line=unknown_line,
    )
    if model.flaw:
        return side
    logits = load_logits(run.scored.written[name])
    of_golden = None if unlearned is None else load_logits(run.scored.golden[name])[unlearned]
    broken = nonfinite_rows(logits) + (0 if of_golden is None else nonfinite_rows(of_golden))
    if version is not None and broken:
        # The candidate's are for the gate to fail; of another side they mean that it shows nothing.
        return replace(side, nonfinite_rows=broken, flaw=f"gives {broken:,} rows a logit that is NaN or infinite")
    return replace(
        side,
        predictions=logits.argmax(axis=1),
        golden=None if of_golden is None else of_golden.argmax(axis=1),
        calibration_error=calibration_error(logits, frames.test["label"].to_numpy(dtype=np.int64)),
        nonfinite_rows=broken,
    )


# --- golden rows ---


def _unlearned(frames: _Frames, seen: list[Mask]) -> Mask | None:
    """Golden rows that no side was trained on, shape [golden rows]; None where there are none at all."""
    if frames.golden is None:
        return None
    learned = np.zeros(len(frames.golden), dtype=np.bool_)
    for mask in seen:
        learned |= mask[len(frames.test) :]
    return ~learned


def _golden_note(run: NightRun, frames: _Frames, golden: pd.DataFrame | None) -> str:
    left_out = 0 if frames.golden is None or golden is None else len(frames.golden) - len(golden)
    told = f"{left_out:,} golden rows that a side was trained on are left out" if left_out else ""
    return "; ".join(part for part in (run.golden.note, told) if part)


# --- rows ---


def _rows(run: NightRun, frame: pd.DataFrame) -> Rows:
    """Rows with the columns of a snapshot, as the gate takes them."""
    fingerprints = frame["fingerprint"].astype(str).tolist()
    if "time" in frame:
        naive = frame["time"].dt.tz_convert("UTC").dt.tz_localize(None)
        seen_at = naive.astype("datetime64[us]").astype("int64").to_numpy()
    else:
        seen_at = evidence_store.first_seen(run.db, run.pipeline.name, fingerprints, run.data_until)
    slices = [str(column) for column in frame.columns if str(column).startswith("slice_")]
    return Rows(
        true=frame["label"].to_numpy(dtype=np.int64),
        seen_at=seen_at,
        fingerprints=tuple(fingerprints),
        groups=group_numbers(frame["group"].tolist()) if "group" in frame else None,
        slices=tuple(_slice(column.removeprefix("slice_"), frame[column]) for column in slices),
    )


def _slice(name: str, column: pd.Series[str]) -> Slice:
    codes, values = pd.factorize(column.astype(str), sort=True)
    return Slice(name, tuple(map(str, values)), codes.astype(np.int64))
