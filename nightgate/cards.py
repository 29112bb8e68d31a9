"""The model card of a version: README.md with the front matter that the Hugging Face Hub reads.

Pure: facts in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nightgate.config import HubSource, Pipeline, SampleSource
from nightgate.gate.verdicts import Decision
from nightgate.intervals import Interval


@dataclass(frozen=True)
class CardFacts:
    pipeline: Pipeline
    version: int
    run_id: str
    night: str
    """The date, as text."""
    best_epoch: int
    results_table: str
    """All epochs as a Markdown table in the published shape."""
    test: Mapping[str, float | None]
    """accuracy, f1, precision and recall on the test split; averages as `gate.average` says."""
    test_rows: int
    test_interval: Interval | None
    snapshot: Mapping[str, Any]
    """The snapshot's manifest."""
    decision: Decision | None
    """None while the gate has not spoken."""
    started_from: int | None
    """The champion's version that training went on from; None: the base model."""
    code_version: str
    libraries: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The whole text of README.md."""
    sections = [
        _front_matter(facts),
        f"# {facts.pipeline.name}, version {facts.version}",
        _summary(facts),
        "## Labels",
        _labels(facts),
        "## How to use it",
        _usage(facts),
        "## Gate",
        _gate(facts),
        "## Data",
        _data(facts),
        "## Training",
        _hyperparameters(facts),
        "### Training results",
        facts.results_table.strip(),
        f"F1, precision and recall are {facts.pipeline.gate.average} averages on the validation rows. "
        f"Epoch {facts.best_epoch} has the best F1 and is the one kept here. It was picked on these rows, so the table "
        "is optimistic; nothing was chosen on the test rows above.",
        "### Framework versions",
        "\n".join(f"- {name} {version}" for name, version in facts.libraries.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    """YAML between `---` lines; every value is JSON, which is YAML too, so that no name can break it."""
    entries: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "nightgate"],
        "metrics": ["accuracy", "f1", "precision", "recall"],
    }
    training, source = facts.pipeline.training, facts.pipeline.data.source
    if _is_hub_name(training.base_model):
        entries["base_model"] = training.base_model
    if isinstance(source, HubSource) and _is_hub_name(source.dataset):
        entries["datasets"] = [source.dataset]
    measured = [
        {"type": name, "name": name.capitalize() if name != "f1" else "F1", "value": round(value, 4)}
        for name, value in facts.test.items()
        if value is not None
    ]
    if measured:
        entries["model-index"] = [
            {
                "name": f"{facts.pipeline.name}-v{facts.version}",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": "Text Classification"},
                        "dataset": {"name": facts.pipeline.name, "type": facts.pipeline.name, "split": "test"},
                        "metrics": measured,
                    }
                ],
            }
        ]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=True)}" for key, value in entries.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(facts: CardFacts) -> str:
    training = facts.pipeline.training
    origin = f"{_code(training.base_model)}"
    if training.base_model_revision:
        origin += f" at revision {_code(training.base_model_revision)}"
    if facts.started_from is not None:
        origin = f"version {facts.started_from} of this pipeline (itself from {origin})"
    figures = [
        f"- {name.capitalize() if name != 'f1' else 'F1'}: {_figure(value)}"
        + (f" (95 % interval {facts.test_interval})" if name == "f1" and facts.test_interval else "")
        for name, value in facts.test.items()
    ]
    return "\n".join(
        [
            f"A text classifier fine-tuned from {origin} by Nightgate, on the night of {facts.night} "
            f"(run {_code(facts.run_id)}). On the {facts.test_rows:,} test rows of that night:",
            "",
            *figures,
        ]
    )


def _labels(facts: CardFacts) -> str:
    counts = facts.snapshot.get("label_counts", {})
    rows = ["| class | label | training rows |", "|---|---|---|"]
    for index, name in enumerate(facts.pipeline.data.label_names):
        count = counts.get("train", {}).get(name)
        rows.append(f"| {index} | {_cell(name)} | {'' if count is None else f'{count:,}'} |")
    return "\n".join(rows)


def _usage(facts: CardFacts) -> str:
    name, length = facts.pipeline.name, facts.pipeline.training.max_length
    return f"""This folder is a stock Hugging Face model; nothing of Nightgate is needed to open it.

```python
from transformers import pipeline

folder = "models/{name}/v{facts.version:04d}"  # where this file lies
classify = pipeline("text-classification", model=folder, tokenizer=folder)
classify("What is this text about?", truncation=True, max_length={length})
```

In training, texts were normalised (Unicode NFC, HTML entities resolved, white space collapsed) and cut at {length}
tokens. `nightgate.load_champion("{name}").predict([...])` does both."""


def _gate(facts: CardFacts) -> str:
    if facts.decision is None:
        return (
            "The gate spoke after this version was registered; its verdict stands in the metrics database: "
            f"`SELECT verdict, reason FROM nightly_runs WHERE run_id = '{facts.run_id}'`."
        )
    checks = [f"- {check.name}: {check.outcome}. {check.reason}." for check in facts.decision.checks]
    return "\n".join([f"Verdict: {facts.decision.verdict}. {facts.decision.reason}.", "", *checks])


def _data(facts: CardFacts) -> str:
    snapshot = facts.snapshot
    rows = snapshot.get("rows", {})
    sides = ", ".join(f"{side} {rows[side]:,}" for side in ("train", "validation", "test") if side in rows)
    lines = [
        f"- Snapshot {_code(str(snapshot.get('id', '')))}, test version {_code(str(snapshot.get('test_version', '')))}"
    ]
    if sides:
        lines.append(f"- Rows: {sides}")
    if snapshot.get("data_until"):
        lines.append(f"- Rows before {snapshot['data_until']}")
    if snapshot.get("first_time") and snapshot.get("last_time"):
        lines.append(f"- Times of the rows: {snapshot['first_time']} to {snapshot['last_time']}")
    if isinstance(facts.pipeline.data.source, SampleSource):
        lines.append("- The rows are synthetic: a seeded generator wrote them. This model is a demonstration.")
    return "\n".join(lines)


def _hyperparameters(facts: CardFacts) -> str:
    training = facts.pipeline.training
    settings = training.model_dump(mode="json")
    lines = [f"- {name}: {_code(str(value)) if value != '' else '(none)'}" for name, value in settings.items()]
    return "\n".join(
        [
            "The following hyper-parameters were used (AdamW; the names are those of the pipeline file):",
            "",
            *lines,
            "",
            f"Nightgate {facts.code_version}; the resolved configuration stands in `nightgate.json`.",
        ]
    )


def _is_hub_name(name: str) -> bool:
    """`owner/name` as on the hub; paths and `package:` references are not."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    """Inline code that a back-tick in `text` does not end."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
