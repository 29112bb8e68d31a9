"""Settings from the environment: the meaning and bounds of every `NIGHTGATE_*` variable.

nightgate doctor        # shows the settings in force
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError

PREFIX = "NIGHTGATE_"
OF_TESTS = "NIGHTGATE_TEST_"
"""Prefix of the test suite's variables."""


def _paths(text: object) -> object:
    return [user_path(part) for part in text.split(os.pathsep) if part] if isinstance(text, str) else text


def _limits(text: object) -> object:
    """`"pool=2, gpu1=1"` as a mapping; a part without `=` fails validation, as it has no number."""
    if not isinstance(text, str):
        return text
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): number.strip() for name, _, number in parts}


# NoDecode: pydantic-settings would expect lists and mappings as JSON.
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]
Slot = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
Limits = Annotated[Mapping[Slot, Annotated[int, Field(ge=1, le=9999)]], NoDecode, BeforeValidator(_limits)]
Processes = Annotated[int, Field(ge=1, le=1024)] | Literal["gpus"]


class Settings(BaseSettings):
    """The environment at the time of construction. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, str_strip_whitespace=True, hide_input_in_errors=True
    )

    home: Path | None = Field(
        default=None, description="Snapshots, runs, models and metrics.db. Default: .nightgate in the working folder."
    )
    database_url: SecretStr = Field(
        default=SecretStr(""), description="The metrics database, such as PostgreSQL. Default: SQLite in the home."
    )
    home_access: Literal["owner", "group"] = Field(
        default="owner", description="Who may read and write a home that is made.", examples=["owner", "group"]
    )
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")] = Field(
        default="nightgate",
        description="Name of this home on a Prefect server that several homes share.",
        examples=["nightgate", "shop"],
    )
    serve_auth: bool = Field(
        default=False, description="`nightgate serve` asks for the password in the home.", examples=["1", "0"]
    )
    pipelines: Paths = Field(default=(), description="Further files and folders in which pipelines are looked up.")
    model_roots: Paths = Field(default=(), description="Folders from which the form of a run may take a base model.")
    slot_limits: Limits = Field(
        default={}, description="How many runs may hold a slot at once. Default: one.", examples=["pool=2,gpu1=1"]
    )
    processes: Processes = Field(
        default=1, description="Processes that train one model together.", examples=["2", "gpus"]
    )
    cuda_graphs: bool = Field(
        default=False, description="Record the training step as CUDA graphs; not run on a GPU yet.", examples=["1", "0"]
    )
    webhook_url: SecretStr = Field(
        default=SecretStr(""), description="Where the automations of the server report how nights end."
    )

    def slot_limit(self, slot: str) -> int:
        """How many runs may hold the slot at once."""
        return self.slot_limits.get(slot, 1)


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return PREFIX + field.upper()


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: some are invalid; it lists all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        # A union fails once for each of its members.
        fields = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors(include_input=False))
        raise ConfigurationError(
            "environment variables are invalid:",
            [_problem(field) for field in fields],
            next_step="correct or unset these variables; .env.example explains each",
        ) from None


def _problem(field: str) -> str:
    examples = " or ".join(repr(example) for example in Settings.model_fields[field].examples or ())
    return f"{variable(field)} is {os.environ.get(variable(field), '')!r}: write it as {examples}"


def settings_in_force(settings: Settings) -> dict[str, str]:
    """By variable the value in force and its source, such as `4 (environment)`; secrets are masked."""
    found = {}
    for field, info in Settings.model_fields.items():
        value = _text(getattr(settings, field))
        if field in settings.model_fields_set:
            found[variable(field)] = f"{value} (environment)"
        else:
            _, _, described = str(info.description).partition("Default: ")
            found[variable(field)] = f"{described.rstrip('.') or value or 'none'} (default)"
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    if isinstance(value, Mapping):
        return ",".join(f"{name}={number}" for name, number in value.items())
    return "" if value is None else str(value)


def unknown_settings() -> list[str]:
    """A sentence about each `NIGHTGATE_*` variable that is not a setting, such as a misspelt one."""
    known = {field.upper() for field in Settings.model_fields}
    problems = []
    for name in sorted(os.environ):
        # Without the prefix, which all share: with it any short name would be near NIGHTGATE_HOME.
        field = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and not name.startswith(OF_TESTS) and field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            problems.append(f"{name} is not a setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    return problems
