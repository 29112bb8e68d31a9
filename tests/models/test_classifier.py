"""Predictions of a version are those of plain transformers on texts normalised as in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nightgate.errors import DataError
from nightgate.models.classifier import Classifier
from nightgate.models.version_folder import Staging
from nightgate.pipeline_files import check_pipeline
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

LABELS = ("bad", "fine", "good")
PIPELINE = check_pipeline(
    {"name": "reviews", "data": {"source": {"kind": "sample"}, "labels": list(LABELS)}, "training": {"max_length": 16}},
    "test",
)
FACTS = {"pipeline": "reviews", "label_names": list(LABELS), "configuration": PIPELINE.record()}
TEXTS = ["good shoes", "bad", "the lamp broke and it was never good but we love the colour of it " * 5, "fine pan"]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version")
    best = write_trained_model(folder, LABELS, max_length=16, sharpness=10)
    return Staging(folder / "models", best, LABELS).place(1, "card", FACTS)


@pytest.fixture(scope="module")
def classifier(version: Path) -> Classifier:
    return Classifier.open(version, device="cpu")


def test_predictions_are_those_of_plain_transformers_at_the_configured_length(
    classifier: Classifier, version: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(version).eval()
    tokenizer = AutoTokenizer.from_pretrained(version)
    batch = tokenizer(TEXTS, truncation=True, max_length=16, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 16
    with torch.inference_mode():
        expected = model(**batch).logits.softmax(dim=-1).numpy()
    found = classifier.predict(TEXTS)
    assert np.allclose([list(one.probabilities.values()) for one in found], expected, atol=1e-6)
    assert [one.label for one in found] == [LABELS[k] for k in expected.argmax(axis=1)]


def test_a_prediction_has_the_probability_of_every_label(classifier: Classifier) -> None:
    [found] = classifier.predict(["good shoes"])
    assert tuple(found.probabilities) == LABELS
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probability == max(found.probabilities.values()) == found.probabilities[found.label]


def test_the_precision_can_be_chosen(classifier: Classifier, version: Path) -> None:
    half = Classifier.open(version, device="cpu", precision="bf16")
    for texts in (TEXTS, TEXTS * 30):
        apart = abs(half.logits(texts) - classifier.logits(texts)).max()
        assert 1e-5 < apart < 0.05 * abs(classifier.logits(texts)).max()
    assert (half.precision, classifier.precision) == ("bf16", "fp32")
    with pytest.raises(DataError, match="bf17"):
        Classifier.open(version, precision="bf17")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_neither_order_nor_batch_size_changes_a_prediction(classifier: Classifier, batch_size: int) -> None:
    one_by_one = [classifier.predict([text])[0] for text in TEXTS]
    together = classifier.predict(TEXTS, batch_size=batch_size)
    for alone, batched in zip(one_by_one, together, strict=True):
        assert batched.label == alone.label
        assert batched.probability == pytest.approx(alone.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("plain", "raw"),
    [("good & cheap", "  good&nbsp;&amp; <br/>cheap\n"), ("good shoes", ("good", " shoes ", ""))],
)
def test_texts_are_normalised_and_joined_as_in_training(
    classifier: Classifier, plain: str, raw: str | tuple[str, ...]
) -> None:
    expected, found = classifier.predict([plain, raw])
    assert list(found.probabilities.values()) == pytest.approx(list(expected.probabilities.values()), abs=1e-6)


def test_no_texts_give_no_predictions(classifier: Classifier) -> None:
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ("good", "list"),
        (["good", ""], "text 1"),
        (["  \n"], "text 0"),
        (["good", None], "text 1"),
        ([float("nan")], "text 0"),
        ([3], "text 0"),
        ([["good", None]], "text 0"),
    ],
)
def test_the_error_for_an_invalid_text_names_its_position(classifier: Classifier, texts: list[str], named: str) -> None:
    with pytest.raises(DataError, match=named):
        classifier.predict(texts)


def test_a_batch_size_below_one_is_an_error(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="batch_size is 0"):
        classifier.predict(["good"], batch_size=0)


def test_a_classifier_has_pipeline_version_labels_and_length(classifier: Classifier, version: Path) -> None:
    assert repr(classifier) == "<Classifier reviews version 1 on cpu in fp32>"
    assert (classifier.pipeline, classifier.version, classifier.path) == ("reviews", 1, version)
    assert classifier.label_names == LABELS
    assert classifier.max_length == 16


def test_loading_keeps_the_transformers_settings_of_the_caller(version: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        Classifier.open(version, device="cpu")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()
