"""The model card of a version: README.md with front matter for the Hugging Face Hub.

Its text is the template `model_card.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nightgate.config.pipeline import Pipeline
from nightgate.config.sources import HubSource
from nightgate.gate.decision import Decision
from nightgate.metrics.bootstrap import Interval
from nightgate.rendering import render

_NAMES = {"accuracy": "Accuracy", "f1": "F1", "precision": "Precision", "recall": "Recall"}


@dataclass(frozen=True)
class CardFacts:
    pipeline: Pipeline
    version: int
    run_id: str
    night: str
    """A date."""
    best_epoch: int
    results_table: str
    """All epochs as a Markdown table in the published shape."""
    test: Mapping[str, float | None]
    """accuracy, f1, precision and recall on the test split, with `gate.average`; None: not measured."""
    test_rows: int
    test_interval: Interval | None
    snapshot: Mapping[str, Any]
    """The snapshot's manifest, with the night's own `data_until`."""
    decision: Decision | None
    """None before the gate has decided."""
    started_from: int | None
    """The version that training continued from; None: the base model."""
    code_version: str
    libraries: Mapping[str, str]
    rows_trained: int | None = None
    """Training rows after `train_window` and `max_train_rows`; None: unknown."""
    own_table: str = ""
    """`training.metrics` as a Markdown table; '' without any."""
    own_test: Mapping[str, float | None] = field(default_factory=dict)
    """`training.metrics` on all test rows."""


def model_card(facts: CardFacts) -> str:
    """The whole text of README.md."""
    return render(
        "model_card.md",
        card=facts,
        pipeline=facts.pipeline,
        training=facts.pipeline.training,
        snapshot=facts.snapshot,
        front_matter=_front_matter(facts),
        names=_names(facts),
    )


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "nightgate"],
        "metrics": list(_NAMES),
    }
    name, source = facts.pipeline.name, facts.pipeline.data.source
    if _is_hub_name(facts.pipeline.training.base_model):
        entries["base_model"] = facts.pipeline.training.base_model
    if isinstance(source, HubSource) and _is_hub_name(source.dataset):
        entries["datasets"] = [source.dataset]
    names = _names(facts)
    measured = [
        {"type": metric, "name": names[metric], "value": round(value, 4)}
        for metric, value in facts.test.items()
        if value is not None
    ]
    measured += [
        {"type": metric.partition(".")[0], "name": metric, "value": round(value, 4)}
        for metric, value in facts.own_test.items()
        if value is not None and metric not in facts.test
    ]
    if measured:
        result = {
            "task": {"type": "text-classification", "name": "Text Classification"},
            "dataset": {"name": name, "type": name, "split": "test"},
            "metrics": measured,
        }
        entries["model-index"] = [{"name": f"{name}-v{facts.version}", "results": [result]}]
    return entries


def _names(facts: CardFacts) -> dict[str, str]:
    """Names of the metrics, with the average where they have one."""
    average = facts.pipeline.gate.average
    return {metric: name if metric == "accuracy" else f"{name} ({average})" for metric, name in _NAMES.items()}


def _is_hub_name(name: str) -> bool:
    """Whether `name` has the form `owner/name`; paths and `package:` references do not."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None
