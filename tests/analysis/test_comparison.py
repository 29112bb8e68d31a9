"""Comparison of two versions: on the same rows, and in data, configuration and environment."""

from __future__ import annotations

import copy
import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

import nightgate
from nightgate.analysis import comparison
from nightgate.analysis.comparison import Comparison, Section
from nightgate.cli.app import app
from nightgate.config.pipeline import Pipeline
from nightgate.database import schema
from nightgate.database.shared_values import document_id
from nightgate.database.transactions import Database
from nightgate.errors import ModelError
from nightgate.metrics.bootstrap import f1_difference
from nightgate.registry import champions, versions
from nightgate.runs.evidence_store import microseconds
from tests.support import night_rows
from tests.support.judged_nights import Model, judged_night, rows_of


def compare(db: Database, first: int | str, second: int | str) -> Comparison:
    a, b = (champions.resolve_version(db, "reviews", text) for text in (first, second))
    return comparison.compare(db, a, b)


def section(found: Comparison, name: str) -> Section:
    return next(one for one in found.sections if one.name == name)


def two_champions(db: Database) -> tuple[Model, Model]:
    """Version 1, and version 2 that replaced it; both were scored on a third night, version 1 as the anchor."""
    first = judged_night(db, 0, Model("first", 0.65))
    second = judged_night(db, 1, Model("second", 0.78), first)
    champion = versions.champion(db, "reviews")
    assert champion.version == 2
    judged_night(db, 2, Model("third", 0.7), second, anchor=first)
    return first, second


def test_both_are_compared_on_all_rows_that_both_were_scored_on(database: Database) -> None:
    first, second = two_champions(database)
    found = section(compare(database, 1, 2), "paired")
    rows = rows_of(2)
    facts = {pair.name: pair for pair in found.pairs}
    assert facts["rows"].first == len(rows) == 1200
    wanted = f1_difference(rows.true, first.predictions(rows), second.predictions(rows), 2, "weighted")
    assert facts["f1"].difference == pytest.approx(wanted.value)
    assert [facts[name].difference for name in ("f1_ci_low", "f1_ci_high")] == pytest.approx(list(wanted.interval))
    hits = [model.predictions(rows) == rows.true for model in (first, second)]
    assert facts["right_where_other_is_wrong"].first == int((hits[0] & ~hits[1]).sum())
    assert found.note.endswith("version 2 is better")


def test_rows_newer_than_both_have_a_section(database: Database) -> None:
    two_champions(database)
    found = section(compare(database, 1, 2), "paired_fresh")
    # Rows of the third night: version 2 was selected by those of the second.
    assert found.pairs[0].first == 400


def test_models_without_a_significant_difference_are_called_so(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.7))
    judged_night(database, 1, Model("other", 0.7), first)
    assert section(compare(database, 1, 2), "paired").note.endswith("not significant")


def test_corrected_labels_judge_stored_predictions_again(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.65))
    rows = rows_of(1)
    corrected = replace(rows, true=np.where(np.arange(800) < 40, 1 - rows.true, rows.true))
    second = judged_night(database, 1, Model("second", 0.78), first, num_rows=800)
    night = judged_night(database, 2, Model("third", 0.7), second, anchor=first, num_rows=800, test=corrected)
    found = section(compare(database, 1, 2), "paired")
    wanted = f1_difference(corrected.true, first.predictions(rows), second.predictions(rows), 2, "weighted")
    facts = {pair.name: pair for pair in found.pairs}
    assert facts["f1"].difference == pytest.approx(wanted.value)
    noted = database.frame("SELECT labels_corrected, metric_key FROM nights ORDER BY night")
    assert noted["labels_corrected"].fillna(-1).tolist() == [-1, 0, 40]
    assert noted["metric_key"].nunique() == 1
    assert nightgate.history("reviews")["break_before"].isna().all(), "no break"
    shown = CliRunner().invoke(app, ["history", "reviews"], env={"COLUMNS": "300"}).stdout.splitlines()
    assert [line.endswith("labels of 40 test rows were corrected") for line in shown[-3:]] == [False, False, True]
    assert shown[-1].startswith("~")
    assert not any("┄┄┄" in line for line in shown)
    assert night.version == 3


@pytest.mark.parametrize("labels", [{"bad": "good", "good": "bad"}, ["bad", "fine", "good"]])
def test_versions_whose_labels_mean_something_else_are_not_compared(database: Database, labels: Any) -> None:
    record = night_rows.pipeline().record()
    other = Pipeline.model_validate({**record, "data": {**record["data"], "labels": labels}})
    first = judged_night(database, 0, Model("first", 0.65))
    judged_night(database, 1, Model("second", 0.78), first, pipeline=other)
    found = section(compare(database, 1, 2), "paired")
    assert found.pairs == ()
    assert "mean something else" in found.note
    a, b = (champions.resolve_version(database, "reviews", number) for number in (1, 2))
    with pytest.raises(ModelError, match="version 1 was trained on labels that mean something else"):
        comparison.scored_now(database, database.home, a, b)
    history = nightgate.history("reviews")
    assert history["break_before"].notna().tolist() == [False, True]
    assert history["labels_corrected"].isna().all(), "not comparable either"


