"""The report of a night: complete for every ending, harmless whatever the data hold, and one file."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from syrupy.assertion import SnapshotAssertion

from nightgate.analysis import seed_study
from nightgate.config.training import Training
from nightgate.data.refresh import Refreshed
from nightgate.data.snapshots import Snapshot, write_snapshot
from nightgate.database.gate_schema import SeedStudy
from nightgate.database.schema import STATUSES
from nightgate.database.transactions import Database
from nightgate.errors import SnapshotError
from nightgate.frames.epochs import published_table
from nightgate.home import Home, open_home
from nightgate.registry import promotion
from nightgate.reports import report, sections, shares, terminal_summary, verdict_section
from nightgate.reports.facts import ReportFacts, gather
from nightgate.reports.page import Block, Callout, Code, Mark, Page, Query, Strong, Table, Text
from nightgate.runs import claim, records
from nightgate.runs import lifecycle as runs
from tests.support import judged_nights, night_rows
from tests.support.first_night import copy_first_night
from tests.support.report_facts import (
    attempt_row,
    check_row,
    difference_row,
    epoch_row,
    judged_night,
    published_night,
    published_rows,
    run_row,
)
from tests.support.report_facts import pipeline as configured

pytestmark = pytest.mark.process

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> &lt; [a](javascript:alert(3)) ![b](http://x/y.png) "
    '`c` *d* _e_ ~~f~~ | g \\ </style></svg> " onload="alert(4)" \x00\ud800 $h$ {{ 7 * 7 }}'
)
SHOWN = "<script>alert(1)</script><img src=x onerror=alert(2)> &lt; [a](javascript:alert(3)) ![b](http://x/y.png)"


@cache
def published_page() -> Page:
    """Drawn once: pictures take most of the time here."""
    return report.as_page(published_night())


@cache
def published_html() -> str:
    return report.as_html(published_page())


class Parsed(HTMLParser):
    """The tags, attributes and words of HTML; what a picture shows is among the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.words += "".join(f" {value} " for name, value in attrs if name == "alt")

    def handle_data(self, data: str) -> None:
        self.words += data


def rendered(markdown: str) -> Parsed:
    """The Markdown as a strict renderer shows it that lets HTML through."""
    return Parsed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def page_of(*blocks: Block) -> Page:
    return Page("t", Mark("held", "warn"), blocks)


def words_of(*blocks: Block) -> str:
    return Parsed(report.as_html(page_of(*blocks))).words


def without_pictures(markdown: str) -> str:
    return re.sub(r"\(data:image/svg\+xml;base64,[^)]*\)", "(picture)", markdown)


def blank(**changes: Any) -> ReportFacts:
    """Of a run that came to nothing."""
    values: dict[str, Any] = {
        "run": run_row(**changes.pop("run", {})),
        "pipeline": configured(),
        "label_names": ("1", "2"),
        "attempts": (attempt_row(1),),
        "report_path": Path("/srv/nightgate/runs/1/report.html"),
        "page_path": Path("/srv/nightgate/reports/reviews/history.html"),
    }
    return ReportFacts(**values | changes)


def titles(page: Page) -> list[str]:
    return [section.title for section in page.sections]


# --- content ---


def test_the_artifact_of_a_promoted_and_of_a_held_night(snapshot: SnapshotAssertion) -> None:
    promoted = without_pictures(report.as_markdown(published_page()))
    held = without_pictures(report.as_markdown(report.as_page(judged_night(num_slices=300, failed=14))))
    verdict_of_held = held[: held.index("## Checks of classes and slices")]
    assert f"{promoted}\n{'=' * 80}\n\n{verdict_of_held}" == snapshot


def test_the_settings_are_those_that_were_in_use() -> None:
    recipe = Training(epochs=3, learning_rate=2e-5, start_from="champion")
    pipeline = configured().model_copy(update={"training": recipe})
    for training, used in (("full", "epochs=3, learning_rate=2e-05"), ("continued", "epochs=1, learning_rate=2e-06")):
        shown = words_of(*sections.how_it_ran(blank(run={"training": training}, pipeline=pipeline)))
        assert f"{used}, start_from=champion;" in shown


