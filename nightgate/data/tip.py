"""`tip.json`: up to where a pipeline's source was read, and the chain of deltas that holds what was read.

Its rename is what commits a refresh: whatever a killed one left is removed by the next.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nightgate import locks
from nightgate.data.batches import hash_of_forgotten
from nightgate.data.deltas import DELTA_FILE, DELTAS
from nightgate.data.snapshots import MANIFEST_FILE
from nightgate.durable_files import remove_drafts, write_whole
from nightgate.errors import SnapshotError
from nightgate.home import Home

log = logging.getLogger(__name__)

TIP_FILE = "tip.json"
BEFORE_FILE = "tip.before.json"
"""The tip before the last refresh that moved it: where what that one found was not recorded, it is done again."""
MEMORY, NEAR = "splits", "near"
FORGOTTEN_FILE = "forgotten.json"


@dataclass(frozen=True)
class Night:
    """A refresh that moved the tip."""

    data_until: str
    """ISO 8601, UTC."""
    snapshot: str
    head: dict[str, str]
    rules: str = ""
    """`reading_rules` of the pipeline then."""


@dataclass(frozen=True)
class Tip:
    rules: str
    """`reading_rules` of the pipeline."""
    number: int
    """Of the last delta."""
    head: dict[str, str] | None
    """The last delta and its checksum; None: everything is to be read."""
    parts: dict[str, dict[str, Any]]
    """By the name of a part: code in the index, version, future rows with the earliest time, counts."""
    after: dict[str, Any]
    """What the source's `after()` said."""
    memory: dict[str, list[str]]
    """Files of the split memory by the rules of the split."""
    nights: list[Night] = field(default_factory=list)
    """By data_until; of one with several the last."""
    recent: list[dict[str, Any]] = field(default_factory=list)
    """Statistics of nights that the next one is compared with."""
    codes: int = 0
    """Numbers of parts that were given."""
    classes: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    """Files of the near-duplicates."""
    totals: dict[str, Any] = field(default_factory=dict)
    """What `nightgate.data.refresh_counts.Totals` counted of all rows that hold, and the checksum of its head."""

    @property
    def data_until(self) -> str:
        return self.nights[-1].data_until if self.nights else ""


EMPTY = Tip("", 0, None, {}, {}, {})


def hold_data(
    home: Home, pipeline_name: str, holder: str, check: Callable[[], None] | None = None
) -> AbstractContextManager[None]:
    """Hold a pipeline's snapshots for a block that changes them, or that reads their rows outside of a run.

    A run at work needs it for its refresh alone: nothing removes rows meanwhile.

    Args:
        holder, check: as in `nightgate.locks.hold`.
    """
    return locks.hold(home, f"data-{pipeline_name}", holder=holder, on_wait=log.info, check=check)


def read_tip(folder: Path, name: str = TIP_FILE) -> Tip:
    """The tip of a pipeline.

    Where there is none, or it is damaged, everything is read again: it is the one before without a head, or EMPTY. It
    names all files of splits and near-duplicates then, since nothing else tells of texts that have left the source.
    """
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        return Tip(**found | {"nights": [Night(**night) for night in found["nights"]]})
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s is damaged (%s): everything is read again", folder / name, error)
    if name == BEFORE_FILE:
        return EMPTY
    before, memory = read_tip(folder, BEFORE_FILE), {of.name: _files(of) for of in sorted(folder.glob(f"{MEMORY}/*"))}
    return replace(before, head=None, parts={}, after={}, memory=memory, near=_files(folder / NEAR))


def write_tip(folder: Path, tip: Tip) -> None:
    """Commit a refresh.

    Raises:
        StorageError: the disk is full or read-only.
    """
    write_whole(folder / TIP_FILE, _content(tip))


def keep_tip(folder: Path) -> None:
    """Keep the tip as it is, as the one before the next.

    Raises:
        StorageError: the disk is full or read-only.
    """
    if (folder / TIP_FILE).is_file():
        write_whole(folder / BEFORE_FILE, _content(read_tip(folder)))


def with_night(tip: Tip, night: Night, folder: Path) -> Tip:
    """The tip with one more night in the order of their `data_until`; without those whose snapshot was removed."""
    others = [
        one
        for one in tip.nights
        if one.data_until != night.data_until and (folder / one.snapshot / MANIFEST_FILE).is_file()
    ]
    return replace(tip, nights=sorted([*others, night], key=lambda one: one.data_until))


def remove_leftovers(folder: Path, tip: Tip) -> None:
    """Remove what a killed refresh left: drafts, and files that neither the tip nor a snapshot names.

    Where one of these is damaged drafts alone: what it names may make it whole again.
    """
    for drafts in (folder, folder / DELTAS, folder / NEAR, *(folder / MEMORY).glob("*")):
        remove_drafts(drafts)
    for draft in folder.glob(".*.draft"):
        shutil.rmtree(draft, ignore_errors=True)
    names, is_known = {*tip.near, *(file for files in tip.memory.values() for file in files)}, True
    heads = [(tip.head, False)]
    for path in folder.glob(f"*/{MANIFEST_FILE}"):
        manifest, given_up = _json(path), ".damaged-" in path.parent.name
        heads.append((manifest.get("head"), given_up))
        names.update(manifest.get("memory", {}).get("files", ()))
        is_known &= bool(manifest) or given_up
    for head, given_up in sorted(heads, key=lambda one: one[1]):
        while head and head["delta"] not in names:
            names.add(head["delta"])
            delta = _json(folder / DELTAS / head["delta"] / DELTA_FILE)
            is_known &= bool(delta) or given_up
            head = delta.get("parent")
    if not is_known:
        log.warning("what killed refreshes left in %s stays: a damaged snapshot there may need it", folder)
        return
    for path in (*folder.glob(f"{MEMORY}/*/*.parquet"), *folder.glob(f"{NEAR}/*.parquet")):
        if path.name not in names:
            path.unlink(missing_ok=True)
    for path in (folder / DELTAS).glob("*-*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def keep_out(folder: Path, ids: Collection[str]) -> None:
    """Let later refreshes leave rows with these ids out.

    Args:
        folder: of the pipeline's snapshots.

    Raises:
        StorageError: the disk is full, read-only or forbidden.
    """
    known = kept_out(folder)
    if not known.issuperset(map(hash_of_forgotten, ids)):
        content = json.dumps(sorted(known | {*map(hash_of_forgotten, ids)}), indent=0)
        write_whole(folder / FORGOTTEN_FILE, content.encode())


def kept_out(folder: Path) -> frozenset[str]:
    """Hashes of the ids that a refresh leaves out.

    Raises:
        SnapshotError: the file that holds them is damaged.
    """
    file = folder / FORGOTTEN_FILE
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, TypeError) as error:
        raise SnapshotError(
            f"{file}, which keeps forgotten rows out, cannot be read: {error}",
            next_step="restore it from a backup, or remove it and forget the ids again",
        ) from error


def _content(tip: Tip) -> bytes:
    # Not indented, not by `asdict`: a part is a file of a year of nights, and those take 50 times as long.
    return (json.dumps(vars(tip) | {"nights": [vars(night) for night in tip.nights]}) + "\n").encode()


def _files(folder: Path) -> list[str]:
    """The names of the files of splits or near-duplicates, oldest first."""
    return [path.name for path in sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
