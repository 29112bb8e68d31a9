"""What a refresh starts from: the tip and the chain of deltas, the splits and the near-duplicates found so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from nightgate.config.pipeline import Pipeline
from nightgate.data.batches import Rules
from nightgate.data.deltas import Chain, read_chain
from nightgate.data.near_duplicates import NearDuplicates, canonical_keys
from nightgate.data.rules import memory_of, reading_rules, rules_of
from nightgate.data.snapshots import newest_snapshots
from nightgate.data.split_memory import SplitMemory
from nightgate.data.tip import BEFORE_FILE, MEMORY, NEAR, Tip, kept_out, read_tip
from nightgate.errors import SnapshotError
from nightgate.schedule import Night

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """What a refresh starts from."""

    pipeline: Pipeline
    night: Night
    folder: Path
    tip: Tip
    chain: Chain
    repeats: bool = False
    """Whether the last refresh is done again, from what it started from."""

    @property
    def until(self) -> str:
        return self.night.data_until.astimezone(UTC).isoformat()

    @cached_property
    def rules(self) -> Rules:
        return Rules.of(self.pipeline, self.night.data_until, kept_out(self.folder))


def open_base(
    pipeline: Pipeline, night: Night, folder: Path, *, verify: bool, recorded: Callable[[datetime], bool]
) -> Base:
    """The state that a night goes on from; an empty chain where it cannot be read or was read by other rules.

    Args:
        verify, recorded: as in `nightgate.data.refresh.refresh`.
    """
    tip = read_tip(folder)
    is_lost = (
        bool(tip.nights)
        and night.data_until >= datetime.fromisoformat(tip.data_until)
        and not recorded(datetime.fromisoformat(tip.data_until))
    )
    if is_lost:
        log.warning("what the refresh up to %s found was not recorded: it is done again", tip.data_until)
        # The splits that it gave stay.
        tip = replace(read_tip(folder, BEFORE_FILE), memory=tip.memory, near=tip.near)
    if tip.rules != reading_rules(pipeline):
        # What labels were called on earlier nights says nothing about tonight's.
        recent = [one | {"labels": {}} for one in tip.recent]
        tip = replace(tip, rules=reading_rules(pipeline), head=None, parts={}, after={}, classes=[], recent=recent)
    if verify:
        tip = replace(tip, totals={})  # all rows are counted again
    try:
        return Base(pipeline, night, folder, tip, read_chain(folder, tip.head, verify=verify), is_lost)
    except SnapshotError as error:
        log.warning("%s; everything is read again", error.reason)
        return Base(pipeline, night, folder, replace(tip, head=None, parts={}, after={}), Chain(), is_lost)


def open_memory(base: Base, near: NearDuplicates | None) -> tuple[SplitMemory, list[str]]:
    """The splits that were given so far, and the files that hold them.

    Args:
        near: by which what a damaged file held of near-duplicates is filled in again.
    """
    of = memory_of(rules_of(base.pipeline))
    folder, files, snapshots = base.folder / MEMORY / of, base.tip.memory.get(of), []
    if files is None:
        snapshots, near = newest_snapshots(base.folder, of), None
        files = next((one.manifest["memory"]["files"] for one in snapshots if "memory" in one.manifest), [])
    try:
        memory = SplitMemory.open(folder, files)
    except SnapshotError:
        files, snapshots = _intact(SplitMemory.open, folder, files), newest_snapshots(base.folder, of)
        memory = SplitMemory.open(folder, files)
    for snapshot in snapshots:
        clusters = None if near is None else lambda texts: near.clusters(canonical_keys(texts))
        memory.recall(*snapshot.split_keys(with_ids=base.pipeline.data.id is not None, clusters=clusters))
        log.info("the splits of %s stay", snapshot)
    return memory, files


def open_near_duplicates(base: Base) -> tuple[NearDuplicates | None, list[str]]:
    """The near-duplicates that were found so far, if the pipeline asks for them, and the files that hold them."""
    folder, files = base.folder / NEAR, base.tip.near
    if not base.pipeline.data.near_duplicates:
        return None, files
    try:
        return NearDuplicates.open(folder, files), files
    except SnapshotError:
        files = _intact(NearDuplicates.open, folder, files)
    near = NearDuplicates.open(folder, files)
    # All that the tip holds, also in an earlier night's refresh; night by night, as they were found.
    try:
        chain = read_chain(base.folder, read_tip(base.folder).head, verify=False)
    except SnapshotError:
        chain = base.chain
    places = np.unique(chain.index(["text_at"], superseded=True)["text_at"])
    places = places[places >= 0]
    ends = np.cumsum([delta.text_rows for delta in chain.deltas])
    for of_night in np.split(places, np.searchsorted(places, ends)):
        if len(of_night):
            near.find_in(chain, of_night)
    return near, files


def _intact(opened: Callable[[Path, Sequence[str]], object], folder: Path, files: Sequence[str]) -> list[str]:
    """The files that can be read."""
    found = []
    for name in files:
        try:
            opened(folder, [name])
            found.append(name)
        except SnapshotError as error:
            log.warning("%s; what it held is taken from the snapshots", error.reason)
    return found
