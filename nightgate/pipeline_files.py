"""Find, read and check pipeline files: `load_pipeline("sample")`, `load_pipeline("path/to/file.toml")`.

A name is looked up in the files and folders of `NIGHTGATE_PIPELINES`, in `deployments/pipelines/` of the working
directory, and among the pipelines that come with the package. A file without a name is only there for others to extend.
All problems of a file are reported together.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nightgate.config.pipeline import Pipeline
from nightgate.config.problems import problems_of, unknown_keys
from nightgate.config.training import is_metric_file
from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError
from nightgate.settings import read_settings

_PACKAGED = Path(str(files("deployments") / "pipelines"))
TEMPLATE = _PACKAGED / "template.toml"
_WHOLE = {"source", "labels", "output"}
"""Tables that are one value: a file that extends another replaces them as a whole."""


def pipeline_files() -> dict[str, Path]:
    """File of every pipeline that can be run by name; the first place with a name wins."""
    found: dict[str, Path] = {}
    for name, path in _files():
        if name:
            found.setdefault(name, path)
    return found


def _files() -> Iterator[tuple[str, Path]]:
    """Every file that is looked at, with the name that finds it; '' for one that names no pipeline."""
    for place in [*read_settings().pipelines, Path("deployments/pipelines"), _PACKAGED]:
        if place.is_file():
            # A file that is listed itself is known by the name that it contains.
            yield _own_name(place), place
        for path in sorted(place.glob("*.toml")):
            yield (path.stem if _own_name(path) else ""), path


def _own_name(path: Path) -> str:
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("name", ""))
    except (OSError, ValueError):
        return path.stem


def find_pipeline(reference: str | Path) -> Path:
    """Find the file of a pipeline, given by name or path.

    Raises:
        ConfigurationError: there is no such pipeline; the nearest name is suggested.
    """
    text = str(reference)
    if not is_path(text):
        return find_by_name(text)
    path = user_path(text)
    if path.is_file():
        return path
    raise ConfigurationError(
        f"there is no pipeline file {text} (looked in {Path.cwd()})",
        next_step=f"check the path, or copy {TEMPLATE} there",
    )


def is_path(reference: str) -> bool:
    """Whether a reference is the path of a file, not a name."""
    return reference.endswith(".toml") or os.sep in reference or "/" in reference


def reference_to(name: str) -> str:
    """What a command that reads the file of a pipeline is given: its name, or a path, which is not recorded."""
    return name if name in pipeline_files() else f"PATH/TO/{name}.toml"


def find_by_name(name: str) -> Path:
    """Find the file of a pipeline by name only: a form must not open paths."""
    known = pipeline_files()
    if name in known:
        return known[name]
    for named, path in _files():
        if not named and path.stem == name:
            raise ConfigurationError(
                f"{path} has no name: other files can extend it, but it is no pipeline",
                next_step=f'write name = "{name}" in it, or name a pipeline that extends it',
            )
    raise unknown_pipeline(name, known)


def unknown_pipeline(name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for a pipeline that is not among the `known` ones; it suggests the nearest."""
    near = difflib.get_close_matches(name, known := sorted(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigurationError(
        f"there is no pipeline {name!r}; {hint}known: {', '.join(known) or 'none'}",
        next_step="name one of them, or give the path of a TOML file",
    )


def load_pipeline(reference: str | Path, overrides: Mapping[str, Any] | None = None) -> Pipeline:
    """Read and check a pipeline.

    Args:
        reference: a name under `deployments/pipelines/` or the path of a TOML file.
        overrides: dotted key to value, such as `{"training.epochs": 2}`; they win over the file.

    Raises:
        ConfigurationError: no such file, not TOML, or problems in it; all of them are in the message.
    """
    if is_path(str(reference)):
        return _read(find_pipeline(reference), overrides)
    return load_by_name(str(reference), overrides)


def _read(path: Path, overrides: Mapping[str, Any] | None) -> Pipeline:
    document, inherited = _resolved(path)
    return check_pipeline(document, str(path), overrides, inherited)


def _resolved(path: Path, *extending: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The values of a file and of those that it extends; and by dotted key the file of each that is another's.

    Args:
        extending: the files that led to this one.
    """
    document = _parsed(path)
    extends = document.pop("extends", "")
    if not isinstance(extends, str):
        raise ConfigurationError(f"{path}: extends is {extends!r}", next_step='name one file: extends = "base.toml"')
    if not extends:
        return document, {}
    base = path.parent / user_path(extends)
    chain = (*extending, path)
    if base.resolve() in [one.resolve() for one in chain]:
        raise ConfigurationError(
            f"pipeline files extend each other in a circle: {' -> '.join(map(str, (*chain, base)))}",
            next_step="remove `extends` from one of them",
        )
    if not base.is_file():
        raise ConfigurationError(
            f"{path}: extends names {extends!r}, and there is no file {base}",
            next_step="correct it: the path is relative to the file that names it",
        )
    inherited, origins = _resolved(base, *chain)
    inherited.pop("name", None)
    origins = dict.fromkeys(_keys(inherited), base) | origins
    return _merged(inherited, document), {key: file for key, file in origins.items() if key not in _keys(document)}


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables field by field; lists and other values are replaced."""
    merged = dict(base)
    for key, value in own.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and key not in _WHOLE:
            value = _merged(before, value)
        merged[key] = value
    return merged


def _keys(document: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The dotted keys of all tables and values."""
    found = {f"{prefix}{key}" for key in document}
    for key, value in document.items():
        if isinstance(value, dict) and key not in _WHOLE:
            found |= _keys(value, f"{prefix}{key}.")
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}", next_step="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{path} is not TOML: {error}", next_step="correct that line; text is written in quotes, lists in [ ]"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", next_step="give this user the right to read it"
        ) from error
    _resolve_metrics(document, path.resolve().parent)
    return document


def _resolve_metrics(document: dict[str, Any], folder: Path) -> None:
    """Make the files of `training.metrics` absolute: they lie beside the pipeline file that names them."""
    training = document.get("training")
    if isinstance(training, dict) and isinstance(names := training.get("metrics"), list):
        training["metrics"] = [
            str((folder / user_path(name)).resolve()) if isinstance(name, str) and is_metric_file(name) else name
            for name in names
        ]


def load_by_name(name: str, overrides: Mapping[str, Any] | None = None) -> Pipeline:
    """Read and check a pipeline by name only, for a form, which must not open paths.

    Raises:
        ConfigurationError: no such pipeline, problems in its file, or another name in it.
    """
    path = find_by_name(name)
    pipeline = _read(path, overrides)
    if pipeline.name != name:
        raise ConfigurationError(
            f"{path} has the name {pipeline.name!r}: its nights would be recorded under that name",
            next_step=f'write name = "{name}" in it, or name the file {pipeline.name}.toml',
        )
    return pipeline


def check_pipeline(
    document: dict[str, Any],
    origin: str,
    overrides: Mapping[str, Any] | None = None,
    inherited: Mapping[str, Path] | None = None,
) -> Pipeline:
    """Validate a parsed document with overrides applied.

    Args:
        origin: names the document in errors.
        inherited: by dotted key the file of each value that another file has. Errors say where a value is from.
    """
    problems: list[str] = []
    for key, value in (overrides or {}).items():
        if not _set(document, key.split("."), value):
            problems.append(f"{key}: only fields of a table can be set, such as training.epochs")
    problems += unknown_keys(document)
    try:
        # Through strict JSON: lists become tuples, but "5" does not become 5.
        pipeline = Pipeline.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        problems += problems_of(error)
    else:
        if not problems:
            return pipeline
    places = {key: str(file) for key, file in (inherited or {}).items() if not _sets(overrides or (), key)}
    places |= dict.fromkeys(overrides or (), "given for this run")
    problems = [_with_place(problem, places) for problem in problems]
    # Their keys alone: a value may hold a password.
    origin += f" with --set {', '.join(overrides)}" if overrides else ""
    raise ConfigurationError(
        f"{origin} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:",
        problems,
        next_step=f"correct them; {TEMPLATE} explains every field",
    )


def _sets(overrides: Iterable[str], key: str) -> bool:
    return any(one == key or one.startswith(f"{key}.") for one in overrides)


def _with_place(problem: str, places: Mapping[str, str]) -> str:
    """A problem such as `data.labels: ...`, or `data: labels: ...`, with the place of the value."""
    where, _, rest = problem.partition(": ")
    parts = f"{where}.{rest.partition(' ')[0].rstrip(':')}".split(".")
    keys = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    place = next((places[key] for key in keys if key in places), None)
    return problem if place is None else f"{problem} ({place})"


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse `--set a.b=value` arguments. A value is TOML, or else text.

    Raises:
        ConfigurationError: a text without `=` or without a key.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(
                f"--set {setting}: write it as table.field=value", next_step="for example --set training.epochs=2"
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        overrides[key.strip()] = value
    return overrides


def _set(document: dict[str, Any], keys: list[str], value: Any) -> bool:
    for key in keys[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            return False
    document[keys[-1]] = value
    return True
