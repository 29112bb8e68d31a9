"""Pipeline files: what they accept, and that all problems are reported together with their fields and remedies."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from nightgate.config.gate import Blockable, Gate
from nightgate.config.pipeline import Pipeline
from nightgate.config.values import canonical_label
from nightgate.errors import ConfigurationError
from nightgate.pipeline_files import check_pipeline, find_by_name, load_pipeline, parse_settings, pipeline_files

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
def test_every_shipped_pipeline_loads_and_has_the_name_of_its_file(name: str) -> None:
    assert load_pipeline(name).name == name


def test_the_template_sets_the_fields_of_the_gate_that_decide_to_their_defaults() -> None:
    written = tomllib.loads(pipeline_files()["template"].read_text())["gate"]
    assert list(written) == ["average", "min_f1", "policy", "margin", "test_window", "blocking", "approval"]
    assert load_pipeline("template").gate == Gate()
    assert {name for name in get_args(Blockable) if Gate().blocks(name)} == {"slices"}


def test_a_gate_that_an_earlier_version_stored_blocks_what_it_blocked() -> None:
    earlier = {
        "min_f1": 0.54,
        "golden_margin": 0.05,
        "golden_blocks": False,
        "slice_floor": 0.0,
        "slice_margin": 0.05,
        "max_share_gap": 0.3,
        "max_calibration_error": 0.3,
        "max_latency_ratio": 2.0,
        "max_size_ratio": 1.5,
    }
    gate = check({f"gate.{name}": value for name, value in earlier.items()}).gate
    assert {name for name in get_args(Blockable) if not gate.blocks(name)} == {"golden"}
    assert (gate.min_f1, [gate.limit(name) for name in get_args(Blockable)]) == (0.54, [0.05, 0.05, 0.3, 0.3, 2, 1.5])
    assert check({"gate.golden_blocks": True}).gate.blocks("golden")


def test_the_published_recipe_is_written_out_and_agrees_with_the_defaults() -> None:
    published = load_pipeline("amazon-reviews-multi")
    assert published.training == check({"training.max_train_rows": 40_000, "training.keep": "random"}).training
    assert published.data.label_index == {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
    assert published.data.label_names == ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.learning_rat": 1e-5}, "training.learning_rate?"),
        ({"training.num_train_epochs": 3}, "training.epochs"),
        ({"training.fp16": True}, "training.precision"),
        ({"epochs": 2}, "training.epochs?"),
        ({"schedule.predict.crom": "0 4 * * *"}, "schedule.predict.crom: unknown; did you mean cron?"),
        ({"data.checks.columns.stars.minimum": 1}, "data.checks.columns.stars.minimum: unknown; did you mean min?"),
        ({"data.source": {"kind": "files", "path": ["a"]}}, "data.source.path: unknown; did you mean paths?"),
        (
            {"predict.output": {"kind": "sql", "url_env": "X", "tabel": "t"}},
            "predict.output.tabel: unknown; did you mean table?",
        ),
        ({"schedule.predict.cron": "0 4 * * *"}, "predict.source"),
        ({"training.epochs": "5"}, "training.epochs"),
        ({"training.epochs": 0}, "training.epochs"),
        ({"training.epochs": True}, "training.epochs"),
        ({"training.learning_rate": float("nan")}, "training.learning_rate"),
        ({"training.learning_rate": 0}, "training.learning_rate"),
        ({"training.precision": "int8"}, "'auto', 'bf16', 'fp16' or 'fp32'"),
        ({"training.dropout": 1.0}, "training.dropout"),
        ({"retention.versions": 5}, "retention.versions"),
        ({"retention.snapshots": 0}, "retention.snapshots"),
        ({"resources.slot": "GPU 1"}, "resources.slot"),
        ({"data.labels": [1]}, "data.labels"),
        ({"data.labels": [1, 1]}, "twice"),
        ({"data.labels": {"1": "good", "2": "good"}}, "'good'"),
        ({"data.source.kind": "mongo"}, "'files', 'hub', 'sample', 'sql'"),
        ({"data.train_window": "365d"}, "`time`"),
        ({"data.train_window": "a year"}, "'a year'"),
        ({"training.full_every": 15}, "15 is not a duration"),
        ({"data.slices": ["label"]}, "slices"),
        ({"data.timezone": "Mars/Olympus"}, "IANA"),
        ({"schedule.cron": "0 * * * *"}, "2027-01-01"),
        ({"schedule.cron": "15 3 * *"}, "'15 3 * *'"),
        ({"schedule.cron": "61 3 * * *"}, "'61 3 * * *'"),
        ({"split.validation": 0.5, "split.test": 0.5}, "0.5"),
        ({"split.test": 0.0}, "split.test"),
        ({"name": "Reviews of 2026"}, "name: "),
        ({"name.x": 1}, "name.x"),
        ({"training.base_model": "package:x/model", "training.base_model_revision": "main"}, "base_model_revision"),
    ],
)
def test_a_problem_is_reported_with_its_field_or_value(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(overrides)
    assert any(words in problem for problem in caught.value.problems)
    assert caught.value.exit_code == 2


def test_all_problems_of_a_file_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check({"training.epochs": 0, "training.lr": 1, "gate.min_f1": 2, "data.timezone": "Mars"})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("1e-5", 1e-5), ("true", True), ('"a b"', "a b"), ("cosine", "cosine"), ("[1, 2]", [1, 2]), ("", "")],
)
def test_the_value_of_a_setting_is_toml_or_else_text(text: str, value: object) -> None:
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
        (0.5, "0.5"),
        ("ma\u0308ßig", "m\u00e4ßig"),
        ("R&amp;B  jazz\u200b", "R&B jazz"),
        # Words that pandas takes for missing values.
        *((word, word) for word in ("None", "NA", "nan", "NULL", "<NA>")),
        *((missing, None) for missing in (None, float("nan"), "", "  ")),
    ],
)
def test_a_label_is_the_same_text_from_every_format(value: object, text: str | None) -> None:
    assert canonical_label(value) == text


def test_labels_may_be_fractions_truth_values_or_decomposed_text() -> None:
    data = check({"data.labels": [0.5, 1.0, True, "ge\u0301nial"]}).data
    assert data.label_names == ("0.5", "1.0", "true", "g\u00e9nial")
    assert data.label_index == {"0.5": 0, "1": 1, "true": 2, "g\u00e9nial": 3}


def test_the_configuration_hash_covers_all_but_the_schedule() -> None:
    assert check().config_hash == check({"schedule.cron": "0 1 * * *"}).config_hash
    assert check().config_hash != check({"training.seed": 1}).config_hash


def test_metrics_lie_beside_the_file_and_count_by_name_where_they_are_set(tmp_path: Path) -> None:
    def load(folder: str, metrics: list[str]) -> Pipeline:
        (tmp_path / folder).mkdir(exist_ok=True)
        file = tmp_path / folder / "one.toml"
        text = pipeline_files()["template"].read_text().replace("\nmetrics = []", f"\nmetrics = {metrics}")
        file.write_text(text.replace('name = "template"', 'name = "one"'))
        return load_pipeline(file)

    one = load("a", ["mae", "own.py", "../common/other.py", "owner/name"])
    assert one.training.metrics == ("mae", f"{tmp_path}/a/own.py", f"{tmp_path}/common/other.py", "owner/name")
    assert load("b", ["mae", "own.py"]).config_hash == load("c", ["mae", "own.py"]).config_hash
    assert load("b", ["mae"]).config_hash != load("b", ["mse"]).config_hash
    assert check().config_hash == "2e5165eeb936", "as before there were metrics"
    with pytest.raises(ConfigurationError, match="own more than once"):
        load("a", ["own.py", "owner/own"])


def test_an_unknown_name_is_reported_with_the_nearest_one() -> None:
    with pytest.raises(ConfigurationError, match="'sample'"):
        load_pipeline("sampel")


def test_a_missing_file_is_reported_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.toml"):
        load_pipeline(tmp_path / "nothing.toml")


@pytest.mark.parametrize(("content", "words"), [(b"name = ", "TOML"), (b'name = "caf\xe9"', "UTF-8"), (b"", "data")])
def test_a_file_that_is_not_a_pipeline_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        load_pipeline(path)


def test_names_are_looked_up_first_in_nightgate_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "sample.toml"
    mine.write_text(pipeline_files()["sample"].read_text().replace("rows_per_day = 160", "rows_per_day = 7"))
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(mine))
    source = load_pipeline("sample").data.source
    assert source.kind == "sample"
    assert source.rows_per_day == 7


def test_a_form_finds_pipelines_by_name_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'")
    with pytest.raises(ConfigurationError, match=r"mine\.toml"):
        find_by_name(str(path))


def test_a_file_whose_name_field_differs_is_refused_by_name_and_loaded_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployments" / "pipelines"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(pipeline_files()["template"].read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="'template'"):
        load_pipeline("mine")
    assert load_pipeline("deployments/pipelines/mine.toml").name == "template"


def test_a_listed_file_is_found_by_its_name_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.toml"
    path.write_text(pipeline_files()["sample"].read_text().replace('name = "sample"', 'name = "shop"'))
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(path))
    assert load_pipeline("shop").name == "shop"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pipelines are found by name: `shop` and `kiosk` extend `base`, which is none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "deployments" / "pipelines"
    folder.mkdir(parents=True)
    (folder / "base.toml").write_text(
        'extends = "../common/all.toml"\n[data]\nsource = { kind = "sample", days = 9 }\nlabels = [1, 2, 3]\n'
        "[data.checks]\nmax_rows_lost = 0.5\n[training]\nepochs = 2\n"
    )
    (folder.parent / "common").mkdir()
    (folder.parent / "common" / "all.toml").write_text('name = "all"\n[training]\nepochs = 9\nseed = 7\n')
    for name, more in (("shop", "[training]\nbatch_size = 8\n"), ("kiosk", '[data]\nsource = { kind = "sample" }\n')):
        (folder / f"{name}.toml").write_text(f'name = "{name}"\nextends = "base.toml"\n{more}')
    return folder


def test_values_of_a_file_hold_where_those_that_extend_it_say_nothing(folder: Path) -> None:
    shop, kiosk = load_pipeline("shop", {"training.epochs": 3}), load_pipeline("kiosk")
    assert (shop.name, shop.training.epochs, shop.training.batch_size, shop.training.seed) == ("shop", 3, 8, 7)
    assert (kiosk.name, kiosk.training.epochs, kiosk.data.checks.max_rows_lost) == ("kiosk", 2, 0.5)
    # A source is one value: nothing of the other file's is mixed in.
    assert [one.data.source.model_dump()["days"] for one in (shop, kiosk)] == [9, 30]
    whole = folder / "whole.toml"
    whole.write_text('name = "shop"\n[data]\nlabels = [1, 2, 3]\nsource = { kind = "sample", days = 9 }\n')
    settings = {"data.checks.max_rows_lost": 0.5, "training.seed": 7, "training.batch_size": 8, "training.epochs": 3}
    assert load_pipeline(whole, settings).config_hash == shop.config_hash


@pytest.mark.usefixtures("folder")
def test_a_file_without_a_name_is_no_pipeline() -> None:
    assert {"shop", "kiosk"} < pipeline_files().keys()
    assert "base" not in pipeline_files()
    with pytest.raises(ConfigurationError, match=r"base\.toml has no name") as caught:
        find_by_name("base")
    assert 'name = "base"' in caught.value.next_step


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        ("base.toml", "epochs = 2", "epochs = 0", r"training\.epochs: .*base\.toml\)"),
        ("base.toml", "[training]", "[trainig]", r"trainig: .*base\.toml\)"),
        ("base.toml", "[1, 2, 3]", "[1, 1]", r"data: labels: .*base\.toml\)"),
        ("../common/all.toml", "seed", "num_train_epochs", r"num_train_epochs: .*all\.toml\)"),
        ("shop.toml", "batch_size = 8", "batch_size = 0", r"training\.batch_size: [^(]*$"),
        ("base.toml", 'extends = "../common', 'extends = "../nothing', r"base\.toml: extends .*nothing"),
        ("base.toml", "../common/all.toml", "shop.toml", r"circle: .*shop\.toml -> .*base\.toml -> .*shop\.toml"),
        ("base.toml", '"../common/all.toml"', "[]", r"base\.toml: extends is \[\]"),
        ("../common/all.toml", "seed = 7", "seed = ", r"all\.toml is not TOML"),
    ],
)
def test_a_problem_names_the_file_in_which_it_stands(
    folder: Path, file: str, before: str, after: str, problem: str
) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ConfigurationError) as caught:
        load_pipeline("shop")
    assert re.search(problem, caught.value.reason, re.MULTILINE)
    assert caught.value.next_step


@pytest.mark.usefixtures("folder")
def test_a_wrong_setting_names_no_file_that_it_overrides() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_pipeline("shop", {"training.epochs": 0, "split.test": 0.5, "split.validation": 0.5})
    assert "shop.toml with --set training.epochs, split.test, split.validation has " in caught.value.reason
    [problem] = caught.value.problems
    assert problem.endswith("(given for this run)")
