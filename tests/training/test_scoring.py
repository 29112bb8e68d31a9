"""Scoring of models on test and golden rows, and of models whose logits are not finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from nightgate.data.golden_rows import golden_rows
from nightgate.data.snapshots import open_snapshot, write_snapshot
from nightgate.engine import devices
from nightgate.errors import ModelError
from nightgate.metrics.calibration import nonfinite_rows
from nightgate.models.serving_check import serve
from nightgate.training.protocol import Progress, ScoreJob, ScoreResult
from nightgate.training.scoring import score_models
from tests.support.tiny import tiny_job
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

LABELS = ("bad", "middling", "good")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ScoreJob:
    folder = tmp_path_factory.mktemp("scored")
    trained = tiny_job(folder, rows=300)
    best = write_trained_model(folder / "trained", LABELS, sharpness=3)
    return ScoreJob(trained.pipeline, trained.snapshot, {"candidate": best}, folder / "out", "validation")


def scored(
    job: ScoreJob, on_progress: Callable[[Progress], None] = lambda _: None
) -> tuple[ScoreResult, dict[str, NDArray[np.float32]]]:
    result = score_models(job, on_progress)
    return result, {name: np.load(path)["logits"] for name, path in result.written.items()}


def test_golden_rows_are_scored_too_and_each_text_once(job: ScoreJob, tmp_path: Path) -> None:
    golden = golden_of(job, tmp_path / "golden")
    seen: list[Progress] = []
    result, logits = scored(replace(job, golden=golden, out=tmp_path / "out"), seen.append)
    rows = open_snapshot(job.snapshot).rows("validation")
    assert (seen[-1].phase, seen[-1].done) == ("evaluate", len(rows) + 8), "5 of the 13 golden rows are validation rows"
    assert result.golden == {"candidate": tmp_path / "out" / "candidate.golden.npz"}
    with np.load(result.golden["candidate"]) as stored:
        assert (stored["logits"].shape, stored["logits"].dtype) == ((13, 3), np.float32)
        kept = golden_rows(golden, LABELS)
        assert stored["labels"].tolist() == kept["label"].tolist()
        by_text = dict(zip(kept["text"], stored["logits"], strict=True))
    both = [row for row, text in enumerate(rows["text"]) if text in by_text]
    assert len(both) == 5
    assert all((logits["candidate"][row] == by_text[rows["text"][row]]).all() for row in both)
    alone, _ = scored(replace(job, golden=None, out=tmp_path / "alone"))
    assert (alone.golden, alone.max_length) == ({}, {"candidate": 32})


def in_precision(job: ScoreJob, precision: str, out: Path) -> ScoreJob:
    pipeline = job.pipeline | {"training": job.pipeline["training"] | {"precision": precision}}
    return replace(job, pipeline=pipeline, out=out, serve=8)


def test_what_is_scored_in_bf16_is_served_by_plain_transformers_in_fp32(job: ScoreJob, tmp_path: Path) -> None:
    _, exact = scored(in_precision(job, "fp32", tmp_path / "fp32"))
    half, rounded = scored(in_precision(job, "bf16", tmp_path / "bf16"))
    assert half.precision == "bf16"
    apart = np.abs(rounded["candidate"] - exact["candidate"]).max()
    assert 1e-4 < apart < 0.05 * np.abs(exact["candidate"]).max()
    texts = open_snapshot(job.snapshot).rows("validation")["text"].tolist()[:8]
    expected = {"candidate": np.load(half.serve["candidate"])["logits"]}
    served = serve(job.models, texts, expected, half.max_length, LABELS)["candidate"]
    assert (served.flaw, served.rows, served.flipped) == ("", 8, 0)
    assert served.logit_difference is not None
    assert served.logit_difference < 1e-4


def test_all_models_of_a_job_have_the_precision_of_the_one_that_needs_most(job: ScoreJob, tmp_path: Path) -> None:
    """On a CPU with native bf16 the wide model alone is scored in it; elsewhere both are in fp32 anyway."""
    wide = write_trained_model(tmp_path / "wide", LABELS, hidden_size=devices.LEAST_WIDTH)
    precision = devices.pick("auto").precision
    for models, expected in (({"champion": wide}, precision), ({"champion": wide, **job.models}, "fp32")):
        result, _ = scored(replace(in_precision(job, "auto", tmp_path / "out"), models=models))
        assert result.precision == expected
    _, logits = scored(replace(in_precision(job, "fp32", tmp_path / "fp32"), models={"champion": wide}))
    assert (np.load(result.written["champion"])["logits"] == logits["champion"]).all()


def golden_of(job: ScoreJob, folder: Path) -> Path:
    """5 validation rows and 8 training rows."""
    snapshot = open_snapshot(job.snapshot)
    rows = pd.concat([snapshot.rows("validation").head(5), snapshot.rows("train").head(8)]).sort_values("fingerprint")
    facts = {"label_names": list(LABELS)}
    return write_snapshot(folder, rows.assign(split="test").reset_index(drop=True), {}, facts).path


def test_logits_that_are_not_finite_are_written_and_no_error(job: ScoreJob, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(job.models["candidate"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.bias"] = np.float32([np.nan, 0, np.inf])
    (broken / "model.safetensors").unlink()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    _, logits = scored(replace(job, models={"candidate": broken, "champion": broken}, out=tmp_path / "out"))
    num_rows = len(open_snapshot(job.snapshot).rows("validation"))
    for found in logits.values():
        assert nonfinite_rows(found) == len(found) == num_rows
        assert np.isfinite(found[:, 1]).all()


def test_a_model_with_other_labels_is_not_scored(job: ScoreJob, tmp_path: Path) -> None:
    other = shutil.copytree(job.models["candidate"], tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings |= {"id2label": {"0": "good", "1": "bad", "2": "ugly"}, "label2id": {"good": 0, "bad": 1, "ugly": 2}}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"\['good', 'bad', 'ugly'\]"):
        scored(replace(job, models={**job.models, "champion": other}, out=tmp_path / "out"))