def test_the_difference_by_class_is_of_the_same_rows(database: Database) -> None:
    first, second = two_champions(database)
    found = section(compare(database, 1, 2), "classes")
    rows = rows_of(2)
    for index, pair in enumerate(found.pairs):
        wanted = f1_difference(rows.true, first.predictions(rows), second.predictions(rows), 2, index).value
        assert pair.difference == pytest.approx(wanted)
    assert [pair.name for pair in found.pairs] == ["bad", "good"]


def test_rows_that_a_version_was_trained_on_are_left_out(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.65, trained_on=50))
    judged_night(database, 1, Model("second", 0.78), first)
    assert section(compare(database, 1, 2), "paired").pairs[0].first == 750


def test_without_common_rows_the_note_names_the_command(database: Database) -> None:
    judged_night(database, 0, Model("first", 0.65))
    night_rows.held_version(database, 1)
    found = compare(database, 1, 2)
    assert section(found, "paired").pairs == ()
    assert "nightgate compare reviews 1 2 --rescore" in section(found, "paired").note


def test_scores_of_two_nights_are_marked_as_no_evidence(database: Database) -> None:
    two_champions(database)
    found = section(compare(database, 1, 2), "own_nights")
    assert "no evidence" in found.note
    assert next(pair for pair in found.pairs if pair.name == "test_f1").difference is not None
    change = sa.update(schema.Run).where(schema.Run.night == night_rows.night(1).date)
    database.write(lambda session: session.execute(change.values(test_version="t-2", metric_key="m-2")))
    found = section(compare(database, 1, 2), "own_nights")
    assert "t-0011223344" in found.note
    assert all(pair.difference is None for pair in found.pairs)


def test_only_what_differs_in_the_configuration_and_the_environment_is_listed(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.7))
    changed = night_rows.pipeline(learning_rate=1e-3)
    judged_night(database, 1, Model("second", 0.7), first, pipeline=changed)
    made = {
        1: {"python": "3.11.7", "libraries": {"torch": "2.9"}},
        2: {"python": "3.11.7", "libraries": {"torch": "2.10"}},
    }

    def record(session: sa.orm.Session) -> None:
        for version, environment in made.items():
            row = session.get_one(schema.ModelVersion, ("reviews", version))
            row.environment_id, row.base_model_revision = document_id(session, environment), f"sha256:{version}"
        run = session.get_one(schema.Run, first.run_id)
        earlier = copy.deepcopy(run.config)
        del earlier["training"]["start_from"]
        run.config_id = document_id(session, earlier)

    database.write(record)
    found = compare(database, 1, 2)
    [pair] = section(found, "configuration").pairs
    assert (pair.name, pair.first, pair.second) == ("training.learning_rate", 5e-5, 1e-3)
    facts = {one.name: (one.first, one.second) for one in section(found, "made_by").pairs}
    assert facts["libraries.torch"] == ("2.9", "2.10")
    assert facts["base_model_revision"] == ("sha256:1", "sha256:2")
    assert "python" not in facts


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_command_prints_a_table_one_object_or_rows(database: Database) -> None:
    two_champions(database)

    def printed(*options: str) -> str:
        done = CliRunner().invoke(app, ["compare", "reviews", "1", "champion", *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    table = printed()
    assert "On the same rows: 1,200 test rows of the night of 2026-03-03" in table
    assert "version 2 is better" in table
    assert "Configuration: the same" in table
    record = json.loads(printed("--format", "json"))
    assert (record["pipeline"], record["a"], record["b"]) == ("reviews", 1, 2)
    assert record["paired"]["facts"]["rows"] == {"a": 1200, "b": 1200, "difference": None}
    assert record["data"]["facts"]["data_until"]["a"].startswith("2026-03-01T03:15")
    rows = list(csv.DictReader(io.StringIO(printed("--format", "csv"))))
    assert {"section": "versions", "name": "version", "a": "1", "b": "2", "difference": ""} in rows


def test_fresh_rows_are_strictly_newer_than_the_data_of_the_later_model() -> None:
    rows = rows_of(0)
    until = night_rows.night(0).data_until
    some = replace(rows.only(np.arange(len(rows)) < 2), seen_at=microseconds(until) + np.array([0, 1]))
    assert comparison.fresh(some, until).tolist() == [False, True]
