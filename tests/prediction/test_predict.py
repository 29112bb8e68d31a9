"""Predictions of rows: each in its place, by one version, with the numbers of the champion."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.config.pipeline import Pipeline
from nightgate.config.predict import Output, SqlTable, reads
from nightgate.config.sources import FilesSource, SqlSource
from nightgate.database.transactions import Database
from nightgate.database_urls import safe_url
from nightgate.errors import DataError, SourceUnavailableError
from nightgate.home import open_home
from nightgate.night.night import Steps, predict_after
from nightgate.night.run import open_night
from nightgate.pipeline_files import load_pipeline
from nightgate.prediction import rows
from nightgate.prediction.files import PredictionFile
from nightgate.prediction.predict import Predicted, configured_rows, predict, predict_configured, schema_of
from nightgate.prediction.sql import PredictionTable
from nightgate.runs.run_row import read_run
from nightgate.schedule import chosen_night
from tests.support.first_night import copy_first_night

pytestmark = pytest.mark.process

HEADER = ["review_id", "text", "note"]
ROWS = [
    *(
        [f"n{number}", f"it broke after {number} days, not good " + "at all " * (number % 7), ""]
        for number in range(20)
    ),
    ["n20", "", "blank"],
    ["n21"],
    ["n22", " &nbsp; <br/>", "blank too"],
    ["n23", "good & cheap\nand two lines", ""],
    ["n24", "it broke after 3 days, not good at all at all at all ", "a text that was there"],
    ["", "a row without an id", ""],
]
"""Lines of a file: the row n21 has too few fields."""


def write_csv(path: Path, lines: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *lines])


@dataclass(frozen=True)
class Site:
    folder: Path
    home: Path
    pipeline: Pipeline
    table: pa.Table
    """Predictions of `ROWS`."""
    done: Predicted


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The first night's home, with `ROWS` predicted once, in windows of eight rows."""
    folder = tmp_path_factory.mktemp("predict")
    first = copy_first_night(folder / "home")
    write_csv(folder / "new.csv", ROWS)
    text = first.pipeline.read_text(encoding="utf-8")
    paths, output = json.dumps([str(folder / "new.csv")]), json.dumps(str(folder / "predicted.parquet"))
    text += f'\n[predict]\nsource = {{ kind = "files", paths = {paths} }}\noutput = {output}\n'
    (folder / "small.toml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", str(first.home))
        patch.setattr(rows, "WINDOW_ROWS", 8)
        pipeline = load_pipeline(folder / "small.toml")
        done = predict_configured(pipeline)
    return Site(folder, first.home, pipeline, pq.read_table(folder / "predicted.parquet"), done)


@pytest.fixture(autouse=True)
def in_its_home(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_HOME", str(site.home))


def run(*arguments: object, input: str | None = None) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=input)


# --- what is predicted ---


def test_every_row_of_the_source_has_its_place_blank_ones_too(site: Site) -> None:
    found = site.table.to_pylist()
    assert [row["id"] for row in found[:25]] == [f"n{number}" for number in range(21)] + [None, "n22", "n23", "n24"]
    assert re.fullmatch("[0-9a-f]{32}", found[25]["id"])
    lines = [int(row["origin"].rpartition(":")[2]) for row in found]
    assert lines == [*range(2, 26), 27, 28]
    assert {row["id"]: row["reason"] for row in found if row["reason"]} == {
        "n20": "empty_text",
        None: "bad_row",
        "n22": "empty_text",
    }
    for row in found:
        numbers = [row[f"probability_{label}"] for label in (1, 2, 3, 4, 5)]
        if row["reason"]:
            assert (row["label"], row["probability"], *numbers) == (None,) * 7
        else:
            assert row["probability"] == max(numbers) == row[f"probability_{row['label']}"]
            assert sum(numbers) == pytest.approx(1)
    assert {row["model_version"] for row in found} == {1}
    assert [row["precision"] for row in found] == [None if row["reason"] else "fp32" for row in found]
    assert (site.done.rows, site.done.without_text, site.done.version) == (26, 3, 1)


