"""Power of the test rows, extrapolated from the evidence of one night."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from nightgate.analysis.power import newest_power, power_of
from nightgate.cli.app import app
from nightgate.config.gate import Gate
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.gate.decide import decide
from nightgate.reports.gate_charts import ChampionAt, champions, power_curve
from tests.support import evidence as made_up
from tests.support import night_rows
from tests.support.judged_nights import Model, judged_night

NIGHT = night_rows.night().date


def test_power_equals_the_detectable_gain_of_the_night() -> None:
    evidence, policy = made_up.evidence(3000), Gate()
    power = power_of(NIGHT, evidence, policy)
    measured = decide(evidence, policy).measured
    assert power.rows == measured.candidate.rows
    assert power.detectable_with(power.rows) == pytest.approx(measured.detectable_gain)


def test_four_times_the_rows_detect_half_the_gain_and_the_rows_for_a_gain_detect_it() -> None:
    power = power_of(NIGHT, made_up.evidence(3000), Gate())
    assert power.detectable_with(4 * power.rows) == pytest.approx(power.detectable_with(power.rows) / 2)
    assert power.error_with(power.rows / 9) == pytest.approx(3 * power.std_error)
    needed = power.rows_for(0.01)
    assert power.detectable_with(needed) <= 0.01 < power.detectable_with(needed - 1)
    assert f"takes {needed:,} rows" in power.describe()


def test_the_error_of_more_rows_is_predicted_from_fewer() -> None:
    few, many = (power_of(NIGHT, made_up.evidence(rows), Gate(test_window="")) for rows in (1500, 6000))
    assert few.error_with(6000) == pytest.approx(many.std_error, rel=0.1)


def test_a_higher_confidence_detects_less_and_a_wider_window_more() -> None:
    evidence = made_up.evidence(3000)
    usual, sure = (power_of(NIGHT, evidence, Gate(confidence=value)) for value in (0.95, 0.99))
    narrow = power_of(NIGHT, evidence, Gate(test_window="10d", min_test_rows=1))
    assert sure.detectable_with(3000) > usual.detectable_with(3000)
    assert narrow.rows < usual.rows
    assert narrow.detectable_with(narrow.rows) > usual.detectable_with(usual.rows)


@pytest.mark.parametrize("what", ["no champion", "the same predictions", "a champion that cannot be scored"])
def test_without_a_comparison_there_is_no_power(what: str) -> None:
    whole = made_up.evidence(500)
    changed: dict[str, Any] = {
        "no champion": {"champion": None, "anchor": None},
        "the same predictions": {"champion": whole.candidate, "anchor": whole.candidate},
        "a champion that cannot be scored": {
            "champion": made_up.side(whole.test, None, 0.6, 3, predictions=None, flaw="knows other labels")
        },
    }[what]
    assert power_of(NIGHT, made_up.evidence(500, **changed), Gate()) is None


def test_the_newest_night_with_a_comparison_is_used(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.65))
    with pytest.raises(RegistryError, match="reviews") as caught:
        newest_power(database, "reviews")
    assert caught.value.next_step.endswith("nightgate run reviews")
    judged_night(database, 1, Model("second", 0.66), first)
    judged_night(database, 2, Model("third", 0.66), first)
    assert newest_power(database, "reviews").night == night_rows.night(2).date
    assert newest_power(database, "reviews", {"gate.margin": 0.03}).margin == 0.03


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_command_prints_sizes_and_saves_a_picture(database: Database, home: Any) -> None:
    first = judged_night(database, 0, Model("first", 0.65))
    judged_night(database, 1, Model("second", 0.66), first)
    done = CliRunner().invoke(app, ["gate", "power", "reviews", "--format", "json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["test_rows"] for row in rows if row["night"]] == [800]
    gains = [row["detectable_gain"] for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert "with 80 % power" in done.stderr
    assert f"picture: {home.root / 'reports' / 'reviews' / 'power.svg'}" in done.stderr
    assert (home.root / "reports" / "reviews" / "power.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_pictures_have_alternative_texts() -> None:
    power = power_of(NIGHT, made_up.evidence(3000), Gate())
    assert power is not None
    picture = power_curve(power)
    assert picture.alt.startswith("With 3,000 test rows a gain of")
    assert "margin 1" in picture.svg
    nights = [
        ChampionAt(night_rows.night(day).date, None if day == 3 else 0.5, day == 1, math.sqrt(day) / 10, day == 0)
        for day in range(6)
    ]
    picture = champions(nights, "gate.margin=0.02")
    assert picture.alt.endswith("1 nights promoted, under gate.margin=0.02 1")
    assert "replayed 0.2236" in picture.svg
    assert "replayed: gate.margin=0.02" in picture.svg
    assert "do not compare" not in picture.svg
    broken = champions([*nights[:4], replace(nights[4], after_break=True), nights[5]], "gate.margin=0.02")
    assert "┆: scores do not compare across it" in broken.svg
    # Two lines for each champion instead of one, and the break.
    assert broken.svg.count("<path") > picture.svg.count("<path")
    assert champions([ChampionAt(NIGHT, None, False, None, False)], "the same policy").svg
