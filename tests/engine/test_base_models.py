"""Base models of the published recipe's form, whose body and tokenizer are of different architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightgate.config.sources import SampleSource
from nightgate.engine.base_models import load_classifier, save_model
from nightgate.errors import ModelError
from nightgate.sources.sample import sample_reviews
from tests.support import reviews
from tests.support.seed_model import write_seed_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.process,
]

LABELS = ["1", "2", "3", "4", "5"]


@pytest.fixture(scope="module", params=["named", "unnamed"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT body with XLM-R's SentencePiece file and no tokenizer.json; config.json may not name the tokenizer."""
    texts = sample_reviews(SampleSource(kind="sample", rows_per_day=50, days=4), reviews.NIGHT.data_until)["text"]
    folder = write_seed_model(tmp_path_factory.mktemp("minilm"), map(str, texts))
    if request.param == "unnamed":
        config = json.loads((folder / "config.json").read_text())
        del config["tokenizer_class"]
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_bert_body_with_a_sentencepiece_tokenizer_reads_words_and_survives_saving(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    loaded = load_classifier(folder, LABELS, named="base_model 'minilm'", max_length=32)
    tokens = loaded.tokenizer("The battery died within a month.")["input_ids"]
    assert len(tokens) > 6
    assert loaded.tokenizer.unk_token_id not in tokens
    save_model(loaded, tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("The battery died within a month.")["input_ids"] == tokens


def test_a_tokenizer_without_its_files_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ModelError):
        load_classifier(tmp_path, LABELS, named="base_model 'minilm'", max_length=32)
