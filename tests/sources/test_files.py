"""Reading files: formats, compression, globs, encodings and damaged files."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nightgate.data.refresh import refresh
from nightgate.errors import DataError
from nightgate.home import Home
from nightgate.sources import delimited
from nightgate.sources.kinds import open_source
from nightgate.sources.text_stream import FREE_EXPANSION
from tests.support import reviews
from tests.support.raw_rows import ORIGIN, RawRows, read_source


def read(*paths: Path | str, split_column: str | None = None, **changes: Any) -> RawRows:
    source = {key: changes.pop(key) for key in ("format", "encoding", "delimiter", "quoting") if key in changes}
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
    path.write_bytes(packed(rows + (b" " * 2**16 + b"\n") * (FREE_EXPANSION // 2**16), path.name))
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
        ('id,text,stars\n1,"a, b",5\n2,"never closed,5\n3,c,5\n', "line 3"),
        ('id,text,stars\n1,"a, b",5\n2,"closed" too early,5\n3,c,5\n', "line 3"),
        # A field that swallows rows is no text.
        ('id,text,stars\n1,"a, b",5\n2,"swallows,5\n3,c,1\n4,two rows",5\n', "line 3"),
        ('"id";"text";"stars"\n"1";"a";"5"\n', "semicolons"),
    ],
)
def test_a_malformed_csv_file_is_refused_with_the_place(content: str, detail: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(content)
    assert detail in refusal(lambda: read(tmp_path / "r.csv"))


UNQUOTED = ['"Great" they said', 'I call it "', '5" screen', 'it\'s "fine"', '"', "plain"]


@pytest.mark.parametrize(("name", "mark"), [("r.tsv", "\t"), ("r.csv", ",")])
def test_in_a_file_that_was_written_without_quoting_a_quote_is_a_letter(name: str, mark: str, tmp_path: Path) -> None:
    lines = [mark.join((str(row), text, "5" if row % 2 else "1")) for row, text in enumerate(UNQUOTED * 20)]
    (tmp_path / name).write_text("\n".join([mark.join(("id", "text", "stars")), *lines]) + "\n")
    raw = read(tmp_path / name)
    assert raw.frame["text"].tolist() == UNQUOTED * 20
    assert raw.rejected == ()
    # Read as quoted, a field that begins with a quote takes in the rows up to the next one.
    (tmp_path / name).write_text(f'id{mark}text{mark}stars\n1{mark}"a{mark}5\n2{mark}b{mark}1\n3{mark}c"{mark}5\n')
    assert read(tmp_path / name).frame["text"].tolist() == ['"a', "b", 'c"']
    assert read(tmp_path / name, quoting="standard").frame["text"].tolist() == [f"a{mark}5\n2{mark}b{mark}1\n3{mark}c"]


def test_a_text_of_several_lines_is_not_taken_for_rows(tmp_path: Path) -> None:
    # Each of its lines has as many commas as a row.
    (tmp_path / "r.csv").write_text('text,stars\n"Well, yes\nand no",5\n"""quoted"", twice",1\n"one\n\ntwo",5\n')
    frame = read(tmp_path / "r.csv", data__id=None).frame
    assert frame["text"].tolist() == ["Well, yes\nand no", '"quoted", twice', "one\n\ntwo"]
    as_letters = read(tmp_path / "r.csv", data__id=None, quoting="none")
    assert len(as_letters.rejected) == 2


def test_another_delimiter_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('"id";"text";"stars"\n"1";"a;b";"5"\n')
    assert read(tmp_path / "r.csv", delimiter=";").frame["text"].tolist() == ["a;b"]


def test_memory_does_not_grow_with_an_expanded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BATCH_ROWS", 512)
    rows = b"".join(b"%07d,%b,5\n" % (row, b"kettle " * 30) for row in range(40_000))
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(b"id,text,stars\n" + rows, 1))
    source = open_source(reviews.pipeline(reviews.files(path)).data, reviews.NIGHT)
    tracemalloc.start()
    (part,) = source.plan(None).read
    assert sum(batch.table.num_rows for batch in source.read(part)) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(rows) / 2


