"""Pipeline files: what they accept, and that every problem is told at once, by its name and with a way out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from nightgate.config import Pipeline
from nightgate.config_types import canonical_label
from nightgate.errors import ConfigurationError
from nightgate.pipeline_files import (
    check_pipeline,
    find_by_name,
    load_by_name,
    load_pipeline,
    parse_settings,
    pipeline_files,
)

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "sample"}, "text": "text", "label": "stars", "labels": [1, 2, 3]},
}


def check(overrides: dict[str, Any] | None = None) -> Pipeline:
    return check_pipeline(copy.deepcopy(SMALL), "small.toml", overrides)


def test_the_defaults_are_the_published_recipe() -> None:
    training = check().training
    assert training.base_model == "microsoft/Multilingual-MiniLM-L12-H384"
    assert (training.learning_rate, training.batch_size, training.eval_batch_size, training.epochs) == (5e-5, 16, 16, 5)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training.lr_scheduler_type, training.max_grad_norm, training.weight_decay) == ("linear", 1.0, 0.0)


@pytest.mark.parametrize("name", ["sample", "template", "amazon-reviews-multi"])
def test_every_shipped_pipeline_loads_and_bears_the_name_of_its_file(name: str) -> None:
    assert load_pipeline(name).name == name


def test_the_published_recipe_is_written_out_and_agrees_with_the_defaults() -> None:
    published = load_pipeline("amazon-reviews-multi")
    assert published.training == check({"training.max_train_rows": 40_000, "training.keep": "random"}).training
    assert published.data.label_index == {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
    assert published.data.label_names == ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"training.learning_rat": 1e-5}, "did you mean training.learning_rate?"),
        ({"training.num_train_epochs": 3}, "Nightgate calls it training.epochs"),
        ({"training.fp16": True}, "Nightgate calls it training.precision"),
        ({"epochs": 2}, "did you mean training.epochs?"),
        ({"training.epochs": "5"}, "training.epochs: Input should be a valid integer"),
        ({"training.epochs": 0}, "greater than or equal to 1, not 0"),
        ({"training.epochs": True}, "training.epochs"),
        ({"training.learning_rate": float("nan")}, "finite number"),
        ({"training.learning_rate": 0}, "greater than 0"),
        ({"training.precision": "int8"}, "'auto', 'bf16', 'fp16' or 'fp32'"),
        ({"training.dropout": 1.0}, "less than 1"),
        ({"retention.snapshots": 5}, "does not act on it yet"),
        ({"resources.slot": "GPU 1"}, "resources.slot"),
        ({"data.labels": [1]}, "at least 2"),
        ({"data.labels": [1, 1]}, "names a label twice"),
        ({"data.labels": {"1": "good", "2": "good"}}, "only one label"),
        ({"data.source.kind": "sql"}, "'sample', 'files', 'hub'"),
        ({"data.train_window": "365d"}, "train_window needs `time`"),
        ({"data.train_window": "a year"}, "not a duration"),
        ({"data.slices": ["label"]}, "'label' is taken"),
        ({"data.timezone": "Mars/Olympus"}, "IANA"),
        ({"schedule.cron": "0 * * * *"}, "fires more than once"),
        ({"schedule.cron": "15 3 * *"}, "five fields"),
        ({"schedule.cron": "61 3 * * *"}, "is not a cron"),
        ({"split.validation": 0.5, "split.test": 0.5}, "leave nothing to train on"),
        ({"split.test": 0.0}, "greater than 0"),
        ({"name": "Reviews of 2026"}, "should match pattern"),
        ({"name.x": 1}, "only fields of a table can be set"),
    ],
)
def test_a_problem_is_named_with_its_value_and_a_way_out(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(overrides)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_of_a_file_are_told_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check({"training.epochs": 0, "training.lr": 1, "gate.min_f1": 2, "data.timezone": "Mars"})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("1e-5", 1e-5), ("true", True), ('"a b"', "a b"), ("cosine", "cosine"), ("[1, 2]", [1, 2]), ("", "")],
)
def test_the_value_of_a_setting_is_toml_and_else_text(text: str, value: object) -> None:
    assert parse_settings([f"training.x={text}"]) == {"training.x": value}


def test_a_setting_without_an_equals_sign_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"table\.field=value"):
        parse_settings(["training.epochs"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (5.0, "5"),
        ("5", "5"),
        (" 5 ", "5"),
        ("5.0", "5"),
        ("good", "good"),
        ("1.5", "1.5"),
        (True, "true"),
        ("TRUE", "true"),
    ],
)
def test_a_label_is_the_same_text_from_every_format(value: object, text: str) -> None:
    assert canonical_label(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
def test_a_missing_label_is_none(value: object) -> None:
    assert canonical_label(value) is None


def test_the_configuration_hash_ignores_the_schedule_and_sees_all_else() -> None:
    assert check().config_hash == check({"schedule.cron": "0 1 * * *"}).config_hash
    assert check().config_hash != check({"training.seed": 1}).config_hash


def test_an_unknown_name_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'sample'"):
        load_pipeline("sampel")


def test_a_missing_file_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no pipeline file"):
        load_pipeline(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"name = ", "is not TOML"), (b'name = "caf\xe9"', "not UTF-8"), (b"", "data")],
)
def test_a_file_that_is_no_pipeline_is_told_so(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told):
        load_pipeline(path)


def test_names_are_looked_up_first_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "sample.toml"
    mine.write_text(pipeline_files()["sample"].read_text().replace("rows_per_day = 60", "rows_per_day = 7"))
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(mine))
    source = load_pipeline("sample").data.source
    assert source.kind == "sample"
    assert source.rows_per_day == 7


def test_a_form_finds_names_only_and_never_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'")
    with pytest.raises(ConfigurationError, match="there is no pipeline"):
        find_by_name(str(path))


def test_a_file_that_calls_itself_otherwise_is_refused_by_name_and_taken_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployments" / "pipelines"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(pipeline_files()["template"].read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="calls itself 'template'"):
        load_pipeline("mine")
    assert load_pipeline("deployments/pipelines/mine.toml").name == "template"


def test_a_served_file_is_found_by_the_name_that_it_gives_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.toml"
    path.write_text(pipeline_files()["sample"].read_text().replace('name = "sample"', 'name = "shop"'))
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(path))
    assert load_by_name("shop").name == "shop"


def test_a_revision_is_refused_for_a_model_that_is_not_of_the_hub() -> None:
    with pytest.raises(ConfigurationError, match="models of the hub"):
        check({"training.base_model": "package:x/model", "training.base_model_revision": "main"})
