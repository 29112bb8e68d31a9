"""The `hub` source: what `datasets.load_dataset` reads, its refusals told in words. Scripts are never run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nightgate import config
from nightgate.config_types import canonical_label
from nightgate.data.source_table import GIVEN_SPLIT, Table, check_columns, from_arrow
from nightgate.errors import DataError, without_credentials

log = logging.getLogger(__name__)


def read_hub(source: config.HubSource, data: config.Data, columns: Sequence[str]) -> list[Table]:
    """A table per split that plays a part; with `GIVEN_SPLIT` where `source.splits` names them.

    Raises:
        DataError: the data set is missing, out of reach, a script, or lacks a split or a column.
    """
    # Here and not above: datasets takes half a second to import.
    import datasets

    data_files: Any = source.data_files
    if isinstance(data_files, Mapping):
        data_files = {split: list(v) if isinstance(v, tuple) else v for split, v in data_files.items()}
    elif isinstance(data_files, tuple):
        data_files = list(data_files)
    loaded = _told(
        source,
        lambda: datasets.load_dataset(source.dataset, source.config, data_files=data_files, revision=source.revision),
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
        arrow = _told(source, partial(_whole, split, list(columns)))
        table = from_arrow(arrow, columns, place)
        _name_classes(table, data, split.features[data.label])
        if source.splits:
            table.columns[GIVEN_SPLIT] = [part] * len(table.origins)
        tables.append(table)
    return tables


def _whole(split: Any, columns: list[str]) -> Any:
    return split.select_columns(columns).with_format("arrow")[:]


def _told(source: config.HubSource, read: Callable[[], Any]) -> Any:
    """The result of `read`; whatever the loader raises becomes a DataError."""
    try:
        return read()
    except Exception as error:
        name = source.dataset + (f" (revision {source.revision})" if source.revision else "")
        told = without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])
        names = {kind.__name__ for kind in type(error).__mro__}
        if "scripts are no longer supported" in told or "trust_remote_code" in told:
            raise DataError(
                f"data set {name} comes as a Python script, which is not run: {told}",
                next_step='read its files instead: dataset = "json" (or "parquet") with data_files = "hf://datasets/OWNER/NAME/FILE"',
            ) from error
        if "OfflineModeIsEnabled" in names or "OfflineModeIsEnabled" in told:
            raise DataError(
                f"data set {name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: {told}",
                next_step='unset HF_HUB_OFFLINE, or read local files with kind = "files"',
            ) from error
        if names & {"ConnectionError", "ConnectError", "TransportError", "TimeoutError"}:
            raise DataError(
                f"data set {name}: the hub cannot be reached: {told}",
                next_step='check the network and run again, or read local files with kind = "files"',
            ) from error
        if isinstance(error, FileNotFoundError):
            raise DataError(
                f"data set {name} does not exist, holds no data files, or is closed to you: {told}",
                next_step="check data.source (dataset, revision, data_files); `hf auth login` opens gated ones",
            ) from error
        raise DataError(
            f"data set {name} cannot be read: {told}",
            next_step="check data.source (config, revision, data_files) and the files themselves",
        ) from error


def _name_classes(table: Table, data: config.Data, feature: Any) -> None:
    """Class numbers become class names, where the pipeline's labels are names and not numbers."""
    names = getattr(feature, "names", None)
    if not names:
        return
    # Star ratings are both: class 0 is named "1". Names are meant where they explain every label.
    by_name = set(data.label_index) <= {canonical_label(name) for name in names}
    if not by_name and any(str(number) in data.label_index for number in range(len(names))):
        return
    table.columns[data.label] = [
        names[value] if value is not None and 0 <= value < len(names) else value for value in table.columns[data.label]
    ]