def test_files_are_read_again_only_when_they_have_changed(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(csv_of(reviews.rows(3)))
    data = reviews.pipeline(reviews.files(tmp_path / "*.csv")).data
    first = open_source(data, reviews.NIGHT).plan(None)
    assert [Path(part.name).name for part in first.read] == ["a.csv", "b.csv"]
    before = {"parts": {part.name: part.version for part in first.read}, "after": {}}
    times = (tmp_path / "b.csv").stat()
    (tmp_path / "b.csv").write_bytes(csv_of(reviews.rows(3)).replace(b"fine", b"loud"))
    # A copy that keeps size and time of modification has changed nevertheless.
    os.utime(tmp_path / "b.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = open_source(data, reviews.NIGHT).plan(before)
    assert [Path(part.name).name for part in second.unchanged] == ["a.csv"]
    assert [Path(part.name).name for part in second.read] == ["b.csv"]


def test_a_wildcard_passes_over_names_that_begin_with_a_dot_or_an_underscore(tmp_path: Path) -> None:
    for name in ("a.csv", "_b.csv", "_temporary/c.csv", ".trash/d.csv", "deep/e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"id,text,stars\n{name},text,5\n")
    assert read(tmp_path / "**/*.csv").frame["id"].tolist() == ["a.csv", "deep/e.csv"]
    assert read(tmp_path / "_b.csv", tmp_path / "_temporary/*.csv").frame["id"].tolist() == [
        "_b.csv",
        "_temporary/c.csv",
    ]
    assert "1 begin with _ or ." in refusal(lambda: read(tmp_path / "*" / "[cd].csv"))


def test_folders_name_values_and_a_later_column_is_missing_in_older_files(tmp_path: Path) -> None:
    rows = reviews.rows(2)
    for folder in ("language=en", "language=pt%2Dbr", "language=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part-0.parquet").write_bytes(parquet_of(rows, tmp_path))
    lean = [{key: value for key, value in row.items() if key != "shop"} for row in rows]
    (tmp_path / "language=en" / "part-1.csv").write_bytes(csv_of(lean))
    frame = read(tmp_path / "*/part-*", data__slices=["language", "shop"]).frame
    assert frame["language"].tolist() == [None, None, "en", "en", "en", "en", "pt-br", "pt-br"]
    assert frame["shop"].tolist() == ["south", "north", "south", "north", None, None, "south", "north"]
    # A column that no file has is a mistake, and so is a file without a label.
    assert "'country'" in refusal(lambda: read(tmp_path / "*/part-*", data__slices=["country"]))
    (tmp_path / "language=en" / "part-2.csv").write_text("id,text\n1,a\n")
    assert "part-2.csv has no column 'stars'" in refusal(lambda: read(tmp_path / "*/part-*"))


@pytest.mark.parametrize(("time_format", "written"), [
    ("%d-%m-%Y %H:%M", "31-01-2026 03:15"),
    ("%a, %d %b %Y %H:%M:%S %z", "Sat, 31 Jan 2026 05:15:00 +0200"),
    ("epoch_s", "1769829300"),
    ("epoch_ms", "1769829300000"),
    ("", "2026-01-31T03:15Z"),
])  # fmt: skip
def test_times_are_read_as_they_are_written(time_format: str, written: str, tmp_path: Path, home: Any) -> None:
    rows = [{**row, "created_at": written} for row in reviews.rows()]
    rows[7]["created_at"] = "31 of January"
    pd.DataFrame(rows).to_csv(tmp_path / "r.csv", index=False)
    refreshed = refresh(
        reviews.pipeline(reviews.files(tmp_path / "r.csv"), data__time="created_at", data__time_format=time_format),
        reviews.NIGHT,
        home,
    )
    assert refreshed.snapshot.manifest["first_time"] == "2026-01-31T03:15:00+00:00"
    assert refreshed.rows_total == 119
    assert [row.reason for row in refreshed.quarantined] == ["bad_time"]


def test_epoch_times_are_not_taken_for_days_of_the_18th_century(tmp_path: Path, home: Any) -> None:
    rows = [{**row, "created_at": str(1704101234567 + 86_400_000 * at)} for at, row in enumerate(reviews.rows())]
    pd.DataFrame(rows).to_csv(tmp_path / "r.csv", index=False)
    pipeline = reviews.pipeline(reviews.files(tmp_path / "r.csv"), data__time="created_at")
    assert 'time_format = "epoch_ms"' in refusal(lambda: refresh(pipeline, reviews.NIGHT, home))


@pytest.mark.parametrize(("far", "zone"), [(2**63 - 10**12, None), (253402300799 * 10**6, "Asia/Tokyo")])
def test_a_time_beyond_all_calendars_leaves_the_other_rows(
    far: int, zone: str | None, tmp_path: Path, home: Any
) -> None:
    times = pa.array([1769829300 * 10**6] * 119 + [far], pa.int64()).cast(pa.timestamp("us", zone))
    table = pa.Table.from_pylist(reviews.rows()).drop_columns(["created_at"]).append_column("created_at", times)
    pq.write_table(table, tmp_path / "r.parquet")
    pipeline = reviews.pipeline(reviews.files(tmp_path / "r.parquet"), data__time="created_at")
    assert refresh(pipeline, reviews.NIGHT, home).rows_total == 119


@pytest.mark.parametrize(
    "column",
    [
        pa.array([f"s{number % 3}" for number in range(120)], pa.string_view()),
        pa.array([f"s{number % 3}".encode() for number in range(120)], pa.binary_view()),
        pa.array(range(120), pa.timestamp("us", "Mars/Olympus")),
    ],
    ids=["string view", "binary view", "unknown zone"],
)
def test_views_and_unknown_timezones_of_parquet_are_plain_values(tmp_path: Path, home: Home, column: pa.Array) -> None:
    rows = pd.DataFrame(reviews.rows(120)).drop(columns="shop")
    pq.write_table(pa.Table.from_pandas(rows).append_column("shop", column), tmp_path / "r.parquet")
    pipeline = reviews.pipeline(reviews.files(tmp_path / "r.parquet"), data__slices=["shop"])
    values = reviews.all_rows(refresh(pipeline, reviews.NIGHT, home).snapshot)["slice_shop"]
    assert values.min() in {"s0", "1970-01-01 00:00:00+00:00"}


def test_a_column_that_stands_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["text", "stars", "text"]), tmp_path / "r.parquet")
    assert "'text' twice" in refusal(lambda: read(tmp_path / "r.parquet", data__id=None))


def test_fractions_of_parquet_are_those_that_were_written(tmp_path: Path) -> None:
    table = pa.table({"id": ["1"], "text": ["a"], "stars": pa.array([0.1], pa.float32())})
    pq.write_table(table, tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", data__labels=[0.1, 0.2]).frame["stars"].tolist() == [0.1]


def test_json_over_several_lines_is_refused_with_the_command_that_joins_them(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("\n".join(json.dumps(row, indent=1) for row in reviews.rows(2)))
    assert "jq -c . " in refusal(lambda: read(tmp_path / "r.json"))


def test_a_json_column_of_several_types_is_read_as_text(tmp_path: Path) -> None:
    values = [5, "5", 5.0, True, None, 2**70]
    rows = [{"id": at, "text": f"text {at}", "stars": value} for at, value in enumerate(values)]
    (tmp_path / "r.jsonl").write_bytes(jsonl_of([*rows, {"id": 9, "text": ["a", "list"], "stars": 5}]))
    raw = read(tmp_path / "r.jsonl")
    assert raw.frame["stars"].tolist() == ["5", "5", "5", "true", None, str(2**70)]
    assert [(row.origin, row.reason) for row in raw.rejected] == [(f"{tmp_path / 'r.jsonl'}:7", "bad_text")]


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_without_its_mark_is_recognised(order: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes("id,text,stars\n1,plain text,5\n".encode(f"utf-16-{order}"))
    assert f'encoding = "utf-16-{order}"' in refusal(lambda: read(tmp_path / "r.csv"))
    assert len(read(tmp_path / "r.csv", encoding=f"utf-16-{order}").frame) == 1


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
