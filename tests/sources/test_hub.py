"""The hub source with local data sets, read by the same loader without network access."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nightgate.data.refresh import refresh
from nightgate.data.snapshots import SPLITS
from nightgate.errors import ConfigurationError, DataError
from nightgate.home import Home
from nightgate.sources.kinds import open_source
from nightgate.sources.source_table import GIVEN_SPLIT
from tests.support import reviews
from tests.support.raw_rows import ORIGIN, read_source

GIVEN = {"train": "train", "validation": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache; `datasets` reads its environment only at import."""
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with a file of JSON lines for each split, as on the hub."""
    folder = tmp_path / "kettle_reviews"
    folder.mkdir()
    for place, split in enumerate(SPLITS):
        rows = reviews.rows()[place::3] if split != "train" else reviews.rows(240)[120:]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def hub(dataset: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "hub", "dataset": str(dataset), **more}


def refusal(source: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_source(reviews.pipeline(source, **changes).data, reviews.NIGHT)
    assert caught.value.next_step
    return str(caught.value)


def test_given_splits_are_honoured(folder: Path, home: Home, own_cache: Path) -> None:
    refreshed = refresh(reviews.pipeline(hub(folder, splits=GIVEN)), reviews.NIGHT, home)
    assert refreshed.snapshot.manifest["rows"] == {"train": 120, "validation": 40, "test": 40}
    assert set(refreshed.snapshot.rows("validation")["row_id"]) == {row["id"] for row in reviews.rows()[1::3]}
    assert own_cache.exists()


def test_splits_of_another_name_can_play_the_parts(folder: Path) -> None:
    (folder / "validation.jsonl").unlink()
    source = hub(folder, splits={"train": "train", "validation": "test", "test": "train"})
    frame = read_source(reviews.pipeline(source).data, reviews.NIGHT).frame
    assert frame[GIVEN_SPLIT].value_counts().to_dict() == {"train": 120, "test": 120, "validation": 40}


def test_without_splits_the_rows_of_train_are_divided_by_hash(
    folder: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nightgate")
    refreshed = refresh(reviews.pipeline(hub(folder)), reviews.NIGHT, home)
    assert refreshed.rows_total == 120
    assert all(refreshed.snapshot.manifest["rows"][split] > 5 for split in SPLITS)
    assert "split test, validation is not read" in caplog.text


def test_a_split_that_the_source_lacks_is_cut_from_its_training_rows(folder: Path, home: Home) -> None:
    given = hub(folder, splits={"train": "train", "test": "test"})
    refreshed = refresh(reviews.pipeline(given), reviews.NIGHT, home)
    rows = refreshed.snapshot.manifest["rows"]
    assert rows["test"] == 40
    assert rows["validation"] > 5
    assert rows["train"] + rows["validation"] == 120


def test_splits_without_training_rows_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="`train`"):
        reviews.pipeline(hub(folder, splits={"test": "test"}))


def test_data_files_are_read_by_format_and_split(folder: Path) -> None:
    # As amazon-reviews-multi does it, with local paths in the place of hf://.
    files = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    frame = read_source(reviews.pipeline(hub("json", data_files=files, splits=GIVEN)).data, reviews.NIGHT).frame
    assert len(frame) == 200
    assert frame[ORIGIN].iloc[0] == f"{folder}/train.jsonl:1"
    both = [files["test"], files["validation"]]
    assert len(read_source(reviews.pipeline(hub("json", data_files=both)).data, reviews.NIGHT).frame) == 80
    one = {"train": [files["test"]]}
    assert len(read_source(reviews.pipeline(hub("json", data_files=one)).data, reviews.NIGHT).frame) == 40


def test_the_same_rows_from_the_hub_and_from_a_file_are_the_same_snapshot(folder: Path, home: Home) -> None:
    from_hub = refresh(reviews.pipeline(hub(folder)), reviews.NIGHT, home)
    from_file = refresh(reviews.pipeline(reviews.files(folder / "train.jsonl")), reviews.NIGHT, home)
    assert from_hub.snapshot.id == from_file.snapshot.id


def labelled(folder: Path, names: list[str], stars: list[int]) -> Path:
    """A data set in Parquet whose `stars` are class numbers with `names`."""
    import datasets

    kinds = {"id": datasets.Value("int64"), "text": datasets.Value("string"), "stars": datasets.ClassLabel(names=names)}
    columns = {"id": range(len(stars)), "text": [*"abcdef"][: len(stars)], "stars": stars}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(folder / "labelled/train.parquet")
    return folder / "labelled"


def test_stars_that_are_class_names_are_not_read_as_class_numbers(tmp_path: Path) -> None:
    pipeline = reviews.pipeline(hub(labelled(tmp_path, [*"12345"], [0, 4])), data__labels=[1, 2, 3, 4, 5])
    frame = read_source(pipeline.data, reviews.NIGHT).frame
    assert [pipeline.data.label_index[str(label)] for label in frame["stars"]] == [0, 4]


def test_parquet_with_class_labels_is_read_by_number_or_by_name(tmp_path: Path) -> None:
    source = hub(labelled(tmp_path, ["bad", "good"], [0, 1, -1]))
    by_name = read_source(reviews.pipeline(source, data__labels=["bad", "good"]).data, reviews.NIGHT).frame
    assert by_name["stars"].tolist() == ["bad", "good", "-1"]
    by_number = read_source(reviews.pipeline(source, data__labels=[0, 1]).data, reviews.NIGHT)
    assert by_number.frame["stars"].tolist() == [0, 1, -1]
    assert by_number.classes == ("bad", "good"), "what the numbers mean"


def test_a_class_may_have_a_name_that_pandas_takes_for_missing(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,text,stars\n1,a,None\n2,b,NA\n3,c,good\n4,d,\n")
    pipeline = reviews.pipeline(hub("csv", data_files=str(tmp_path / "r.csv")), data__labels=["None", "NA", "good"])
    assert read_source(pipeline.data, reviews.NIGHT).frame["stars"].tolist() == ["None", "NA", "good", None]


def test_columns_that_are_not_wanted_may_differ_between_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,text,stars\n1,a,5\n")
    (tmp_path / "test.csv").write_text("id,text,stars,helpful\n2,b,1,yes\n")
    source = hub(tmp_path, splits={"train": "train", "test": "test"})
    frame = read_source(reviews.pipeline(source).data, reviews.NIGHT).frame
    assert frame[["id", GIVEN_SPLIT]].values.tolist() == [["1", "train"], ["2", "test"]]


def test_what_only_datasets_can_read_is_read_by_it(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(reviews.rows(3)))
    source = hub("json", data_files=str(tmp_path / "r.json"))
    frame = read_source(reviews.pipeline(source).data, reviews.NIGHT).frame
    assert frame[ORIGIN].tolist() == ["json/train:1", "json/train:2", "json/train:3"]


def test_a_file_that_has_not_changed_is_not_read_again(folder: Path) -> None:
    data = reviews.pipeline(hub(folder, splits=GIVEN)).data
    parts = open_source(data, reviews.NIGHT).plan(None).read
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps({**reviews.rows(1)[0], "id": "new"}) + "\n")
    before = {"parts": {part.name: part.version for part in parts}, "after": {}}
    later = open_source(data, reviews.NIGHT).plan(before)
    assert [part.name for part in later.read] == [f"test: {folder}/test.jsonl"]
    assert len(later.unchanged) == 2


def test_files_whose_class_numbers_have_other_names_are_not_mixed(tmp_path: Path) -> None:
    for names in (["bad", "good"], ["good", "bad"]):
        folder = labelled(tmp_path / names[0], names, [0, 1])
    source = reviews.files(tmp_path / "*" / "labelled" / "*.parquet")
    with pytest.raises(DataError, match="names its classes good, bad, other files bad, good"):
        read_source(reviews.pipeline(source, data__labels=[0, 1]).data, reviews.NIGHT)
    by_name = read_source(reviews.pipeline(source, data__labels=["bad", "good"]).data, reviews.NIGHT).frame
    assert by_name["stars"].tolist() == ["bad", "good", "good", "bad"]
    assert read_source(reviews.pipeline(hub(folder), data__labels=[0, 1]).data, reviews.NIGHT).classes == (
        "good",
        "bad",
    )


def test_rows_added_to_the_folder_are_read_by_the_next_night(folder: Path) -> None:
    data = reviews.pipeline(hub(folder)).data
    assert len(read_source(data, reviews.NIGHT).frame) == 120
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({**reviews.rows(1)[0], "id": "new"}) + "\n")
    assert len(read_source(data, reviews.NIGHT).frame) == 121


def test_a_missing_split_or_column_is_refused_with_the_existing_ones(folder: Path) -> None:
    message = refusal(hub(folder, splits={**GIVEN, "validation": "dev"}))
    assert "'dev'" in message
    assert "train, validation, test" in message
    message = refusal(hub(folder), data__label="star")
    assert "'star'" in message
    assert "'id', 'title', 'text', 'stars'" in message


def test_a_data_set_that_is_not_here_is_refused_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(hub("missing/kettle-reviews", revision="v1"))
    assert "missing/kettle-reviews (revision v1)" in message
    assert "unset HF_HUB_OFFLINE" in message
    files = {"train": "hf://datasets/missing/kettle-reviews/en/train.jsonl"}
    assert "unset HF_HUB_OFFLINE" in refusal(hub("json", data_files=files))


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "hf auth login" in refusal(hub(tmp_path / "none"))
    (tmp_path / "none").mkdir()
    assert "hf auth login" in refusal(hub(tmp_path / "none"))


def test_a_data_set_that_comes_as_a_script_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert 'dataset = "json"' in refusal(hub(tmp_path / "scripted"))
    assert not (tmp_path / "ran").exists()


def test_an_unknown_configuration_and_a_damaged_file_are_refused(folder: Path) -> None:
    assert "'kitchen'" in refusal(hub(folder, config="kitchen"))
    (folder / "train.jsonl").write_text('{"id": "1", "text": "a", "stars": 5}\n{"id": [}\n')
    assert "train.jsonl, line 2" in refusal(hub(folder))
