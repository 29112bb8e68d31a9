"""The table `[data] source` of a pipeline file: a section for each kind of source."""

from __future__ import annotations

from datetime import date
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from nightgate.config.values import Section
from nightgate.errors import without_credentials


def refuse_url(given: Any) -> Any:
    """Refuse a table of the file that holds a database's URL, and so its password."""
    if isinstance(given, dict) and "url" in given:
        raise ValueError("a URL holds a password: put it into an environment variable, and its name into `url_env`")
    return given


class SampleSource(Section):
    """Synthetic product reviews from a seeded generator: the embedded default, nothing to download."""

    kind: Literal["sample"]
    rows_per_day: int = Field(default=100, ge=1, le=100_000)
    """Reviews that arrive on one day."""
    days: int = Field(default=30, ge=1, le=3650)
    """The shop keeps the reviews of this many days before the night."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Another seed is another shop."""
    broken_on: tuple[date, ...] = ()
    """Dates (UTC) on which the shop's export is broken: every second day is missing, and stars count from 0."""
    checked_from: date | None = None
    """From this date on, twice as many reviews of every day are delivered, with the stars that their writers meant."""


class FilesSource(Section):
    """Files on disk or behind a URL: CSV, TSV, JSON lines or Parquet, plain or compressed with gzip or zstd."""

    kind: Literal["files"]
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Paths or globs, relative to the working directory, or URLs such as s3://bucket/reviews/*.csv. A folder
    language=en gives its files the column `language`; names that begin with _ or . are passed over."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    """`auto` reads the file extension: .csv .tsv .jsonl .ndjson .json .parquet, optionally with .gz or .zst."""
    encoding: str = "utf-8"
    """Text encoding of CSV, TSV and JSON lines."""
    delimiter: str = Field(default="", pattern=r'^[^"\r\n]?$')
    """Character between the fields of CSV and TSV, such as ';'. '': a comma, in TSV a tab."""
    quoting: Literal["auto", "standard", "none"] = "auto"
    """`standard`: fields of CSV and TSV may stand in double quotes; `none`: a quote is a letter like any other; `auto`
    recognises which."""

    @field_validator("paths")
    @classmethod
    def _hold_no_password(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(without_credentials(path) != path for path in value):
            raise ValueError(
                "a URL holds a password: give credentials in the environment, as its file system reads them"
            )
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError as error:
            raise ValueError(
                f"{value!r} is not a text encoding that Python knows, such as 'utf-8' or 'cp1252'"
            ) from error
        return value


class HubSource(Section):
    """A data set that `datasets.load_dataset` reads: a hub name, a local folder, or data files by format."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1)
    """Name on the hub, path of a local folder, or a format (`json`, `csv`, `parquet`) that reads `data_files`."""
    config: str | None = None
    """Configuration (subset) of the data set."""
    revision: str | None = None
    """Branch, tag or commit on the hub; pin it for runs that can be repeated."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files inside the data set, by split if a table."""
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    """Which of the source's splits to use as train, validation and test; those not named are cut from `train` by hash.
    Empty: all rows of `train` are divided by hash."""


class SqlSource(Section):
    """A table or a query of a database that SQLAlchemy reaches, read in a read-only transaction."""

    kind: Literal["sql"]
    url_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the database's URL, such as postgresql://user:password@host/database."""
    table: str = ""
    """Table or view, or `schema.table`."""
    query_file: str = ""
    """File with a SELECT, instead of `table`; relative to the working directory."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_password(cls, given: Any) -> Any:
        return refuse_url(given)

    @model_validator(mode="after")
    def _reads_one_thing(self) -> SqlSource:
        if bool(self.table) == bool(self.query_file):
            raise ValueError("name what to read: either `table` or `query_file`")
        return self


class OwnSource(Section):
    """A source of an installed package, which `nightgate.sources.source` describes; it gets all other fields."""

    model_config = ConfigDict(extra="allow")

    kind: str
    """Name of an entry point in the group `nightgate.sources`."""

    @field_validator("kind")
    @classmethod
    def _is_installed(cls, value: str) -> str:
        if not entry_points(group=SOURCES, name=value):
            known = sorted({*_OF_KIND, *entry_points(group=SOURCES).names})
            raise ValueError(f"there is no source {value!r}; known are {', '.join(map(repr, known))}")
        return value

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


SOURCES = "nightgate.sources"
"""Group of the entry points that name sources of other packages."""
_OF_KIND = ("sample", "files", "hub", "sql")


def _kind_of(source: Any) -> str:
    kind = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return kind if kind in _OF_KIND else "own"


Source = Annotated[
    Annotated[SampleSource, Tag("sample")]
    | Annotated[FilesSource, Tag("files")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[SqlSource, Tag("sql")]
    | Annotated[OwnSource, Tag("own")],
    Discriminator(_kind_of),
]
