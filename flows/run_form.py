"""The form of a custom run: `[training]` and `[gate]` of the pipeline file, every field optional.

It is made from the models of the file, so descriptions, bounds and choices are the same. Prefect's UI shows a nullable
field as tabs, one of them `Property is type "None"`, sends a default back as if it had been chosen, and shows an
untouched switch as off. So no field has null or a default in the schema, and a boolean is a list to choose from: an
empty field is not sent, and keeps the file's value, which stands in its description. An error of the server is shown
beside a field only where it names that field, so the rules between fields are `if`/`then` and never `anyOf`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from nightgate.config.checks import CheckName
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline
from nightgate.config.training import LOCAL_MODEL, ShippedMetric, Training, metric_name
from nightgate.config.values import Section
from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError
from nightgate.settings import read_settings

log = logging.getLogger("nightgate.flows")

# Slashes and dots only singly between other characters: no `..`, `//`, address, backslash or terminal escape. The UI
# shows the pattern with a refusal, so it is short and needs no escapes.
_PARTS = "[A-Za-z0-9_](/?[.]?[A-Za-z0-9_@+-])*"

FREE_TEXT = {
    "base_model": (f"^(package:|/)?{_PARTS}/?$", 300),
    "base_model_revision": (f"^{_PARTS}$", 100),
    "approval_timeout": ("^[1-9][0-9]{0,4}[dwh]$", None),
    "full_every": ("^[1-9][0-9]{0,4}[dwh]$", None),
    "test_window": ("^[1-9][0-9]{0,4}[dwh]$", None),
}
"""Pattern, and maximum length if the pattern sets none, of the fields that are neither choice nor number."""

_DESCRIPTIONS = {
    "metrics": "Further metrics, which decide nothing.",
    "base_model": "Name on the hub, `package:NAME/FOLDER` inside an installed Python package, or `/path` of a folder "
    "under NIGHTGATE_MODEL_ROOTS.",
}
"""Descriptions that differ from the file's."""

_IN_FRONT = ("epochs", "learning_rate", "max_train_rows", "start_from", "min_f1", "policy", "approval")
"""What people change first; the other fields stand in a part `more` below."""
_RULES: dict[str, tuple[str, JsonSchemaValue, JsonSchemaValue]] = {
    "TrainingForm": ("base_model", {"pattern": "^(package:|/)"}, {"base_model_revision": {"const": ""}}),
    "GateForm": ("margin_unit", {"const": "f1"}, {"margin": {"maximum": 1}}),
}
"""By form: a field, a condition on it, and what then holds for another one; the models have the same rules."""
_LAST = [
    *("base_model", "base_model_revision", "precision", "seed", "eval_batch_size"),
    *("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
]
"""Seldom changed fields, shown below the others, which keep the file's order."""


_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


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
        # Beside the kinds too: an error of theirs would only be "not valid under any of the given schemas".
        shown |= {key: kinds[0][key] for key in _BOUNDS if key in kinds[0]}
        return shown | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


class Form(Section):
    """A section of the form. Its dump omits empty fields, so the default that the UI gets omits them too.

    Fields of `more` may stand beside the others too, where stored schedules and automations have them.
    """

    @model_validator(mode="before")
    @classmethod
    def _with_more(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(more := given.get("more", {}), dict):
            return given
        beside = {key: value for key, value in given.items() if key != "more"}
        if twice := sorted({*more} & {*beside}):
            raise ValueError(f"given twice, in more and beside it: {', '.join(twice)}")
        return beside | more

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        form = handler.resolve_ref_schema(schema)
        fields = form["properties"]
        behind = {key: fields.pop(key) for key in list(fields) if key not in _IN_FRONT}
        fields["more"] = {
            "type": "object",
            "title": "more",
            "description": "The other fields.",
            "properties": behind,
            "additionalProperties": False,
            "position": len(behind),
        } | _rule(form["title"], in_file=False)
        # The UI does not show these.
        null = {"type": "null"}
        form["patternProperties"] = {f"^{key}$": {"anyOf": [field, null]} for key, field in behind.items()}
        return schema

    @model_serializer(mode="wrap")
    def _chosen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def _all_optional(section: type[BaseModel], name: str) -> Any:
    front, last = {key: at for at, key in enumerate(_IN_FRONT)}, {key: at for at, key in enumerate(_LAST, 1)}
    order = sorted(section.model_fields, key=lambda key: (front.get(key, len(front)), last.get(key, 0)))
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
            description=f"{_about(key, field)} {_when_empty(field)}",
            json_schema_extra=_without_default(order.index(key)),
        )
        fields[key] = (Annotated[kind | None, _WithoutNull()], described)
    return create_model(name, __base__=Form, **fields)


def _about(key: str, field: FieldInfo) -> str:
    return _DESCRIPTIONS.get(key) or str(field.description)


def _when_empty(field: FieldInfo) -> str:
    default = _as_text(field.default)
    return f"Empty: as in the pipeline file, else {default}." if default else "Empty: as in the pipeline file."


def _as_text(value: Any) -> str:
    """As it is typed; '' for what is not set."""
    if isinstance(value, tuple):
        return ", ".join(map(metric_name, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def form_of(pipeline: Pipeline, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The definitions of the flow's schema for this pipeline: each description ends with the file's own value."""
    shown = deepcopy(dict(definitions))
    for name, section in (("TrainingForm", pipeline.training), ("GateForm", pipeline.gate)):
        form = shown[name]
        for key, field in (form["properties"] | form["properties"]["more"]["properties"]).items():
            if key != "more":
                value = _as_text(getattr(section, key)) or "not set"
                about = _about(key, type(section).model_fields[key])
                field["description"] = f"{about} Empty: {value}, as in the file of {pipeline.name}."
    is_local = pipeline.training.base_model.startswith(LOCAL_MODEL)
    shown["TrainingForm"]["properties"]["more"] |= _rule("TrainingForm", in_file=is_local)
    shown["GateForm"]["properties"]["more"] |= _rule("GateForm", in_file=pipeline.gate.margin_unit == "f1")
    return shown


def show_values(client: SyncPrefectClient, deployment: DeploymentResponse, pipeline: Pipeline) -> bool:
    """Let the form of a pipeline's own deployment show what its file says now; whether it showed something else."""
    schema = deployment.parameter_openapi_schema or {}
    has_more = "more" in schema.get("definitions", {}).get("TrainingForm", {}).get("properties", {})
    if not has_more or deployment.parameters.get("pipeline") != pipeline.name:
        return False  # of an earlier release, or not the pipeline's own
    now = form_of(pipeline, schema["definitions"])
    if now == schema["definitions"]:
        return False
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema | {"definitions": now}))
    return True


def show_values_from_now_on(pipeline: Pipeline) -> None:
    """`show_values` for the deployment of this run."""
    try:
        with get_client(sync_client=True) as client:
            changed = show_values(client, client.read_deployment(UUID(str(runtime.deployment.id))), pipeline)
    except Exception as error:  # noqa: BLE001 - the form is no part of the night
        log.debug("the form could not be compared with the file: %s", error)
    else:
        if changed:
            log.warning("the file has changed since the form of Custom run was made: this run follows the file")


def _rule(form: str, *, in_file: bool) -> JsonSchemaValue:
    """The rule between fields of `more`; where its condition holds in the file, unless the form chooses otherwise."""
    key, condition, then = _RULES[form]

    def chosen(schema: JsonSchemaValue) -> JsonSchemaValue:
        return {"properties": {key: schema}, "required": [key]}

    return {"if": {"not": chosen({"not": condition})} if in_file else chosen(condition), "then": {"properties": then}}


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