def test_both_forms_have_the_same_sections_pictures_and_numbers() -> None:
    page = published_page()
    html, markdown = Parsed(published_html()), report.as_markdown(page)
    assert titles(page) == [
        *("Verdict", "Checks of classes and slices", "Diagnosis", "Epochs", "Test rows", "Slices", "Data"),
        *("Drift", "How it ran", "Where to look next"),
    ]
    # F1 of all sides, differences, curves, matrix, F1 by label and product, shares by label and product, lengths,
    # drift.
    for form in (markdown, published_html()):
        pictures = re.findall(r"data:image/svg\+xml;base64,([^\")]*)", form)
        assert len(pictures) == 10
        assert {ElementTree.fromstring(base64.b64decode(one, validate=True)).tag[-3:] for one in pictures} == {"svg"}
    assert published_table(pd.DataFrame(list(published_rows()))) in markdown.replace("**", "")
    shown = rendered(markdown).words
    for number in ("0.5435", "+0.0031", "0.5404", "1.2436", "0.5422", "50,000", "1 h 2 min", "-0.0040 to +0.0102"):
        assert number in html.words, number
        assert number in shown, number


def test_a_verdict_and_an_error_are_stated_once() -> None:
    page = published_page()
    reason = published_night().run["reason"]
    assert Parsed(published_html()).words.count(reason) == report.as_markdown(page).count(reason) == 1
    error = "the machine went away"
    attempts = (attempt_row(1, reason=error, restarts=1), attempt_row(2, reason=error))
    failed = Parsed(report.as_html(report.as_page(blank(run={"reason": error}, attempts=attempts))))
    assert failed.words.count(error) == 1


def test_a_check_states_what_the_verdict_does_not() -> None:
    run = {"reason": "F1 0.5571 is below 0.5575 of the champion (version 4); not superior"}
    checks = (
        check_row("min_f1", "passed", "F1 0.5571 reaches min_f1 0.5400"),
        check_row("beats_champion", "failed", f"{run['reason']}; 95 % interval -0.1 to +0.1"),
        check_row("anchor", "failed", "F1 0.5571 is below 0.5575 of the anchor (version 4); worse by 0.0100"),
        check_row("golden", "failed", "not superior"),
        check_row("serving", "not_run", "no champion yet"),
        check_row("not_older", "not_run", "no champion yet"),
    )
    facts = blank(run=run | {"champion_version": 4, "anchor_version": 4}, checks=checks)
    shown, left_out = verdict_section.checks(facts)
    assert left_out == ""
    assert shown == [
        ("passed", "min_f1", "F1 0.5571 reaches min_f1 0.5400"),
        ("failed", "beats_champion", "95 % interval -0.1 to +0.1"),
        ("failed", "anchor", "worse by 0.0100"),
        ("failed", "golden", verdict_section.STATED),
        ("not_run", "serving, not_older", "no champion yet"),
    ]


def test_each_finding_ends_with_the_setting_that_tries_its_remedy_unless_that_is_the_next_step() -> None:
    facts = published_night()
    settings = [finding.remedy.partition("--set ")[2] for finding in facts.findings]
    callouts = [block for block in sections.diagnosis(facts) if isinstance(block, Callout)]
    assert len(callouts) == len(settings)
    assert all(Code(f"--set {each}") in one.spans[-2:] for one, each in zip(callouts, settings, strict=True))
    held = published_night(run={"next_step": facts.findings[0].step("reviews")})
    command = f"nightgate run PATH/TO/reviews.toml --force --set {settings[0]}"
    assert Code(command) in [span for block in sections.head(held) for span in getattr(block, "spans", ())]
    assert report.as_html(page_of(*sections.head(held), *sections.diagnosis(held))).count(settings[0]) == 1


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_that_came_to_nothing_has_a_report_whatever_its_status(status: str) -> None:
    facts = blank(run={"status": status, "reason": None, "next_step": "check the paths"})
    page = report.as_page(facts)
    assert titles(page) == ["How it ran", "Where to look next"]
    assert report.as_markdown(page).startswith(f"# Night 2026-03-02 of reviews: {status}\n\n")
    html = Parsed(report.as_html(page))
    assert "check the paths" in html.words
    assert "None" not in html.words
    assert "nan" not in html.words.split()


