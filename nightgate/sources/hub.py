"""The `hub` source: reads data sets with `datasets.load_dataset`. Data sets that come as scripts are never run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nightgate import config, source_config
from nightgate.errors import DataError, first_line, without_credentials
from nightgate.sources.parquet import batch_of
from nightgate.sources.source import BATCH_ROWS, Part, Plan, RawBatch
from nightgate.sources.source_table import GIVEN_SPLIT, check_columns

log = logging.getLogger(__name__)


class Hub:
    """The splits of a data set, each a part."""

    swept = False

    def __init__(self, settings: source_config.HubSource, data: config.Data, columns: Sequence[str]) -> None:
        self._settings = settings
        self._data = data
        self._columns = tuple(columns)
        self._loaded: Any = None

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        source, loaded = self._settings, self._load()
        used = set(self._splits().values())
        missing = sorted(used - set(loaded))
        if missing:
            raise DataError(
                f"data set {source.dataset} has no split {missing[0]!r}; it has {', '.join(map(str, loaded))}",
                next_step='name them in data.source: splits = { train = "...", validation = "...", test = "..." }',
            )
        if unused := sorted(set(loaded) - used):
            hint = "is not read; data.source.splits can name it"
            log.info("data set %s: split %s %s", source.dataset, ", ".join(unused), hint)
        return Plan.of((Part(role, "") for role in self._splits()), before)

    def read(self, part: Part) -> Iterator[RawBatch]:
        name = self._splits()[part.name]
        place = f"{self._settings.dataset}/{name}"
        split = self._load()[name]
        check_columns(self._columns, split.column_names, place)
        names = getattr(split.features[self._data.label], "names", None) or ()
        with _data_errors(self._settings):
            rows = split.select_columns(list(self._columns)).with_format("arrow")
        for first in range(0, len(rows), BATCH_ROWS):
            with _data_errors(self._settings):
                table = rows[first : first + BATCH_ROWS]
            batch = batch_of(table, place, first + 1, self._data, names)
            if self._settings.splits:
                given = pa.repeat(part.name, table.num_rows)
                batch = replace(batch, table=batch.table.append_column(GIVEN_SPLIT, given))
            yield batch

    def after(self) -> dict[str, Any]:
        return {}

    def _splits(self) -> Mapping[str, str]:
        """The split of the data set for each part that is read."""
        return self._settings.splits or {"train": "train"}  # type: ignore[return-value]

    def _load(self) -> Any:
        if self._loaded is None:
            # Imported here because it takes half a second.
            import datasets

            source = self._settings
            files: Any = source.data_files
            if isinstance(files, Mapping):
                files = {split: list(v) if isinstance(v, tuple) else v for split, v in files.items()}
            elif isinstance(files, tuple):
                files = list(files)
            with _data_errors(source):
                self._loaded = datasets.load_dataset(
                    source.dataset, source.config, data_files=files, revision=source.revision
                )
        return self._loaded


@contextmanager
def _data_errors(source: source_config.HubSource) -> Iterator[None]:
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
