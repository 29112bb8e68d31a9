"""The form of a custom run: `[training]` and `[gate]` of the pipeline file, every field optional.

Made from the file's own models, so that descriptions, bounds and choices are the same in both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, create_model

from nightgate.config import Gate, Section, Training
from nightgate.errors import ConfigurationError


def _all_optional(section: type[BaseModel], name: str) -> Any:
    fields: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        described: Any = Field(
            default=None, description=f"{field.description} Empty: as in the file, else {field.default!r}."
        )
        described.metadata = field.metadata
        fields[key] = (field.rebuild_annotation() | None, described)
    return create_model(name, __base__=Section, **fields)


TrainingForm = _all_optional(Training, "TrainingForm")
GateForm = _all_optional(Gate, "GateForm")


def chosen_settings(training: BaseModel | None, gate: BaseModel | None) -> dict[str, Any]:
    """What was filled in, as overrides by dotted key.

    Raises:
        ConfigurationError: a base model that is a path outside `NIGHTGATE_MODEL_ROOTS`.
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
    """A form may name a model of the hub or of an installed package, or a folder under `NIGHTGATE_MODEL_ROOTS`.

    Raises:
        ConfigurationError: a path elsewhere.
    """
    is_path = base_model.startswith((".", "~", "/", os.sep)) or ".." in base_model or Path(base_model).exists()
    if not is_path:
        return
    roots = [root for root in os.environ.get("NIGHTGATE_MODEL_ROOTS", "").split(os.pathsep) if root]
    path = Path(base_model).expanduser().resolve()
    if not any(path.is_relative_to(Path(root).expanduser().resolve()) for root in roots):
        raise ConfigurationError(
            f"training.base_model: {base_model!r} is a folder outside the model roots "
            f"({', '.join(roots) or 'none set'})",
            next_step="name a model of the hub, or have NIGHTGATE_MODEL_ROOTS set where the flow is served",
        )
