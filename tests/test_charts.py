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

from nightgate.diagnosis import EpochFacts
from nightgate.reports import bar_charts, charts, pictures, verdict_charts
from nightgate.reports.pictures import Picture
from nightgate.reports.verdict_charts import Gap, Level
from tests.night_rows import PUBLISHED

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


NASTY_COUNTS = {NASTY: 3, "other": 5}
NASTY_PICTURES: dict[str, Callable[[], Picture]] = {
    "numbers": lambda: charts.confusion_matrix([NASTY, "other"], [[3, 1], [0, 4]]),
    "heat": lambda: charts.confusion_matrix([f"{number} {NASTY}" for number in range(20)], matrix(20)),
    "levels": lambda: verdict_charts.levels([Level(NASTY, 0.5)], 0.4, decided_on="F1"),
    "differences": lambda: verdict_charts.differences([Gap(NASTY, 0.1)], [Gap(NASTY, -0.1)]),
    "scores": lambda: bar_charts.score_bars(NASTY, [(NASTY, 0.5, 3), ("other", None, 0)], 0.4),
    "shares": lambda: bar_charts.share_bars(NASTY, NASTY_COUNTS, NASTY_COUNTS, order=list(NASTY_COUNTS)),
}


def words(svg: str) -> list[str]:
    """The text of a picture, as a browser shows it."""
    return ["".join(found.itertext()) for found in ElementTree.fromstring(svg).iter() if found.tag.endswith("text")]


def test_the_same_numbers_give_the_same_bytes_and_no_date() -> None:
    assert published() == published()
    assert re.search(r"20\d\d-\d\d", published().svg) is None


def test_the_curves_name_best_epoch_threshold_and_champion() -> None:
    shown = words(published().svg)
    for text in ("training 0.6538", "validation 1.2436", "epoch 5: 0.5435", "min_f1 0.5400", "champion 0.5402"):
        assert text in shown
    assert "training loss from 1.0049 to 0.6538" in published().alt


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


def test_curves_without_threshold_champion_and_best_epoch_show_none() -> None:
    shown = " ".join(words(charts.curves(EPOCHS).svg))
    assert "min_f1" not in shown
    assert "champion" not in shown


@pytest.mark.parametrize(("size", "numbered"), [(2, True), (15, True), (16, False), (50, False), (120, False)])
def test_a_confusion_matrix_has_numbers_up_to_fifteen_labels(size: int, numbered: bool) -> None:
    counts = matrix(size, noise=6 if size <= 50 else 3)
    counts[0][0] = 98_765
    picture = charts.confusion_matrix([f"a long name of label {number}" for number in range(size)], counts)
    assert ("98,765" in words(picture.svg)) is numbered
    assert ("share of the true label's rows" in words(picture.svg)) is not numbered
    assert len(picture.data_uri()) < 200_000
    assert f"{size} labels" in picture.alt


def test_a_confusion_matrix_shows_shares_of_the_true_label() -> None:
    shown = words(charts.confusion_matrix(["bad", "good"], [[3, 1], [0, 0]]).svg)
    assert {"75%", "25%"} <= set(shown)
    assert shown.count("0") == 2


@pytest.mark.parametrize(
    ("share", "level"),
    [(0, None), (1e-9, 0), (0.0099, 0), (0.01, 1), (0.049, 1), (0.2, 4), (0.7999, 7), (0.8, 8), (1, 8)],
)
def test_a_share_has_one_colour(share: float, level: int | None) -> None:
    assert charts.heat_level(share) == level


def test_the_sides_are_named_beside_the_threshold_with_their_intervals() -> None:
    sides = [Level("candidate", 0.5, 0.4, 0.6), Level("champion (version 3)", 0.45)]
    picture = verdict_charts.levels(sides, 0.54, decided_on="F1 on the 365 test rows that decided")
    assert {"0.5000 (0.4000 to 0.6000)", "0.4500", "- -  min_f1 0.5400"} <= set(words(picture.svg))
    assert "champion (version 3) 0.4500; min_f1 0.5400" in picture.alt


def test_differences_stand_beside_zero_and_the_bound_of_their_check() -> None:
    whole = [Gap("champion (version 3)", 0.05, -0.01, 0.11, 0.0), Gap("anchor (version 1)", 0.02, bound=-0.01)]
    alone = verdict_charts.differences(whole)
    assert {"+0.0500 (-0.0100 to +0.1100)", "+0.0200", "- -  bound of the check"} <= set(words(alone.svg))
    assert "anchor (version 1) +0.0200, bound -0.0100" in alone.alt
    assert "where it lost most" not in " ".join(words(alone.svg))
    both = verdict_charts.differences(whole, [Gap("product: kettle", -0.2, -0.3, -0.1, -0.05, failed=True)])
    assert {"product: kettle", "-0.2000 (-0.3000 to -0.1000)"} <= set(words(both.svg))
    # Of an old night nothing bounds a difference.
    assert "bound" not in " ".join(words(verdict_charts.differences([Gap("champion", 0.1)]).svg))


