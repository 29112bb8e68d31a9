"""The `hub` source: reads data sets with `datasets.load_dataset`. Data sets that come as scripts are never run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nightgate import config
from nightgate.config_types import canonical_label
from nightgate.data.source_table import GIVEN_SPLIT, Table, check_columns, from_arrow
from nightgate.errors import DataError, first_line, without_credentials

log = logging.getLogger(__name__)


def read_hub(source: config.HubSource, data: config.Data, columns: Sequence[str]) -> list[Table]:
    """One table for each split that is used; with the column `GIVEN_SPLIT` where `source.splits` names the splits.

    Raises:
        DataError: the data set is missing, unreachable or a script, or lacks a split or a column.
    """
    # Imported here because it takes half a second.
    import datasets

    data_files: Any = source.data_files
    if isinstance(data_files, Mapping):
        data_files = {split: list(v) if isinstance(v, tuple) else v for split, v in data_files.items()}
    elif isinstance(data_files, tuple):
        data_files = list(data_files)
    with _data_errors(source):
        loaded: Any = datasets.load_dataset(
            source.dataset, source.config, data_files=data_files, revision=source.revision
        )
    parts = source.splits or {"train": "train"}
    missing = [name for name in parts.values() if name not in loaded]
    if missing:
        raise DataError(
            f"data set {source.dataset} has no split {missing[0]!r}; it has {', '.join(map(str, loaded))}",
            next_step='name them in data.source: splits = { train = "...", validation = "...", test = "..." }',
        )
    unused = sorted(set(loaded) - set(parts.values()))
    if unused:
        log.info("data set %s: split %s is not read; data.source.splits can name it", source.dataset, ", ".join(unused))
    tables = []
    for part, name in parts.items():
        split = loaded[name]
        place = f"{source.dataset}/{name}"
        check_columns(columns, split.column_names, place)
        with _data_errors(source):
            arrow = split.select_columns(list(columns)).with_format("arrow")[:]
        table = from_arrow(arrow, columns, place)
        _name_classes(table, data, split.features[data.label])
        if source.splits:
            table.columns[GIVEN_SPLIT] = [part] * len(table.origins)
        tables.append(table)
    return tables


@contextmanager
def _data_errors(source: config.HubSource) -> Iterator[None]:
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


def _name_classes(table: Table, data: config.Data, feature: Any) -> None:
    """Replace class numbers by class names, unless the pipeline's labels are those numbers."""
    names = getattr(feature, "names", None)
    if not names:
        return
    # Star ratings fit both: class 0 is named "1". Names are used where they cover every label.
    by_name = set(data.label_index) <= {canonical_label(name) for name in names}
    if not by_name and any(str(number) in data.label_index for number in range(len(names))):
        table.classes = tuple(map(str, names))
        return
    table.columns[data.label] = [
        names[value] if value is not None and 0 <= value < len(names) else value for value in table.columns[data.label]
    ]
