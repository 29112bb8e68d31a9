"""Which rows a snapshot takes: of one id the newest, of one text one, with the label that most rows give it.

    resolved = resolve(known, new, removed, policy, memory, texts_of)

Pure, over columns of numbers. Only rows that share an id or a text with a row that is new or gone are looked at, so the
cost is that of what changed.

Of rows with the same text one is taken: where the source names splits, one of test, then of validation; then the newest
by time, then the first by row id. With `group` it is the oldest by time, so that a late copy in another group moves
no text. Its label is that of most rows with the text (`majority`; of equally many the one of the newest row), or of
the newest row (`newest`); with `drop` a text with several labels is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightgate.data.batches import DELETED_LABEL, QUARANTINED_LABEL, Columns
from nightgate.data.deltas import (
    CONFLICTING,
    DELETED,
    LEFT_OUT,
    MERGED,
    QUARANTINED,
    REPLACED,
    TAKEN,
    TextsOf,
    joined,
    take,
)
from nightgate.data.normalization import fingerprint
from nightgate.data.rules import SPLITS
from nightgate.data.split_memory import LEFT_OUT as NO_SPLIT
from nightgate.data.split_memory import Assigned, SplitMemory
from nightgate.sources.times import NO_TIME

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]
NEW = np.iinfo(np.int64).max
"""Place in the index of a row that has none yet."""
_TEST = SPLITS.index("test")
_OPEN = -1
"""State of rows that may be taken."""


@dataclass(frozen=True)
class Policy:
    conflicts: Literal["majority", "newest", "drop"]
    keep_oldest: bool
    """Of rows with one text: as with `group`."""
    texts_of: TextsOf
    """Reads columns of texts by `text_at`."""
    columns: tuple[str, ...]
    """Columns of the texts."""
    hashed: Callable[[Columns], NDArray[np.int8]]
    """Splits of rows by hash."""
    most: tuple[float, ...] | None = None
    """See `SplitMemory.assign`."""
    clusters: Callable[[Columns], NDArray[np.uint64]] | None = None
    """Keys of the near-copies of rows, shape [rows] or [rows, keys]."""


@dataclass(frozen=True)
class Resolved:
    rows: Columns
    """Rows that are new or whose state changed."""
    superseded: NDArray[np.int64]
    """Places of earlier entries of these, and of removed rows."""
    votes: pd.DataFrame
    """text_key, label, rows, chosen and text_at of one of the rows, for each of several labels of a text."""
    relabelled: int
    """Test rows whose label is another than before."""
    texts: NDArray[np.uint64]
    """Keys of the texts whose rows were looked at."""


def resolve(known: Columns, new: Columns, removed: Columns, policy: Policy, memory: SplitMemory) -> Resolved:
    """What becomes of the rows that are new, and of those that share an id or a text with these or with removed ones.

    Args:
        known: rows of the index that hold, without the removed ones.
        new: rows of tonight, with the columns of the index but for label, split and state.
        memory: learns the splits of the rows that are taken.
    """
    ids = _nonzero(new["id_key"], removed["id_key"])
    touched = _among(known["id_key"], ids)
    texts = _nonzero(new["text_key"], removed["text_key"], known["text_key"][touched])
    before = take(known, touched | _among(known["text_key"], texts))
    num_new = len(new["facts"])
    undecided = {"place": np.full(num_new, NEW), "label": np.full(num_new, -1, np.int16)}
    undecided |= {name: np.full(num_new, -1, np.int8) for name in ("split", "state")}
    before["text_rest"] = np.zeros(len(before["facts"]), np.uint64)
    rows = joined([before, new | undecided])

    state = _newest_versions(rows, ids)
    label, split = np.full(len(state), -1, np.int16), np.full(len(state), -1, np.int8)
    votes = _choose(rows, state, label, split, policy, memory)
    changed = (rows["place"] == NEW) | (state != rows["state"]) | (label != rows["label"]) | (split != rows["split"])
    superseded = [removed["place"], rows["place"][changed & (rows["place"] != NEW)]]
    relabelled = _relabelled([before, removed], rows | {"state": state, "label": label, "split": split})
    rows |= {"state": state, "label": label, "split": split}
    return Resolved(take(rows, changed), np.concatenate(superseded), votes, relabelled, texts)


def _newest_versions(rows: Columns, ids: NDArray[np.uint64]) -> NDArray[np.int8]:
    """The state of each row as far as ids decide it, _OPEN for the rest.

    The newest version of an id is that with the latest `updated` or else `time`; of several with one time that which
    was seen first in the latest refresh. A version that is quarantined replaces none.
    """
    own, here = rows["own_label"], _among(rows["id_key"], ids)
    state = np.where((rows["state"] == REPLACED) & ~here, REPLACED, _OPEN).astype(np.int8)
    state[(own == DELETED_LABEL) & (state == _OPEN)] = DELETED
    state[own == QUARANTINED_LABEL] = QUARANTINED
    versions = np.flatnonzero(here & (own != QUARANTINED_LABEL))
    when = np.where(rows["updated"] == NO_TIME, rows["time"], rows["updated"])
    order = versions[np.lexsort([column[versions] for column in (rows["facts"], rows["seen"], when, rows["id_key"])])]
    same = rows["id_key"][order]
    earlier = order[:-1][same[:-1] == same[1:]]
    state[earlier[own[earlier] != DELETED_LABEL]] = REPLACED
    return state


def _choose(
    rows: Columns,
    state: NDArray[np.int8],
    label: NDArray[np.int16],
    split: NDArray[np.int8],
    policy: Policy,
    memory: SplitMemory,
) -> pd.DataFrame:
    """Take one row of each text: fills in the states that are open, labels and splits, and returns the votes."""
    at = np.flatnonzero(state == _OPEN)
    few = take(rows, at)
    keys = {"id": few["id_key"], "text": few["text_key"]}
    if few["group_key"].any():
        keys["group"] = few["group_key"]
    if policy.clusters is not None:
        keys["cluster"] = policy.clusters(few)
    given = few["given"] if (few["given"] >= 0).any() else None
    assigned = memory.assign(keys, lambda some: policy.hashed(take(few, some)), given=given, most=policy.most)
    first, order, starts = _best(few, assigned, policy)

    own = few["own_label"][order]
    several = np.empty(0, np.intp)
    if len(own):
        several = np.flatnonzero(np.minimum.reduceat(own, starts) != np.maximum.reduceat(own, starts))
    label[at[first]] = few["own_label"][first]
    votes = _votes(few, first, order, starts, several, policy)
    chosen = votes[votes["chosen"]]
    label[at[chosen["row"]]] = chosen["label"]

    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    kept = assigned.splits[first] != NO_SPLIT
    fate = np.where(kept, MERGED, LEFT_OUT)
    if policy.conflicts == "drop":
        fate[several], kept[several] = CONFLICTING, False
    state[at[order]] = fate[run]
    state[at[first[kept]]] = TAKEN
    split[at[first[kept]]] = assigned.splits[first[kept]]
    label[at[first[~kept]]] = -1
    memory.remember(assigned, state[at] == TAKEN, state[at] == MERGED)
    return votes.drop(columns="row")


def _best(rows: Columns, assigned: Assigned, policy: Policy) -> tuple[Rows, Rows, Rows]:
    """The best row of each text, all rows sorted by text, and where each text begins among these."""
    # By `given` + 1, of the rows that the source gives no split first, then as SPLITS: train comes last.
    preference = np.array([0, 2, 1, 0], np.int8)[rows["given"] + 1]
    when = np.where(rows["time"] == NO_TIME, 0, rows["time"])
    rank = (assigned.splits == NO_SPLIT, preference, when if policy.keep_oldest else -when)
    order = np.lexsort([*reversed(rank), rows["text_key"]])
    text = rows["text_key"][order]
    starts = np.flatnonzero(np.append(True, text[1:] != text[:-1])) if len(text) else np.empty(0, np.intp)
    first = order[starts].copy()
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    tied = np.ones(len(order), bool)
    for column in rank:
        tied &= column[order] == column[first[run]]
    tied &= np.bincount(run[tied], minlength=len(starts))[run] > 1
    if tied.any():
        first[np.unique(run[tied])] = _first_by_text(rows, order[tied], policy)
    return first, order, starts


def _first_by_text(rows: Columns, tied: Rows, policy: Policy) -> Rows:
    """Of rows that are sorted by text, the first of each by row id, then by all else that it holds."""
    facts = policy.texts_of(rows["text_at"][tied], policy.columns).to_pandas()
    facts["row_id"] = [
        fingerprint(text) if row_id is None else row_id
        for row_id, text in zip(facts["row_id"], facts["text"], strict=True)
    ]
    facts = facts.fillna("").assign(key=rows["text_key"][tied], label=rows["own_label"][tied], row=tied)
    others = [name for name in policy.columns if name not in ("row_id", "text")]
    facts = facts.sort_values(["key", "row_id", "label", "text", *others, "row"])
    first: Rows = facts.drop_duplicates("key")["row"].to_numpy(np.intp)
    return first


def _votes(rows: Columns, first: Rows, order: Rows, starts: Rows, several: Rows, policy: Policy) -> pd.DataFrame:
    """The votes for each label of the texts that have several, and the row of the text that may be taken."""
    ends = np.append(starts, len(order))
    voters = np.concatenate([np.empty(0, np.intp), *(order[ends[text] : ends[text + 1]] for text in several)])
    best = np.repeat(first[several], np.diff(ends)[several]) if len(several) else voters
    frame = pd.DataFrame({name: rows[name][voters] for name in ("text_key", "time", "seen", "text_at")})
    frame["label"], frame["row"] = rows["own_label"][voters], best
    frame["best"] = voters == best
    votes = frame.groupby(["text_key", "row", "label"], as_index=False, sort=True).agg(
        rows=("seen", "size"),
        time=("time", "max"),
        seen=("seen", "max"),
        best=("best", "max"),
        text_at=("text_at", "max"),  # tonight's texts are at hand
    )
    by = ["time", "seen", "best"] if policy.conflicts == "newest" else ["rows", "time", "seen", "best"]
    chosen = votes.sort_values(by, ascending=False, kind="stable").drop_duplicates("text_key").index
    votes["chosen"] = votes.index.isin(chosen) & (policy.conflicts != "drop")
    return votes[["text_key", "label", "rows", "chosen", "row", "text_at"]]


def _relabelled(before: list[Columns], after: Columns) -> int:
    """Texts of the test split whose label is another than it was."""
    old, new = (
        pd.concat(
            [
                pd.Series(rows["label"][test], index=rows["text_key"][test])
                for rows in parts
                for test in [(rows["state"] == TAKEN) & (rows["split"] == _TEST)]
            ]
        )
        for parts in (before, [after])
    )
    both = old.index.intersection(new.index)
    return int((old[both] != new[both]).sum())


def _nonzero(*columns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values of the columns but for 0, sorted, each once."""
    # np.unique takes ten times as long: numpy 2.3 and newer build a table of hashes first.
    values = np.sort(np.concatenate(columns))
    found: NDArray[np.uint64] = values[np.diff(values, prepend=np.uint64(0)) != 0]
    return found


def _among(values: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Mask:
    """Which values are among the sorted ones; all are hashes."""
    # Few of many are: their last 20 bits rule out nearly all others, in a tenth of the time of a search.
    last = np.uint64((1 << 20) - 1)
    may_be = np.zeros(1 << 20, bool)
    may_be[wanted & last] = True
    found: Mask = may_be[values & last]
    some = np.flatnonzero(found)
    if len(some):
        places = np.minimum(np.searchsorted(wanted, values[some]), len(wanted) - 1)
        found[some] = wanted[places] == values[some]
    return found
