"""The report of a night: complete for every ending, harmless whatever the data hold, and one file."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from nightgate import ledger, opening, reigns, seeds, summary
from nightgate.database import Database
from nightgate.errors import SnapshotError
from nightgate.home import Home, open_home
from nightgate.query import published_table
from nightgate.refresh import Refreshed
from nightgate.reports import document, facts, html_page, report, sections, shares, verdict
from nightgate.reports.document import Callout, Code, Document, Mark, Mono, Table, Text
from nightgate.reports.facts import ReportFacts, gather
from nightgate.runs import finish_run, record_attempt
from nightgate.schema import STATUSES
from nightgate.schema_gate import SeedStudy
from nightgate.snapshots import Snapshot, write_snapshot
from tests import judged_nights, night_rows
from tests.first_night import copy_first_night
from tests.report_facts import (
    attempt_row,
    check_row,
    difference_row,
    epoch_row,
    judged_night,
    published_night,
    published_rows,
    run_row,
)
from tests.report_facts import pipeline as configured

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> &lt; [a](javascript:alert(3)) ![b](http://x/y.png) "
    '`c` *d* _e_ ~~f~~ | g \\ </style></svg> " onload="alert(4)" \x00\ud800 $h$'
)
SHOWN = "<script>alert(1)</script><img src=x onerror=alert(2)> &lt; [a](javascript:alert(3)) ![b](http://x/y.png)"


@cache
def published_page() -> Document:
    """Drawn once: pictures are what takes time here."""
    return report.as_document(published_night())


@cache
def published_html() -> str:
    return html_page.as_html(published_page())


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

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

    def handle_data(self, data: str) -> None:
        self.words += data


def shown(markdown: str) -> Page:
    """The markdown as a strict renderer shows it that lets HTML through."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def blank(**changes: Any) -> ReportFacts:
    """Of a run that came to nothing."""
    values: dict[str, Any] = {
        "run": run_row(**changes.pop("run", {})),
        "pipeline": configured(),
        "label_names": ("1", "2"),
        "attempts": (attempt_row(1),),
    }
    return ReportFacts(**values | changes)


def titles(page: Document) -> list[str]:
    return [section.title for section in page.sections]


# --- what it says ---


def test_a_whole_night_has_every_section_in_both_forms() -> None:
    page = published_page()
    expected = "Verdict, Checks of classes and slices, Diagnosis, Epochs, Test rows, Slices, Data, How it ran"
    expected += ", Where to look next"
    assert ", ".join(titles(page)) == expected
    html, markdown = Page(published_html()), document.as_markdown(page)
    for words in (
        "Night 2026-03-02 of reviews",
        "F1 0.5435 on 5,000 test rows, +0.0031 against the champion (version 1)",
        "Overfitting from epoch 2 on",
        "Version 1, the champion, was scored tonight on the same 5,000 rows",
        "400 of 500 rows were given their label (accuracy 0.5422)",
        "50,000, of which 40 are new",
        "1 h 2 min",
        "waited 1 min 5 s for it",
        "bf16 (bf16 natively)",
        "median 60 characters",
        "s-1",
        "SELECT night, epoch",
        "/srv/nightgate/models/reviews/v0002",
        "3 empty_text",
    ):
        assert words in html.words, words
        assert words in shown(markdown).words, words
    assert published_table(pd.DataFrame(list(published_rows()))) in markdown.replace("**", "")
    assert "\nFROM epoch_results\nWHERE pipeline = 'reviews'\nORDER BY night, epoch\n```" in markdown
    # F1 of all sides, differences, curves, matrix, F1 by label and product, shares by label and product, lengths.
    assert markdown.count("](data:image/svg+xml;base64,") == 9
    assert sorted(html.tags & {"svg", "img", "script"}) == ["svg"]


