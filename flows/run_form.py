"""The form of a custom run: `[training]` and `[gate]` of the pipeline file, every field optional.

It is made from the models of the file, so descriptions, bounds and choices are the same. Prefect's UI shows a nullable
field as tabs, one of them `Property is type "None"`, sends a default back as if it had been chosen, and shows an
untouched switch as off. So no field has null or a default in the schema, and a boolean is a list to choose from: an
empty field is not sent, and keeps the file's value.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from nightgate.config.checks import CheckName
from nightgate.config.gate import Gate
from nightgate.config.training import ShippedMetric, Training
from nightgate.config.values import Section
from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError
from nightgate.settings import read_settings

# Slashes and dots only singly between other characters: no `..`, `//`, address, backslash or terminal escape. The UI
# shows the pattern with a refusal, so it is short and needs no escapes.
_PARTS = "[A-Za-z0-9_](/?[.]?[A-Za-z0-9_@+-])*"

FREE_TEXT = {
    "base_model": (f"^(package:|/)?{_PARTS}/?$", 300),
    "base_model_revision": (f"^{_PARTS}$", 100),
    "approval_timeout": ("^[1-9][0-9]{0,4}[dwh]$", None),
    "test_window": ("^[1-9][0-9]{0,4}[dwh]$", None),
}
"""Pattern, and maximum length if the pattern sets none, of the fields that are neither choice nor number."""

_DESCRIPTIONS = {
    "metrics": "Further metrics, which decide nothing.",
    "base_model": "Name on the hub, `package:NAME/FOLDER` inside an installed Python package, or `/path` of a folder "
    "under NIGHTGATE_MODEL_ROOTS.",
}
"""Descriptions that differ from the file's."""

_LAST = [
    *("base_model", "base_model_revision", "precision", "seed", "eval_batch_size"),
    *("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
]
"""Seldom changed fields, shown below the others, which keep the file's order."""


class _WithoutNull:
    """Annotation of a field that may be None, without null in its schema."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        shown = handler(schema)
        kinds = [kind for kind in shown.pop("anyOf") if kind.get("type") != "null"]
        for kind in kinds:
            if kind.get("type") == "number" and len(kinds) > 1:
                kind["title"] = "a number"
            if kind.get("type") == "boolean":
                kind["enum"] = [True, False]
            if "const" in kind:
                kind |= {"enum": [kind["const"]], "title": f"{kind['const']}"}
        # The UI opens the first tab: a number, whose input may stay empty.
        kinds.sort(key=lambda kind: "const" in kind)
        return shown | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


class Form(Section):
    """A section of the form. Its dump omits empty fields, so the default that the UI gets omits them too."""

    @model_serializer(mode="wrap")
    def _chosen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def _all_optional(section: type[BaseModel], name: str) -> Any:
    order = sorted(section.model_fields, key=lambda key: _LAST.index(key) + 1 if key in _LAST else 0)
    fields: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        kind: Any = field.rebuild_annotation()
        if key == "metrics":
            kind = tuple[ShippedMetric, ...]  # others are code
        elif key in FREE_TEXT:
            pattern, longest = FREE_TEXT[key]
            # Enter leaves a line break at the end of the UI's input.
            kind = Annotated[str, StringConstraints(strip_whitespace=True, pattern=pattern, max_length=longest)]
        described: Any = Field(
            default=None,
            title=key,
            description=f"{_DESCRIPTIONS.get(key, field.description)} {_when_empty(field)}",
            json_schema_extra=_without_default(order.index(key)),
        )
        fields[key] = (Annotated[kind | None, _WithoutNull()], described)
    return create_model(name, __base__=Form, **fields)


def _when_empty(field: FieldInfo) -> str:
    default = ", ".join(field.default) if isinstance(field.default, tuple) else str(field.default)
    default = default.lower() if isinstance(field.default, bool) else default
    known = default and field.default is not None
    return f"Empty: as in the pipeline file, else {default}." if known else "Empty: as in the pipeline file."


def _without_default(position: int) -> Callable[[JsonSchemaValue], None]:
    def change(schema: JsonSchemaValue) -> None:
        schema.pop("default", None)
        # PostgreSQL does not keep the order of keys in a document.
        schema["position"] = position

    return change


TrainingForm = _all_optional(Training, "TrainingForm")
GateForm = _all_optional(Gate, "GateForm")

AS_IN_FILE_TRAINING = TrainingForm()
AS_IN_FILE_GATE = GateForm()
"""Defaults of the flow's parameters; with None the UI would hide the fields behind a tab."""

PipelineName = Annotated[str, StringConstraints(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A name, never a path."""

AllowedChecks = Annotated[tuple[CheckName, ...], Field(json_schema_extra={"uniqueItems": True})]

FreeText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]

ChosenNight = Annotated[
    date | None,
    WithJsonSchema(
        {"anyOf": [{"type": "null", "title": "tonight"}, {"type": "string", "format": "date", "title": "a past night"}]}
    ),
]
"""The titles are those of the two tabs in the UI."""


def chosen_settings(training: BaseModel | None, gate: BaseModel | None) -> dict[str, Any]:
    """The filled-in fields as overrides by dotted key.

    Raises:
        ConfigurationError: A base model that is a path outside `NIGHTGATE_MODEL_ROOTS`, or in no installed package.
    """
    chosen: dict[str, Any] = {}
    for section, form in (("training", training), ("gate", gate)):
        if form is not None:
            chosen |= {f"{section}.{key}": value for key, value in form.model_dump(exclude_none=True).items()}
    base_model = chosen.get("training.base_model")
    if base_model is not None:
        refuse_foreign_path(base_model)
    return chosen


def refuse_foreign_path(base_model: str) -> None:
    """Accept a hub name, a model of an installed package, or a folder under `NIGHTGATE_MODEL_ROOTS`.

    Raises:
        ConfigurationError: Any other path.
    """
    if base_model.startswith("package:"):
        _refuse_bare_folder(base_model)
        return
    is_path = base_model.startswith((".", "~", "/", os.sep)) or ".." in base_model or Path(base_model).exists()
    if not is_path:
        return
    roots = read_settings().model_roots
    path = user_path(base_model).resolve()
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise ConfigurationError(
            f"training.base_model: {base_model!r} is a folder outside the model roots "
            f"({', '.join(map(str, roots)) or 'none set'})",
            next_step="name a model of the hub, or set NIGHTGATE_MODEL_ROOTS where the flow is served",
        )


def _refuse_bare_folder(base_model: str) -> None:
    """Refuse folders of the working directory, which Python imports as packages although they have no `__init__.py`."""
    name = base_model.removeprefix("package:").partition("/")[0]
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.origin is None:
        raise ConfigurationError(
            f"training.base_model: {base_model!r} is a folder outside the model roots and not an installed package",
            next_step="name a model of the hub or of an installed package",
        )
