"""Logits from the cache are those of the model, row by row, and a stored one that is wrong is found and replaced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from nightgate import cache_files, prediction_cache
from nightgate.calibration import nonfinite_rows
from nightgate.gate.evidence import Reuse
from nightgate.golden import golden_rows
from nightgate.jobs import ScoreJob, ScoreResult
from nightgate.prediction_cache import PredictionCache, Scored
from nightgate.scoring import score_models
from nightgate.snapshots import open_snapshot, write_snapshot
from tests.tiny import tiny_job
from tests.trained import write_trained_model

LABELS = ("bad", "middling", "good")


class CountingModel:
    """Logits that only depend on the text, and how many rows each call asked for."""

    def __init__(self, texts: list[str], drift: float = 0.0) -> None:
        self.texts, self.drift, self.asked = texts, drift, list[int]()

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked.append(len(rows))
        assert len(set(rows.tolist())) == len(rows)
        return self.all_logits()[rows]

    def all_logits(self) -> NDArray[np.float32]:
        lengths = np.array([len(text) for text in self.texts], np.float32).reshape(-1, 1)
        return np.hstack([lengths, lengths % 7, -lengths]).astype(np.float32) + np.float32(self.drift)


def texts(start: int, stop: int) -> list[str]:
    return [f"{number} " + "word " * (number % 9) for number in range(start, stop)]


@pytest.fixture
def cache(tmp_path: Path) -> PredictionCache:
    found = PredictionCache(tmp_path, "small", "a" * 64)
    found.keep(texts(0, 1000), CountingModel(texts(0, 1000)).all_logits())
    return found


def test_only_new_rows_and_a_hundredth_of_the_known_ones_are_computed(cache: PredictionCache) -> None:
    model = CountingModel([*texts(100, 1100), *texts(100, 110)][::-1])
    logits, reuse = cache.complete(model.texts, model)
    assert (logits == model.all_logits()).all()
    assert reuse == Reuse(rows=1010, reused=910, recomputed=10)
    assert model.asked == [100 + 10]
    cache.keep(model.texts, logits)
    few = CountingModel(texts(100, 120))
    assert cache.complete(few.texts, few)[1] == Reuse(rows=20, reused=20, recomputed=8)
    three = CountingModel(texts(100, 103))
    assert cache.complete(three.texts, three)[1] == Reuse(rows=3, reused=3, recomputed=3)
    # Only the rows of the last time are kept.
    gone = CountingModel(texts(0, 50))
    assert cache.complete(gone.texts, gone)[1] == Reuse(rows=50)


def test_each_night_looks_at_other_rows(cache: PredictionCache) -> None:
    seen = []

    def compute(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append(tuple(rows))
        return CountingModel(texts(0, 1000)).all_logits()[rows]

    for _ in range(3):
        cache.complete(texts(0, 1000), compute)
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("drift", "differs"), [(0.0, False), (0.9e-4, False), (1.5e-4, True), (np.nan, True), (np.inf, True)]
)
def test_one_recomputed_row_that_differs_makes_all_rows_computed(
    cache: PredictionCache, drift: float, differs: bool
) -> None:
    model = CountingModel(texts(0, 1000), drift)
    logits, reuse = cache.complete(model.texts, model)
    if not differs:
        assert reuse == Reuse(rows=1000, reused=1000, recomputed=10)
        return
    assert reuse == Reuse(rows=1000, recomputed=10, differing=10)
    assert model.asked == [10, 1000]
    assert np.array_equal(logits, model.all_logits(), equal_nan=True)
    assert not cache.path.exists()


def test_another_label_is_a_difference_however_close_the_logits() -> None:
    stored = np.array([[0.5, 0.50001, 0.0]], np.float32)
    assert prediction_cache._differing(stored, stored[:, [1, 0, 2]]) == 1
    assert prediction_cache._differing(stored, stored + np.float32(1e-5)) == 0


def test_logits_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path, "small", "b" * 64)
    cache.keep(["a", "b"], np.array([[0, 1], [np.nan, 0]], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_the_six_models_that_were_scored_last_are_kept(tmp_path: Path) -> None:
    caches = [PredictionCache(tmp_path, "small", str(number) * 64) for number in range(8)]
    for cache in caches:
        cache.keep(["a"], np.zeros((1, 2), np.float32))
    assert [cache.path.exists() for cache in caches] == [False] * 2 + [True] * 6


def test_whatever_decides_a_logit_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    scored = Scored(tmp_path, "tokenizer", 32, LABELS, "cpu")
    before = scored.key()
    copied = shutil.copytree(tmp_path, tmp_path / "promoted")
    assert replace(scored, folder=copied).key() == before
    others = [
        replace(scored, tokenizer="another"),
        replace(scored, max_length=64),
        replace(scored, label_names=LABELS[::-1]),
        replace(scored, device="a GPU"),
        replace(scored, precision="bf16"),
    ]
    keys = {other.key() for other in others}
    (copied / "model.safetensors").write_bytes(b"other weights")
    keys.add(replace(scored, folder=copied).key())
    (copied / "model.safetensors").write_bytes(b"weights")
    (copied / "config.json").write_text('{"other": 1}')
    keys.add(replace(scored, folder=copied).key())
    monkeypatch.setattr(prediction_cache, "ENGINE_VERSION", 0)
    keys.add(scored.key())
    assert len(keys | {before}) == 9


# --- with a model ---


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ScoreJob:
    """The candidate of a first night; its files are not yet written."""
    folder = tmp_path_factory.mktemp("scored")
    trained = tiny_job(folder, rows=300)
    best = write_trained_model(folder / "trained", LABELS, sharpness=3)
    return ScoreJob(
        trained.pipeline, trained.snapshot, {"candidate": best}, folder / "out", "validation", folder / "cache"
    )


def scored(job: ScoreJob) -> tuple[ScoreResult, dict[str, NDArray[np.float32]]]:
    result = score_models(job, lambda _: None)
    return result, {name: np.load(path)["logits"] for name, path in result.written.items()}


def test_the_champion_of_the_next_night_is_scored_on_new_rows_only(job: ScoreJob, tmp_path: Path) -> None:
    first, before = scored(job)
    assert (first.reused, first.recomputed, first.differing) == ({"candidate": 0}, {"candidate": 0}, {"candidate": 0})
    best = job.models["candidate"]
    promoted = shutil.copytree(best, tmp_path / "v0001")
    other = write_trained_model(tmp_path / "other", LABELS, sharpness=2)
    tonight = replace(job, models={"candidate": other, "champion": promoted}, out=tmp_path / "out")
    second, after = scored(tonight)
    rows = len(before["candidate"])
    assert second.reused == {"candidate": 0, "champion": rows}
    assert second.recomputed == {"candidate": 0, "champion": 8}
    assert second.differing == {"candidate": 0, "champion": 0}
    assert np.abs(after["champion"] - before["candidate"]).max() < 1e-5
    fresh, without = scored(replace(tonight, cache=None, out=tmp_path / "without"))
    assert fresh.reused == {"candidate": 0, "champion": 0}
    assert np.abs(without["champion"] - after["champion"]).max() < 1e-5
    assert (without["champion"].argmax(axis=1) == after["champion"].argmax(axis=1)).all()


def test_the_anchor_is_scored_on_new_rows_only_as_the_champion_is(job: ScoreJob, tmp_path: Path) -> None:
    scored(job)
    anchor = shutil.copytree(job.models["candidate"], tmp_path / "v0001")
    found, _ = scored(replace(job, models={**job.models, "anchor": anchor}, out=tmp_path / "out"))
    assert found.reused == {"candidate": 0, "anchor": found.rows}


def test_golden_rows_are_scored_with_the_others_and_each_text_once(job: ScoreJob, tmp_path: Path) -> None:
    golden = golden_of(job, tmp_path / "golden")
    result, logits = scored(replace(job, golden=golden, out=tmp_path / "out"))
    rows = open_snapshot(job.snapshot).rows("validation")
    assert result.rows == len(rows) + 8, "5 of the 13 golden rows are validation rows"
    assert result.golden == {"candidate": tmp_path / "out" / "candidate.golden.npz"}
    with np.load(result.golden["candidate"]) as stored:
        assert (stored["logits"].shape, stored["logits"].dtype) == ((13, 3), np.float32)
        kept = golden_rows(golden, LABELS)
        assert stored["labels"].tolist() == kept["label"].tolist()
        by_text = dict(zip(kept["text"], stored["logits"], strict=True))
    both = [row for row, text in enumerate(rows["text"]) if text in by_text]
    assert len(both) == 5
    assert all((logits["candidate"][row] == by_text[rows["text"][row]]).all() for row in both)
    alone, _ = scored(replace(job, golden=None, cache=None, out=tmp_path / "alone"))
    assert (alone.golden, alone.rows, alone.max_length) == ({}, len(rows), {"candidate": 32})


def golden_of(job: ScoreJob, folder: Path) -> Path:
    """5 validation rows and 8 training rows."""
    snapshot = open_snapshot(job.snapshot)
    rows = pd.concat([snapshot.rows("validation").head(5), snapshot.rows("train").head(8)]).sort_values("fingerprint")
    facts = {"label_names": list(LABELS)}
    return write_snapshot(folder, rows.assign(split="test").reset_index(drop=True), {}, facts).path


def test_logits_that_are_not_finite_are_evidence_and_no_error(job: ScoreJob, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(job.models["candidate"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.bias"] = np.float32([np.nan, 0, np.inf])
    (broken / "model.safetensors").unlink()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    models = {"candidate": broken, "champion": broken}
    for cache in (None, tmp_path / "cache"):
        result, logits = scored(replace(job, models=models, cache=cache, out=tmp_path / "out"))
        assert result.reused == {"candidate": 0, "champion": 0}
        for found in logits.values():
            assert nonfinite_rows(found) == len(found) == result.rows
            assert np.isfinite(found[:, 1]).all()


def test_stored_logits_that_are_wrong_are_found_dropped_and_replaced(job: ScoreJob, tmp_path: Path) -> None:
    job = replace(job, models={"champion": job.models["candidate"]}, cache=tmp_path / "cache", out=tmp_path / "out")
    _, right = scored(job)
    [path] = (tmp_path / "cache" / "predictions" / "tiny").iterdir()
    arrays = cache_files.read(path, {"keys", "logits"})
    assert arrays is not None
    cache_files.write(path, {**arrays, "logits": arrays["logits"] + np.float32(0.01)})
    found, logits = scored(job)
    assert (found.reused, found.recomputed, found.differing) == ({"champion": 0}, {"champion": 8}, {"champion": 8})
    assert np.abs(logits["champion"] - right["champion"]).max() < 1e-5
    again, _ = scored(job)
    assert again.reused == {"champion": len(right["champion"])}
