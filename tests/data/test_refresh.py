"""From raw rows to a snapshot: what is quarantined, which duplicate stays, how rows are divided, what is refused."""

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

from nightgate.config import Pipeline
from nightgate.data.refresh import Refreshed, refresh, split_version, training_rows
from nightgate.data.snapshots import SPLITS
from nightgate.errors import DataError
from nightgate.home import Home
from nightgate.schedule import Night
from tests.support import reviews


@pytest.fixture
def taken(tmp_path: Path, home: Home) -> Any:
    """Refreshes rows through a file of JSON lines; `changes` are fields of the pipeline."""

    def take(rows: list[dict[str, Any]], night: Night = reviews.NIGHT, **changes: Any) -> Refreshed:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return refresh(reviews.pipeline(reviews.files(path), **changes), night, home)

    return take


def all_rows(refreshed: Refreshed) -> pd.DataFrame:
    return pd.concat([refreshed.snapshot.rows(split).assign(split=split) for split in SPLITS], ignore_index=True)


def sides(refreshed: Refreshed) -> dict[str, str]:
    frame = all_rows(refreshed)
    return dict(zip(frame["text"], frame["split"], strict=True))


def refusal(take: Any, *arguments: Any, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        take(*arguments, **changes)
    assert caught.value.next_step
    return str(caught.value)


def test_a_snapshot_has_the_columns_that_everything_else_reads(taken: Any) -> None:
    refreshed = taken(
        reviews.rows(),
        data__time="created_at",
        data__group="product",
        data__slices=["shop"],
        data__text=["title", "text"],
    )
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


def test_the_manifest_tells_what_is_inside(taken: Any) -> None:
    rows = [*reviews.rows(), {**reviews.rows()[0], "id": "again"}, {**reviews.rows()[1], "stars": 9}]
    manifest = taken(rows, data__time="created_at", data__slices=["shop"]).snapshot.manifest
    assert manifest["pipeline"] == "kettles"
    assert manifest["label_names"] == ["1", "5"]
    assert manifest["slices"] == ["shop"]
    assert manifest["group"] is False
    assert manifest["rows_total"] == sum(manifest["rows"].values()) == 120
    assert (manifest["rows_duplicate"], manifest["rows_quarantined"]) == (1, 1)
    assert sum(sum(counts.values()) for counts in manifest["label_counts"].values()) == 120
    assert manifest["data_until"] == "2026-03-01T03:15:00+00:00"
    assert manifest["first_time"] == "2026-02-01T00:00:00+00:00"
    assert manifest["test_version"].startswith("t-")
    assert set(manifest["files"]) == {"rows.parquet"}


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"text": None}, "empty_text", "no text"),
        ({"text": " &nbsp; <br/>\u200b"}, "empty_text", "no text"),
        ({"text": ["a", "list"]}, "bad_text", "holds a list"),
        ({"stars": None}, "missing_label", "'stars' is empty"),
        ({"stars": " "}, "missing_label", "'stars' is empty"),
        ({"stars": 3}, "unknown_label", "'3' is not one of the labels 1, 5"),
        ({"stars": {"value": 5}}, "unknown_label", "is not one of"),
        ({"created_at": None}, "missing_time", "no time"),
        ({"created_at": "01/02/2026"}, "bad_time", "'01/02/2026' is no ISO 8601 time"),
        ({"created_at": 1_770_000_000}, "bad_time", "'1770000000' is no ISO 8601 time"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "bad_time", "is no ISO 8601 time"),
        ({"side": "holdout"}, "bad_split", "split 'holdout' is not"),
        ({"side": None}, "bad_split", "no split"),
    ],
)
def test_an_unusable_row_is_quarantined_with_its_reason(
    change: dict[str, Any], reason: str, detail: str, taken: Any, tmp_path: Path
) -> None:
    rows = [{**row, "side": ("train", "dev", "test")[index % 3]} for index, row in enumerate(reviews.rows(12))]
    rows[4] |= {"text": "x" * 500, "id": "bad"} | change
    # The labels must not follow the sides.
    for index, row in enumerate(rows):
        row.setdefault("stars", 1)
        row["stars"] = row["stars"] if index == 4 else 1 if index % 2 else 5
    refreshed = taken(rows, data__time="created_at", split__column="side")
    (row,) = refreshed.quarantined
    assert (row.origin, row.row_id, row.reason) == (f"{tmp_path / 'rows.jsonl'}:5", "bad", reason)
    assert detail in row.detail
    assert len(row.excerpt) <= 200
    assert refreshed.rows_total == 11


