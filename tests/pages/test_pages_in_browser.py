"""The pages of a generated year and of fifty pipelines, in Chromium as a person uses them: mouse, keyboard and phone.

`pytest -s -m browser tests/pages` prints how large pages are and how long they take.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import time_machine

from benchmarks.fleet import write_fleet
from benchmarks.fleet_facts import FIRST_NIGHT, YEAR, Story
from nightgate.database.transactions import Database, prepare
from nightgate.home import open_home
from nightgate.pages import data as page_data
from nightgate.pages.page import write_page, write_page_of_all
from nightgate.registry import freezes
from nightgate.runs import lifecycle
from nightgate.schedule import Night
from tests.support import night_rows
from tests.support.prefect_ui import INSTALL, browser_path, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BROWSER = browser_path()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not BROWSER, reason=f"no Chromium to drive: {INSTALL}"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="no Playwright: pip install 'nightgate[dev]'"
    ),
]

NAME = "reviews"
PIPELINES = 50
NIGHTS = 363
"""The last of so many was trained."""
STORY = Story(NIGHTS)
FROZEN, FAILED = "reviews-04", "reviews-07"
RANGES = "[...charts].filter((one) => one.time).map((one) => [one.u.scales.x.min, one.u.scales.x.max])"


@dataclass(frozen=True)
class Written:
    db: Database
    page: Path
    page_of_all: Path

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        found = self.db.frame(query, {"name": NAME, **parameters})
        return [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Pages of a year of fifty pipelines."""
    home = open_home(tmp_path_factory.mktemp("fleet"))
    prepare(home)
    with Database.open(home) as db:
        write_fleet(db, replace(YEAR, nights=NIGHTS, pipelines=PIPELINES))
        trouble(db)
        write_page(db, home.page(NAME), NAME)
        with time_machine.travel(datetime.combine(FIRST_NIGHT + timedelta(days=NIGHTS), time(12), UTC)):
            write_page_of_all(db, home.page())
        yield Written(db, home.page(NAME), home.page())


def trouble(db: Database) -> None:
    """One pipeline is frozen, and the newest night of another has failed."""
    freezes.freeze(db, FROZEN, by="ada", reason="the export of March is being checked")
    day = FIRST_NIGHT + timedelta(days=NIGHTS)
    due = datetime(day.year, day.month, day.day, 2, 15, tzinfo=UTC)
    run = night_rows.open_run(db, night_rows.pipeline(FAILED), Night(day, "schedule", due, due))
    why = {"reason": "no file matches data/*.csv", "next_step": f"mend data.source, then nightgate run {FAILED}"}
    lifecycle.finish_run(db, run.run_id, run.attempt, "failed", error_type="data_source", **why)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(BROWSER) as running:
        yield running


@pytest.fixture
def tab(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A tab that may log and ask for nothing; how it looked at the end lies in the test's folder."""
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 900}})
    tab = browser.new_page(**options)
    tab.set_default_timeout(15_000)
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    tab.close()
    assert wrong == []
    assert [address for address in asked if not address.startswith("file:")] == []


def opened(tab: Page, page: Path) -> float:
    """Open a page; returns the seconds until it is drawn."""
    tab.goto(page.as_uri())
    tab.locator("html[data-ready]").wait_for(state="attached")
    return float(tab.evaluate("new Promise(done => requestAnimationFrame(() => done(performance.now() / 1000)))"))


@pytest.mark.parametrize(("which", "megabytes", "seconds"), [("page", 1.5, 1.0), ("page_of_all", 3.0, 2.0)])
def test_a_page_is_small_and_quickly_drawn(
    tab: Page, written: Written, which: str, megabytes: float, seconds: float
) -> None:
    page: Path = getattr(written, which)
    took = min(opened(tab, page) for _ in range(3))
    size = page.stat().st_size / 1e6
    print(f"\n{which}: {size:.2f} MB, drawn in {took:.2f} s")
    assert size < megabytes
    assert took < seconds


# --- a pipeline ---