def test_each_finding_ends_with_the_setting_that_tries_its_remedy() -> None:
    facts, page = published_night(), published_page()
    callouts = [block for block in page.sections[2].blocks if isinstance(block, Callout)]
    assert len(callouts) == len(facts.findings) == 2
    for callout in callouts:
        last = callout.spans[-1]
        assert isinstance(last, Mono)
        assert last.text.startswith("--set ")
    assert "`--set training.dropout=0.2`" in document.as_markdown(page)


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_that_came_to_nothing_has_a_report_whatever_its_status(status: str) -> None:
    facts = blank(run={"status": status, "reason": None, "next_step": "check the paths"})
    page = report.as_document(facts)
    assert titles(page) == ["How it ran", "Where to look next"]
    assert document.as_markdown(page).startswith(f"# Night 2026-03-02 of reviews: {status}\n\nNo reason was recorded.")
    html = Page(report.as_html(facts))
    assert "check the paths" in html.words
    assert "None" not in html.words
    assert "nan" not in html.words.split()


def test_a_night_that_failed_in_training_shows_its_epochs_and_attempts_and_no_verdict() -> None:
    attempts = (
        attempt_row(1, status="failed", reason="the machine went away", restarts=1),
        attempt_row(2, resumed_from_epoch=1),
    )
    epochs = (epoch_row(1, 1.1, None, None), epoch_row(2, None, 1.2, 0.5))
    page = report.as_document(blank(epochs=epochs, attempts=attempts))
    assert titles(page) == ["Epochs", "How it ran", "Where to look next"]
    words = shown(document.as_markdown(page)).words
    assert "n/a" in words
    assert "the machine went away" in words
    assert "epoch 1" in words


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        ({"decision": None}, "waits since 2026-03-02 03:15 UTC, until 2026-03-02 21:15 UTC"),
        (
            {"decision": "rejected", "decided_by": "kim", "reason": "too early"},
            "rejected by kim, 2026-03-02 03:15 UTC: too early",
        ),
        ({"decision": "timed_out"}, "timed out, 2026-03-02 03:15 UTC"),
    ],
)
def test_an_approval_is_told(approval: dict[str, Any], words: str) -> None:
    start = run_row()["started_at"]
    row = {"requested_at": start, "deadline": start + timedelta(hours=18), "decided_at": start}
    row |= {"decided_by": None, "reason": None, **approval}
    assert words in Page(report.as_html(blank(run={"status": "waiting"}, approval=row))).words


def test_a_first_champion_is_compared_with_nobody() -> None:
    names = ("champion_version", "champion_f1", "f1_delta", "detectable_gain", "champion_fresh_f1", "anchor_version")
    checks = (check_row("min_f1", "passed", "F1 0.5435"), check_row("beats_champion", "not_run", "no champion yet"))
    note = "There was no champion to compare with."
    facts = published_night(run=dict.fromkeys(names), checks=checks, champion=None, before=None, shares_note=note)
    blocks = [*sections.tiles(facts), *verdict.verdict(facts), *sections.data(facts)]
    words = Page(html_page.as_html(Document("t", Mark("held", "warn"), blocks))).words
    assert "There was no champion to compare with." in words
    assert "Share of rows by label" in words
    assert "minus" not in words
    assert "Against champion" not in words
    assert "champion's" not in words


def test_a_check_of_a_slice_names_it() -> None:
    check = check_row("slice_floor", "underpowered", "too few rows", slice_name="product", slice_value="kettle")
    words = Page(report.as_html(blank(checks=(check,)))).words
    assert "product: kettle" in words
    assert "slice_floor" in words
    assert "! underpowered" in words


def shown_in(*blocks: document.Block) -> str:
    return Page(html_page.as_html(Document("t", Mark("held", "warn"), list(blocks)))).words


def test_a_verdict_says_what_it_was_decided_on() -> None:
    facts = judged_night()
    words = shown_in(*verdict.verdict(facts))
    for sentence in (
        "5,000 test rows since 2025-12-02; all 7,310 beside it: F1 0.5402; 2 rows more count nowhere",
        "gains of 1.6 points or more would be seen with 80 % power; tonight's was 0.3",
        "version 3: F1 0.5388 on the same rows",
        "F1 0.5312 (95 % interval 0.4980 to 0.5641) of version 4 on the 812 rows that came after it was chosen: "
        "the only number without selection",
        "spread 0.0059 of 5 seeds: a margin of 0.0100 is 1.7 times the spread",
    ):
        assert sentence in words, sentence
    for picture in ("champion (version 4)", "anchor (version 3)", "champion, golden rows", "champion, fresh rows"):
        assert picture in words
    assert words.count("product: product 0") == 2
    assert "product: product 6" not in words


