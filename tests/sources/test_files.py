"""Reading files: formats, compression, globs, encodings and damaged files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import zstandard

from nightgate.data.refresh import refresh
from nightgate.errors import DataError
from nightgate.sources.source_table import ORIGIN
from nightgate.sources.text_stream import FREE_EXPANSION
from tests.support import reviews
from tests.support.raw_rows import RawRows, read_source


def read(*paths: Path | str, split_column: str | None = None, **changes: Any) -> RawRows:
    source = {key: changes.pop(key) for key in ("format", "encoding") if key in changes}
    pipeline = reviews.pipeline(reviews.files(*paths, **source), **changes)
    return read_source(pipeline.data, reviews.NIGHT, split_column=split_column)


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    text: str = pd.DataFrame(rows).to_csv(index=False)
    return text.encode()


def jsonl_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_of(rows: list[dict[str, Any]], tmp_path: Path) -> bytes:
    path = tmp_path / "made.tmp"
    pd.DataFrame(rows).to_parquet(path)
    content = path.read_bytes()
    path.unlink()
    return content


def packed(content: bytes, name: str) -> bytes:
    """The content as a file of this name holds it."""
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    return compress.get(Path(name).suffix, bytes)(content)


def refusal(read_it: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read_it()
    assert caught.value.next_step
    return str(caught.value)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".two.zst"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_format_gives_the_same_rows_plain_and_compressed(suffix: str, packing: str, tmp_path: Path) -> None:
    rows = reviews.rows(20)
    if suffix == ".parquet":
        content = parquet_of(rows, tmp_path)
    elif suffix in {".csv", ".tsv"}:
        content = pd.DataFrame(rows).to_csv(index=False, sep="\t" if suffix == ".tsv" else ",").encode()
    else:
        content = jsonl_of(rows)
    half = len(content) // 2
    parts = [content[:half], content[half:]] if packing == ".two.zst" else [content]
    path = tmp_path / f"reviews{suffix}{packing.removeprefix('.two')}"
    path.write_bytes(b"".join(packed(part, path.name) for part in parts))
    frame = read(path).frame
    assert frame["id"].tolist() == [row["id"] for row in rows]
    assert frame["text"].tolist() == [row["text"] for row in rows]
    assert [str(value) for value in frame["stars"]] == [str(row["stars"]) for row in rows]
    first = 2 if suffix in {".csv", ".tsv"} else 1
    assert frame[ORIGIN].tolist()[:2] == [f"{path}:{first}", f"{path}:{first + 1}"]


def test_only_the_columns_of_the_pipeline_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(parquet_of(reviews.rows(3), tmp_path))
    assert list(read(tmp_path / "r.parquet", data__slices=["shop"]).frame) == ["id", "text", "stars", "shop", ORIGIN]


def test_csv_values_stay_text_and_empty_fields_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('id,text,stars\n007,NA,5\n1e3,"two\nlines, ""quoted""",\n2,c,1\n')
    frame = read(path).frame
    assert frame["id"].tolist() == ["007", "1e3", "2"]
    assert frame["text"].tolist() == ["NA", 'two\nlines, "quoted"', "c"]
    assert frame["stars"].tolist() == ["5", None, "1"]
    # The line of a row counts line breaks inside fields.
    assert frame[ORIGIN].tolist() == [f"{path}:2", f"{path}:3", f"{path}:5"]


def test_whole_numbers_beside_a_missing_one_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    big = 2**60 + 1
    pd.DataFrame({"id": pd.array([big, None], dtype="Int64"), "text": ["a", "b"], "stars": [1, 5]}).to_parquet(path)
    assert read(path).frame["id"].tolist() == [big, None]


def test_categories_and_times_of_parquet_are_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    frame = pd.DataFrame(reviews.rows(3))
    frame["shop"] = frame["shop"].astype("category")
    frame["created_at"] = pd.to_datetime(frame["created_at"]).astype("datetime64[ns, UTC]")
    frame.to_parquet(path)
    got = read(path, data__slices=["shop"], data__time="created_at").frame
    assert got["shop"].tolist() == ["south", "north", "south"]
    assert got["created_at"].iloc[0].isoformat() == "2026-02-01T00:00:00+00:00"