def test_a_night_that_failed_in_training_shows_its_epochs_and_attempts_and_no_verdict() -> None:
    attempts = (
        attempt_row(1, status="failed", reason="the machine went away", restarts=1),
        attempt_row(2, resumed_from_epoch=1),
    )
    epochs = (epoch_row(1, 1.1, None, None), epoch_row(2, None, 1.2, 0.5))
    page = report.as_page(blank(epochs=epochs, attempts=attempts))
    assert titles(page) == ["Epochs", "How it ran", "Where to look next"]
    [table] = [block for block in page.sections[1].blocks if isinstance(block, Table)]
    shown = [(row[0], row[3], row[6]) for row in table.rows]
    assert shown == [("1", "", "the machine went away"), ("2", "epoch 1", "")]
    assert "n/a" in rendered(report.as_markdown(page)).words


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        ({"decision": None}, ("2026-03-02 03:15 UTC", "2026-03-02 21:15 UTC")),
        ({"decision": "rejected", "decided_by": "kim", "reason": "too early"}, ("rejected by kim", "too early")),
        ({"decision": "timed_out"}, ("timed out", "2026-03-02 03:15 UTC")),
    ],
)
def test_an_approval_has_its_decision_person_and_time(approval: dict[str, Any], words: tuple[str, ...]) -> None:
    start = run_row()["started_at"]
    row = {"requested_at": start, "deadline": start + timedelta(hours=18), "decided_at": start}
    row |= {"decided_by": None, "reason": None, **approval}
    shown = words_of(*verdict_section.verdict(blank(run={"status": "waiting"}, approval=row)))
    assert [word for word in words if word not in shown] == []


def test_the_evaluation_of_the_champion_is_there_with_its_alarm() -> None:
    row = {"alarm": "champion_dropped", "reason": "F1 fell to 0.3000 on the newest 200 rows"}
    shown = words_of(*verdict_section.verdict(published_night(evaluation=row)))
    assert "champion_dropped: F1 fell to 0.3000 on the newest 200 rows" in shown


def test_a_first_champion_is_compared_with_none() -> None:
    names = ("champion_version", "champion_f1", "f1_delta", "detectable_gain", "champion_fresh_f1", "anchor_version")
    checks = (check_row("min_f1", "passed", "F1 0.5435"), check_row("beats_champion", "not_run", "no champion yet"))
    note = "There was no champion to compare with."
    facts = published_night(run=dict.fromkeys(names), checks=checks, champion=None, before=None, shares_note=note)
    blocks = [*sections.head(facts)[1:], *verdict_section.verdict(facts), *sections.data(facts)]
    words = words_of(*blocks)
    assert note in words
    assert "Share of rows by label" in words
    for word in ("minus", "Against champion", "champion's", "champion:"):
        assert word not in words, word


def test_a_night_before_the_test_window_existed_shows_none_of_it() -> None:
    old = ("window_start", "test_rows_all", "test_f1_all", "rows_left_out", "detectable_gain", "champion_fresh_f1")
    old += ("champion_fresh_rows", "fresh_ci_low", "fresh_ci_high", "anchor_version", "anchor_f1")
    beats = difference_row("beats_champion", "passed", (0.5435, 0.5404), (-0.004, 0.0102), 0.5404)
    facts = published_night(run=dict.fromkeys(old), checks=(beats,))
    words = words_of(*sections.head(facts), *verdict_section.verdict(facts), *verdict_section.slice_checks(facts))
    assert "+0.0031 (-0.0040 to +0.0102)" in words
    for word in ("since", "power", "nchor", "fresh", "seeds", "bound", "slice", "None"):
        assert word not in words, word