def test_labels_are_the_same_in_all_spellings_and_may_be_mapped(taken: Any) -> None:
    rows = reviews.rows(40)
    for index, row in enumerate(rows):
        row["stars"] = (5, 5.0, "5", " 5 ", "5.0")[index % 5] if index % 3 else ("one", 1)[index % 2]
    refreshed = taken(rows, data__labels={"one": "bad", "1": "bad", "5": "good"})
    assert refreshed.quarantined == ()
    assert refreshed.snapshot.manifest["label_names"] == ["bad", "good"]
    frame = all_rows(refreshed)
    assert (frame["label"] == frame["text"].str.contains("fine")).all()


def test_a_row_without_id_has_its_fingerprint_for_one(taken: Any) -> None:
    rows = reviews.rows()
    rows[0]["id"] = None
    frame = all_rows(taken(rows))
    assert (frame["row_id"] == frame["fingerprint"]).sum() == 1


def test_missing_slices_and_groups_are_values_too(taken: Any) -> None:
    rows = reviews.rows()
    rows[3] |= {"shop": None, "product": ""}
    one = all_rows(taken(rows, data__slices=["shop"], data__group="product")).set_index("row_id").loc["00003"]
    assert one["slice_shop"] == "(missing)"
    assert one["group"] == one["fingerprint"]


# What a night sees.


def test_a_night_sees_rows_before_its_limit_and_neither_counts_nor_quarantines_the_others(taken: Any) -> None:
    rows = reviews.rows()
    rows[0]["created_at"] = "2026-03-01T03:15:00Z"
    rows[1] |= {"created_at": "2026-03-01T03:15:00.000001Z", "text": "", "stars": "nonsense"}
    rows[2]["created_at"] = "2026-03-01T03:14:59.999999Z"
    refreshed = taken(rows, data__time="created_at")
    assert refreshed.quarantined == ()
    assert refreshed.rows_total == 118
    assert {"00000", "00001"}.isdisjoint(all_rows(refreshed)["row_id"])
    assert "00002" in set(all_rows(refreshed)["row_id"])


def test_times_without_a_zone_are_in_the_timezone_of_the_pipeline(taken: Any) -> None:
    rows = reviews.rows()
    rows[0]["created_at"] = "2026-03-01 04:00"  # 03:00 UTC
    rows[1]["created_at"] = "2026-03-01 04:15"  # 03:15 UTC: not seen
    rows[2]["created_at"] = "2026-03-01T04:14:00+02:00"  # carries its own
    frame = all_rows(taken(rows, data__time="created_at", data__timezone="Europe/Berlin")).set_index("row_id")
    assert frame.loc["00000", "time"] == pd.Timestamp("2026-03-01T03:00Z")
    assert frame.loc["00002", "time"] == pd.Timestamp("2026-03-01T02:14Z")
    assert "00001" not in frame.index


def test_without_a_time_column_all_rows_are_seen(taken: Any) -> None:
    assert taken(reviews.rows()).rows_total == 120


def test_new_rows_are_those_whose_text_the_previous_snapshot_lacks(tmp_path: Path, home: Home, taken: Any) -> None:
    before = taken(reviews.rows(100))
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


def test_texts_that_differ_in_case_white_space_or_entities_are_one(taken: Any) -> None:
    copies = ["KETTLE number 1 is fine, and quiet.", " Kettle  number 1 is fine,<br>and quiet.\u200b"]
    rows = [*reviews.rows(), *({**reviews.rows()[1], "id": f"copy {n}", "text": text} for n, text in enumerate(copies))]
    refreshed = taken(rows)
    assert (refreshed.rows_total, refreshed.rows_duplicate) == (120, 2)


def test_of_duplicates_the_newest_stays(taken: Any) -> None:
    text = reviews.rows()[1]["text"]
    late = {**reviews.rows()[1], "id": "zz", "stars": 1, "created_at": "2026-02-28T23:00:00Z"}
    frame = all_rows(taken([late, *reviews.rows()], data__time="created_at"))
    assert frame[frame["text"] == text][["row_id", "label"]].values.tolist() == [["zz", 0]]


def test_of_duplicates_without_time_the_first_by_id_stays(taken: Any) -> None:
    text = reviews.rows()[1]["text"]
    frame = all_rows(taken([{**reviews.rows()[1], "id": "zz", "stars": 1}, *reviews.rows()]))
    assert frame[frame["text"] == text]["row_id"].tolist() == ["00001"]


