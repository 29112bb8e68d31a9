"""Files behind URLs: a server of S3 in this process, and fsspec's files in memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightgate.errors import ConfigurationError, DataError
from nightgate.sources.kinds import open_source
from tests.support import reviews
from tests.support.raw_rows import read_source

CSV = "id,text,stars\n{0},text {0},5\n"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `shop` of a server that the environment names."""
    server_module = pytest.importorskip("moto.server")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("shop")
    yield system
    server.stop()


def test_objects_of_a_bucket_are_read_and_only_again_when_they_have_changed(bucket: Any, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(reviews.rows(3)), tmp_path / "a.parquet")
    bucket.put_file(str(tmp_path / "a.parquet"), "shop/reviews/language=en/a.parquet")
    bucket.pipe("shop/reviews/language=de/b.csv", CSV.format(7).encode())
    bucket.pipe("shop/reviews/language=de/_SUCCESS", b"")
    pipeline = reviews.pipeline(reviews.files("s3://shop/reviews/*/*"), data__slices=["language"])
    frame = read_source(pipeline.data, reviews.NIGHT).frame
    assert frame["id"].tolist() == ["7", "00000", "00001", "00002"]
    assert frame["language"].tolist() == ["de", "en", "en", "en"]
    parts = open_source(pipeline.data, reviews.NIGHT).plan(None).read
    assert [part.name for part in parts] == [
        "s3://shop/reviews/language=de/b.csv",
        "s3://shop/reviews/language=en/a.parquet",
    ]
    bucket.pipe("shop/reviews/language=de/b.csv", CSV.format(8).encode())
    before = {"parts": {part.name: part.version for part in parts}, "after": {}}
    later = open_source(pipeline.data, reviews.NIGHT).plan(before)
    assert [part.name[-9:] for part in later.unchanged] == ["a.parquet"]
    assert [part.name[-5:] for part in later.read] == ["b.csv"]
    with pytest.raises(DataError, match="no file matches s3://shop/none"):
        read_source(reviews.pipeline(reviews.files("s3://shop/none/*.csv")).data, reviews.NIGHT)


def test_any_file_system_of_fsspec_is_read() -> None:
    fsspec.filesystem("memory").pipe("/reviews/r.csv", CSV.format(1).encode())
    data = reviews.pipeline(reviews.files("memory://reviews/r.csv")).data
    assert len(read_source(data, reviews.NIGHT).frame) == 1


def test_an_address_that_cannot_be_read_is_refused_in_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for url, words in {
            f"http://127.0.0.1:{unused.getsockname()[1]}/r.csv": "cannot be reached",
            "memory://reviews/none.csv": "does not exist",
            "gopher://reviews/none.csv": "unknown protocol",
        }.items():
            with pytest.raises(DataError, match=words):
                read_source(reviews.pipeline(reviews.files(url)).data, reviews.NIGHT)


def test_a_password_in_an_address_is_refused_unread() -> None:
    with pytest.raises(ConfigurationError, match="password") as caught:
        reviews.pipeline(reviews.files("https://me:secret@host/r.csv"))
    assert "secret" not in str(caught.value)
