"""`[predict]`: rows without labels that the champion classifies, and where its predictions go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from nightgate.config.data import Data
from nightgate.config.sources import FilesSource, Source, SqlSource, refuse_url
from nightgate.config.values import Column, Section
from nightgate.durable_files import user_path

FORMATS = (".parquet", ".csv", ".jsonl")


def _known_format(path: str) -> str:
    if not path.endswith(FORMATS):
        raise ValueError(f"{path!r} is not a file of predictions: its name must end in {', '.join(FORMATS)}")
    return path


class SqlTable(Section):
    """A table of a database that SQLAlchemy reaches; it is created if missing."""

    kind: Literal["sql"]
    url_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the database's URL, such as postgresql://user:password@host/database."""
    table: str = Field(min_length=1)
    """Table, or `schema.table`."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_password(cls, given: Any) -> Any:
        return refuse_url(given)


Output = SqlTable | Annotated[str, AfterValidator(_known_format)]


class Predict(Section):
    """The champion over rows without labels: at the end of each night, or when `[schedule.predict]` says."""

    source: Source | None = None
    """Where these rows come from, as in `[data]`. Not set: nothing is predicted at night."""
    id: Column | Literal[""] | None = None
    """Column of the row's id; '' for none. Default: that of `[data]`."""
    text: Column | Annotated[tuple[Column, ...], Field(min_length=1)] | None = None
    """Column of the text, or several to join with line breaks. Default: those of `[data]`."""
    output: Output | None = None
    """Where predictions go: a file (.parquet, .csv or .jsonl) or a table of a database."""
    new_rows_only: bool = False
    """Whether only rows that the output does not have are predicted and added to it, by id, or by text without one.
    Otherwise all rows are predicted and replace what it holds."""

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Predict:
        if self.source is not None and self.output is None:
            raise ValueError('output: name where the predictions of `source` go, such as "predictions.parquet"')
        return self

    def rows(self, data: Data, source: Source | None = None) -> Data:
        """What is read of a source (default: that of this section, else of `[data]`): its ids and texts."""
        return Data(
            source=source or self.source or data.source,
            id=data.id if self.id is None else self.id or None,
            text=self.text or data.text,
            labels=data.labels,
            timezone=data.timezone,
        )


def reads(source: Source, output: Output) -> bool:
    """Whether the source has the file or table of an output among what it reads, whether or not that exists yet."""
    if isinstance(output, SqlTable):
        return isinstance(source, SqlSource) and (source.url_env, source.table) == (output.url_env, output.table)
    patterns = [path.removeprefix("file://") for path in source.paths] if isinstance(source, FilesSource) else []
    return any("://" not in one and _matches(_whole(output), _whole(one)) for one in patterns)


def _whole(path: str) -> Path:
    return user_path(path).resolve()


def _matches(path: Path, pattern: Path) -> bool:
    if path.name.startswith(("_", ".")) and pattern.name[0] != path.name[0]:
        return False  # a wildcard passes it over
    # `match` takes ** for one folder; it stands for any number of them.
    return any(path.match(str(pattern).replace("**/", "*/" * depth)) for depth in range(len(path.parts)))
