"""The data refresh of a night: what is new in the source -> normalise -> resolve -> a delta -> a snapshot.

    refreshed = refresh(pipeline, night, home, previous=None)

1. `source.plan` says which parts of the source have changed; only these are read.
2. `batches.work` makes usable rows of each batch. Those that are known already are passed over, the texts of the rest
   are written to the delta at once, and their numbers are kept.
3. `resolve.resolve` decides which rows are taken, with which label and split.
4. The counts must balance and the data checks pass; then memory, delta and manifest are written, and last tip.json.

Rows at or after `night.data_until` are counted as of the future and read again when their time has come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.data.base import Base, open_base, open_memory, open_near_duplicates
from nightgate.data.checks import CheckResult, require_passed, run_checks
from nightgate.data.columns import Columns, joined, take
from nightgate.data.deltas import TAKEN, Chain, new_delta, read_chain
from nightgate.data.near_duplicates import NearDuplicates
from nightgate.data.reading import KnownRows, Read, leaving_rows, read_parts
from nightgate.data.refresh_counts import (
    LabelVotes,
    PartCounts,
    Statistics,
    Totals,
    count_all,
    count_new,
    count_parts,
    describe,
    label_votes,
    part_counts,
    remember,
    statistics_of,
    unchanged_statistics,
    vanished_rows,
)
from nightgate.data.resolve import Policy, Resolved, resolve
from nightgate.data.rules import hashed_shares, memory_of, rules_of, sides_of, snapshot_columns
from nightgate.data.snapshots import (
    Snapshot,
    facts_of,
    open_snapshot,
    rows_of,
    snapshot_id,
    write_manifest,
)
from nightgate.data.split_memory import SplitMemory
from nightgate.data.tip import (
    EMPTY,
    MEMORY,
    NEAR,
    keep_tip,
    read_tip,
    remove_leftovers,
    with_night,
    write_tip,
)
from nightgate.data.tip import Night as TipNight
from nightgate.data.training_rows import empty_split, require_trainable, require_usable
from nightgate.errors import DataError, SnapshotError, storage_errors
from nightgate.home import Home
from nightgate.schedule import Night
from nightgate.sources.kinds import open_source
from nightgate.sources.source import Plan, Source
from nightgate.sources.source_table import Quarantined

log = logging.getLogger(__name__)

READ = "snapshot %s: %s; read in %.2f s"
"""Log line that `benchmarks.orchestration` parses."""
MANY_TEXTS = 100_000
"""Of fewer, to get memory again that was released takes a tenth of the night."""
LARGEST_GROUP = 2.0
"""Times a split's share of the rows: larger groups of rows that belong together go to train."""


