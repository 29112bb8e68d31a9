"""The `hub` source: data sets that `datasets.load_dataset` reads. Data sets that come as scripts are never run.

Files of CSV, JSON lines and Parquet are found by `datasets` and read as the source `files` reads them: a class named
`None` stays a class, and a column that is not wanted may differ between files. All others are read by `datasets`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nightgate.config.data import Data
from nightgate.config.sources import FilesSource, HubSource
from nightgate.errors import DataError, first_line, without_credentials
from nightgate.sources.files import Files
from nightgate.sources.found_files import FoundFile, file_at, starts_with
from nightgate.sources.parquet import batch_of
from nightgate.sources.source import BATCH_ROWS, Part, Plan, RawBatch
from nightgate.sources.source_table import GIVEN_SPLIT, check_columns

log = logging.getLogger(__name__)


_FORMATS: dict[str, Literal["csv", "jsonl", "parquet"]] = {"csv": "csv", "json": "jsonl", "parquet": "parquet"}
"""Our name of the formats that are read here, by that of `datasets`."""


class Hub:
    """The splits of a data set. A part is a file of a split, or a split that is read by `datasets`."""

    def __init__(self, settings: HubSource, data: Data, columns: Sequence[str]) -> None:
        self._settings = settings
        self._data = data
        self._columns = tuple(columns)
        self._roles: Mapping[str, str] = settings.splits or {"train": "train"}  # type: ignore[assignment]
        self._parts: dict[str, tuple[str, FoundFile | Any]] = {}
        self._files: Files | None = None
        self._class_names: Sequence[str] = ()

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        with _data_errors(self._settings):
            builder = self._call("load_dataset_builder")
        feature = (builder.info.features or {}).get(self._data.label)
        self._class_names = getattr(feature, "names", None) or ()
        self._files = _reader(builder, self._data, self._columns, self._class_names)
        if self._files:
            return Plan.of(self._found_files(builder.config.data_files), before)
        with _data_errors(self._settings):
            loaded = self._call("load_dataset")
        self._check_splits(loaded)
        self._parts = {role: (role, loaded[split]) for role, split in self._roles.items()}
        return Plan.of((Part(role, "") for role in self._parts), before)

    def read(self, part: Part) -> Iterator[RawBatch]:
        role, rows = self._parts[part.name]
        if self._files:
            batches = self._files.read_file(rows, self._class_names)
        else:
            batches = self._loaded_batches(rows, f"{self._settings.dataset}/{self._roles[role]}")
        for batch in batches:
            if self._settings.splits:
                table = batch.table.append_column(GIVEN_SPLIT, pa.repeat(role, batch.table.num_rows))
                yield replace(batch, table=table)
            else:
                yield batch

    def after(self) -> dict[str, Any]:
        return self._files.after() if self._files else {}

    def _found_files(self, by_split: Mapping[Any, Sequence[str]]) -> Iterator[Part]:
        known = {str(split): addresses for split, addresses in by_split.items()}
        self._check_splits(known)
        for role, split in self._roles.items():
            for address in known[split]:
                file = file_at(address, name=re.sub(r"@[0-9a-f]{40}(?=/)", "", address))
                name = f"{role}: {file.name}" if self._settings.splits else file.name
                self._parts[name] = role, file
                yield replace(file.part, name=name)

    def _loaded_batches(self, split: Any, place: str) -> Iterator[RawBatch]:
        check_columns(self._columns, split.column_names, place)
        names = getattr(split.features.get(self._data.label), "names", None) or ()
        with _data_errors(self._settings):
            rows = split.select_columns(list(self._columns)).with_format("arrow")
        for first in range(0, len(rows), BATCH_ROWS):
            with _data_errors(self._settings):
                table = rows[first : first + BATCH_ROWS]
            yield batch_of(table, place, first + 1, self._data, names)

    def _check_splits(self, known: Iterable[str]) -> None:
        dataset, known = self._settings.dataset, list(known)
        used = set(self._roles.values())
        if missing := sorted(used - set(known)):
            raise DataError(
                f"data set {dataset} has no split {missing[0]!r}; it has {', '.join(known)}",
                next_step='name them in data.source: splits = { train = "...", validation = "...", test = "..." }',
            )
        if unused := sorted(set(known) - used):
            hint = "is not read; data.source.splits can name it"
            log.info("data set %s: split %s %s", dataset, ", ".join(unused), hint)

    def _call(self, function: str) -> Any:
        """`load_dataset` or `load_dataset_builder` of `datasets`, with the settings."""
        # Imported here because it takes half a second.
        import datasets

        source = self._settings
        files: Any = source.data_files
        if isinstance(files, Mapping):
            files = {split: list(v) if isinstance(v, tuple) else v for split, v in files.items()}
        elif isinstance(files, tuple):
            files = list(files)
        return getattr(datasets, function)(source.dataset, source.config, data_files=files, revision=source.revision)


def _reader(builder: Any, data: Data, columns: Sequence[str], class_names: Sequence[str]) -> Files | None:
    """What reads the files of a data set as the source `files` does; None where only `datasets` can read them."""
    kind = _FORMATS.get(type(builder).__module__.rsplit(".", 1)[-1])
    addresses = [address for files in (builder.config.data_files or {}).values() for address in files]
    if kind is None or not addresses or (class_names and kind != "parquet"):
        return None
    usual = type(builder.config)()
    known = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
    others = (name for name in vars(usual) if name not in known and not name.startswith("_"))
    if any(getattr(builder.config, name) != getattr(usual, name) for name in others):
        return None
    if any(Path(address).suffix.lower() in {".zip", ".xz", ".bz2"} for address in addresses):
        return None
    if kind == "jsonl" and any(starts_with(address, b"[") for address in addresses):
        return None
    delimiter = (getattr(builder.config, "delimiter", None) or builder.config.sep) if kind == "csv" else ""
    settings = FilesSource(kind="files", paths=tuple(addresses), format=kind, delimiter=delimiter)
    return Files(settings, data, columns)


@contextmanager
def _data_errors(source: HubSource) -> Iterator[None]:
    """Turn any exception of the loader into a DataError with a next step."""
    try:
        yield
    except Exception as error:
        name = source.dataset + (f" (revision {source.revision})" if source.revision else "")
        detail = without_credentials(first_line(error))
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "scripts are no longer supported" in detail or "trust_remote_code" in detail:
            problem = "comes as a Python script, which is not run"
            next_step = (
                'read its files instead: dataset = "json" (or "parquet") with '
                'data_files = "hf://datasets/OWNER/NAME/FILE"'
            )
        elif "OfflineModeIsEnabled" in kinds or "OfflineModeIsEnabled" in detail:
            problem = "is not on this machine, and HF_HUB_OFFLINE forbids a download"
            next_step = 'unset HF_HUB_OFFLINE, or read local files with kind = "files"'
        elif kinds & {"ConnectionError", "ConnectError", "TransportError", "TimeoutError"}:
            problem = "cannot be fetched: the hub is unreachable"
            next_step = 'check the network and run again, or read local files with kind = "files"'
        elif isinstance(error, FileNotFoundError):
            problem = "does not exist, has no data files, or needs permission"
            next_step = "check data.source (dataset, revision, data_files); `hf auth login` opens gated data sets"
        else:
            problem = "cannot be read"
            next_step = "check data.source (config, revision, data_files) and the files themselves"
        raise DataError(f"data set {name} {problem}: {detail}", next_step=next_step) from error