def test_the_head_dates_its_scores_and_changes_have_words(
    tab: Page, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [newest] = written.rows("SELECT MAX(night) AS night FROM nights WHERE pipeline = :name AND test_f1 IS NOT NULL")
    opened(tab, written.page)
    for tile in (0, 1):
        assert f"night {newest['night']}" in tab.locator(".tile").nth(tile).inner_text()
    named = {row[1].split(" (made ")[0] for row in cells(tab.locator("#change-table"))}
    assert {"champion", "code", "rows", "torch", "test version", "training.learning_rate"} <= named
    assert named.isdisjoint({"metric", "definition of the score"})
    assert tab.locator("#left-out").inner_text() == ""
    monkeypatch.setattr(page_data, "MOST_SLICES", 4)
    write_page(written.db, tmp_path / "few.html", NAME)
    opened(tab, tmp_path / "few.html")
    assert tab.locator("#left-out").inner_text().startswith("The 4 classes and slices")


def plot(tab: Page, label: str) -> Locator:
    return tab.get_by_role("group", name=label)


def chosen(tab: Page) -> list[str]:
    names = [str(one.get_attribute("aria-label")) for one in tab.locator(".chip").all()]
    return [name.removeprefix("Leave out ") for name in names]


def cells(table: Locator) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]


def numbers(tab: Page, label: str) -> list[list[str]]:
    """The table below a chart."""
    whole = plot(tab, label).locator("xpath=..")
    whole.get_by_text("Numbers as a table").click()
    whole.locator("table").wait_for()
    return cells(whole.locator("table"))


