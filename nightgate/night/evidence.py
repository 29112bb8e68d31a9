"""Gather the gate's evidence from the files and rows that the steps of a night left."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nightgate.analysis import seed_study
from nightgate.data.snapshots import Snapshot, version_of
from nightgate.gate.evidence import Evidence, Mask, Rows, Side, Slice
from nightgate.metrics.bootstrap import group_numbers
from nightgate.metrics.calibration import calibration_error, nonfinite_rows
from nightgate.night.run import NightRun
from nightgate.night.values import Model, Scored, Served, Trained
from nightgate.registry.leakage import RowKeys, keys_of, line_of, trained_on
from nightgate.runs import evidence_store
from nightgate.training.predictions import load_logits


@dataclass(frozen=True)
class _Frames:
    """The rows that all sides were scored on, with the columns of a snapshot."""

    test: pd.DataFrame
    golden: pd.DataFrame | None

    def all(self) -> pd.DataFrame:
        """The test rows, then the golden rows."""
        return self.test if self.golden is None else pd.concat([self.test, self.golden], ignore_index=True)


def gather_evidence(run: NightRun, snapshot: Snapshot, trained: Trained, scored: Scored, served: Served) -> Evidence:
    """Predictions, and which rows each side was trained on. Golden rows that any side was trained on are left out."""
    frames = _Frames(snapshot.rows("test"), None if scored.golden.path is None else scored.golden.rows())
    keys = keys_of(snapshot.path.parent, frames.all())
    seen = {name: _seen(run, snapshot, trained, model, keys) for name, model in scored.models.items()}
    untrained = _untrained(frames, [mask for mask, _ in seen.values() if mask is not None])
    sides = {name: _side(run, name, scored, frames, *seen[name], untrained) for name in scored.models}
    candidate, champion = replace(sides["candidate"], serving=served.candidate), sides.get("champion")
    if champion is not None:
        champion = replace(champion, serving=served.champion)
    is_anchor = scored.anchor is not None and "anchor" not in sides
    golden = frames.golden if frames.golden is None or untrained is None else frames.golden[untrained]
    return Evidence(
        label_names=run.pipeline.data.label_names,
        test_version=version_of(snapshot, run.pipeline),
        data_until=run.data_until,
        test=_rows(run, frames.test),
        candidate=candidate,
        champion=champion,
        anchor=champion if is_anchor else sides.get("anchor"),
        golden=None if golden is None or golden.empty else _rows(run, golden),
        champion_nights=(run.night.date - scored.champion.night).days if scored.champion else None,
        seed_spread=seed_study.newest_spread(run.db, run.pipeline),
        seed_average=run.pipeline.gate.average,
        golden_note=_golden_note(scored.golden.note, frames, golden),
        precision=scored.result.precision,
    )


def _seen(run: NightRun, snapshot: Snapshot, trained: Trained, model: Model, keys: RowKeys) -> tuple[Mask | None, str]:
    """Which rows the side was trained on; None, and why, where that is unknown."""
    if model.version is None:
        line = line_of(run.db, run.home, run.pipeline.name, trained.started_from, tonight=snapshot)
    else:
        line = line_of(run.db, run.home, run.pipeline.name, model.version.version)
    return trained_on(line, keys)


def _side(
    run: NightRun,
    name: str,
    scored: Scored,
    frames: _Frames,
    seen: Mask | None,
    unknown_line: str,
    untrained: Mask | None,
) -> Side:
    """One side's results.

    Args:
        seen: rows of `frames.all()` that it was trained on; None where `unknown_line` says why.
        untrained: golden rows that count.
    """
    model = scored.models[name]
    version = model.version
    side = Side(
        predictions=None,
        data_until=version.data_until if version else run.data_until,
        version=version.version if version else None,
        flaw=model.flaw,
        relabelled=model.relabelled,
        trained_on=None if seen is None else seen[: len(frames.test)],
        unknown_line=unknown_line,
    )
    if model.flaw:
        return side
    logits = load_logits(scored.result.written[name])
    on_golden = None if untrained is None else load_logits(scored.result.golden[name])[untrained]
    broken = nonfinite_rows(logits) + (0 if on_golden is None else nonfinite_rows(on_golden))
    if version is not None and broken:
        # The candidate's are for the gate to fail; of another side they leave nothing to compare with.
        return replace(side, nonfinite_rows=broken, flaw=f"gives {broken:,} rows a logit that is NaN or infinite")
    return replace(
        side,
        predictions=logits.argmax(axis=1),
        golden=None if on_golden is None else on_golden.argmax(axis=1),
        calibration_error=calibration_error(logits, frames.test["label"].to_numpy(dtype=np.int64)),
        nonfinite_rows=broken,
    )


def _untrained(frames: _Frames, seen: list[Mask]) -> Mask | None:
    """Golden rows that no side was trained on, shape [golden rows]; None where there are none at all."""
    if frames.golden is None:
        return None
    learned = np.zeros(len(frames.golden), dtype=np.bool_)
    for mask in seen:
        learned |= mask[len(frames.test) :]
    return ~learned


def _golden_note(note: str, frames: _Frames, golden: pd.DataFrame | None) -> str:
    left_out = 0 if frames.golden is None or golden is None else len(frames.golden) - len(golden)
    count = f"{left_out:,} golden rows that a side was trained on are left out" if left_out else ""
    return "; ".join(part for part in (note, count) if part)


def _rows(run: NightRun, frame: pd.DataFrame) -> Rows:
    """Rows of a snapshot in the gate's form."""
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