def test_bars_beyond_twenty_are_left_to_the_table() -> None:
    bars = [(f"value {number}", 0.5, 3) for number in range(40)]
    shown = words(bar_charts.score_bars("shop", bars, None).svg)
    assert "value 19" in shown
    assert "value 20" not in shown


def test_a_length_curve_ends_where_the_texts_do() -> None:
    edges = (1, 10, 100, 1000, 10_000)
    shown = words(bar_charts.length_curves(edges, (0, 5, 9, 0), None).svg)
    assert "100" in shown
    assert "5,000" not in shown
    assert "champion's snapshot" not in " ".join(shown)


@pytest.mark.parametrize("kind", NASTY_PICTURES)
def test_a_label_is_text_whatever_it_holds(kind: str) -> None:
    picture = NASTY_PICTURES[kind]()
    whole = ElementTree.fromstring(picture.svg)
    inline = ElementTree.fromstring(
        picture.inline().replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
    )
    for tree in (whole, inline):
        assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= {
            *("svg", "g", "path", "text", "tspan", "defs", "style", "clipPath", "rect", "use"),
        }
    # Neither taken for a formula, nor for one of our colours, fonts or long numbers.
    start = pictures.shortened(NASTY, 18)[:9]
    assert any(start in text for text in words(picture.svg))


def test_a_number_a_colour_and_a_font_in_a_label_stay_as_they_are() -> None:
    for label in ("#0b67b0 $x$", "1.23456 'DejaVu Sans'"):
        picture = bar_charts.score_bars("shop", [(label, 0.5, 3)], None)
        assert label in words(picture.svg)
        assert label in words(picture.inline())


def test_a_picture_in_the_page_follows_the_page_s_colours() -> None:
    inline = published().inline()
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", inline))
    assert {"--ink", "--candidate", "--champion", "--threshold"} <= used
    # Opacities and widths aside, nothing is fixed: a colour that stayed would be wrong in the dark.
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", inline) == []
    for dark in (False, True):
        defined = re.findall(r"(--[a-z0-9-]+):#[0-9a-f]{6};", pictures.css_variables(dark=dark))
        assert used <= set(defined)


def test_an_image_brings_its_own_ground_and_font() -> None:
    svg = published().svg
    first = svg[: svg.index("<text")]
    assert f"fill: {pictures.GROUND}" in first
    assert "font-family=" in first
    assert "sans-serif" in first


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it: 21 between black and white; text should have 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(dark: bool) -> None:
    colours = dict(re.findall(r"--([a-z0-9-]+):(#[0-9a-f]{6});", pictures.css_variables(dark=dark)))
    for name in ("ink", "muted", "candidate", "champion", "threshold", "training"):
        assert contrast(colours[name], colours["ground"]) >= 4.5, name
    for level in range(len(pictures.HEAT)):
        text = "on-pale" if level < pictures.HEAT_TURNS else "on-deep"
        assert contrast(colours[text], colours[f"heat-{level}"]) >= 4.5, level


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
    assert found == sorted(found)
    assert {round(b - a, 6) for a, b in itertools.pairwise(found)} == {0.5}
    assert found[0] >= 0
    assert found[-1] <= 10


@pytest.mark.parametrize(
    ("change", "text", "expected"),
    [
        (pictures.printable, " a\n\tb\x00 ", "a b\ufffd"),
        (pictures.printable, "\ud83d", "\ufffd"),
        (lambda text: pictures.shortened(text, 7), "short", "short"),
        (lambda text: pictures.shortened(text, 7), "category/1", "cate…/1"),
    ],
)
def test_names_are_made_printable_and_short(change: Callable[[str], str], text: str, expected: str) -> None:
    assert change(text) == expected


def test_matplotlib_is_loaded_to_draw_only_without_windows_and_a_user_s_settings() -> None:
    code = """
import sys
from nightgate.reports import bar_charts, charts, verdict_charts
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.rcParams["font.size"] = 30
small = charts.confusion_matrix(["bad", "good"], [[3, 1], [0, 4]])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams["font.size"] == 30
assert "font-size: 30" not in small.svg and "font-size: 9.5" in small.svg
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
