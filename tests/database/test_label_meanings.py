"""What labels of stored runs mean, on both engines."""

from __future__ import annotations

from dataclasses import replace

from nightgate.database.label_meanings import label_meanings, meaning_of_run, meaning_on
from nightgate.database.transactions import Database
from nightgate.label_meaning import LabelMeaning
from nightgate.runs import lifecycle, records
from tests.support import night_rows

USUAL = LabelMeaning("label", {"bad": "bad", "good": "good"})


def night_with(database: Database, day: int, classes: list[str] | None) -> str:
    """A night whose snapshot names the source's classes; None: as an earlier release stored it."""
    run = night_rows.opened(database, day)
    made = night_rows.refreshed(database, f"s-{day}")
    rules = {"rules": {} if classes is None else {"classes": classes}}
    snapshot = replace(made.snapshot, manifest=made.snapshot.manifest | rules)
    records.record_snapshot(database, run.run_id, 1, replace(made, snapshot=snapshot))
    lifecycle.finish_run(database, run.run_id, 1, "held")
    return run.run_id


def test_names_of_class_numbers_that_change_are_another_meaning_and_unknown_ones_are_not(database: Database) -> None:
    runs = [night_with(database, day, names) for day, names in enumerate((None, ["one", "two"], ["two", "one"]))]
    found = database.read(lambda session: label_meanings(session, "reviews"))
    before, usual, swapped = (found[run] for run in runs)
    assert before == USUAL
    assert usual == replace(USUAL, classes=("one", "two"))
    assert (before.change(usual), usual.change(before), before.change(swapped)) == ("", "", "")
    assert usual.change(swapped) == "class 0 was one and is two, class 1 was two and is one"
    assert "class 0 was one and is two" in usual.flaw(swapped)


def test_the_meaning_of_a_night_is_that_of_its_first_snapshot(database: Database) -> None:
    without = night_rows.opened(database, 0)
    assert database.read(lambda session: meaning_on(session, "reviews", night_rows.night(0).date)) is None
    assert database.read(lambda session: meaning_of_run(session, without.run_id)) == USUAL
    lifecycle.finish_run(database, without.run_id, 1, "held")
    night_with(database, 1, ["one", "two"])
    found = database.read(lambda session: meaning_on(session, "reviews", night_rows.night(1).date))
    assert found is not None
    assert found.classes == ("one", "two")
