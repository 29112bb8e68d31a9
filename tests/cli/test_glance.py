"""Nights at a glance: what `nightgate history` prints for one pipeline and for all."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from syrupy.assertion import SnapshotAssertion

from nightgate.cli.glance import ASCII, MARKS, UNICODE, Page, fleet, glance, sparkline
from nightgate.cli.read import _show_changes
from nightgate.cli.tables_as_text import Format

FIRST = date(2025, 12, 1)
MISSING = dict.fromkeys(
    (
        *("reason", "test_f1", "f1_ci_low", "f1_ci_high", "f1_delta", "champion_version", "champion_f1", "device"),
        *("model_version", "rows_new", "test_rows", "duration_seconds", "code_version", "labels_corrected", "alarm"),
        *("break_before", "later_failure", "training", "started_from", "training_reason", "dry_run"),
    )
)
ROW = re.compile(r"^[!*~ ]*(\d{4}-\d\d-\d\d)(?: to (\d{4}-\d\d-\d\d): ([\d,]+) nights)?")
HELD = (
    "F1 {f1:.4f} is below 0.5600 of the champion (version 1) on the same 1,471 test rows ({gain:+.4f}); not superior: "
    "a gain of 0.0050 (margin) or more is excluded at 95 % confidence; gains of 2.1 points or more would be seen with "
    "80 % power; tonight's was {points:.1f}"
)


def frame(*changed: dict[str, Any]) -> pd.DataFrame:
    """Nights in a row from FIRST, as `nightgate.history` gives them."""
    rows = []
    for day, facts in enumerate(changed):
        night = FIRST + timedelta(days=day)
        own = {"pipeline": "reviews", "night": night, "run_id": f"reviews-{night:%Y%m%d}-a1b2c3", "status": "held"}
        rows.append(MISSING | own | {"started_at": pd.Timestamp(night, tz="UTC") + pd.Timedelta(hours=3)} | facts)
    return whole_numbers(pd.DataFrame(rows))


def whole_numbers(found: pd.DataFrame) -> pd.DataFrame:
    """With the types that views have, also where a value is missing."""
    names = {"champion_version", "model_version", "rows_new", "test_rows", "labels_corrected", "started_from"}
    return found.astype(dict.fromkeys(names & set(found.columns), "Int64"))


def judged(f1: float, gain: float | None, version: int, **facts: Any) -> dict[str, Any]:
    champion = {} if gain is None else {"f1_delta": gain, "champion_version": 1, "champion_f1": f1 - gain}
    reason = HELD.format(f1=f1, gain=gain or 0, points=100 * (gain or 0))
    scores = {"test_f1": f1, "f1_ci_low": f1 - 0.021, "f1_ci_high": f1 + 0.022, "test_rows": 1471}
    rest = {"model_version": version, "rows_new": 1200, "duration_seconds": 1234.0, "device": "cuda", "reason": reason}
    return champion | scores | rest | facts


def timeline(*champions: tuple[int, str, str, str]) -> pd.DataFrame:
    """Of version, time, by whom and how."""
    columns = ["model_version", "valid_from", "promoted_by", "kind"]
    found = pd.DataFrame(list(champions), columns=columns).assign(reason="version 9 calls all of them 4")
    found["valid_from"] = pd.to_datetime(found["valid_from"], utc=True)
    return found.assign(valid_to=found["valid_from"].shift(-1))


def quarter() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nights of each kind, with champions."""
    skipped = [
        {"status": "skipped", "reason": f"212 new rows (trains at 500), champion {day} days old"} for day in (2, 3)
    ]
    missed = [{"status": "missed", "reason": "the night did not run"}] * 3
    first = "F1 0.5412 on 1,471 test rows; the first champion"
    superior = "F1 0.5734 on 1,471 test rows, +0.0322 against the champion (version 1): superior"
    broken = (
        "scores are not comparable with earlier ones: the test version was t-0011223344 and is t-5566778899; "
        "version 1: 0.5412 before (night 2025-12-02), 0.5288 after (night 2025-12-09)"
    )
    nights = frame(
        judged(0.5412, None, 1, status="promoted", reason=first),
        judged(0.5390, -0.0022, 2),
        *skipped,
        {
            "status": "failed",
            "reason": "the source s3://reviews/2025/*.csv cannot be read: access denied; check the role",
        },
        *missed,
        judged(0.5501, -0.0041, 3, break_before=broken, labels_corrected=40),
        judged(0.5734, 0.0322, 4, status="promoted", reason=superior),
        judged(0.5722, -0.0012, 5, champion_version=4, alarm="champion_dropped"),
        judged(0.5744, 0.0010, 6, champion_version=4, later_failure="a later try, reviews-b, failed: the disk is full"),
        judged(
            0.4410,
            -0.0900,
            7,
            reason="F1 0.4410 (95 % interval 0.4200 to 0.4630) on 1,471 test rows is below min_f1 0.5",
        ),
    )
    by_hand = (1, "2025-12-12T09:12", "ada", "rollback")
    return nights, timeline(
        (1, "2025-12-01T05:00", "gate", "promote"), (4, "2025-12-10T05:00", "gate", "promote"), by_hand
    )


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_quarter_at_a_glance(width: int, snapshot: SnapshotAssertion) -> None:
    assert "\n".join(glance(*quarter(), Page(width), older=True)) == snapshot


