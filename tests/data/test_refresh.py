"""The refresh: quarantine, deduplication, the split, snapshot ids, training rows and refusals."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nightgate.data.batches import SLICE_LENGTH, _slice
from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.rules import SPLITS, split_version
from nightgate.data.training_rows import training_rows
from nightgate.errors import DataError
from nightgate.home import Home
from nightgate.schedule import Night
from tests.support import reviews

EARLY, LATE = (Night(date(year, 1, 1), "backfill", datetime(year, 1, 1, tzinfo=UTC)) for year in (2020, 2028))
ALL_COLUMNS = {"data__time": "created_at", "data__slices": ["shop"], "data__group": "product"}


@pytest.fixture
def refreshed_from(tmp_path: Path, home: Home) -> Any:
    """Refreshes rows through a file of JSON lines; `changes` are fields of the pipeline."""

    def write_and_refresh(rows: list[dict[str, Any]], night: Night = reviews.NIGHT, **changes: Any) -> Refreshed:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return refresh(reviews.pipeline(reviews.files(path), **changes), night, home)

    return write_and_refresh


def all_rows(refreshed: Refreshed) -> pd.DataFrame:
    return reviews.all_rows(refreshed.snapshot)


def sides(refreshed: Refreshed) -> dict[str, str]:
    return all_rows(refreshed).set_index("text")["split"].to_dict()


def test_a_snapshot_has_the_columns_that_everything_else_reads(refreshed_from: Any) -> None:
    refreshed = refreshed_from(reviews.rows(), data__text=["title", "text"], **ALL_COLUMNS)
    frame = refreshed.snapshot.rows("train")
    assert list(frame) == ["row_id", "fingerprint", "text", "label", "time", "group", "slice_shop"]
    assert frame["label"].dtype == "int64"
    assert frame["time"].dtype == "datetime64[us, UTC]"
    assert frame["fingerprint"].is_monotonic_increasing
    assert frame["fingerprint"].str.fullmatch("[0-9a-f]{32}").all()
    one = all_rows(refreshed).set_index("row_id").loc["00007"]
    assert one["text"] == "Title 7\nKettle number 7 is fine, and quiet."
    assert (one["label"], one["group"], one["slice_shop"]) == (1, "kettle 7", "north")
    assert one["time"] == pd.Timestamp("2026-02-08T07:00:00Z")


def test_the_manifest_describes_the_rows(refreshed_from: Any) -> None:
    rows = [*reviews.rows(), {**reviews.rows()[0], "id": "again"}, {**reviews.rows()[1], "stars": 9}]
    snapshot = refreshed_from(rows, data__time="created_at", data__slices=["shop"]).snapshot
    manifest = snapshot.manifest
    assert manifest["pipeline"] == "kettles"
    assert manifest["label_names"] == ["1", "5"]
    assert manifest["slices"] == ["shop"]
    assert manifest["group"] is False
    assert manifest["rows_total"] == sum(manifest["rows"].values()) == 120
    assert (manifest["rows_duplicate"], manifest["rows_quarantined"]) == (1, 1)
    for split in SPLITS:
        counted = Counter(snapshot.rows(split)["label"])
        assert manifest["label_counts"][split] == {"1": counted[0], "5": counted[1]}
    assert manifest["data_until"] == "2026-03-01T03:15:00+00:00"
    assert manifest["first_time"] == "2026-02-01T00:00:00+00:00"
    assert manifest["test_version"].startswith("t-")
    assert manifest["files"] == {}


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"text": None}, "empty_text", ""),
        ({"text": " &nbsp; <br/>\u200b"}, "empty_text", ""),
        ({"text": ["a", "list"]}, "bad_text", "list"),
        ({"stars": None}, "missing_label", "'stars'"),
        ({"stars": " "}, "missing_label", "'stars'"),
        ({"stars": 3}, "unknown_label", "1, 5"),
        ({"stars": {"value": 5}}, "unknown_label", '"value": 5'),
        ({"created_at": None}, "missing_time", ""),
        ({"created_at": "01/02/2026"}, "bad_time", "'01/02/2026'"),
        ({"created_at": 1_770_000_000}, "bad_time", "'1770000000'"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "bad_time", "'0001-01-01T"),
        ({"side": "holdout"}, "bad_split", "'holdout'"),
        ({"side": None}, "bad_split", ""),
    ],
)
def test_an_unusable_row_is_quarantined_with_its_reason(
    change: dict[str, Any], reason: str, detail: str, refreshed_from: Any, tmp_path: Path
) -> None:
    rows = [{**row, "side": ("train", "dev", "test")[index % 3]} for index, row in enumerate(reviews.rows(12))]
    rows[4] |= {"text": "x" * 500, "id": "bad"} | change
    # Both labels must occur in each split.
    for index, row in enumerate(rows):
        row.setdefault("stars", 1)
        row["stars"] = row["stars"] if index == 4 else 1 if index % 2 else 5
    refreshed = refreshed_from(rows, data__time="created_at", split__column="side")
    (row,) = refreshed.quarantined
    assert (row.origin, row.row_id, row.reason) == (f"{tmp_path / 'rows.jsonl'}:5", "bad", reason)
    assert detail in row.detail
    assert len(row.excerpt) <= 200
    assert refreshed.rows_total == 11


def test_labels_are_the_same_in_all_spellings_and_may_be_mapped(refreshed_from: Any) -> None:
    rows = reviews.rows(40)
    for index, row in enumerate(rows):
        row["stars"] = (5, 5.0, "5", " 5 ", "5.0")[index % 5] if index % 3 else ("one", 1)[index % 2]
    refreshed = refreshed_from(rows, data__labels={"one": "bad", "1": "bad", "5": "good"})
    assert refreshed.quarantined == ()
    assert refreshed.snapshot.manifest["label_names"] == ["bad", "good"]
    frame = all_rows(refreshed)
    assert (frame["label"] == frame["text"].str.contains("fine")).all()


def test_a_row_without_id_has_its_fingerprint_as_id(refreshed_from: Any) -> None:
    rows = reviews.rows()
    rows[0]["id"] = None
    frame = all_rows(refreshed_from(rows))
    assert (frame["row_id"] == frame["fingerprint"]).sum() == 1


def test_missing_slices_and_groups_are_values_too(refreshed_from: Any) -> None:
    rows = reviews.rows()
    rows[3] |= {"shop": None, "product": ""}
    one = all_rows(refreshed_from(rows, data__slices=["shop"], data__group="product")).set_index("row_id").loc["00003"]
    assert one["slice_shop"] == "(missing)"
    assert one["group"] == one["fingerprint"]


# Times.


def test_rows_at_or_after_the_data_limit_are_ignored(refreshed_from: Any) -> None:
    rows = reviews.rows()
    rows[0]["created_at"] = "2026-03-01T03:15:00Z"
    rows[1] |= {"created_at": "2026-03-01T03:15:00.000001Z", "text": "", "stars": "nonsense"}
    rows[2]["created_at"] = "2026-03-01T03:14:59.999999Z"
    refreshed = refreshed_from(rows, data__time="created_at")
    assert refreshed.quarantined == ()
    assert refreshed.rows_total == 118
    assert {"00000", "00001"}.isdisjoint(all_rows(refreshed)["row_id"])
    assert "00002" in set(all_rows(refreshed)["row_id"])


def test_times_without_a_zone_are_in_the_timezone_of_the_pipeline(refreshed_from: Any) -> None:
    rows = reviews.rows()
    rows[0]["created_at"] = "2026-03-01 04:00"  # 03:00 UTC
    rows[1]["created_at"] = "2026-03-01 04:15"  # 03:15 UTC: ignored
    rows[2]["created_at"] = "2026-03-01T04:14:00+02:00"  # with its own zone
    frame = all_rows(refreshed_from(rows, data__time="created_at", data__timezone="Europe/Berlin")).set_index("row_id")
    assert frame.loc["00000", "time"] == pd.Timestamp("2026-03-01T03:00Z")
    assert frame.loc["00002", "time"] == pd.Timestamp("2026-03-01T02:14Z")
    assert "00001" not in frame.index


def test_new_rows_are_those_whose_text_the_previous_snapshot_lacks(
    tmp_path: Path, home: Home, refreshed_from: Any
) -> None:
    before = refreshed_from(reviews.rows(100))
    assert before.rows_new == 100
    path = tmp_path / "more.jsonl"
    rows = reviews.rows(130)
    rows[0]["title"] = "another title, which is not read"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = refresh(reviews.pipeline(reviews.files(path)), reviews.NIGHT, home, before.snapshot.path)
    assert (after.rows_new, after.rows_total) == (30, 130)
    gone = refresh(reviews.pipeline(reviews.files(path)), reviews.NIGHT, home, home.snapshots / "kettles" / "s-none")
    assert gone.rows_new == 130


# Duplicates.


def test_texts_that_differ_in_case_white_space_or_entities_are_one(refreshed_from: Any) -> None:
    copies = ["KETTLE number 1 is fine, and quiet.", " Kettle  number 1 is fine,<br>and quiet.\u200b"]
    rows = [*reviews.rows(), *({**reviews.rows()[1], "id": f"copy {n}", "text": text} for n, text in enumerate(copies))]
    refreshed = refreshed_from(rows)
    assert (refreshed.rows_total, refreshed.rows_duplicate) == (120, 2)


@pytest.mark.parametrize(("changes", "kept"), [({"data__time": "created_at"}, ["zz", 0]), ({}, ["00001", 1])])
def test_of_duplicates_the_newest_stays_or_without_time_the_first_by_id(
    changes: dict[str, Any], kept: list[Any], refreshed_from: Any
) -> None:
    late = {**reviews.rows()[1], "id": "zz", "stars": 1, "created_at": "2026-02-28T23:00:00Z"}
    frame = all_rows(refreshed_from([late, *reviews.rows()], **changes))
    assert frame[frame["text"] == late["text"]][["row_id", "label"]].values.tolist() == [kept]


def test_a_late_copy_in_another_group_moves_no_text_to_another_split(refreshed_from: Any) -> None:
    before = sides(refreshed_from(reviews.rows(), data__time="created_at", data__group="product"))
    late = [
        {**row, "id": f"late {row['id']}", "product": "kettle 0", "created_at": "2026-02-28T23:30:00Z"}
        for row in reviews.rows()
    ]
    after = sides(refreshed_from([*late, *reviews.rows()], data__time="created_at", data__group="product"))
    assert after == before


# The split.


def test_new_rows_move_no_row_to_another_split(refreshed_from: Any) -> None:
    before = sides(refreshed_from(reviews.rows(100)))
    after = sides(refreshed_from(reviews.rows(200)))
    assert all(after[text] == side for text, side in before.items())
    assert {*before.values()} == {"train", "validation", "test"}


def test_rows_of_a_group_share_a_split(refreshed_from: Any) -> None:
    frame = all_rows(refreshed_from(reviews.rows(), data__group="product"))
    assert frame.groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Training", " VAL ", "TEST"), ("train", "dev", "test")]
)
def test_given_splits_are_honoured(names: tuple[str, str, str], refreshed_from: Any) -> None:
    rows = [{**row, "side": names[(index // 2) % 3]} for index, row in enumerate(reviews.rows())]
    refreshed = refreshed_from(rows, split__column="side")
    assert refreshed.snapshot.manifest["rows"] == {"train": 40, "validation": 40, "test": 40}
    frame = all_rows(refreshed).set_index("row_id")
    assert all(frame.loc[row["id"], "split"] == SPLITS[(index // 2) % 3] for index, row in enumerate(rows))


def test_a_text_in_several_given_splits_stays_in_test_or_validation(refreshed_from: Any) -> None:
    rows = [{**row, "side": SPLITS[(index // 2) % 3]} for index, row in enumerate(reviews.rows())]
    text_of = {side: next(row["text"] for row in rows if row["side"] == side) for side in SPLITS}
    late = {"created_at": "2026-02-28T23:00:00Z", "stars": 5}
    rows += [
        {**late, "id": "late 1", "text": text_of["test"], "side": "train"},
        {**late, "id": "late 2", "text": text_of["validation"], "side": "train"},
        {**late, "id": "late 3", "text": text_of["train"], "side": "test"},
    ]
    refreshed = refreshed_from(rows, data__time="created_at", split__column="side")
    got = sides(refreshed)
    assert refreshed.rows_duplicate == 3
    assert (got[text_of["test"]], got[text_of["validation"]], got[text_of["train"]]) == ("test", "validation", "test")


# The id.


def test_neither_order_nor_file_format_nor_origin_changes_the_id(tmp_path: Path, home: Home) -> None:
    rows = reviews.rows()
    # The choice among duplicates must not depend on the order either.
    rows += [{**rows[5], "id": "00001"}, {**rows[6], "stars": 5, "id": None}, {**rows[6], "id": None, "shop": "west"}]
    frame = pd.DataFrame(rows)
    typed = frame.assign(created_at=pd.to_datetime(frame["created_at"]))
    paths = [tmp_path / name for name in ("a.csv", "b.tsv.gz", "c.parquet", "d.parquet", "e.jsonl")]
    frame.to_csv(paths[0], index=False)
    frame.iloc[::-1].to_csv(paths[1], index=False, sep="\t")
    typed.to_parquet(paths[2], compression="zstd")
    typed.sample(frac=1, random_state=1).to_parquet(paths[3], row_group_size=7)
    paths[4].write_text("".join(json.dumps(row) + "\n" for row in random.Random(1).sample(rows, len(rows))))
    sources = [reviews.pipeline(reviews.files(path), **ALL_COLUMNS) for path in paths]
    assert len({refresh(source, reviews.NIGHT, home).snapshot.id for source in sources}) == 1


def test_the_id_is_the_same_on_every_machine(refreshed_from: Any) -> None:
    refreshed = refreshed_from(reviews.rows(30), data__time="created_at", data__slices=["shop"])
    assert refreshed.snapshot.id == "s-40899ac23fbdcb50"
    assert refreshed.snapshot.manifest["test_version"] == "t-9d2c07d9bc"


@pytest.mark.parametrize("field", ["id", "text", "stars", "created_at", "shop", "product"])
def test_a_change_of_any_value_changes_the_id(field: str, refreshed_from: Any) -> None:
    before = refreshed_from(reviews.rows(), **ALL_COLUMNS)
    rows = reviews.rows()
    rows[1][field] = {"stars": 1, "created_at": "2026-02-02T01:00:00.000001Z"}.get(field, "Something else")
    assert refreshed_from(rows, **ALL_COLUMNS).snapshot.id != before.snapshot.id


def test_the_same_rows_tomorrow_are_the_same_snapshot(refreshed_from: Any) -> None:
    before = refreshed_from(reviews.rows(), data__time="created_at")
    tomorrow = Night(date(2026, 3, 2), "schedule", reviews.NIGHT.data_until + timedelta(days=1))
    after = refreshed_from(reviews.rows(), night=tomorrow, data__time="created_at")
    assert after.snapshot == before.snapshot


def test_a_slice_with_another_name_is_another_snapshot(refreshed_from: Any) -> None:
    before = refreshed_from(reviews.rows(), data__slices=["shop"])
    renamed = [{**row, "branch": row["shop"]} for row in reviews.rows()]
    after = refreshed_from(renamed, data__slices=["branch"])
    assert list(all_rows(after)["slice_branch"]) == list(all_rows(before)["slice_shop"])


@pytest.mark.parametrize(
    "change",
    [
        {"split__seed": 7},
        {"split__test": 0.25},
        {"split__validation": 0.25},
        {"data__labels": [5, 1]},
        {"data__group": "product"},
        {"data__text": ["title", "text"]},
        {"split__column": "side"},
        {"data__label": "rating"},
        {"data__labels": {"1": "5", "5": "1"}},
        {"data__labels": {"1": "1", "2": "1", "5": "5"}},
    ],
)
def test_the_test_version_changes_with_the_split_and_with_what_labels_mean(change: dict[str, Any]) -> None:
    source = reviews.files("rows.csv")
    assert split_version(reviews.pipeline(source, **change)) != split_version(reviews.pipeline(source))


def test_the_test_version_does_not_change_when_rows_arrive_or_training_does(refreshed_from: Any) -> None:
    corrected = [{**row, "stars": 6 - row["stars"]} if row["id"] == "00007" else row for row in reviews.rows(100)]
    versions = {
        refreshed_from(corrected).snapshot.manifest["test_version"],
        refreshed_from(reviews.rows(100), data__labels={"1": "1", "5.0": "5"}).snapshot.manifest["test_version"],
        refreshed_from(reviews.rows(100)).snapshot.manifest["test_version"],
        refreshed_from(reviews.rows(150)).snapshot.manifest["test_version"],
        refreshed_from(reviews.rows(150), training__epochs=9, data__slices=["shop"]).snapshot.manifest["test_version"],
    }
    assert len(versions) == 1


# Training rows.


def _cut(refreshed: Refreshed, **changes: Any) -> pd.DataFrame:
    return training_rows(refreshed.snapshot, reviews.pipeline(reviews.files("x"), **changes), reviews.NIGHT.data_until)


def test_all_of_the_train_split_is_trained_on_without_windows(refreshed_from: Any) -> None:
    refreshed = refreshed_from(reviews.rows())
    pd.testing.assert_frame_equal(_cut(refreshed), refreshed.snapshot.rows("train"))


def test_rows_older_than_the_window_are_not_trained_on(refreshed_from: Any) -> None:
    changes = {"data__time": "created_at", "data__train_window": "10d"}
    refreshed = refreshed_from(reviews.rows(), **changes)
    frame = _cut(refreshed, **changes)
    assert 0 < len(frame) < len(refreshed.snapshot.rows("train"))
    assert frame["time"].min() >= reviews.NIGHT.data_until - timedelta(days=10)
    assert refreshed.snapshot.rows("test")["time"].min() < reviews.NIGHT.data_until - timedelta(days=10)


def test_a_cut_keeps_the_newest_rows(refreshed_from: Any) -> None:
    refreshed = refreshed_from(reviews.rows(), data__time="created_at")
    train = refreshed.snapshot.rows("train")
    frame = _cut(refreshed, training__max_train_rows=20)
    assert len(frame) == 20
    assert frame["fingerprint"].is_monotonic_increasing
    assert frame["time"].min() >= train["time"].nlargest(20).min()


def test_a_random_cut_follows_the_seed_and_keeps_most_rows_when_some_arrive(refreshed_from: Any) -> None:
    few = refreshed_from(reviews.rows(200), data__time="created_at")
    more = refreshed_from(reviews.rows(210), data__time="created_at")
    chosen = [
        set(_cut(refreshed, training__max_train_rows=60, training__keep="random", training__seed=seed)["fingerprint"])
        for refreshed, seed in ((few, 1), (few, 1), (few, 2), (more, 1))
    ]
    assert len(chosen[0]) == 60
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0] & chosen[3]) >= 50


def test_a_cut_without_times_is_by_hash_and_not_by_the_order_of_labels(refreshed_from: Any) -> None:
    rows = sorted(reviews.rows(), key=lambda row: row["stars"])
    assert set(_cut(refreshed_from(rows), training__max_train_rows=30)["label"]) == {0, 1}


# What is refused, before anything is written.


def changed(**values: Any) -> list[dict[str, Any]]:
    """The rows of `reviews` with other values; those of a list alternate."""
    given = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [
        {**row, **{name: some[at % len(some)] for name, some in given.items()}} for at, row in enumerate(reviews.rows())
    ]


@pytest.mark.parametrize(
    ("rows", "changes", "details"),
    [
        (
            changed(stars=3, text=["", *"a" * 119]),
            {},
            ["120 rows", "119 unknown_label", "rows.jsonl:2: '3'", "1 empty_text"],
        ),
        (reviews.rows(), {"data__time": "created_at", "night": EARLY}, ["120 rows"]),
        (reviews.rows(3), {"data__labels": [1, 2, 3, 4, 5]}, ["3 usable rows", "5 labels"]),
        (changed(stars=5), {}, ["the label '5'"]),
        (
            changed(side=[*SPLITS], stars=[5, 1, 5, 5, 5, 1]),
            {"split__column": "side"},
            ["all 40 training rows have the label '5'"],
        ),
        *(
            (changed(side=[one for one in SPLITS if one != absent]), {"split__column": "side"}, [f"{absent} 0"])
            for absent in SPLITS
        ),
        (reviews.rows(4), {"split__validation": 0.01, "split__test": 0.01}, ["split.validation"]),
        (changed(product="kettle 0"), {"data__group": "product"}, ["'kettle 0'", "120 rows"]),
        (
            reviews.rows(),
            {"data__time": "created_at", "data__train_window": "30d", "night": LATE},
            ["train_window '30d'"],
        ),
    ],
    ids=[
        *("no usable row", "night before all rows", "fewer rows than classes", "one class", "one class in training"),
        *("no train split", "no validation split", "no test split", "too few for a split", "one group", "old rows"),
    ],
)
def test_rows_that_no_model_can_be_trained_on_are_refused(
    rows: list[dict[str, Any]], changes: dict[str, Any], details: list[str], refreshed_from: Any, home: Home
) -> None:
    with pytest.raises(DataError) as caught:
        refreshed_from(rows, **changes)
    assert [detail for detail in details if detail not in str(caught.value)] == []
    assert caught.value.next_step
    assert not any(home.snapshots.rglob("*.parquet"))


def test_a_source_without_rows_is_refused(tmp_path: Path, home: Home) -> None:
    (tmp_path / "r.csv").write_text("id,text,stars\n")
    with pytest.raises(DataError, match=r"data\.source"):
        refresh(reviews.pipeline(reviews.files(tmp_path / "r.csv")), reviews.NIGHT, home)
    assert not any(home.snapshots.rglob("*.parquet"))


def test_a_class_without_training_rows_is_only_a_warning(refreshed_from: Any, caplog: pytest.LogCaptureFixture) -> None:
    refreshed_from(reviews.rows(), data__labels=[1, 3, 5])
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.args == ("3",)


def test_a_cut_that_leaves_one_class_is_refused(refreshed_from: Any) -> None:
    refreshed = refreshed_from(reviews.rows(), data__time="created_at")
    with pytest.raises(DataError, match="max_train_rows"):
        _cut(refreshed, training__max_train_rows=1)


def test_twenty_thousand_rows_take_seconds(refreshed_from: Any) -> None:
    rows = reviews.rows(20_000)
    started = time.perf_counter()
    assert refreshed_from(rows, data__time="created_at", data__slices=["shop"]).rows_total == 20_000
    assert time.perf_counter() - started < 20


def test_long_slice_values_are_cut_and_stay_apart() -> None:
    first, second = _slice("x" * 3000 + "a"), _slice("x" * 3000 + "b")
    assert len(first) == len(second) == SLICE_LENGTH
    assert first != second
    assert _slice("short") == "short"