def test_globs_are_relative_to_the_working_directory_and_read_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for number, name in enumerate(("data/b.csv", "data/a.csv", "data/deep/c.csv")):
        (tmp_path / name).write_text(f"id,text,stars\n{number},text {number},5\n")
    (tmp_path / "data" / "link.csv").symlink_to(tmp_path / "data" / "a.csv")
    monkeypatch.chdir(tmp_path)
    frame = read("data/*.csv", "data/a.csv", "./data/**/c.csv").frame
    assert frame["id"].tolist() == ["1", "0", "2"]
    assert frame[ORIGIN].tolist() == ["data/a.csv:2", "data/b.csv:2", "data/deep/c.csv:2"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "r[1].csv").write_text("id,text,stars\n1,a,5\n")
    assert len(read(tmp_path / "r[1].csv").frame) == 1


@pytest.mark.parametrize(("encoding", "text"), [("cp1252", "Süß für 5 €"), ("utf-16", "日本"), ("utf-8", "日本")])
def test_a_named_encoding_is_read_without_its_byte_order_mark(encoding: str, text: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-8" else ""
    (tmp_path / "r.csv").write_bytes(f"{mark}id,text,stars\n1,{text},5\n".encode(encoding))
    assert read(tmp_path / "r.csv", encoding=encoding).frame[["id", "text"]].values.tolist() == [["1", text]]


def test_a_file_with_another_extension_needs_a_named_format(tmp_path: Path) -> None:
    path = tmp_path / "reviews.txt.gz"
    path.write_bytes(gzip.compress(b"id\ttext\tstars\n1\ta\t5\n"))
    assert len(read(path, format="tsv").frame) == 1
    message = refusal(lambda: read(path))
    assert "'.txt'" in message
    assert 'format = "csv"' in message


def test_json_may_hold_line_separators_and_half_surrogate_pairs_and_lack_a_key(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        '{"id": 1, "text": "a\u2028b", "stars": 5}\r\n\n{"id": 2, "text": "\\ud83d x", "stars": NaN}\n'
        '{"id": 3, "text": "c"}'
    )
    frame = read(path).frame
    assert frame["text"].tolist() == ["a\u2028b", "\ufffd x", "c"]
    assert frame["stars"].tolist()[2] is None
    assert frame[ORIGIN].tolist() == [f"{path}:1", f"{path}:3", f"{path}:4"]


def test_a_csv_row_with_another_number_of_fields_is_rejected_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,text,stars\n1,good,5\n2,one, two,5\n3,short\n4,trailing comma,1,\n")
    raw = read(path)
    assert raw.frame["id"].tolist() == ["1", "4"]
    assert [(row.origin, row.reason, row.detail) for row in raw.rejected] == [
        (f"{path}:3", "bad_row", "has 4 fields where the header has 3"),
        (f"{path}:4", "bad_row", "has 2 fields where the header has 3"),
    ]
    assert raw.rejected[0].excerpt == "2,one, two,5"


def test_a_pattern_without_files_is_refused_with_the_folder_that_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("id,text,stars\n1,a,5\n")
    message = refusal(lambda: read("here.csv", "missing/*.csv"))
    assert "missing/*.csv" in message
    assert str(tmp_path) in message
    # A folder is refused with a glob to try.
    assert f'"{tmp_path}/*.parquet"' in refusal(lambda: read(tmp_path))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet", "r.csv.gz", "r.jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(packed(content, name) if content else b"")
    assert f"{name} is empty" in refusal(lambda: read(tmp_path / name))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_that_expands_beyond_all_measure_is_refused(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"r.csv{suffix}", csv_of(reviews.rows(5))
    path.write_bytes(packed(rows + b"\n" * FREE_EXPANSION, path.name))
    assert "unpack it" in refusal(lambda: read(path))
    # A small file may shrink as much as it likes.
    path.write_bytes(packed(rows + b"\n" * 2**20, path.name))
    assert len(read(path).frame) == 5


@pytest.mark.parametrize("name", ["r.csv.gz", "r.csv.zst", "r.parquet"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_truncated_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    whole = parquet_of(reviews.rows(), tmp_path) if name == "r.parquet" else csv_of(reviews.rows())
    content = packed(whole, name)
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    message = refusal(lambda: read(tmp_path / name))
    assert name in message
    assert "copy or write it again" in message


@pytest.mark.parametrize("name", ["r.csv.gz", "r.csv.zst", "r.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(csv_of(reviews.rows(5)))
    assert name in refusal(lambda: read(tmp_path / name))


def test_a_compressed_file_without_its_extension_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(gzip.compress(csv_of(reviews.rows(5))))
    assert ".gz" in refusal(lambda: read(tmp_path / "r.csv"))


@pytest.mark.parametrize("line", ["5", '"text"', "null", '["a", 5]', '{"id": 2, "te'])
def test_a_line_that_is_not_a_json_object_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": 1, "text": "a", "stars": 5}\n' + line + "\n")
    assert "r.jsonl, line 2:" in refusal(lambda: read(tmp_path / "r.jsonl"))


def test_a_json_array_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(reviews.rows(2)))
    assert "jq -c '.[]'" in refusal(lambda: read(tmp_path / "r.json"))


def test_another_encoding_is_refused_with_the_byte_and_a_guess(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes("id,text,stars\n1,plain,5\n2,Süß,5\n".encode("cp1252"))
    message = refusal(lambda: read(tmp_path / "r.csv"))
    assert "byte 27 (line 3) is 0xfc" in message
    assert 'encoding = "cp1252"' in message
    (tmp_path / "r.csv").write_bytes("id,text,stars\n".encode("utf-16"))
    assert 'encoding = "utf-16"' in refusal(lambda: read(tmp_path / "r.csv"))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_a_missing_column_is_refused_with_the_existing_ones(name: str, tmp_path: Path) -> None:
    rows = [{"id": 1, "Stars": 5, "text": "a"}]
    content = {"r.csv": csv_of, "r.jsonl": jsonl_of}.get(name, lambda _: parquet_of(rows, tmp_path))(rows)
    (tmp_path / name).write_bytes(content)
    assert "'id', 'Stars', 'text'; did you mean 'Stars'?" in refusal(lambda: read(tmp_path / name))


def test_the_split_column_is_required(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(csv_of(reviews.rows(3)))
    assert "'side'" in refusal(lambda: read(tmp_path / "r.csv", split_column="side"))


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("id;text;stars\n1;a;5\n", "semicolons"),
        ("id,text,stars,text\n1,a,5,b\n", "'text' twice"),
        ("id,text,stars\n1,a,5\n2,b\0,5\n", "line 3"),
        ('id,text,stars\n1,a,5\n2,"never closed,5\n3,c,5\n', "line 3"),
        ('id,text,stars\n1,a,5\n2,"closed" too early,5\n3,c,5\n', "line 3"),
    ],
)
def test_a_malformed_csv_file_is_refused_with_the_place(content: str, detail: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(content)
    assert detail in refusal(lambda: read(tmp_path / "r.csv"))


def test_a_long_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f"id,text,stars\n1,{'long ' * 100_000},5\n")
    assert len(read(tmp_path / "r.csv").frame["text"][0]) == 500_000


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"id": [1], "text": [b"\xff\xfe"], "stars": [5]}).to_parquet(tmp_path / "r.parquet")
    assert "'text'" in refusal(lambda: read(tmp_path / "r.parquet"))


def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,text,stars\n1,a,5\n")
    (tmp_path / "r.csv").chmod(0)
    if os.access(tmp_path / "r.csv", os.R_OK):
        pytest.skip("this user (root?) may read every file")
    assert "Permission denied" in refusal(lambda: read(tmp_path / "r.csv"))


def test_one_bad_file_among_good_ones_fails_the_refresh_before_anything_is_written(tmp_path: Path, home: Any) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of(reviews.rows()))
    (tmp_path / "b.csv").write_bytes(b"")
    pipeline = reviews.pipeline(reviews.files(tmp_path / "*.csv"))
    assert "b.csv" in refusal(lambda: refresh(pipeline, reviews.NIGHT, home))
    assert not any(path.suffix for path in home.snapshots.rglob("*"))
