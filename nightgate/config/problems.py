"""Say what is wrong with a pipeline file: a line for each key, as the file has it, with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from nightgate.config.pipeline import Pipeline
from nightgate.config.values import Section
from nightgate.errors import without_credentials

SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Pipeline.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}

NOT_KEYS = ("constrained-", "tuple[", "dict[", "function-", "literal[", "float")
"""What pydantic puts between the keys of an error's place for the alternatives of a field."""

FOREIGN = {
    name: field
    for field, names in {
        "training.epochs": "num_train_epochs num_epochs max_epochs",
        "training.learning_rate": "lr",
        "training.batch_size": "per_device_train_batch_size train_batch_size gradient_accumulation_steps",
        "training.eval_batch_size": "per_device_eval_batch_size",
        "training.max_length": "max_seq_length model_max_length",
        "training.base_model": "model_name_or_path model_name model pretrained_model_name_or_path",
        "training.dropout": "hidden_dropout_prob",
        "training.label_smoothing": "label_smoothing_factor",
        "training.class_weight": "class_weights",
        "training.warmup_ratio": "warmup_steps",
        "training.lr_scheduler_type": "lr_scheduler scheduler",
        "training.precision": "fp16 bf16 amp mixed_precision",
        "training.early_stopping_patience": "patience",
        "training.max_train_rows": "max_train_samples",
        "gate.min_f1": "f1_threshold threshold",
        "split.test": "test_size",
        "split.validation": "validation_split",
        "data.text": "text_column",
        "data.label": "label_column",
        "schedule.cron": "interval",
    }.items()
    for name in names.split()
}
"""Field names of other tools, and what Nightgate calls them."""


def unknown_keys(document: Mapping[str, Any]) -> list[str]:
    """A line for each unknown table, and each unknown key of one, with the nearest known key."""
    problems = []
    for table, value in document.items():
        if table not in Pipeline.model_fields:
            problems.append(_unknown(table))
        elif table in SECTIONS and isinstance(value, Mapping):
            problems += [_unknown(f"{table}.{key}") for key in value if key not in SECTIONS[table].model_fields]
    return problems


def _unknown(key: str) -> str:
    last = key.rsplit(".", 1)[-1]
    if last in FOREIGN:
        return f"{key}: unknown; Nightgate calls it {FOREIGN[last]}"
    known = {f"{table}.{field}": field for table, section in SECTIONS.items() for field in section.model_fields}
    similar = difflib.get_close_matches(last, known.values(), n=1)
    near = (
        [name for name, field in known.items() if field == last]
        or difflib.get_close_matches(key, [*known, *Pipeline.model_fields], n=1, cutoff=0.5)
        or [name for name, field in known.items() if field in similar]
    )
    return f"{key}: unknown" + (f"; did you mean {near[0]}?" if near else "; see template.toml for all fields")


def problems_of(error: ValidationError) -> list[str]:
    """A line for each field, which joins what its alternatives ask for."""
    found: dict[str, list[str]] = {}
    given: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        is_unknown = problem["type"] == "extra_forbidden"
        if is_unknown and len(problem["loc"]) <= 2:
            continue  # reported by unknown_keys, with the nearest name
        where, known = _place(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if is_unknown:
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
            message = f"unknown; did you mean {near[0]}?" if near else f"unknown; known: {', '.join(known)}"
        found.setdefault(where, []).append(message)
        given[where] = None if is_unknown or problem["type"] == "missing" else problem.get("input")
    problems = []
    for where, messages in found.items():
        message, value = " or ".join(messages).replace(" or Input should be", " or"), given[where]
        if isinstance(value, dict) and any(other.startswith(f"{where}.") for other in found):
            continue  # the alternative that is no table
        shown = f", not {value!r}" if isinstance(value, str | int | float) and repr(value) not in message else ""
        problems.append(without_credentials(f"{where}: {message}{shown}" if where else message + shown))
    return problems


def _place(location: Iterable[str | int]) -> tuple[str, list[str]]:
    """The dotted key of an error, as the file has it, and the names that its table knows."""
    keys: list[str] = []
    tables: list[type[Section]] = [Pipeline]
    for part in map(str, location):
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        chosen = [table for table in tables if part in (table.__name__, *_kinds(table))]
        if fields:
            keys.append(part)
            tables = [one for field in fields for one in _tables(field.annotation)]
        elif chosen:
            tables = chosen
        elif not part.startswith(NOT_KEYS):
            keys.append(part)
    return ".".join(keys), list(dict.fromkeys(name for table in tables for name in table.model_fields))


def _kinds(table: type[Section]) -> tuple[Any, ...]:
    return get_args(table.model_fields["kind"].annotation) if "kind" in table.model_fields else ()


def _tables(annotation: Any) -> list[type[Section]]:
    """All tables that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [one for inner in get_args(annotation) for one in _tables(inner)]