def test_a_table_says_from_what_nights_went_on_and_why_one_trained_in_full() -> None:
    goes_on = {"training": "continued", "training_reason": "the last full training is version 1 of 2025-12-01"}
    why = "20 of the 778 rows learnt are deleted, corrected or forgotten"
    nights = frame(
        judged(0.5, None, 1, training="full", training_reason=""),
        judged(0.5, 0.0, 2, started_from=1, **goes_on),
        judged(0.5, 0.0, 3, training="full", training_reason=why),
        judged(0.5, 0.0, 4, started_from=3, dry_run=True, **goes_on),
    )
    wide, usual = (glance(nights, timeline(), Page(width), older=False) for width in (200, 120))
    notes = [line for line in usual if line.startswith(UNICODE.rule)]
    assert ["dry run; " in line for line in usual if ROW.match(line)] == [False, False, False, True]
    assert notes == [f"{UNICODE.rule} 2025-12-03 trained in full: {why}"]
    at = next(line.index("went on from") for line in wide if "went on from" in line)
    assert [line[at : at + 4].strip() for line in wide if ROW.match(line)] == ["", "1", "", "3"]


def test_a_stream_without_these_characters_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Stream())
    page = Page.of_terminal()
    lines = glance(*quarter(), page, older=False)
    assert page.signs == ASCII
    assert all(line.isascii() for line in lines)


STATUSES = st.sampled_from(["promoted", "held", "skipped", "missed", "superseded", "failed", "cancelled", "running"])
TEXTS = st.text(st.sampled_from("ab ;:,版\n"), max_size=200)
ANY_NIGHT = st.fixed_dictionaries(
    {"status": STATUSES, "reason": st.none() | TEXTS},
    optional={
        "test_f1": st.floats(0, 1),
        "f1_delta": st.floats(-1, 1),
        "champion_version": st.integers(1, 99_999),
        "labels_corrected": st.integers(0, 9),
        "alarm": st.none() | TEXTS,
        "break_before": st.none() | TEXTS,
        "later_failure": st.none() | TEXTS,
        "training": st.sampled_from(["full", "continued", None]),
        "training_reason": st.none() | TEXTS,
        "started_from": st.none() | st.integers(1, 99_999),
    },
)