def test_probabilities_are_those_of_the_champion_and_of_plain_transformers(site: Site) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import nightgate

    found = site.table.filter(pa.compute.is_valid(site.table["label"]))
    ours = np.stack([found[f"probability_{label}"].to_numpy() for label in (1, 2, 3, 4, 5)], axis=1)
    champion = nightgate.load_champion("small", device="cpu")
    texts = [line[1] for line in ROWS if len(line) > 1 and line[0] not in ("n20", "n22")]
    theirs = [list(one.probabilities.values()) for one in champion.predict(texts)]
    assert np.allclose(ours, theirs, atol=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(champion.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(champion.path)
    plain = [" ".join(text.split()) for text in texts]
    with torch.inference_mode():
        batch = tokenizer(plain, truncation=True, max_length=champion.max_length, padding=True, return_tensors="pt")
        stock = model(**batch).logits.softmax(dim=-1).numpy()
    assert np.allclose(ours, stock, atol=1e-5)
    # As many as are packed give the same.
    many = champion.probabilities(plain * 4)
    assert np.allclose(many, np.tile(stock, (4, 1)), atol=1e-5)


@pytest.mark.slow
def test_predictions_of_a_killed_run_are_used_in_the_same_precision_only(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have had the killed run. What it wrote has a precision of its own."""
    monkeypatch.setattr(rows, "WINDOW_ROWS", 8)
    output, given = tmp_path / "out.parquet", list(configured_rows(site.pipeline))

    def ends_early(*_: Any, **__: Any) -> None:
        raise DataError("the disk is away")

    def run_again() -> list[pa.Table]:
        with monkeypatch.context() as patch:
            patch.setattr(PredictionFile, "write", ends_early)
            with pytest.raises(DataError, match="disk is away"):
                predict("small", given, str(output))
        return sorted((site.home / "predictions").rglob("*.parquet"))

    first, other, *rest = run_again()
    kept = pq.read_table(first)
    of_bf16 = pa.compute.if_else(kept["precision"].is_valid(), "bf16", None)
    pq.write_table(kept.set_column(kept.column_names.index("precision"), "precision", of_bf16), first)
    other.unlink()
    untouched = [part.stat().st_mtime_ns for part in rest]
    run_again()
    assert [part.stat().st_mtime_ns for part in rest] == untouched
    predict("small", given, str(output))
    assert pq.read_table(output)["precision"].to_pylist() == site.table["precision"].to_pylist()


def test_ids_that_were_forgotten_are_not_read(site: Site) -> None:
    from nightgate.data.batches import hash_of_forgotten

    data = site.pipeline.predict.rows(site.pipeline.data)
    left = pa.concat_tables(rows.rows_of_source(data, None, frozenset({hash_of_forgotten("n4")})))  # type: ignore[arg-type]
    assert left.num_rows == 26
    assert left.slice(4, 1).to_pylist() == [
        {"origin": left["origin"][4].as_py(), "id": None, "text": None, "reason": "forgotten"}
    ]
    assert rows._left_out(("reviews:n4", "n4", "of a table", None)) == ("reviews", None, None, "forgotten")


# --- where predictions go ---


def test_nothing_is_left_in_the_home(site: Site) -> None:
    assert [path for path in (site.home / "predictions").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["copy.csv", "copy.jsonl", "copy.parquet"])
def test_a_file_of_any_format_has_the_same_rows_and_gains_only_new_ones(site: Site, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    output = PredictionFile(str(path), site.table.schema, "small")
    output.write(iter([site.table.slice(0, 9), site.table.slice(9)]), adds=False)
    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}
    frame = read[name.partition(".")[2]](path)  # type: ignore[operator]
    assert list(frame) == site.table.column_names
    for column in ("origin", "id", "reason"):
        assert [value or None for value in frame[column].fillna("")] == site.table[column].to_pylist()
    expected = site.table.to_pandas()
    assert np.allclose(frame["probability_3"].astype(float), expected["probability_3"], equal_nan=True)
    before = path.read_bytes()
    again = predict("small", configured_rows(site.pipeline), str(path), new_rows_only=True)
    assert (again.rows, again.known, path.read_bytes()) == (0, 26, before)
    output.write(iter([site.table.slice(0, 2)]), adds=True)
    assert len(read[name.partition(".")[2]](path)) == 28  # type: ignore[operator]
    # As an earlier version wrote it.
    PredictionFile(str(path), site.table.schema.remove(site.table.schema.get_field_index("precision")), "small").write(
        iter([site.table.drop_columns("precision")]), adds=False
    )
    output.check(adds=True)
    output.write(iter([site.table]), adds=True)
    found = read[name.partition(".")[2]](path)  # type: ignore[operator]
    assert found["precision"].notna().tolist() == [False] * 26 + [
        one is not None for one in site.table["label"].to_pylist()
    ]
    others = found.drop(columns="precision")
    pd.testing.assert_frame_equal(others[:26], others[26:].reset_index(drop=True))


def test_a_file_with_a_long_text_can_be_added_to(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("at all " * 30_000 + "\n", encoding="utf-8")
    for added in (1, 0):
        csv.field_size_limit(131_072)  # Python's own, which other readers of CSV change for the whole process
        assert (
            f"{added} rows"
            in run(site.folder / "small.toml", *["--input", "long.txt", "--output", "x.csv", "--new-rows"]).stdout
        )


def test_new_rows_alone_are_predicted_and_added(site: Site, tmp_path: Path) -> None:
    filled = [["n20", "it has a text now", ""], ["n2", "", "emptied"]]
    write_csv(tmp_path / "more.csv", [["n30", "great, would buy again", ""], *ROWS[:2], *filled, ["n22", "", "blank"]])
    output = PredictionFile(str(tmp_path / "all.jsonl"), site.table.schema, "small")
    output.write(iter([site.table]), adds=False)
    source = FilesSource(kind="files", paths=(str(tmp_path / "more.csv"),))
    done = predict("small", configured_rows(site.pipeline, source=source), output.name, new_rows_only=True)
    assert (done.rows, done.known) == (2, 4)
    found = [json.loads(line) for line in output.path.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in found] == [*site.table["id"].to_pylist(), "n30", "n20"]
    assert {row["label"] for row in found[-2:]} <= {"1", "2", "3", "4", "5"}
    assert predict("small", configured_rows(site.pipeline, source=source), output.name, new_rows_only=True).rows == 0


@pytest.mark.slow
def test_a_prediction_at_work_holds_up_none_into_another_output(site: Site, tmp_path: Path) -> None:
    done = []

    def endless() -> Iterator[pa.Table]:
        for table in configured_rows(site.pipeline):
            done.append(predict("small", [table.slice(0, 1)], str(tmp_path / "other.csv")))
            yield table

    assert predict("small", endless(), str(tmp_path / "one.csv")).rows == 26
    assert [one.rows for one in done] == [1]


def test_a_table_is_replaced_or_gains_new_rows(
    site: Site, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_URL", database_url)
    settings = SqlTable(kind="sql", url_env="SHOP_URL", table="predicted")
    output = PredictionTable(settings, site.table.schema, "small")
    for _ in range(2):
        output.write(iter([site.table.slice(0, 9), site.table.slice(9)]), adds=False)
    again = predict("small", configured_rows(site.pipeline), settings, new_rows_only=True)
    assert (again.rows, again.known) == (0, 26)
    engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        stored = connection.execute(sa.text("SELECT id, probability_4 FROM predicted")).all()
        expected = zip(site.table["id"].to_pylist(), site.table["probability_4"].to_pylist(), strict=True)
        assert sorted(map(str, map(tuple, stored))) == sorted(map(str, expected))
    other = PredictionTable(settings, site.table.schema, "other")
    rows_of_other = site.table.slice(0, 5).set_column(
        site.table.column_names.index("pipeline"), "pipeline", pa.array(["other"] * 5)
    )
    for _ in range(2):
        other.write(iter([rows_of_other]), adds=False)
    assert ([*map(len, other.held())], predict("small", configured_rows(site.pipeline), settings).rows) == ([5], 26)
    with engine.begin() as connection:
        counts = "SELECT pipeline, COUNT(*) FROM predicted GROUP BY 1 ORDER BY 1"
        assert [*map(tuple, connection.execute(sa.text(counts)))] == [("other", 5), ("small", 26)]
        # As an earlier version made it.
        connection.execute(sa.text("ALTER TABLE predicted DROP COLUMN precision"))
    fresh = tmp_path / "fresh.csv"
    write_csv(fresh, [["n40", "great, would buy again", ""]])
    source = FilesSource(kind="files", paths=(str(fresh),))
    assert predict("small", configured_rows(site.pipeline, source=source), settings, new_rows_only=True).rows == 1
    with engine.begin() as connection:
        counts = "SELECT precision, COUNT(*) FROM predicted GROUP BY 1 ORDER BY 1 NULLS FIRST"
        assert [*map(tuple, connection.execute(sa.text(counts)))] == [(None, 31), ("fp32", 1)]
        connection.execute(sa.text("ALTER TABLE predicted DROP COLUMN label"))
    engine.dispose()
    with pytest.raises(DataError, match="no column label"):
        predict("small", configured_rows(site.pipeline), settings)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_labels_whose_columns_postgresql_would_cut_are_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_URL", database_url)
    labels = ["ä" * 26 + "b", "ä" * 26 + "c"]  # with `probability_` the first 63 bytes are the same
    schema = schema_of(labels, with_text=False)
    output = PredictionTable(SqlTable(kind="sql", url_env="SHOP_URL", table="predicted"), schema, "small")
    with pytest.raises(DataError, match="63 bytes"):
        output.check(adds=False)


def written_table(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> tuple[SqlTable, PredictionTable]:
    """A table of shop.db in the folder that has the predictions of the site."""
    monkeypatch.setenv("SHOP_URL", f"sqlite:///{folder / 'shop.db'}")
    settings = SqlTable(kind="sql", url_env="SHOP_URL", table=table)
    output = PredictionTable(settings, site.table.schema, "small")
    output.write(iter([site.table]), adds=False)
    return settings, output


def test_a_table_that_has_other_rows_is_refused_and_keeps_them(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = written_table(site, tmp_path, monkeypatch, "orders")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE orders ADD COLUMN body TEXT"))
        connection.execute(sa.text("INSERT INTO orders (body) VALUES ('of the shop')"))
    with pytest.raises(DataError, match="no predictions"):
        predict("small", configured_rows(site.pipeline), settings)
    output.write(iter([site.table]), adds=False)  # as where the row came since the check
    with engine.begin() as connection:
        found = connection.execute(sa.text("SELECT COUNT(*), MAX(body) FROM orders")).one()
    engine.dispose()
    assert tuple(found) == (27, "of the shop")


@pytest.mark.parametrize(
    ("source", "output", "is_read"),
    [
        ("new/*.csv", "new/predictions.csv", True),
        ("new/*.csv", "new/deeper/predictions.csv", False),
        ("new/**/*.csv", "new/predictions.csv", True),
        ("new/**/*.csv", "new/a/b/predictions.csv", True),
        ("new/*.csv", "new/_predictions.csv", False),
        ("file://{here}/new/*.csv", "old/../new/predictions.csv", True),
        ("s3://shop/*.csv", "predictions.csv", False),
        (SqlSource(kind="sql", url_env="SHOP", table="a"), SqlTable(kind="sql", url_env="SHOP", table="a"), True),
        (SqlSource(kind="sql", url_env="SHOP", table="a"), SqlTable(kind="sql", url_env="SHOP", table="b"), False),
        (SqlSource(kind="sql", url_env="SHOP", table="a"), "a.csv", False),
    ],
)
def test_a_source_that_would_read_the_predictions_is_recognised_before_there_are_any(
    source: str | SqlSource, output: Output, is_read: bool
) -> None:
    if isinstance(source, str):
        source = FilesSource(kind="files", paths=(source.format(here=Path.cwd()),))
    assert reads(source, output) == is_read


def test_a_file_of_another_pipeline_is_not_replaced(site: Site, tmp_path: Path) -> None:
    for name in ("predicted.csv", "predicted.jsonl", "predicted.parquet"):
        PredictionFile(str(tmp_path / name), site.table.schema, "small").write(iter([site.table]), adds=False)
        for adds in (False, True):
            with pytest.raises(DataError, match="pipeline small"):
                PredictionFile(str(tmp_path / name), site.table.schema, "other").check(adds=adds)


def test_a_batch_that_a_database_refuses_leaves_the_table_as_it_was(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, output = written_table(site, tmp_path, monkeypatch, "predicted")

    def parts() -> Iterator[pa.Table]:
        yield site.table.slice(0, 3)
        raise sa.exc.OperationalError("INSERT", {}, Exception("connection lost"))

    with pytest.raises(DataError) as caught:
        output.write(parts(), adds=False)
    assert "SHOP_URL" in caught.value.next_step
    assert [len(some) for some in output.held()] == [26]


# --- at the end of a night ---


def test_a_skipped_night_predicts_and_what_breaks_then_changes_nothing_of_it(site: Site, tmp_path: Path) -> None:
    output = {"predict.output": str(tmp_path / "night.csv")}
    pipeline = load_pipeline(site.folder / "small.toml", output)
    with open_night(pipeline, chosen_night(pipeline.schedule, date(2026, 1, 7))) as run:
        row = run.finish("skipped", "nothing is new")

    def breaks(_: Pipeline) -> Predicted:
        raise DataError("the shop is closed", next_step="come again tomorrow")

    failure = predict_after(run, row, Steps(predict=breaks))
    assert (failure and failure.reason, (tmp_path / "night.csv").exists()) == ("the shop is closed", False)

    def is_stopped(_: Pipeline) -> Predicted:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        predict_after(run, row, Steps(predict=is_stopped))
    assert "nightgate predict small --input source" in stopped.value.__notes__[-1]
    assert predict_after(replace(run, dry_run=True), row, Steps()) is None
    assert not (tmp_path / "night.csv").exists()
    assert predict_after(run, row, Steps()) is None
    assert len(pd.read_csv(tmp_path / "night.csv")) == 26
    with Database.open(open_home()) as db:
        assert read_run(db, row.run_id) == row


def test_a_prediction_that_was_stopped_goes_on_with_the_same_night(site: Site, tmp_path: Path) -> None:
    output = tmp_path / "night.csv"
    pipeline = load_pipeline(site.folder / "small.toml", {"predict.output": str(output)})
    with open_night(pipeline, chosen_night(pipeline.schedule, date(2026, 1, 8))) as run:
        row = run.finish("skipped", "nothing is new")
    ended = replace(run, ended=row)
    assert (predict_after(ended, row, Steps()), output.exists()) == (None, False)
    command = f"run {site.folder / 'small.toml'} --night 2026-01-08 --no-prefect --set predict.output={output}".split()
    for again in (lambda: predict_after(ended, row, Steps()), lambda: CliRunner().invoke(app, command).exit_code):
        (site.folder / "new.csv").rename(tmp_path / "away.csv")
        failure = predict_after(run, row, Steps())
        (tmp_path / "away.csv").rename(site.folder / "new.csv")
        assert failure is not None
        assert not again()
        assert len(pd.read_csv(output)) == 26
        output.unlink()
        assert (again(), output.exists()) in [(None, False), (0, False)], "it is whole"


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--input", "{folder}/other.csv"), "[predict] (id, text)", 1),
        (("--input", "{folder}/nowhere.csv"), "check --input", 1),
        (("--input", "{folder}/nowhere.txt"), "nowhere.txt", 1),
        (("--input", "source", "--output", "{folder}/kept.csv"), "kept.csv", 1),
        (("--input", "source", "--output", "{folder}/kept.csv", "--new-rows"), "remove that file", 1),
        (("--input", "source", "--output", "{folder}/new.csv"), "would become rows", 2),
        (("--input", "{folder}/n*.csv", "--output", "{folder}/night.csv"), "would become rows", 2),
        (("--input", "source", "--output", "{folder}/none/x.csv"), "none", 1),
        (("--input", "source", "--output", "{folder}/new.csv/x.csv"), "no folder", 1),
        (("--input", "source", "--output", f"{{folder}}/{'long' * 100}.csv"), "cannot write", 2),
        (("--input", "source", "--output", "predictions"), "predictions", 2),
        (("--input", "source", "--output", "UNSET_URL:predictions"), "UNSET_URL", 2),
        (("--input", "source", "--version", "7"), "version 7", 1),
        (("a text", "--input", "source"), "--input", 2),
        (("a text", "--new-rows"), "--output", 2),
        ((), "no text", 2),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence_and_the_next_step(
    site: Site, arguments: tuple[str, ...], words: str, code: int
) -> None:
    shutil.copy(site.folder / "new.csv", site.folder / "kept.csv")
    (site.folder / "other.csv").write_text("number,body\n1,it broke\n", encoding="utf-8")
    done = run(site.folder / "small.toml", *(one.format(folder=site.folder) for one in arguments), input="")
    assert (done.exit_code, done.stdout) == (code, "")
    assert (done.stderr.count("error: "), done.stderr.count("next: ")) == (1, 1), done.stderr
    assert words in done.stderr
    assert (site.folder / "new.csv").read_bytes() == (site.folder / "kept.csv").read_bytes()
    assert pq.read_table(site.folder / "predicted.parquet") == site.table


def test_a_database_that_is_away_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://shop:secret@127.0.0.1:1/shop"
    monkeypatch.setenv("SHOP_URL", url)
    with pytest.raises(SourceUnavailableError) as caught:
        predict("small", [], SqlTable(kind="sql", url_env="SHOP_URL", table="predicted"))
    assert safe_url(url) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_pipeline_without_a_champion_predicts_nothing(site: Site, tmp_path: Path) -> None:
    text = (site.folder / "small.toml").read_text(encoding="utf-8").replace('"small"', '"fresh"', 1)
    (tmp_path / "fresh.toml").write_text(text, encoding="utf-8")
    done = run(tmp_path / "fresh.toml", "--input", "source", "--output", tmp_path / "x.csv")
    assert (done.exit_code, "next: " in done.stderr, list(tmp_path.iterdir())) == (1, True, [tmp_path / "fresh.toml"])


# --- the command line ---


def test_rows_of_a_source_or_a_file_are_printed(site: Site) -> None:
    printed = run(site.folder / "small.toml", "--input", site.folder / "new.csv", "--format", "csv")
    found = list(csv.DictReader(printed.stdout.splitlines()))
    assert [row["id"] for row in found][:25] == [name or "" for name in site.table["id"].to_pylist()][:25]
    assert [row["label"] for row in found] == [label or "" for label in site.table["label"].to_pylist()]


def test_lines_of_a_text_file_are_rows_blank_ones_too(site: Site, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("fits well\n\n it broke \n", encoding="utf-8")
    found = json.loads(run(site.folder / "small.toml", "--input", tmp_path / "lines.txt", "--format", "json").stdout)
    assert [(row["text"], row["reason"]) for row in found] == [
        ("fits well", None),
        (None, "empty_text"),
        ("it broke", None),
    ]
