"""An ONNX export gives the logits of the original version, or is not written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nightgate.data.snapshots import write_snapshot
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, ModelError
from nightgate.home import Home
from nightgate.registry import onnx_export
from nightgate.registry.versions import versions
from tests.support import night_rows
from tests.support.handed_over import LABELS, write_version
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process


@dataclass(frozen=True)
class Exported:
    version: Path
    folder: Path
    parity: onnx_export.Parity


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One export for all tests: it takes seconds even for a tiny model."""
    folder = tmp_path_factory.mktemp("onnx")
    version = write_version(folder / "home", write_trained_model(folder, LABELS, sharpness=20))
    target = folder / "out" / "reviews"
    return Exported(version, target, onnx_export.export_onnx(version, target))


def test_the_graph_takes_any_texts_and_gives_the_logits_of_the_original(exported: Exported) -> None:
    import onnxruntime
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    parity = exported.parity
    assert parity.flipped == 0
    assert 0 <= parity.max_logit_difference < 1e-4
    stored = json.loads((exported.folder / "parity.json").read_text())
    assert stored["texts"] == parity.texts == len(onnx_export.TEXTS)
    # As a user would, with batch and length that the check does not use.
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    inputs = tokenizer(["fine"] * 7, padding="max_length", max_length=11, truncation=True, return_tensors="pt")
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    with torch.inference_mode():
        wanted = AutoModelForSequenceClassification.from_pretrained(exported.version)(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_a_folder_whose_name_is_not_utf8_is_refused(exported: Exported, tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"re\xffviews")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        onnx_export.export_onnx(exported.version, target)
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_logits_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def writes_another_model(_model: Any, _inputs: Any, path: Path, **_options: Any) -> None:
        for file in exported.folder.glob("model.onnx*"):
            shutil.copy(file, path.with_name(file.name))

    monkeypatch.setattr(torch.onnx, "export", writes_another_model)
    version = write_version(tmp_path / "home", write_trained_model(tmp_path / "trained", LABELS, sharpness=1))
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="5 texts"):
        onnx_export.export_onnx(version, out / "reviews")
    assert list(out.iterdir()) == []


def test_an_error_of_the_exporter_is_a_model_error_with_its_first_line(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("no ONNX function for aten::new_thing\nand a long tale")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ModelError, match="no ONNX function for aten::new_thing"):
        onnx_export.export_onnx(exported.version, tmp_path / "reviews")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        onnx_export.export_onnx(exported.version, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["mine.txt/onnx", "long" * 100])
def test_a_folder_that_cannot_be_is_an_error_in_words(exported: Exported, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="cannot write"):
        onnx_export.export_onnx(exported.version, tmp_path / name)


def test_without_the_extra_the_error_names_the_command_that_installs_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigurationError, match="no_such_package") as caught:
        onnx_export.export_onnx(exported.version, tmp_path / "reviews")
    assert caught.value.next_step == "pip install 'nightgate[onnx]'"


def test_every_text_is_in_one_batch_and_sizes_vary() -> None:
    texts = [str(number) for number in range(30)]
    batches = list(onnx_export._batches(texts))
    assert [text for batch in batches for text in batch] == texts
    assert {len(batch) for batch in batches} >= {1, 2, 5, 16}


def test_parity_is_checked_on_the_test_rows_of_the_version_if_they_exist(database: Database, home: Home) -> None:
    night_rows.held_version(database)
    [row] = versions(database, "reviews")
    rows = pd.DataFrame(
        {"row_id": ["1", "2"], "fingerprint": ["a" * 32, "b" * 32], "text": ["fine", "seen"], "label": [0, 1]}
    ).assign(split=["test", "train"])
    snapshot = write_snapshot(home.snapshots / "reviews", rows, {}, {})
    own = replace(row, snapshot_id=snapshot.id)
    assert onnx_export.texts_for(home, own) == ["fine"]
    shutil.rmtree(snapshot.path)
    assert onnx_export.texts_for(home, own) == onnx_export.texts_for(home, row) == onnx_export.TEXTS
