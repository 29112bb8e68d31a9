"""The published run's pipeline file as it ships, from refresh to promoted, on local files in the place of the hub's."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sqlalchemy import create_engine

from nightgate.analysis.comparison import compare
from nightgate.database.transactions import Database
from nightgate.engine.base_models import load_classifier
from nightgate.home import open_home
from nightgate.registry.champions import resolve_version
from nightgate.reports.facts import gather
from tests.support.night import nightgate
from tests.support.seed_model import SPARE_ROWS, TOKENS, write_seed_model

pytestmark = pytest.mark.process

TRAINED, EPOCHS, BATCH = 2000, 5, 16
STEPS = TRAINED // BATCH
ROWS = {"train": 2400, "validation": 400, "test": 500}
TONES = (
    "terrible awful broken useless",
    "poor weak disappointing flimsy",
    "average acceptable fine ordinary",
    "good solid pleasant reliable",
    "excellent perfect wonderful superb",
)
WORDS = "the a kettle lamp coat bag with in my house for two weeks it is and was when we bought from shop colour box"
TRUE = 0.63
"""Share of texts whose words are those of their star; the others' star is drawn."""


@pytest.mark.slow
def test_the_published_pipeline_promotes_its_first_candidate(tmp_path: Path, environment: Path) -> None:
    began = datetime.now(UTC)
    files = write_reviews(tmp_path / "reviews")
    base = write_base_model(tmp_path / "base", files["train"])
    stand_ins = {f"data.source.data_files.{split}": path for split, path in files.items()}
    settings = {**stand_ins, "training.base_model": base, "training.max_train_rows": TRAINED}
    done = nightgate(
        "run",
        "amazon-reviews-multi",
        "--night",
        "2026-01-05",
        "--no-prefect",
        *(f"--set={name}={value}" for name, value in settings.items()),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr

    night = table(environment, "nights").iloc[0]
    assert night["status"] == "promoted", night["reason"]
    assert night["test_f1"] > 0.54
    assert (night["engine"], night["micro_batches"]) == ("packed", 1)
    counted = table(environment, "snapshots").iloc[0]
    assert [counted[f"rows_{split}"] for split in ROWS] == list(ROWS.values())
    assert counted["rows_quarantined"] == 0
    check_epochs(table(environment, "epoch_results").sort_values("epoch"))
    folder = environment / "models" / "amazon-reviews-multi" / "v0001"
    check_version(folder, files["test"], night["test_accuracy"])
    # The rows have no time: this night of January reads them as they are on the day of the test.
    assert "data.time" in done.stderr
    assert datetime.fromisoformat(night["data_until"]) > began
    check_facts(environment, night, folder)


def check_facts(home: Path, night: pd.Series[Any], folder: Path) -> None:
    """Rows trained on, the data limit and the average have one value wherever they stand."""
    manifest = json.loads((folder / "nightgate.json").read_text())
    card = (folder / "README.md").read_text()
    facts = gather(open_home(home), night["run_id"], snapshots=False)
    version = table(home, "model_versions").iloc[0]
    with Database.open(open_home(home)) as db:
        row = resolve_version(db, "amazon-reviews-multi", 1)
        compared = {section.name: section for section in compare(db, row, row).sections}
    data = {pair.name: pair.first for pair in compared["data"].pairs}
    own = {pair.name: pair.first for pair in compared["own_nights"].pairs}

    trained = [night["rows_trained"], version["rows_trained"], facts.run["rows_trained"], data["rows_trained"]]
    assert [*trained, manifest["rows_trained"]] == [TRAINED] * 5
    assert f"Rows trained on: {TRAINED:,}" in card

    until = datetime.fromisoformat(night["data_until"])
    assert [datetime.fromisoformat(one) for one in (version["data_until"], manifest["snapshot"]["data_until"])] == [
        until,
        until,
    ]
    assert facts.run["data_until"] == data["data_until"] == until
    assert until.isoformat() in card

    averages = [night["average"], version["average"], facts.run["average"], own["average"]]
    assert [*averages, manifest["metrics"]["average"]] == ["weighted"] * 5
    assert f"F1 (weighted): {night['test_f1']:.4f}" in card
    assert own["test_f1"] == night["test_f1"] == version["test_f1"] == manifest["metrics"]["test"]["f1"]


def check_epochs(epochs: pd.DataFrame) -> None:
    """The published table: a row an epoch, steps of 16 rows, a learning rate that falls linearly to 0."""
    published = ["training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall"]
    assert not epochs[published].isna().any(axis=None)
    assert epochs["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert epochs["step"].tolist() == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    # The rate of an epoch's last step: the schedule counts steps from 0.
    expected = [5e-5 * (1 - (step - 1) / (STEPS * EPOCHS)) for step in epochs["step"]]
    assert epochs["learning_rate"].tolist() == pytest.approx(expected)
    assert epochs["training_loss"].is_monotonic_decreasing


def check_version(folder: Path, test: Path, accuracy: float) -> None:
    """Plain transformers opens the champion, with all rows of its base model's vocabulary, and gives its labels."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder))
    assert classify.model.config.vocab_size == TOKENS + SPARE_ROWS
    assert (classify.tokenizer.pad_token_id, classify.model.config.pad_token_id) == (1, 0)
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    found = classify([row["text"] for row in rows], batch_size=32)
    right = [answer["label"] == str(row["label"] + 1) for answer, row in zip(found, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracy)


def table(home: Path, view: str) -> pd.DataFrame:
    engine = create_engine(f"sqlite:///{home / 'metrics.db'}")
    try:
        return pd.read_sql(f"SELECT * FROM {view}", engine)
    finally:
        engine.dispose()


def write_reviews(folder: Path) -> dict[str, Path]:
    """JSON lines of the form that the pipeline file reads: labels that count from 0, sorted by star."""
    rng, files = random.Random(1), {}
    folder.mkdir()
    for split, count in ROWS.items():
        rows: list[dict[str, Any]] = []
        for number in range(count):
            star = rng.randrange(5)
            words = TONES[star if rng.random() < TRUE else rng.randrange(5)].split()
            body = rng.sample([*rng.choices(WORDS.split(), k=rng.randint(8, 24)), *rng.choices(words, k=2)], k=10)
            text = f"{rng.choice(words)}\n\n{' '.join(body)}"
            rows.append({"id": f"en_{split}_{number:07d}", "text": text, "label": star, "label_text": str(star)})
        rows.sort(key=lambda row: int(row["label"]))
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def write_base_model(folder: Path, reviews: Path) -> Path:
    """A base model of the published form whose body has met the words of `reviews`, as pre-training would have it.

    At the recipe's learning rate of 5e-5 a random body learns nothing in so few steps.
    """
    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    random.Random(2).shuffle(rows)
    write_seed_model(folder, [row["text"] for row in rows], hidden_size=128, initializer_range=0.02)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loaded = load_classifier(folder, ["1", "2", "3", "4", "5"], named="the base model", max_length=128, dropout=0.0)
        optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-3)
        for start in range(0, len(rows), 16):
            batch = rows[start : start + 16]
            inputs = loaded.tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
            loaded.model(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    # The file is mapped into memory: it is replaced, not written over.
    weights = folder / "pytorch_model.bin"
    torch.save(loaded.model.bert.state_dict(), weights.with_suffix(".new"))
    weights.with_suffix(".new").rename(weights)
    return folder