@dataclass(frozen=True)
class Refreshed:
    """Result of a refresh. The counts are tonight's, also where an earlier snapshot was reused."""

    snapshot: Snapshot
    quarantined: tuple[Quarantined, ...]
    """Of the parts that were read tonight; those of unchanged parts stand."""
    rows_new: int
    """Rows whose text the previous snapshot lacks; all rows without a previous snapshot."""
    rows_total: int
    rows_duplicate: int
    parts: tuple[PartCounts, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    votes: tuple[LabelVotes, ...] = ()
    """Of texts with several labels that tonight's rows touched, those with the most rows."""
    relabelled: int | None = None
    """Test rows whose label was corrected since the last snapshot; None: there is none to compare with."""
    corrected: frozenset[str] = frozenset()
    """Ids of rows that were read anew tonight, of parts of which only what is behind a mark was read."""
    counted: NDArray[np.uint64] | None = field(default_factory=lambda: np.empty(0, np.uint64), compare=False)
    """The first 64 bits of the fingerprints of texts whose earlier votes no longer hold; None: of all texts."""


def refresh(
    pipeline: Pipeline,
    night: Night,
    home: Home,
    previous: Path | None = None,
    *,
    verify: bool = False,
    allowed: AbstractSet[str] = frozenset(),
    recorded: Callable[[datetime], bool] = lambda _: True,
) -> Refreshed:
    """Take in what is new in the source and write tonight's snapshot, or reuse one with the same rows and rules.

    A night earlier than the last one gets the rows that the first refresh after it knew; one before the first refresh
    reads everything as it is now. Neither changes anything for later nights.

    The caller holds the pipeline's snapshots (`nightgate.data.tip.hold_data`).

    Args:
        previous: folder of the pipeline's previous snapshot, to count new rows.
        verify: compare the checksums of all files, and read everything again where one is damaged.
        allowed: data checks whose failure does not count tonight.
        recorded: whether the caller has stored what the refresh up to an instant returned. One that was killed before
            that, or whose database was away, is done again: else its quarantined rows would be in no table.

    Raises:
        DataError: the source cannot be read, or has too few rows to train and evaluate a model. Nothing is taken in.
        DataCheckError: a data check failed. Nothing is taken in.
        StorageError: the snapshot cannot be written.
    """
    began = time.monotonic()
    folder = home.snapshots / pipeline.name
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    base = open_base(pipeline, night, folder, verify=verify, recorded=recorded)
    refreshed = _refreshed(base, previous, allowed)
    quarantined, future = (sum(getattr(part, name) for part in refreshed.parts) for name in ("quarantined", "future"))
    late = f", {future:,} later than the night" if future else ""
    counts = f"{refreshed.rows_total:,} rows, {refreshed.rows_new:,} of them new, {quarantined:,} quarantined{late}"
    log.info(READ, refreshed.snapshot.id, counts, time.monotonic() - began)
    return refreshed


def usable_rows(pipeline: Pipeline, night: Night, folder: Path) -> tuple[pd.DataFrame, tuple[Quarantined, ...], int]:
    """One row of each text of a small source, with the columns of `Snapshot.rows`; quarantined rows; those of later.

    Args:
        folder: of the pipeline's snapshots, which names what is forgotten.

    Raises:
        DataError: the source cannot be read.
    """
    base = Base(pipeline, night, folder, EMPTY, Chain())
    source = open_source(pipeline.data, night, split_column=pipeline.split.column)
    with (
        TemporaryDirectory() as made,
        new_delta(Path(made), 1, base.rules.schema) as draft,
        base.chain.rows() as nothing,
    ):
        plan = source.plan(None)
        read = read_parts(base, source, plan, KnownRows(nothing, ()), draft)
        draft.close_texts()
        chain = Chain((draft.unfinished,))
        policy = _policy(base, chain, len(read.rows["part"]))
        rows = resolve(nothing, ~nothing.holds, read.rows, policy, SplitMemory()).rows
        frame = rows_of(chain, take(rows, rows["state"] == TAKEN), snapshot_columns(pipeline.data))
    return frame, read.quarantined, sum(part["future"] for part in read.parts.values())


def _refreshed(base: Base, previous: Path | None, allowed: AbstractSet[str]) -> Refreshed:
    tip = base.tip
    source = open_source(base.pipeline.data, base.night, split_column=base.pipeline.split.column)
    if base.until >= tip.data_until:
        plan, gone = _plan(source, base)
        if tip.head is not None and not (plan.read or gone or base.pipeline.data.train_window):
            same = _same_snapshot(base, source, previous, allowed)
            if same:
                return same
        return _take_in(base, source, plan, gone, previous, allowed)
    chain = _chain_then(base)
    if chain is None:
        log.warning("the rows of %s are read as they are now: how they were then is not known", base.night.date)
        unknown = replace(base, tip=replace(tip, head=None, parts={}, after={}), chain=Chain())
        return _take_in(unknown, source, source.plan(None), (), previous, allowed, moves_tip=False)
    return _take_in(replace(base, chain=chain), None, Plan((), ()), (), previous, allowed, moves_tip=False)


def _chain_then(base: Base) -> Chain | None:
    """The rows as the first refresh at or after an earlier night found them; None: there was none before it, too, so
    that what has changed between is not known.
    """
    nights = base.tip.nights
    after = next(night for night in nights if night.data_until >= base.until)
    is_between = base.pipeline.data.time is not None and after != nights[0]
    if after.rules != base.tip.rules or not (is_between or after.data_until == base.until):
        return None
    try:
        return read_chain(base.folder, after.head, verify=False)
    except SnapshotError as error:
        log.warning("%s", error.reason)
        return None


def _plan(source: Source, base: Base) -> tuple[Plan, list[str]]:
    """What to read, and the names of the parts that are gone."""
    tip, until = base.tip, base.rules.until
    waiting = {name: part["next_time"] for name, part in tip.parts.items() if part["next_time"] is not None}
    before = {
        # Parts without a version are to be read whole: rows of theirs were taken out.
        "parts": {name: part["version"] for name, part in tip.parts.items() if part["version"] is not None},
        "after": tip.after,
        "future": waiting,
        "data_until": tip.data_until,
    }
    plan = source.plan(None if tip.head is None else before)
    due = [part for part in plan.unchanged if waiting.get(part.name, until) < until]
    plan = Plan(tuple(part for part in plan.unchanged if part not in due), (*plan.read, *due))
    found = {part.name for part in (*plan.unchanged, *plan.read)}
    return plan, [name for name in tip.parts if name not in found]


def _same_snapshot(base: Base, source: Source, previous: Path | None, allowed: AbstractSet[str]) -> Refreshed | None:
    """The last snapshot, where no part of the source has changed; None: it is gone or damaged.

    Raises:
        DataCheckError: the source had new rows every day until now.
    """
    try:
        snapshot = open_snapshot(base.folder / base.tip.nights[-1].snapshot, verify=False)
    except SnapshotError as error:
        log.warning("%s; it is written again", error.reason)
        return None
    tip, facts = base.tip, snapshot.manifest
    parts = tuple(part_counts(name, part, unchanged=True) for name, part in tip.parts.items())
    tonight = unchanged_statistics(base, facts)
    recent = [Statistics.from_json(one) for one in tip.recent]
    checks = run_checks(tonight, recent, parts, base.pipeline.data.checks, hashed_shares(base.pipeline), allowed)
    checks = tuple(one for one in checks if one.name == "new_rows" and one.outcome in ("failed", "allowed"))
    try:
        require_passed(base.pipeline.name, base.night.date, checks)
    except DataError as error:
        error.parts = parts
        raise
    if checks:  # once allowed, it may rest
        tip = replace(tip, recent=[one.to_json() for one in remember(recent, tonight)])
    night = TipNight(base.until, snapshot.id, dict(tip.head or {}), tip.rules)
    if not base.repeats:
        keep_tip(base.folder)
    write_tip(base.folder, with_night(replace(tip, after=source.after()), night, base.folder))
    rows_new = count_new(snapshot, previous, tip, 0)
    return Refreshed(snapshot, (), rows_new, facts["rows_total"], facts["rows_duplicate"], parts, checks, relabelled=0)


def _take_in(
    base: Base,
    source: Source | None,
    plan: Plan,
    gone: Sequence[str],
    previous: Path | None,
    allowed: AbstractSet[str],
    *,
    moves_tip: bool = True,
) -> Refreshed:
    """Read what is to be read and write the snapshot.

    Args:
        source: None for an earlier night: the rows are those that the chain had from before it.
        moves_tip: whether later nights go on from here.
    """
    pipeline, folder, tip = base.pipeline, base.folder, base.tip
    # What the last commit names stays until the next one, also where other rules read everything again.
    remove_leftovers(folder, read_tip(folder))
    near, near_files = open_near_duplicates(base)
    memory, files = open_memory(base, near)
    codes = {name: part["code"] for name, part in tip.parts.items()}
    again = {codes[name] for name in (*gone, *(part.name for part in plan.read)) if name in codes}
    with base.chain.rows() as index, new_delta(folder, tip.number + 1, base.rules.schema) as draft:
        known, num_known = KnownRows(index, again), int(index.holds.sum())
        read = read_parts(base, source, plan, known, draft) if source else Read.nothing(tip)
        draft.close_texts()
        if draft.text_rows > MANY_TEXTS:
            # What Arrow keeps of the texts that were read: 90 MB that the sorting of numbers needs.
            pa.default_memory_pool().release_unused()
        chain = Chain((*base.chain.deltas, draft.unfinished))
        if source:
            leaving = leaving_rows(index, known, plan, read)
        else:
            leaving = index.where("time", lambda times: times >= base.rules.until)
        moved = known.moved() & ~leaving
        policy = _policy(base, chain, num_known + len(read.rows["part"]), near)
        resolved = resolve(index, leaving, read.rows, policy, memory)
        resolved = _with_moved(resolved, index.take(moved))
        superseded = resolved.superseded["place"]
        num_parts = max([tip.codes, *(part["code"] + 1 for part in read.parts.values())])
        # The index says the new part of rows that moved, and these were counted with the old one.
        kept = None if moved.any() else Totals.kept(base)
        totals = count_all(base, num_parts, index, resolved, kept)
        vanished = vanished_rows(take(resolved.superseded, leaving[superseded]), read.rows) if source else {}
        parts = count_parts(base, totals, read, plan, gone, vanished)
        recent = [Statistics.from_json(one) for one in tip.recent] if moves_tip else []
        tonight = statistics_of(base, chain, read, resolved.rows, resolved.superseded, totals, is_first=not num_known)
        checks = run_checks(tonight, recent, parts, pipeline.data.checks, hashed_shares(pipeline), allowed)
        try:
            require_usable(totals.rows, read.quarantined, sum(part.future for part in parts), pipeline)
            if not totals.labels.any(axis=1).all():
                index.holds[superseded] = False
                holds = joined([index.take(index.holds), resolved.rows])
                raise empty_split(totals.labels.sum(axis=1), holds, chain, pipeline)
            require_trainable(dict(enumerate(totals.trainable.tolist())), pipeline)
            require_passed(pipeline.name, base.night.date, checks)
        except DataError as error:
            error.quarantined, error.parts = read.quarantined, parts
            raise
        votes = label_votes(resolved.votes, chain, pipeline.data.label_names)
        # Before the delta: what is remembered too many after a crash at worst keeps a split that no snapshot has.
        of = memory_of(rules_of(pipeline))
        files = [*files, *memory.write(folder / MEMORY / of)]
        near_files = [*near_files, *(near.write(folder / NEAR) if near else [])]
        del policy, memory, near  # 100 MB of a million rows, which the delta needs
        if len(resolved.rows["state"]) or len(superseded):
            draft.finish(base.chain, tip.number + 1, resolved.rows, superseded)
    chain = Chain((*base.chain.deltas, draft.delta)) if draft.delta else base.chain
    rules = rules_of(pipeline, read.classes)
    facts = describe(base, totals) | {"memory": {"of": of, "files": files}}
    facts["bytes"] = sum(file["bytes"] for file in draft.delta.facts["files"].values()) if draft.delta else 0
    identity = snapshot_id(totals.sums, rules, pipeline.data.slices)
    snapshot = write_manifest(folder, identity, chain.head or {}, rules, facts)
    number, remembered = tip.number + 1, tip.memory | {of: files}
    if moves_tip and source:
        moved_on = replace(
            tip,
            head=chain.head,
            parts=read.parts,
            codes=num_parts,
            after=source.after(),
            classes=list(read.classes),
            recent=[one.to_json() for one in remember(recent, tonight)],
            totals=totals.to_json(chain.head),
        )
        tip = with_night(moved_on, TipNight(base.until, snapshot.id, chain.head or {}, tip.rules), folder)
        if not base.repeats:
            keep_tip(folder)
    else:
        tip = read_tip(folder)
    write_tip(folder, replace(tip, number=number, memory=remembered, near=near_files))
    return Refreshed(
        snapshot,
        read.quarantined,
        count_new(snapshot, previous, base.tip, tonight.rows_new),
        totals.rows,
        facts["rows_duplicate"],
        parts,
        checks,
        votes,
        resolved.relabelled if num_known else None,
        read.ids_behind_marks,
        resolved.texts if num_known else None,
    )


def _with_moved(resolved: Resolved, moved: Columns) -> Resolved:
    """With rows of which only the part has changed."""
    more = take(moved, ~np.isin(moved["place"], resolved.superseded["place"]))
    superseded, rows = (joined([some, more]) for some in (resolved.superseded, resolved.rows))
    return replace(resolved, rows=rows, superseded=superseded)


def _policy(base: Base, chain: Chain, num_rows: int, near: NearDuplicates | None = None) -> Policy:
    pipeline = base.pipeline
    shares = hashed_shares(pipeline)

    def hashed(places: NDArray[np.int64]) -> NDArray[np.int8]:
        by = "group" if pipeline.data.group else "fingerprint"
        return sides_of(facts_of(chain.texts, places, [by])[by].to_pylist(), seed=pipeline.split.seed, **shares)

    limits = (np.inf, *(LARGEST_GROUP * share * num_rows for share in shares.values()))
    return Policy(
        conflicts=pipeline.data.conflicts,
        keep_oldest=pipeline.data.group is not None,
        texts_of=chain.texts,
        columns=tuple(base.rules.schema.names),
        hashed=hashed,
        most=limits,
        clusters=None if near is None else lambda places: near.find_in(chain, places),
    )