def test_an_anchor_that_reigns_is_not_drawn_twice() -> None:
    words = shown_in(*verdict.verdict(published_night()))
    assert "version 1, the champion itself" in words
    assert "anchor (version 1)" not in words


def test_a_night_of_before_the_window_shows_nothing_of_it() -> None:
    old = ("window_start", "test_rows_all", "test_f1_all", "rows_left_out", "detectable_gain", "champion_fresh_f1")
    old += ("champion_fresh_rows", "fresh_ci_low", "fresh_ci_high", "anchor_version", "anchor_f1")
    beats = difference_row("beats_champion", "passed", (0.5435, 0.5404), (-0.004, 0.0102), 0.5404)
    facts = published_night(run=dict.fromkeys(old), checks=(beats,))
    words = shown_in(*sections.tiles(facts), *verdict.verdict(facts), *verdict.slice_checks(facts))
    assert "Version 1, the champion, was scored tonight on the same 5,000 rows" in words
    assert "+0.0031 (-0.0040 to +0.0102)" in words
    for word in ("since", "power", "nchor", "fresh", "seeds", "bound", "slice", "None"):
        assert word not in words, word


def test_of_many_slices_the_verdict_tells_those_that_failed_and_a_table_has_the_rest() -> None:
    facts = judged_night(num_slices=300, failed=14)
    [table] = [block for block in verdict.verdict(facts) if isinstance(block, Table)]
    assert [row[1] for row in table.rows][:6] == [
        "clean_test",
        "min_f1",
        "beats_champion",
        "anchor",
        "golden",
        "slices",
    ]
    assert [row[1] for row in table.rows][6:] == [f"slice_margin (product: product {place})" for place in range(10)]
    assert "and 4 more classes and slices; the report lists them" in shown_in(*verdict.verdict(facts))
    [folded, told] = verdict.slice_checks(facts)
    assert isinstance(folded, Table)
    assert [row[1] for row in folded.rows] == [f"product: product {place}" for place in range(60)]
    assert "The first 60 of 300 checks of classes and slices, by their loss." in shown_in(told)
    assert len(report.as_markdown(facts)) < 300_000


def test_a_thousand_epochs_are_all_in_the_page_and_the_telling_ones_in_the_artifact() -> None:
    epochs = tuple(epoch_row(number, 1 / number, 1.0, 0.5) for number in range(1, 1001))
    facts = published_night(epochs=epochs, run={"best_epoch": 500})
    page = Document("t", Mark("held", "warn"), sections.epochs(facts))
    html, markdown = html_page.as_html(page), document.as_markdown(page)
    chosen = re.findall(r"^\| \**\d\.\d{4}\** \| \**(\d+\.0)\** \|", markdown, re.MULTILINE)
    assert chosen == [f"{number}.0" for number in (*range(1, 6), 499, 500, 501, *range(986, 1001))]
    assert markdown.count("\n| … |") == 2
    assert html.count("<td>0.5000</td>") >= 1000
    assert len(markdown) < 300_000


@pytest.mark.parametrize("count", [15, 50])
def test_the_artifact_stays_small_however_many_labels_there_are(count: int) -> None:
    labels = tuple(f"a category with a long name, number {number}" for number in range(count))
    markdown = report.as_markdown(published_night(labels))
    assert len(markdown) < 300_000
    assert labels[-1] in shown(markdown).words


def test_many_values_of_a_slice_are_cut_and_the_cut_is_told() -> None:
    rows = tuple({**published_night().slices[-1], "slice_value": f"value {n}", "support": n} for n in range(1, 100))
    page = Document("t", Mark("held", "warn"), sections.slices(published_night(slices=rows)))
    words = Page(html_page.as_html(page)).words
    assert "The first 60 of 99 values of product, by their test rows." in words
    assert "value 99" in words
    assert "value 39" not in words


# --- harmless ---