def test_the_verdict_names_ten_failed_slices_and_a_table_has_sixty() -> None:
    facts = judged_night(num_slices=300, failed=14)
    shown, left_out = verdict_section.checks(facts)
    whole = ["clean_test", "min_f1", "beats_champion", "anchor", "golden", "slices"]
    assert [name for _, name, _ in shown] == whole + [f"slice_margin (product: product {place})" for place in range(10)]
    assert left_out.startswith("and 4 more")
    table, left_out_of_table = verdict_section.slice_checks(facts)
    assert isinstance(table, Table)
    assert [row[1] for row in table.rows] == [f"product: product {place}" for place in range(60)]
    assert "60 of 300" in words_of(left_out_of_table)


def test_a_thousand_epochs_are_all_in_the_page_and_the_telling_ones_in_the_artifact() -> None:
    epochs = tuple(epoch_row(number, 1 / number, 1.0, 0.5) for number in range(1, 1001))
    facts = published_night(epochs=epochs, run={"best_epoch": 500})
    page = page_of(*sections.epochs(facts))
    html, markdown = report.as_html(page), report.as_markdown(page)
    chosen = re.findall(r"^\| \**\d\.\d{4}\** \| \**(\d+\.0)\** \|", markdown, re.MULTILINE)
    assert chosen == [f"{number}.0" for number in (*range(1, 6), 499, 500, 501, *range(986, 1001))]
    assert markdown.count("\n| … |") == 2
    assert html.count("<td>0.5000</td>") >= 1000
    assert html.count("<strong>500.0</strong>") == 1


@pytest.mark.parametrize("count", [15, 50])
def test_the_artifact_stays_small_however_many_labels_there_are(count: int) -> None:
    labels = tuple(f"a category with a long name, number {number}" for number in range(count))
    markdown = report.as_markdown(report.as_page(published_night(labels)))
    assert len(markdown) < 300_000
    assert labels[-1] in rendered(markdown).words


def test_sixty_values_of_a_slice_are_shown_and_the_others_counted() -> None:
    rows = tuple({**published_night().slices[-1], "slice_value": f"value {n}", "support": n} for n in range(1, 100))
    words = words_of(*sections.slices(published_night(slices=rows)))
    assert "60 of 99" in words
    assert "value 99" in words
    assert "value 39" not in words


# --- harmless ---


@cache
def evil_page() -> Page:
    facts = published_night(
        (EVIL, "other"),
        EVIL,
        run={"reason": EVIL, "next_step": EVIL, "device": EVIL, "base_model": EVIL, "slot": EVIL},
        checks=(check_row("min_f1", "passed", f"{EVIL}!", slice_name=EVIL, slice_value=EVIL),),
        attempts=(attempt_row(1, host=EVIL, reason=EVIL), attempt_row(2)),
        quarantined={EVIL: 1},
        shares_note=EVIL,
    )
    return report.as_page(facts)


def test_no_text_becomes_markup_in_the_page() -> None:
    html = report.as_html(evil_page())
    page = Parsed(html)
    assert page.tags.isdisjoint({"script", "svg", "iframe", "object", "embed", "form", "base"})
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    targets = [value for name, value in page.attributes if name in {"href", "xlink:href", "src", "srcset", "action"}]
    for value in targets:
        assert value.startswith(
            ("#", "../../models/", "../../reports/", "report.html", "data:image/svg+xml;base64,")
        ), value
    assert len(targets) > 9
    assert page.words.count(SHOWN) >= 8
    assert page.words.count("{{ 7 * 7 }}") >= 8
    assert "\x00" not in html
    html.encode()