@settings(max_examples=60)
@given(st.lists(ANY_NIGHT, min_size=1, max_size=40), st.integers(40, 250), st.sampled_from([UNICODE, ASCII]))
def test_no_line_is_wider_than_the_terminal_and_no_night_is_lost(
    nights: list[dict[str, Any]], width: int, signs: Any
) -> None:
    by_hand = timeline((3, f"{FIRST}T05:00", "ada", "promote"))
    lines = glance(frame(*nights), by_hand, Page(width, signs), older=False)
    assert max(map(cell_len, lines)) <= width
    assert not any("\n" in line for line in lines)
    found = [ROW.match(line) for line in lines[lines.index("") :]]
    shown: list[date] = []
    for first, last, count in (match.groups() for match in found if match):
        begin, end = (date.fromisoformat(day) for day in (first, last or first))
        shown += (begin + timedelta(days=day) for day in range((end - begin).days + 1))
        assert count is None or int(count) == (end - begin).days + 1
    assert shown == [FIRST + timedelta(days=day) for day in range(len(nights))]
    folded = [match[3] for match in found if match and match[3]]
    assert not folded or all(int(count) > 1 for count in folded)


def test_two_years_at_80_columns_are_at_most_800_lines() -> None:
    nights = frame(*(judged(0.5 + day / 10_000, 0.001, day) for day in range(730)))
    lines = glance(nights, timeline(), Page(80), older=False)
    assert 730 < len(lines) <= 800
    assert max(map(cell_len, lines)) <= 80


def test_a_picture_has_one_scale_and_a_cut_where_scores_do_not_compare() -> None:
    assert sparkline([[0.0, 0.5, 1.0]], 10, UNICODE) == "▁▅█"
    assert sparkline([[0.0, None], [1.0]], 10, UNICODE) == "▁ │█"
    assert sparkline([[0.7, 0.7]], 10, ASCII) == "::"
    assert sparkline([[None], []], 10, UNICODE) == ""
    # Four nights on two bars: the means.
    assert sparkline([[0.0, 0.0, 1.0, 1.0]], 2, UNICODE) == "▁█"


def test_only_marks_that_occur_are_explained() -> None:
    plain = glance(frame(judged(0.5, 0.1, 2), judged(0.5, 0.1, 3)), timeline(), Page(80), older=False)
    assert not any(meaning in line for line in plain for meaning in MARKS.values())
    lines = glance(*quarter(), Page(80), older=False)
    assert [line for line in lines if all(meaning in line for meaning in MARKS.values())]


def fleet_of(*rows: dict[str, Any]) -> pd.DataFrame:
    usual = {"night": FIRST, "status": "held", "test_f1": 0.5551, "champion_version": 12, "needs": "", "remedy": ""}
    since = {"champion_since": pd.Timestamp("2025-11-02", tz="UTC"), "scores": [0.5, 0.6, None, 0.55] * 7}
    return whole_numbers(pd.DataFrame([usual | since | row for row in rows]))


@pytest.mark.parametrize("width", [80, 120])
def test_all_pipelines_have_a_line_each_and_those_in_need_a_next_step(width: int, snapshot: SnapshotAssertion) -> None:
    found = fleet_of(
        {"pipeline": "clothing"},
        {
            "pipeline": "reviews",
            "status": "failed",
            "test_f1": None,
            "needs": "night 2025-12-01 failed: the source s3://reviews/2025/*.csv cannot be read: access denied",
            "remedy": "give the role of this machine the right to read the bucket, and run `nightgate run reviews`",
        },
        {"pipeline": "a-new-one", "champion_version": None, "champion_since": None, "scores": [None], "test_f1": None},
    )
    lines = fleet(found, Page(width))
    assert max(map(cell_len, lines)) <= width
    assert "\n".join(lines) == snapshot


@pytest.mark.parametrize("width", [40, 80])
def test_what_changed_has_name_and_both_values_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    row = {"pipeline": "reviews", "night": FIRST, "kind": "setting", "name": "training.learning_rate"}
    changed = pd.DataFrame([row | {"before": "2e-05", "after": None}, row | {"before": "3e-05", "after": "2e-05"}])
    _show_changes(changed, Format.table, "", named=True)
    words = capsys.readouterr().out.split()
    assert [words.count(word) for word in ("training.learning_rate", "training.learning_rate:")][width == 40] == 2
    assert (words.count("2e-05"), words.count("3e-05")) == (2, 1)