def test_nights_are_chosen_by_keyboard_and_what_is_of_them_is_shown(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    trained = written.rows(
        "SELECT night, run_id, reason FROM nights WHERE pipeline = :name AND test_f1 IS NOT NULL ORDER BY night"
    )
    for one in chosen(tab):
        tab.get_by_label(f"Leave out {one}").click()
    assert tab.locator("#compared").inner_text().startswith("No night is chosen")
    timeline = plot(tab, "F1 of nights")
    timeline.focus()
    tab.keyboard.press("Home")
    tab.keyboard.press("Enter")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    both = [str(one["night"]) for one in trained[:2]]
    assert chosen(tab) == both
    assert both[1] in tab.locator("#said").inner_text()
    facts = {row[0]: row[1:] for row in cells(tab.locator("#compared"))}
    assert facts["reason"] == [one["reason"] for one in trained[:2]]
    assert facts["run"] == [one["run_id"] for one in trained[:2]]
    shown = numbers(tab, "Validation loss")
    stored = [
        written.rows(
            "SELECT validation_loss FROM epoch_results WHERE run_id = :run ORDER BY epoch DESC", run=one["run_id"]
        )
        for one in trained[:2]
    ]
    assert [row[1:] for row in shown] == [
        [f"{one['validation_loss']:.4f}" for one in pair] for pair in zip(*stored, strict=True)
    ]
    assert tab.locator("#matrices figcaption").all_inner_texts() == [
        f"{night}: true label down, predicted across" for night in both
    ]


def test_a_click_chooses_a_night_and_the_panel_follows_the_mouse(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    before = chosen(tab)
    over = plot(tab, "F1 of nights").locator(".u-over")
    box = over.bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    night = tab.locator("#panel h3").inner_text().split()[0]
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    assert chosen(tab) == [*before, night]
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    assert chosen(tab) == before


def test_since_when_a_class_is_worse_and_what_changed_then_is_one_click(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    worst = tab.locator("#falls li").first
    night = FIRST_NIGHT + timedelta(days=STORY.other_setting.start)
    assert worst.get_by_role("button").inner_text() == "class 2"
    assert worst.inner_text().endswith(f"on {night}; changed: training.learning_rate on {night}")
    assert "champion" not in tab.locator("#falls").inner_text()
    [doubled] = written.rows("SELECT night FROM night_changes WHERE pipeline = :name AND kind = 'rows'")
    assert f"changed: rows on {doubled['night']}" in tab.locator("#falls").inner_text()
    worst.get_by_role("button").click()
    assert chosen(tab)[1:] == [str(night)]
    [stored] = written.rows(
        "SELECT before, after FROM night_changes WHERE pipeline = :name AND name = 'training.learning_rate' "
        "ORDER BY night LIMIT 1"
    )
    changed = {row[0]: row[1:] for row in cells(tab.locator("#changed"))}
    assert changed["training.learning_rate"] == [stored["before"], stored["after"], str(night)]
    low, high = tab.evaluate(RANGES)[0]
    assert (high - low) / 86_400 < 60


def test_falls_are_chosen_by_the_name_of_their_slices(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    found = tab.evaluate("data.falls.map((fall) => [fall.name, fall.value])")
    named = tab.locator("#falls li button")

    def words(name: str, value: str) -> str:
        return f"{'class' if name == 'label' else name} {value}"

    assert named.all_inner_texts() == [words(*one) for one in found[:5]]
    among = tab.get_by_label("among")
    for name in ("label", "product", "language"):
        among.select_option(name)
        assert named.all_inner_texts() == [words(*one) for one in found if one[0] == name] != []


def test_a_change_of_champion_says_when_it_was_made(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    began = {
        (str(one["model_version"]), str(one["valid_from"])[:16].replace("T", " "))
        for one in written.rows("SELECT model_version, valid_from FROM champion_timeline WHERE pipeline = :name")
    }
    changes = [row for row in cells(tab.locator("#change-table")) if row[1].startswith("champion")]
    made = [(after, what.removeprefix("champion (made ").removesuffix(")")) for _, what, _, after in changes]
    assert len(made) > 5
    assert set(made) <= began
    assert all(moment[:10] < row[0] for (_, moment), row in zip(made, changes, strict=True))


def test_who_was_champion_on_a_date_and_why(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    [asked] = written.rows(
        "SELECT night, champion_version FROM nights "
        "WHERE pipeline = :name AND champion_version IS NOT NULL ORDER BY night LIMIT 1 OFFSET 100"
    )
    tab.get_by_label("Choose a night").fill(str(asked["night"]))
    tab.get_by_role("button", name="Choose", exact=True).click()
    assert str(asked["night"]) in chosen(tab)
    header = tab.locator("#compared th").all_inner_texts().index(str(asked["night"]))
    facts = {row[0]: row[header] for row in cells(tab.locator("#compared"))}
    assert facts["champion"].startswith(f"version {asked['champion_version']}: ")
    [reason] = written.rows(
        "SELECT reason FROM champion_timeline WHERE pipeline = :name AND model_version = :version LIMIT 1",
        version=asked["champion_version"],
    )
    reasons = {row[0]: row[-1] for row in cells(tab.locator("#champion-table"))}
    assert reasons[str(asked["champion_version"])] == reason["reason"]


def test_zoom_is_of_all_charts_and_lines_break_where_scores_are_not_comparable(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    whole = tab.evaluate(RANGES)
    tab.get_by_role("button", name="30 nights").click()
    near = tab.evaluate(RANGES)
    assert len(near) == len(whole) > 4
    assert {(high - low) / 86_400 for low, high in near} == {31.0}
    plot(tab, "F1 of nights").press("Escape")
    assert tab.evaluate(RANGES) == whole
    breaks = tab.evaluate("breaks.map((place) => nights.night[place])")
    [first] = written.rows(
        "SELECT MIN(night) AS night FROM nights WHERE pipeline = :name AND test_version = :version",
        version=STORY.test_version(NIGHTS),
    )
    assert breaks == [str(first["night"])]
    # The gap of the line of scores lies between the nights on either side.
    [[left, right]] = tab.evaluate("[...charts][0].u.series[1]._paths.gaps")
    assert right > left


def test_all_numbers_are_there_as_tables(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    tab.get_by_text("All nights as a table").click()
    tab.locator("#night-table table").wait_for()
    shown = cells(tab.locator("#night-table"))
    stored = written.rows("SELECT night, reason FROM nights WHERE pipeline = :name ORDER BY night DESC")
    assert [[row[0], row[-1]] for row in shown] == [[str(one["night"]), one["reason"] or ""] for one in stored]
    for label in ("F1 by label", "Drift as multiples of the threshold", "Rows in the snapshot", "Duration"):
        assert len(numbers(tab, label)) == len(stored)


@pytest.mark.parametrize(
    "tab", [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}], indirect=True
)
@pytest.mark.parametrize("which", ["page", "page_of_all"])
def test_a_phone_shows_it_without_scrolling_sideways(tab: Page, written: Written, which: str) -> None:
    opened(tab, getattr(written, which))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = "[...document.querySelectorAll('button')].filter((one) => one.offsetHeight && one.offsetHeight < 20).length"
    assert tab.evaluate(small) == 0


def test_light_and_dark_follow_the_system_in_words_and_in_charts(tab: Page, written: Written) -> None:
    opened(tab, written.page)
    # Relative luminance of ground, words and axes; WCAG 2.2 asks for a contrast of 4.5.
    for scheme in ("light", "dark", "light"):
        tab.emulate_media(color_scheme=scheme)
        ground, *others = (luminance(tab, name) for name in ("ground", "ink", "muted", "candidate", "champion", "link"))
        assert (ground > 0.5) == (scheme == "light")
        for other in others:
            assert (max(ground, other) + 0.05) / (min(ground, other) + 0.05) >= 4.5
        drawn = tab.evaluate("[...charts][0].u.axes[0].stroke()")
        assert drawn == tab.evaluate("colour('--muted')")


def luminance(tab: Page, name: str) -> float:
    value = tab.evaluate(f"colour('--{name}')").lstrip("#")
    value = "".join(2 * one for one in value) if len(value) == 3 else value
    shares = [int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


# --- all pipelines ---


def test_pipelines_that_need_somebody_come_first_and_a_name_opens_its_nights(tab: Page, written: Written) -> None:
    opened(tab, written.page_of_all)
    rows = tab.locator("#rows > tr")
    assert f"As of {FIRST_NIGHT + timedelta(days=NIGHTS)} 12:00 UTC" in tab.locator("header").inner_text()
    assert rows.count() == PIPELINES
    assert rows.locator(".name").all_inner_texts()[:3] == [FROZEN, FAILED, NAME]
    assert rows.locator(".needs").count() == 2
    assert f"nightgate unfreeze {FROZEN}" in rows.nth(0).inner_text()
    assert "no file matches" in rows.nth(1).inner_text()
    assert not rows.locator(".fall").first.is_visible()
    tab.get_by_label("Sort by").select_option("fall")
    falls = [float(text.split(" since ")[0].replace("−", "-")) for text in rows.locator(".fall").all_inner_texts()]
    scores = written.rows(
        "SELECT test_f1 FROM nights WHERE pipeline = :name AND test_f1 IS NOT NULL AND night > :since ORDER BY night",
        since=str(FIRST_NIGHT + timedelta(days=NIGHTS - 31)),
    )
    assert falls == sorted(falls)
    assert round(scores[-1]["test_f1"] - scores[0]["test_f1"], 4) in falls
    tab.get_by_label("Sort by").select_option("need")
    tab.get_by_label("Find").fill("reviews-0")
    assert rows.count() == 9
    first = rows.first
    name = first.locator(".name")
    name.focus()
    tab.keyboard.press("Enter")
    assert name.get_attribute("aria-expanded") == "true"
    timeline = plot(tab, "F1 of nights")
    timeline.focus()
    tab.keyboard.press("End")
    newest, scored = (
        written.rows(f"SELECT MAX(night) AS night FROM nights WHERE pipeline = :name AND {which}")[0]["night"]
        for which in ("1 = 1", "test_f1 IS NOT NULL")
    )
    assert str(newest) in tab.locator("#said").inner_text()
    assert f"night {scored}" in first.locator("[data-name=F1]").inner_text()


def test_the_page_of_all_links_pages_that_are_there(tab: Page, written: Written) -> None:
    opened(tab, written.page_of_all)
    tab.get_by_role("button", name=NAME, exact=True).click()
    tab.get_by_role("link", name=f"the page of {NAME}").click()
    tab.get_by_role("heading", name=f"Nights of {NAME}").wait_for()