def test_no_text_becomes_markup_in_the_artifact() -> None:
    markdown = report.as_markdown(evil_page())
    page = rendered(markdown)
    assert page.tags <= {"h1", "h2", "p", "strong", "code", "pre", "img", "table", "thead", "tbody", "tr", "th", "td"}
    for name, value in page.attributes:
        assert name in {"src", "alt", "style", "class"}, name
        assert name != "src" or value.startswith("data:image/svg+xml;base64,"), value
    assert page.words.count(SHOWN) >= 8
    markdown.encode()


LINES = ("1. one", "- two", "# three", "+ four", "=====", "---", "2) x", "a_b", "_a_", "a|b", "www.x.y", "&amp;")
LINES += ("\\|", "<b>", "![x](y)")


@pytest.mark.parametrize("text", LINES)
def test_any_line_is_shown_as_it_is(text: str) -> None:
    page = page_of(Text((text,)), Table(("a", "b"), [[text, "x"]]), Callout((text,), Mark("", "warn")))
    found = rendered(report.as_markdown(page))
    assert found.words.split("\n").count(text) >= 2
    assert found.tags <= {"h1", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("text", ["a`b", "``", "`", "a|b", "", "`a"])
def test_code_ends_where_it_should(text: str) -> None:
    found = rendered(report.as_markdown(page_of(Table(("a",), [[Code(text)]]), Query(f"x\n```\n{text}"))))
    assert {"code", "pre"} & found.tags
    assert text in found.words


def test_blanks_between_the_spans_of_a_sentence_stay() -> None:
    sentence = Text(("Run ", Code("a"), ", then ", Strong("b"), "."))
    assert "Run a, then b." in words_of(sentence)
    assert "Run `a`, then **b**." in report.as_markdown(page_of(sentence))


def test_the_page_fetches_nothing_and_runs_nothing_and_leads_to_the_model_beside_it() -> None:
    html = published_html()
    attributes = Parsed(html).attributes
    assert ("href", "../../models/reviews/v0002/") in attributes
    [policy] = [value for name, value in attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert re.findall(r"https?://|@import|url\(", html) == []


def test_every_colour_of_the_page_has_a_light_and_a_dark_value() -> None:
    html = published_html()
    style = html[html.index("<style>") : html.index("</style>")]
    light, _, rest = style.partition("@media screen and (prefers-color-scheme:dark)")
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", style))
    assert used
    for side in (light, rest.partition("}}")[0]):
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", side))


# --- gathered from a database ---


def judged(db: Database, day: int = 0, *, speed: float = 50.0, snapshot: Snapshot | None = None) -> str:
    """The run of a night that was promoted, with all that a night records."""
    opened = claim.open_run(db, night_rows.pipeline(), night_rows.night(day))
    run, attempt = opened.run_id, opened.attempt
    refreshed = Refreshed(snapshot, (), 4, 4, 0) if snapshot else night_rows.refreshed(db, f"s-{day:016d}")
    records.record_snapshot(db, run, attempt, refreshed)
    epoch = night_rows.report(1, examples_per_second=speed)
    records.record_epoch(db, run, attempt, epoch, night_rows.scores(0.5), night_rows.slices(), night_rows.confusion())
    runs.record_attempt(db, run, attempt, device="cpu", precision="fp32")
    records.record_training(db, run, attempt, night_rows.trained(best_epoch=1))
    decision = night_rows.decision("promote", 0.6, 0.55 if day else None)
    details = {"scores": night_rows.scores(), "slices": night_rows.slices(0.7), "confusion": night_rows.confusion()}
    records.record_decision(db, run, attempt, decision, night_rows.evidence(day or None), **details)
    version = promotion.add_version(db, run, attempt, lambda number: f"models/reviews/v{number:04d}")
    own = {"run_id": run, "attempt": attempt}
    promotion.promote_candidate(db, "reviews", version, expected=day or None, by="gate", reason="F1", **own)
    return run


def test_the_facts_are_those_of_the_database(database: Database, home: Home) -> None:
    first = judged(database)
    second = judged(database, 1)
    facts = gather(home, second)
    assert facts.run["status"] == "promoted"
    assert [epoch["epoch"] for epoch in facts.epochs] == [1]
    assert [check["check_name"] for check in facts.checks] == ["min_f1", "beats_champion"]
    assert facts.confusion == ((4, 1), (2, 3))
    assert [(row["slice_value"], row["f1"]) for row in facts.slices] == [("bad", 0.7), ("good", 0.7)]
    assert facts.quarantined == {"empty_text": 2}
    assert (facts.champion.version, facts.champion.run_id, facts.current_champion.version) == (1, first, 2)
    assert facts.model_path == home.models / "reviews" / "v0002"
    # The rows of this test's snapshots were never written.
    assert (facts.tonight, facts.before) == (None, None)
    assert "s-0000000000000001" in facts.shares_note
    path = report.write(home, second)
    assert path == home.runs / second / "report.html"
    assert "v0002" in path.read_text(encoding="utf-8")


def test_what_the_gate_stored_is_drawn(database: Database, home: Home) -> None:
    first = judged_nights.judged_night(database, 0, judged_nights.Model("a", 0.9))
    weak = judged_nights.judged_night(database, 1, judged_nights.Model("b", 0.8), first)
    words = Parsed(report.write(home, weak.run_id).read_text(encoding="utf-8")).words
    for what in ("champion (version 1)", "champion, golden rows", "label: good", "80 % power"):
        assert what in words, what


def test_the_seed_study_of_a_night_is_the_newest_that_had_ended_by_then(database: Database, home: Home) -> None:
    run_id = judged(database)
    [run] = database.frame("SELECT finished_at, snapshot_id FROM nightly_runs").to_dict("records")
    ended = pd.Timestamp(run["finished_at"]).to_pydatetime()
    for hours, spread in ((-2, 0.002), (-1, 0.004), (1, 0.009)):
        moment = ended + timedelta(hours=hours)
        facts = {"started_at": moment, "finished_at": moment, "f1_mean": 0.6, "f1_spread": spread, "num_seeds": 3}
        facts |= {"pipeline": "reviews", "snapshot_id": run["snapshot_id"], "code_version": "0.1.0"}
        facts |= {"average": "weighted", "config_hash": seed_study.config_hash(night_rows.pipeline())}
        study = SeedStudy(study_id=f"study {hours}", **facts)
        database.write(lambda session, study=study: session.add(study))  # type: ignore[misc]
    found = gather(home, run_id)
    assert found.seed_study["f1_spread"] == 0.004
    assert "0.0040 of 3 seeds" in Parsed(report.as_html(report.as_page(found))).words


def test_a_failed_run_has_its_error_first_and_the_champion_of_its_day(database: Database, home: Home) -> None:
    judged(database)
    opened = claim.open_run(database, night_rows.pipeline(), night_rows.night(1))
    why = {"reason": "no file matches", "error_type": "data", "next_step": "check the paths"}
    runs.finish_run(database, opened.run_id, 1, "failed", **why)
    facts = gather(home, opened.run_id)
    assert facts.champion.version == 1
    assert (facts.confusion, facts.tonight, facts.before) == ((), None, None)
    assert report.write(home, opened.run_id).is_file()
    assert report.markdown(home, opened.run_id).split("\n\n")[:3] == [
        "# Night 2026-03-02 of reviews: failed",
        "no file matches",
        "**!** Next: check the paths",
    ]


def test_a_night_at_half_the_speed_of_the_nights_before_is_diagnosed(database: Database, home: Home) -> None:
    first, *_, last = (judged(database, day, speed=speed) for day, speed in enumerate((20, 100, 101, 102, 20)))
    findings = {finding.kind: finding for finding in gather(home, last).findings}
    assert "4 earlier nights" in findings["starved"].text
    assert "100 examples/s" in findings["starved"].text
    assert findings["starved"].remedy.endswith("--set resources.slot=default")
    # As slow, but there was no night before it.
    assert "starved" not in {finding.kind for finding in gather(home, first).findings}


def test_a_real_night_is_published_with_its_snapshot(environment: Path) -> None:
    copy_first_night(environment)
    [run_dir] = (environment / "runs").iterdir()
    home = open_home()
    path, markdown = report.write(home, run_dir.name), report.markdown(home, run_dir.name)
    assert markdown.startswith("# Night 2026-01-05 of small: promoted\n\n")
    assert "| Training Loss | Epoch |" in markdown
    assert "| ✓\N{NO-BREAK SPACE}passed | min_f1 | F1 " in markdown
    assert "```sql\nSELECT night, epoch" in markdown
    assert "Share of rows by product" in markdown
    assert len(markdown) < 300_000
    html = path.read_text(encoding="utf-8")
    assert "Distribution of text lengths" in Parsed(html).words
    assert [file.name for file in run_dir.iterdir() if file.name.endswith(".tmp")] == []
    # The terminal names it, once it is there.
    assert terminal_summary.as_text(home, run_dir.name).count(str(path)) == 1
    assert report.write(home, run_dir.name).read_text(encoding="utf-8") == html


# --- shares of snapshots ---


def made_snapshot(folder: Path, texts: list[str], shop: list[str]) -> Snapshot:
    half, numbers = len(texts) // 2, range(len(texts))
    frame = pd.DataFrame({"split": ["train", "test"] * half, "row_id": [str(number) for number in numbers]})
    frame = frame.assign(fingerprint=[f"{number:032x}" for number in numbers], text=texts)
    frame = frame.assign(label=[number % 2 for number in numbers], slice_shop=shop)
    counts = {"train": {"bad": half, "good": 0}, "test": {"bad": 0, "good": half}}
    facts = {"label_names": ["bad", "good"], "label_counts": counts, "slices": ["shop"], "test_version": "t-1"}
    facts |= {"rows": {"train": half, "validation": 0, "test": half}, "rows_total": len(texts)}
    facts |= {"rows_duplicate": 0, "rows_quarantined": 0}
    return write_snapshot(folder, frame, {}, facts)


def test_a_snapshot_is_counted_by_label_slice_and_length(tmp_path: Path) -> None:
    made = made_snapshot(tmp_path, ["a", "ü" * 9, "x" * 100, "y" * 200_000], ["north", "south", "north", "north"])
    found = shares.read_shares(made.path)
    assert found.rows == 4
    assert found.labels == {"bad": 2, "good": 2}
    assert found.slices == {"shop": {"north": 3, "south": 1}}
    edges = shares.length_edges()
    by_length = {edges[place]: count for place, count in enumerate(found.lengths) if count}
    # Characters, not bytes; a bin holds its lower edge; the last one takes all that is longer.
    assert by_length == {1: 1, 8: 1, 100: 1, edges[-2]: 1}
    assert found.median_length == 9
    assert found.long_length == 100_000


def test_a_snapshot_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    made = made_snapshot(tmp_path, ["a", "b"], ["north", "south"])
    rows = made.path / "rows.parquet"
    size = rows.stat().st_size
    rows.chmod(0o644)
    rows.write_bytes(b"x" * size)
    with pytest.raises(SnapshotError, match=r"rows\.parquet"):
        shares.read_shares(made.path)
    with pytest.raises(SnapshotError, match="gone"):
        shares.read_shares(tmp_path / "gone")


def test_the_champion_s_snapshot_is_read_unless_it_is_the_same_or_gone(database: Database, home: Home) -> None:
    made = [made_snapshot(home.snapshots / "reviews", [f"text {number}"] * 4, ["north"] * 4) for number in range(2)]
    runs = [judged(database, day, snapshot=made[min(day, 1)]) for day in range(3)]
    first, second, third = (gather(home, run) for run in runs)
    assert (first.before, third.before) == (None, None)
    assert (second.before.snapshot_id, second.shares_note) == (made[0].id, "")
    assert "version 2" in third.shares_note
    (made[0].path / "rows.parquet").unlink()
    gone = gather(home, runs[1])
    assert (gone.tonight, gone.before) == (second.tonight, None)
    assert made[0].id in gone.shares_note