@cache
def evil_page() -> Document:
    facts = published_night(
        (EVIL, "other"),
        EVIL,
        run={"reason": EVIL, "next_step": EVIL, "device": EVIL, "base_model": EVIL, "slot": EVIL},
        checks=(check_row("min_f1", "passed", EVIL, slice_name=EVIL, slice_value=EVIL),),
        attempts=(attempt_row(1, host=EVIL, reason=EVIL), attempt_row(2)),
        quarantined={EVIL: 1},
        shares_note=EVIL,
    )
    return report.as_document(facts)


def test_no_text_becomes_markup_in_the_page() -> None:
    html = html_page.as_html(evil_page())
    page = Page(html)
    assert page.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "base"})
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    targets = [value for name, value in page.attributes if name in {"href", "xlink:href", "src", "srcset", "action"}]
    assert targets
    for value in targets:
        assert value.startswith(("#", "../../models/", "report.html")), value
    assert page.words.count(SHOWN) >= 8
    assert "\x00" not in html
    html.encode()


def test_no_text_becomes_markup_in_the_artifact() -> None:
    markdown = document.as_markdown(evil_page())
    page = shown(markdown)
    assert page.tags <= {"h1", "h2", "p", "strong", "code", "pre", "img", "table", "thead", "tbody", "tr", "th", "td"}
    for name, value in page.attributes:
        assert name in {"src", "alt", "style", "class"}, name
        assert name != "src" or value.startswith("data:image/svg+xml;base64,"), value
    assert page.words.count(SHOWN) >= 8
    markdown.encode()