def test_a_late_copy_in_another_group_moves_no_text_to_another_side(taken: Any) -> None:
    before = sides(taken(reviews.rows(), data__time="created_at", data__group="product"))
    late = [
        {**row, "id": f"late {row['id']}", "product": "kettle 0", "created_at": "2026-02-28T23:30:00Z"}
        for row in reviews.rows()
    ]
    after = sides(taken([*late, *reviews.rows()], data__time="created_at", data__group="product"))
    assert after == before


# The split.


def test_growth_moves_nobody_to_another_side(taken: Any) -> None:
    before = sides(taken(reviews.rows(100)))
    after = sides(taken(reviews.rows(200)))
    assert all(after[text] == side for text, side in before.items())
    assert {*before.values()} == {"train", "validation", "test"}


def test_rows_of_a_group_share_a_side(taken: Any) -> None:
    frame = all_rows(taken(reviews.rows(), data__group="product"))
    assert frame.groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Training", " VAL ", "TEST"), ("train", "dev", "test")]
)
def test_given_splits_are_honoured(names: tuple[str, str, str], taken: Any) -> None:
    rows = [{**row, "side": names[(index // 2) % 3]} for index, row in enumerate(reviews.rows())]
    refreshed = taken(rows, split__column="side")
    assert refreshed.snapshot.manifest["rows"] == {"train": 40, "validation": 40, "test": 40}
    frame = all_rows(refreshed).set_index("row_id")
    assert all(frame.loc[row["id"], "split"] == SPLITS[(index // 2) % 3] for index, row in enumerate(rows))


def test_a_text_that_stands_in_several_given_splits_stays_in_the_one_that_judges(taken: Any) -> None:
    rows = [{**row, "side": SPLITS[(index // 2) % 3]} for index, row in enumerate(reviews.rows())]
    text_of = {side: next(row["text"] for row in rows if row["side"] == side) for side in SPLITS}
    late = {"created_at": "2026-02-28T23:00:00Z", "stars": 5, "id": "late"}
    rows += [
        {**late, "text": text_of["test"], "side": "train"},
        {**late, "text": text_of["validation"], "side": "train"},
        {**late, "text": text_of["train"], "side": "test"},
    ]
    refreshed = taken(rows, data__time="created_at", split__column="side")
    got = sides(refreshed)
    assert refreshed.rows_duplicate == 3
    assert (got[text_of["test"]], got[text_of["validation"]], got[text_of["train"]]) == ("test", "validation", "test")


# The id.


def _formats(rows: list[dict[str, Any]], folder: Path) -> dict[str, Path]:
    frame = pd.DataFrame(rows)
    typed = frame.assign(created_at=pd.to_datetime(frame["created_at"]))
    shuffled = random.Random(1).sample(rows, len(rows))
    paths = {name: folder / name for name in ("a.csv", "b.tsv.gz", "c.parquet", "d.parquet", "e.jsonl")}
    frame.to_csv(paths["a.csv"], index=False)
    frame.iloc[::-1].to_csv(paths["b.tsv.gz"], index=False, sep="\t")
    typed.to_parquet(paths["c.parquet"], compression="zstd")
    typed.sample(frac=1, random_state=1).to_parquet(paths["d.parquet"], row_group_size=7)
    paths["e.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in shuffled))
    return paths


def test_neither_order_nor_file_format_nor_origin_changes_the_id(tmp_path: Path, home: Home) -> None:
    rows = reviews.rows()
    # Duplicates of all kinds: which one stays must not follow the order either.
    rows += [{**rows[5], "id": "00001"}, {**rows[6], "stars": 5, "id": None}, {**rows[6], "id": None, "shop": "west"}]
    changes = {"data__time": "created_at", "data__slices": ["shop"], "data__group": "product"}
    ids = {
        refresh(reviews.pipeline(reviews.files(path), **changes), reviews.NIGHT, home).snapshot.id
        for path in _formats(rows, tmp_path).values()
    }
    assert len(ids) == 1


def test_the_id_is_the_same_on_every_machine(taken: Any) -> None:
    refreshed = taken(reviews.rows(30), data__time="created_at", data__slices=["shop"])
    assert refreshed.snapshot.id == "s-2a84e0295f2b1d1d"
    assert refreshed.snapshot.manifest["test_version"] == "t-49a211f860"


@pytest.mark.parametrize("field", ["id", "text", "stars", "created_at", "shop", "product"])
def test_a_change_of_any_value_changes_the_id(field: str, taken: Any) -> None:
    changes = {"data__time": "created_at", "data__slices": ["shop"], "data__group": "product"}
    before = taken(reviews.rows(), **changes)
    rows = reviews.rows()
    rows[1][field] = {"stars": 1, "created_at": "2026-02-02T01:00:00.000001Z"}.get(field, "Something else")
    assert taken(rows, **changes).snapshot.id != before.snapshot.id


def test_the_same_rows_tomorrow_are_the_same_snapshot(taken: Any) -> None:
    before = taken(reviews.rows(), data__time="created_at")
    tomorrow = Night(date(2026, 3, 2), "schedule", reviews.NIGHT.data_until + timedelta(days=1))
    after = taken(reviews.rows(), night=tomorrow, data__time="created_at")
    assert after.snapshot == before.snapshot


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
    ],
)
def test_the_test_version_changes_with_the_split(change: dict[str, Any]) -> None:
    source = reviews.files("rows.csv")
    assert split_version(reviews.pipeline(source, **change)) != split_version(reviews.pipeline(source))


def test_the_test_version_does_not_change_when_rows_arrive_or_training_does(taken: Any) -> None:
    versions = {
        taken(reviews.rows(100)).snapshot.manifest["test_version"],
        taken(reviews.rows(150)).snapshot.manifest["test_version"],
        taken(reviews.rows(150), training__epochs=9, data__slices=["shop"]).snapshot.manifest["test_version"],
    }
    assert len(versions) == 1


# Training rows.


def test_all_of_the_train_split_is_trained_on_without_windows(taken: Any) -> None:
    refreshed = taken(reviews.rows())
    pipeline = reviews.pipeline(reviews.files("x.jsonl"))
    frame = training_rows(refreshed.snapshot, pipeline, reviews.NIGHT.data_until)
    pd.testing.assert_frame_equal(frame, refreshed.snapshot.rows("train"))


def test_rows_older_than_the_window_are_not_trained_on(taken: Any) -> None:
    changes = {"data__time": "created_at", "data__train_window": "10d"}
    refreshed = taken(reviews.rows(), **changes)
    frame = training_rows(refreshed.snapshot, reviews.pipeline(reviews.files("x"), **changes), reviews.NIGHT.data_until)
    assert 0 < len(frame) < len(refreshed.snapshot.rows("train"))
    assert frame["time"].min() >= reviews.NIGHT.data_until - timedelta(days=10)
    assert refreshed.snapshot.rows("test")["time"].min() < reviews.NIGHT.data_until - timedelta(days=10)


def _cut(refreshed: Refreshed, **changes: Any) -> pd.DataFrame:
    pipeline: Pipeline = reviews.pipeline(reviews.files("x"), data__time="created_at", **changes)
    return training_rows(refreshed.snapshot, pipeline, reviews.NIGHT.data_until)


def test_a_cut_keeps_the_newest_rows(taken: Any) -> None:
    refreshed = taken(reviews.rows(), data__time="created_at")
    train = refreshed.snapshot.rows("train")
    frame = _cut(refreshed, training__max_train_rows=20)
    assert len(frame) == 20
    assert frame["fingerprint"].is_monotonic_increasing
    assert frame["time"].min() >= train["time"].nlargest(20).min()


def test_a_random_cut_follows_the_seed_and_keeps_most_rows_when_some_arrive(taken: Any) -> None:
    few = taken(reviews.rows(200), data__time="created_at")
    more = taken(reviews.rows(210), data__time="created_at")
    chosen = [
        set(_cut(refreshed, training__max_train_rows=60, training__keep="random", training__seed=seed)["fingerprint"])
        for refreshed, seed in ((few, 1), (few, 1), (few, 2), (more, 1))
    ]
    assert len(chosen[0]) == 60
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0] & chosen[3]) >= 50


def test_a_cut_without_times_is_by_hash_and_not_by_the_order_of_labels(taken: Any) -> None:
    rows = sorted(reviews.rows(), key=lambda row: row["stars"])
    refreshed = taken(rows)
    pipeline = reviews.pipeline(reviews.files("x"), training__max_train_rows=30)
    frame = training_rows(refreshed.snapshot, pipeline, reviews.NIGHT.data_until)
    assert set(frame["label"]) == {0, 1}


# What is refused, before anything is written.


def _nothing_written(home: Home) -> bool:
    return not any(home.snapshots.rglob("*.parquet"))


def test_a_source_without_rows_is_refused(tmp_path: Path, home: Home) -> None:
    (tmp_path / "r.csv").write_text("id,text,stars\n")
    with pytest.raises(DataError, match="the source holds no rows"):
        refresh(reviews.pipeline(reviews.files(tmp_path / "r.csv")), reviews.NIGHT, home)


def test_no_usable_row_is_refused_with_the_reasons_and_an_example(taken: Any, home: Home) -> None:
    rows = [{**row, "stars": 3} for row in reviews.rows(10)]
    rows[0]["text"] = ""
    told = refusal(taken, rows)
    assert "none of 10 rows is usable" in told
    assert "9 unknown_label" in told
    assert "rows.jsonl:2: '3' is not one of the labels 1, 5" in told
    assert "1 empty_text" in told
    assert _nothing_written(home)


def test_a_night_before_all_rows_is_refused(taken: Any) -> None:
    early = Night(date(2020, 1, 1), "backfill", datetime(2020, 1, 1, tzinfo=UTC))
    assert "sees none of 120 rows" in refusal(taken, reviews.rows(), early, data__time="created_at")


def test_fewer_rows_than_classes_are_refused(taken: Any, home: Home) -> None:
    told = refusal(taken, reviews.rows(3), data__labels=[1, 2, 3, 4, 5])
    assert "3 usable rows with different texts for 5 labels" in told
    assert _nothing_written(home)


def test_one_class_only_is_refused(taken: Any, home: Home) -> None:
    told = refusal(taken, [{**row, "stars": 5} for row in reviews.rows()])
    assert "training rows have the label '5'" in told
    assert _nothing_written(home)


def test_one_class_among_the_training_rows_is_refused_even_when_test_has_both(taken: Any) -> None:
    rows = [
        {**row, "side": SPLITS[index % 3], "stars": 5 if index % 3 == 0 else row["stars"]}
        for index, row in enumerate(reviews.rows())
    ]
    assert "all 40 training rows have the label '5'" in refusal(taken, rows, split__column="side")


def test_a_class_without_training_rows_is_only_a_warning(taken: Any, caplog: pytest.LogCaptureFixture) -> None:
    taken(reviews.rows(), data__labels=[1, 3, 5])
    assert "no training row has the label 3" in caplog.text


@pytest.mark.parametrize("absent", SPLITS)
def test_an_empty_given_split_is_refused(absent: str, taken: Any, home: Home) -> None:
    rows = [
        {**row, "side": [side for side in SPLITS if side != absent][index % 2]}
        for index, row in enumerate(reviews.rows())
    ]
    told = refusal(taken, rows, split__column="side")
    assert f"the {absent} split is empty" in told
    assert f"{absent} 0" in told
    assert _nothing_written(home)


def test_too_few_rows_for_a_split_by_hash_are_refused(taken: Any) -> None:
    assert "split is empty" in refusal(taken, reviews.rows(4), split__validation=0.01, split__test=0.01)


def test_one_group_that_holds_everything_is_refused_by_name(taken: Any) -> None:
    rows = [{**row, "product": "kettle 0"} for row in reviews.rows()]
    told = refusal(taken, rows, data__group="product")
    assert "split is empty" in told
    assert "the largest ('kettle 0') holds 120 rows" in told


def test_a_window_that_leaves_nothing_is_refused(taken: Any, home: Home) -> None:
    late = Night(date(2027, 3, 1), "schedule", datetime(2027, 3, 1, tzinfo=UTC))
    told = refusal(taken, reviews.rows(), late, data__time="created_at", data__train_window="30d")
    assert "within train_window '30d'" in told
    assert _nothing_written(home)


def test_a_cut_that_leaves_one_class_is_refused(taken: Any) -> None:
    refreshed = taken(reviews.rows(), data__time="created_at")
    with pytest.raises(DataError, match="max_train_rows"):
        _cut(refreshed, training__max_train_rows=1)


def test_labels_are_counted_for_each_split(taken: Any) -> None:
    refreshed = taken(reviews.rows())
    for split in SPLITS:
        counted = Counter(refreshed.snapshot.rows(split)["label"])
        assert refreshed.snapshot.manifest["label_counts"][split] == {"1": counted[0], "5": counted[1]}


def test_twenty_thousand_rows_take_seconds(taken: Any) -> None:
    rows = reviews.rows(20_000)
    started = time.perf_counter()
    assert taken(rows, data__time="created_at", data__slices=["shop"]).rows_total == 20_000
    assert time.perf_counter() - started < 20


def test_long_slice_values_are_cut_and_stay_apart() -> None:
    from nightgate.data.validation import SLICE_LENGTH, _slice

    first, second = _slice("x" * 3000 + "a"), _slice("x" * 3000 + "b")
    assert len(first) == len(second) == SLICE_LENGTH
    assert first != second
    assert _slice("short") == "short"
