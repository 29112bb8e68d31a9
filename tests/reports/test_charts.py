"""The pictures of a report: legible, the same each time, and harmless whatever the labels hold."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from syrupy.assertion import SnapshotAssertion

from nightgate.plain_text import printable
from nightgate.reports import charts, pictures
from nightgate.reports.charts import Distance, Gap, Level
from nightgate.reports.confusion_chart import HEAT, PALE_FROM, confusion_matrix, heat_level
from nightgate.reports.pictures import Picture
from nightgate.reports.training_diagnosis import EpochFacts
from tests.support.night_rows import PUBLISHED

pytestmark = pytest.mark.process

EPOCHS = [EpochFacts(row[1], row[0], row[3], row[5]) for row in PUBLISHED]
NASTY = '</text><script>alert(1)</script> $x_1$ #0b67b0 1.23456 "DejaVu Sans" & \x01\ud800 --> ]]>'


def published() -> Picture:
    return charts.curves(EPOCHS, best_epoch=5, min_f1=0.54, champion_f1=0.5402)


def matrix(size: int, noise: int = 6) -> list[list[int]]:
    """Counts with a strong diagonal and up to `noise` rows in every other cell."""
    draw = random.Random(1)
    return [
        [draw.randrange(60, 140) if row == at else draw.randrange(noise) for at in range(size)] for row in range(size)
    ]


WHOLE = [Gap("champion (version 3)", 0.05, -0.01, 0.11, 0.0), Gap("anchor (version 1)", 0.02, bound=-0.01)]
LOST = [Gap("product: kettle", -0.2, -0.3, -0.1, -0.05, failed=True)]
SIDES = [Level("candidate", 0.5, 0.4, 0.6), Level("champion (version 3)", 0.45)]


def all_charts(label: str = "good") -> dict[str, Picture]:
    counts, before = {label: 3, "other": 5}, {label: 1, "gone": 1}
    return {
        "curves": published(),
        "levels": charts.levels([*SIDES, Level(label, 0.4)], 0.54, title="F1 on the 365 test rows that decided"),
        "differences": charts.differences([*WHOLE, Gap(label, 0.1)], LOST),
        "scores": charts.score_bars(label, [(label, 0.5, 3), ("other", None, 1)], 0.4),
        "shares": charts.share_bars(label, counts, None, order=list(counts)),
        "two shares": charts.share_bars(label, counts, before, order=[*counts, "gone"]),
        "lengths": charts.length_curves((1, 10, 100, 1000, 10_000), (0, 5, 9, 0), (1, 5, 9, 0)),
        "drift": charts.drift_bars([Distance(label, 0.31, 0.23, True), Distance("new words", -0.01, 0.05, False)]),
        "matrix": confusion_matrix([label, "other"], [[3, 1], [0, 4]]),
        "heat": confusion_matrix([f"{number} {label}" for number in range(20)], matrix(20)),
    }


def words(svg: str) -> list[str]:
    """The text of a picture, as a browser shows it."""
    return ["".join(found.itertext()) for found in ElementTree.fromstring(svg).iter() if found.tag.endswith("text")]


def test_what_each_chart_says_in_its_words_and_its_description(snapshot: SnapshotAssertion) -> None:
    assert {
        name: {"alt": one.alt, "words": " | ".join(words(one.svg))} for name, one in all_charts().items()
    } == snapshot


def test_the_same_numbers_give_the_same_bytes_and_no_date() -> None:
    assert all_charts() == all_charts()
    assert re.search(r"20\d\d-\d\d", published().svg) is None


@pytest.mark.parametrize(
    "epochs",
    [
        EPOCHS[:1],
        [EpochFacts(1, None, math.nan, None)],
        [EpochFacts(1, math.inf, 1.0, 0.5), EpochFacts(2, 1.0, None, math.nan), EpochFacts(3, None, 1.2, 0.4)],
        [EpochFacts(number, 2 / number, 1 + 0.001 * number, 0.5) for number in range(1, 1001)],
    ],
    ids=["one", "nothing finite", "gaps", "a thousand"],
)
def test_curves_are_drawn_for_any_epochs(epochs: list[EpochFacts]) -> None:
    picture = charts.curves(epochs, best_epoch=epochs[-1].epoch, min_f1=0.5, champion_f1=None)
    shown = " ".join(words(picture.svg))
    assert "Loss" in shown
    assert "nan" not in shown
    assert len(picture.svg) < 40_000


@pytest.mark.parametrize(("size", "numbered"), [(2, True), (15, True), (16, False), (50, False), (120, False)])
def test_a_confusion_matrix_has_numbers_up_to_fifteen_labels(size: int, numbered: bool) -> None:
    counts = matrix(size, noise=6 if size <= 50 else 3)
    counts[0][0] = 98_765
    picture = confusion_matrix([f"a long name of label {number}" for number in range(size)], counts)
    assert ("98,765" in words(picture.svg)) is numbered
    assert ("share of the true label's rows" in words(picture.svg)) is not numbered
    assert len(picture.data_uri()) < 200_000


def test_a_confusion_matrix_shows_shares_of_the_true_label() -> None:
    shown = words(confusion_matrix(["bad", "good"], [[3, 1], [0, 0]]).svg)
    assert {"75%", "25%"} <= set(shown)
    assert shown.count("0") == 2


@pytest.mark.parametrize(
    ("share", "level"),
    [(0, None), (1e-9, 0), (0.0099, 0), (0.01, 1), (0.049, 1), (0.2, 4), (0.7999, 7), (0.8, 8), (1, 8)],
)
def test_a_share_has_one_colour(share: float, level: int | None) -> None:
    assert heat_level(share) == level


def test_what_is_not_known_is_not_shown() -> None:
    assert "bound" not in " ".join(words(charts.differences([Gap("champion", 0.1)]).svg))
    shown = " ".join(words(charts.curves(EPOCHS).svg))
    assert "min_f1" not in shown
    assert "champion" not in shown


def test_the_first_twenty_values_have_bars() -> None:
    bars = [(f"value {number}", 0.5, 3) for number in range(40)]
    shown = words(charts.score_bars("shop", bars, None).svg)
    assert [text for text in shown if text.startswith("value")] == [f"value {number}" for number in range(20)]


def test_a_length_curve_ends_where_the_texts_do() -> None:
    shown = words(charts.length_curves((1, 10, 100, 1000, 10_000), (0, 5, 9, 0), None).svg)
    assert "100" in shown
    assert "5,000" not in shown
    assert "champion's snapshot" not in " ".join(shown)


def test_a_label_is_text_whatever_it_holds() -> None:
    for name, picture in all_charts(NASTY).items():
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture.svg).iter()}
        assert tags <= {"svg", "g", "path", "text", "tspan", "defs", "style", "clipPath", "rect", "use"}
        if name not in ("curves", "lengths"):
            # Neither taken for a formula, nor for one of our colours, fonts or long numbers.
            start = printable(NASTY, 18)[:9]
            assert any(start in text for text in words(picture.svg)), name


def test_a_number_a_colour_and_a_font_in_a_label_stay_as_they_are() -> None:
    for label in ("#0b67b0 $x$", "1.23456 'DejaVu Sans'"):
        assert label in words(charts.score_bars("shop", [(label, 0.5, 3)], None).svg)


def test_a_picture_brings_its_own_ground_and_font() -> None:
    first = published().svg[: published().svg.index("<text")]
    assert f"fill: {pictures.GROUND}" in first
    assert re.search(r'font-family="[^"]*sans-serif"', first)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it: 21 between black and white; text should have 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_text_can_be_read() -> None:
    for colour in ("INK", "MUTED", "CANDIDATE", "CHAMPION", "THRESHOLD", "TRAINING"):
        assert contrast(getattr(pictures, colour), pictures.GROUND) >= 4.5, colour
    for level, ground in enumerate(HEAT):
        assert contrast(pictures.INK if level < PALE_FROM else pictures.GROUND, ground) >= 4.5, level


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([50.0], [10.0]),
        ([1.0, 5.0], [1.0, 5.0]),
        ([5.0, 5.0], [5.0, 6.0]),
        ([5.0, 4.9], [5.9, 4.9]),
        ([10.0, 10.0, 10.0], [8.0, 9.0, 10.0]),
        ([0.0] * 11, [float(number) for number in range(11)]),
    ],
)
def test_words_at_the_edge_are_moved_apart(places: list[float], expected: list[float]) -> None:
    assert pictures.spread(places, 1.0, 0.0, 10.0) == pytest.approx(expected)


def test_words_that_do_not_fit_are_spaced_evenly() -> None:
    found = pictures.spread([3.0] * 21, 1.0, 0.0, 10.0)
    assert {round(b - a, 6) for a, b in itertools.pairwise(found)} == {0.5}
    assert (found[0], found[-1]) == (0, 10)


@pytest.mark.parametrize(
    ("change", "text", "expected"),
    [
        (printable, " a\n\tb\x00 ", "a b\ufffd"),
        (printable, "\ud83d", "\ufffd"),
        (lambda text: printable(text, 7), "short", "short"),
        (lambda text: printable(text, 7), "category/1", "cate…/1"),
    ],
)
def test_names_are_made_printable_and_short(change: Callable[[str], str], text: str, expected: str) -> None:
    assert change(text) == expected


def test_matplotlib_is_loaded_to_draw_only_without_windows_and_a_user_s_settings() -> None:
    code = """
import sys
from nightgate.reports import charts, confusion_chart
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.rcParams["font.size"] = 30
small = confusion_chart.confusion_matrix(["bad", "good"], [[3, 1], [0, 4]])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams["font.size"] == 30
assert "font-size: 30" not in small.svg and "font-size: 9.5" in small.svg
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