@pytest.mark.parametrize(
    "text",
    [
        "1. one",
        "- two",
        "# three",
        "+ four",
        "=====",
        "---",
        "2) x",
        "a_b",
        "_a_",
        "a|b",
        "www.x.y",
        "&amp;",
        "\\|",
        "<b>",
        "![x](y)",
    ],
)
def test_any_line_is_shown_as_it_is(text: str) -> None:
    page = Document(
        "t", Mark("held", "warn"), [Text((text,)), Table(("a", "b"), [[text, "x"]]), Callout((text,), "warn")]
    )
    found = shown(document.as_markdown(page))
    assert found.words.split("\n").count(text) >= 2
    assert found.tags <= {"h1", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("text", ["a`b", "``", "`", "a|b", "", "`a"])
def test_code_ends_where_it_should(text: str) -> None:
    page = Document("t", Mark("held", "warn"), [Table(("a",), [[Mono(text)]]), Code(f"x\n```\n{text}", "sql")])
    found = shown(document.as_markdown(page))
    assert {"code", "pre"} & found.tags
    assert text in found.words


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html = published_html()
    page = Page(html)
    [policy] = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    # Names of XML languages are no addresses that anything fetches.
    assert set(re.findall(r"https?://[^\"'\s<)]+", html)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_the_page_has_a_light_and_a_dark_side_and_every_colour_of_both() -> None:
    html = published_html()
    style = html[html.index("<style>") : html.index("</style>")]
    light, _, rest = style.partition("@media (prefers-color-scheme:dark)")
    dark = rest.partition("@media print")[0]
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    for side in (light, dark):
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", side))


def test_the_page_leads_to_the_model_beside_it() -> None:
    page = Page(published_html())
    assert ("href", "../../models/reviews/v0002/") in page.attributes


# --- gathered from a database ---


def judged(db: Database, day: int = 0, *, speed: float = 50.0, snapshot: Snapshot | None = None) -> str:
    """A night that was promoted, all of it recorded; gives the run."""
    opened = opening.open_run(db, night_rows.pipeline(), night_rows.night(day))
    run, attempt = opened.run_id, opened.attempt
    refreshed = Refreshed(snapshot, (), 4, 4, 0) if snapshot else night_rows.refreshed(db, f"s-{day:016d}")
    ledger.record_snapshot(db, run, attempt, refreshed)
    epoch = night_rows.report(1, examples_per_second=speed)
    ledger.record_epoch(db, run, attempt, epoch, night_rows.scores(0.5), night_rows.slices(), night_rows.confusion())
    record_attempt(db, run, attempt, device="cpu", precision="fp32")
    ledger.record_training(db, run, attempt, night_rows.trained(best_epoch=1))
    ledger.record_test(db, run, attempt, 1, night_rows.slices(0.7), night_rows.confusion())
    decision = night_rows.decision("promote", 0.6, 0.55 if day else None)
    ledger.record_decision(db, run, attempt, decision, night_rows.evidence(day or None), night_rows.scores())
    version = reigns.add_version(db, run, attempt, lambda number: f"models/reviews/v{number:04d}")
    reigns.promote_candidate(
        db,
        "reviews",
        version,
        expected=day or None,
        run_id=run,
        attempt=attempt,
        by="gate",
        reason="F1",
    )
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
    assert facts.champion is not None
    assert (facts.champion.version, facts.champion.run_id) == (1, first)
    assert facts.reigning is not None
    assert facts.reigning.version == 2
    assert facts.model_path == home.models / "reviews" / "v0002"
    # The rows of this test's snapshots were never written.
    assert facts.shares_note == "Tonight's snapshot s-0000000000000001 is gone or cannot be read."
    path = report.write(home, second)
    assert path == home.runs / second / "report.html"
    assert "v0002" in path.read_text(encoding="utf-8")


def test_what_the_gate_stored_is_drawn_and_told(database: Database, home: Home) -> None:
    first = judged_nights.judged_night(database, 0, judged_nights.Model("a", 0.9))
    weak = judged_nights.judged_night(database, 1, judged_nights.Model("b", 0.8), first)
    words = Page(report.write(home, weak.run_id).read_text(encoding="utf-8")).words
    for told in ("champion (version 1)", "champion, golden rows", "label: good", "the champion itself", "80 % power"):
        assert told in words, told
    assert "The first" not in words


def test_the_seed_study_of_a_night_is_the_newest_that_had_ended_by_then(database: Database, home: Home) -> None:
    run_id = judged(database)
    [run] = database.frame("SELECT finished_at, snapshot_id FROM nightly_runs").to_dict("records")
    ended = pd.Timestamp(run["finished_at"]).to_pydatetime()
    for hours, spread in ((-2, 0.002), (-1, 0.004), (1, 0.009)):
        moment = ended + timedelta(hours=hours)
        study = SeedStudy(
            study_id=f"study {hours}",
            pipeline="reviews",
            snapshot_id=str(run["snapshot_id"]),
            config_hash=seeds.config_hash(night_rows.pipeline()),
            code_version="0.1.0",
            average="weighted",
            num_seeds=3,
            f1_mean=0.6,
            f1_spread=spread,
            started_at=moment,
            finished_at=moment,
        )
        database.write(lambda session, study=study: session.add(study))  # type: ignore[misc]
    found = gather(home, run_id)
    assert found.seed_study is not None
    assert found.seed_study["f1_spread"] == 0.004
    told = "spread 0.0040 of 3 seeds: a margin of 0.0100 is 2.5 times the spread"
    assert told in Page(report.as_html(found)).words


def test_a_failed_run_is_told_and_the_champion_of_its_day_is_kept_in_mind(database: Database, home: Home) -> None:
    judged(database)
    opened = opening.open_run(database, night_rows.pipeline(), night_rows.night(1))
    finish_run(
        database, opened.run_id, 1, "failed", reason="no file matches", error_type="data", next_step="check the paths"
    )
    facts = gather(home, opened.run_id)
    assert facts.champion is not None
    assert facts.champion.version == 1
    assert facts.confusion == ()
    assert facts.shares_note == "The night came to no snapshot."
    path, markdown = report.publish(home, opened.run_id)
    assert path.is_file()
    assert markdown.startswith(
        "# Night 2026-03-02 of reviews: failed\n\nno file matches\n\n**!** Next: check the paths"
    )


def test_a_night_at_half_the_speed_of_the_nights_before_is_diagnosed(database: Database, home: Home) -> None:
    first, *_, last = [
        judged(database, day, speed=speed) for day, speed in enumerate((20.0, 100.0, 101.0, 102.0, 20.0))
    ]
    findings = {finding.kind: finding for finding in gather(home, last).findings}
    assert "20 examples/s where the median of 4 earlier nights on the CPU is 100 examples/s" in findings["starved"].text
    assert findings["starved"].remedy.endswith("--set resources.slot=default")
    # As slow, but there was no night before it.
    assert "starved" not in {finding.kind for finding in gather(home, first).findings}


def test_a_real_night_is_published_with_its_snapshot(environment: Path) -> None:
    copy_first_night(environment)
    [run_dir] = (environment / "runs").iterdir()
    home = open_home()
    path, markdown = report.publish(home, run_dir.name)
    assert markdown.startswith("# Night 2026-01-05 of small: promoted\n\n")
    assert "| Training Loss | Epoch |" in markdown
    assert "| ✓\N{NO-BREAK SPACE}passed | min_f1 | F1 " in markdown
    assert "```sql\nSELECT night, epoch" in markdown
    assert "Share of rows by product" in markdown
    assert len(markdown) < 300_000
    html = path.read_text(encoding="utf-8")
    assert "Share of rows by length of the text" in Page(html).words
    assert [file.name for file in run_dir.iterdir() if file.name.endswith(".tmp")] == []
    # The terminal names it, once it is there.
    assert summary.as_text(home, run_dir.name).count(str(path)) == 1
    assert report.write(home, run_dir.name).read_text(encoding="utf-8") == html


# --- shares of snapshots ---


def snapshot(folder: Path, texts: list[str], shop: list[str]) -> Snapshot:
    frame = pd.DataFrame(
        {
            "split": ["train", "test"] * (len(texts) // 2),
            "row_id": [str(number) for number in range(len(texts))],
            "fingerprint": [f"{number:032x}" for number in range(len(texts))],
            "text": texts,
            "label": [number % 2 for number in range(len(texts))],
            "slice_shop": shop,
        }
    )
    counts = {"train": {"bad": len(texts) // 2, "good": 0}, "test": {"bad": 0, "good": len(texts) // 2}}
    facts = {"label_names": ["bad", "good"], "label_counts": counts, "slices": ["shop"], "test_version": "t-1"}
    facts |= {"rows": {"train": len(texts) // 2, "validation": 0, "test": len(texts) // 2}, "rows_total": len(texts)}
    facts |= {"rows_duplicate": 0, "rows_quarantined": 0}
    return write_snapshot(folder, frame, {}, facts)


def test_a_snapshot_is_counted_by_label_slice_and_length(tmp_path: Path) -> None:
    made = snapshot(tmp_path, ["a", "ü" * 9, "x" * 100, "y" * 200_000], ["north", "south", "north", "north"])
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


def test_rows_are_counted_over_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_BATCH", 3)
    made = snapshot(tmp_path, ["ab"] * 10, ["north"] * 9 + ["south"])
    found = shares.read_shares(made.path)
    assert found.rows == sum(found.lengths) == 10
    assert found.slices == {"shop": {"north": 9, "south": 1}}


def test_a_snapshot_that_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    made = snapshot(tmp_path, ["a", "b"], ["north", "south"])
    rows = made.path / "rows.parquet"
    size = rows.stat().st_size
    rows.chmod(0o644)
    rows.write_bytes(b"x" * size)
    with pytest.raises(SnapshotError, match=r"rows\.parquet cannot be read"):
        shares.read_shares(made.path)
    with pytest.raises(SnapshotError, match="no snapshot"):
        shares.read_shares(tmp_path / "gone")


def test_the_champion_s_snapshot_is_read_unless_it_is_the_same_or_gone(database: Database, home: Home) -> None:
    made = [snapshot(home.snapshots / "reviews", [f"text {number}"] * 4, ["north"] * 4) for number in range(2)]
    runs = [judged(database, day, snapshot=made[min(day, 1)]) for day in range(3)]
    first, second, third = (facts.gather(home, run) for run in runs)
    assert first.before is None
    assert first.shares_note == "There was no champion to compare with."
    assert second.before is not None
    assert second.before.snapshot_id == made[0].id
    assert second.shares_note == ""
    assert third.before is None
    assert "the snapshot that the champion (version 2) was trained on" in third.shares_note
    (made[0].path / "rows.parquet").unlink()
    gone = facts.gather(home, runs[1])
    assert gone.tonight is not None
    assert gone.shares_note == f"The snapshot of the champion (version 1), {made[0].id}, is gone or cannot be read."
