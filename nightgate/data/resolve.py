"""Which rows a snapshot takes: of one id the newest, of one text one, with the label that most rows give it.

    resolved = resolve(index, leaving, new, policy, memory)

Pure, over columns of numbers. Only rows that share an id or a text with a row that is new or gone are looked at, so the
cost is that of what changed.

Of rows with the same text one is taken: where the source names splits, one of test, then of validation; then the newest
by time, then the first by row id. With `group` it is the oldest by time, so that a late copy in another group moves
no text. Its label is that of most rows with the text (`majority`; of equally many the one of the newest row), or of
the newest row (`newest`); with `drop` a text with several labels is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nightgate.data.batches import DELETED_LABEL, QUARANTINED_LABEL
from nightgate.data.columns import Columns, Hashes, Index, Mask, among, distinct, joined, repeated, take
from nightgate.data.deltas import (
    CONFLICTING,
    DELETED,
    LEFT_OUT,
    MERGED,
    QUARANTINED,
    REPLACED,
    TAKEN,
    TextsOf,
)
from nightgate.data.rules import SPLITS
from nightgate.data.split_memory import LEFT_OUT as NO_SPLIT
from nightgate.data.split_memory import SplitMemory
from nightgate.sources.times import NO_TIME
from nightgate.text_rules import fingerprint

Rows = NDArray[np.intp]
NEW = np.iinfo(np.int32).max
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
    hashed: Callable[[NDArray[np.int64]], NDArray[np.int8]]
    """Splits by hash, by `text_at`."""
    most: tuple[float, ...] | None = None
    """See `SplitMemory.assign`."""
    clusters: Callable[[NDArray[np.int64]], NDArray[np.uint64]] | None = None
    """Keys of the near-copies of texts by `text_at`, shape [texts] or [texts, keys]."""


@dataclass(frozen=True)
class Resolved:
    rows: Columns
    """Rows that are new or whose state changed."""
    superseded: Columns
    """Earlier entries of these, and removed rows, with their `place`."""
    votes: Columns
    """text_key, label, rows, chosen and text_at of one of the rows, for each of several labels of a text."""
    relabelled: int
    """Test rows whose label is another than before."""
    texts: Hashes
    """Keys of the texts whose rows were looked at."""


def resolve(index: Index, leaving: Mask, new: Columns, policy: Policy, memory: SplitMemory) -> Resolved:
    """What becomes of the rows that are new, and of those that share an id or a text with these or with removed ones.

    Args:
        index: rows that held until tonight.
        leaving: which of these are removed.
        new: rows of tonight, with the columns of the index but for label, split and state; `hashed` is their split by
            hash.
        memory: learns the splits of the rows that are taken.
    """
    removed = index.take(leaving)
    ids = distinct(new["id_key"], removed["id_key"])
    touched = index.among("id_key", ids) & ~leaving
    of_touched = index.at("text_key", np.flatnonzero(touched))
    texts = distinct(new["text_key"], removed["text_key"], of_touched)
    before = index.take((touched | index.among("text_key", texts)) & ~leaving)
    num_new = len(new["facts"])
    undecided: Columns = {"place": np.full(num_new, NEW, np.int32), "label": np.full(num_new, -1, np.int16)}
    undecided |= {name: np.full(num_new, -1, np.int8) for name in ("split", "state")}
    before["hashed"] = np.full(len(before["facts"]), -1, np.int8)
    rows = joined([before, new | undecided])

    state = _newest_versions(rows, ids)
    label, split = np.full(len(state), -1, np.int16), np.full(len(state), -1, np.int8)
    may_be = np.flatnonzero(state == _OPEN)
    chosen, votes = _choose(rows, may_be, policy, memory)
    state[may_be], label[may_be], split[may_be] = (chosen[name] for name in ("state", "label", "split"))
    changed = (rows["place"] == NEW) | (state != rows["state"]) | (label != rows["label"]) | (split != rows["split"])
    superseded = [removed, take(before, changed[: len(before["place"])])]
    relabelled = _relabelled([before, removed], rows | {"state": state, "label": label, "split": split})
    rows |= {"state": state, "label": label, "split": split}
    return Resolved(take(rows, changed), joined(superseded), votes, relabelled, texts)


def _newest_versions(rows: Columns, ids: Hashes) -> NDArray[np.int8]:
    """The state of each row as far as ids decide it, _OPEN for the rest.

    The newest version of an id is that with the latest `updated` or else `time`; of several with one time that which
    was seen first in the latest refresh. A version that is quarantined replaces none.
    """
    own, state = rows["own_label"], np.full(len(rows["state"]), _OPEN, np.int8)
    replaced = np.flatnonzero(rows["state"] == REPLACED)
    state[replaced[~among(rows["id_key"][replaced], ids)]] = REPLACED
    state[(own == DELETED_LABEL) & (state == _OPEN)] = DELETED
    state[own == QUARANTINED_LABEL] = QUARANTINED
    several = repeated(rows["id_key"])
    versions = np.flatnonzero(among(rows["id_key"], several[among(several, ids)]) & (own != QUARANTINED_LABEL))
    rows = take(rows, versions)
    when = np.where(rows["updated"] == NO_TIME, rows["time"], rows["updated"])
    order = np.lexsort([rows["facts"], rows["seen"], when, rows["id_key"]])
    earlier = order[:-1][rows["id_key"][order[:-1]] == rows["id_key"][order[1:]]]
    state[versions[earlier[rows["own_label"][earlier] != DELETED_LABEL]]] = REPLACED
    return state


def _choose(rows: Columns, may_be: Rows, policy: Policy, memory: SplitMemory) -> tuple[Columns, Columns]:
    """Take one row of each text: state, label and split of the rows that may be taken, and the votes."""
    keys = {"id": rows["id_key"][may_be], "text": rows["text_key"][may_be]}
    if rows["group_key"].any():
        keys["group"] = rows["group_key"][may_be]
    if policy.clusters is not None:
        keys["cluster"] = policy.clusters(rows["text_at"][may_be])

    def hashed(some: Rows) -> NDArray[np.int8]:
        splits: NDArray[np.int8] = rows["hashed"][may_be[some]]
        if (earlier := splits < 0).any():
            splits[earlier] = policy.hashed(rows["text_at"][may_be[some[earlier]]])
        return splits

    given = rows["given"][may_be] if (rows["given"] >= 0).any() else None
    assigned = memory.assign(keys, hashed, given=given, most=policy.most)
    has_split = assigned.splits != NO_SPLIT
    state, label = np.where(has_split, TAKEN, LEFT_OUT).astype(np.int8), rows["own_label"][may_be]

    # Most texts have one row.
    at = np.flatnonzero(among(keys["text"], repeated(keys["text"])))
    few = take(rows, may_be[at])
    first, order, starts = _best(few, has_split[at], policy)
    own = few["own_label"][order]
    several = np.flatnonzero(np.minimum.reduceat(own, starts) != np.maximum.reduceat(own, starts))
    votes = _votes(few, first, order, starts, several, policy)
    chosen = take(votes, votes["chosen"])
    label[at[chosen["row"]]] = chosen["label"]

    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    kept = has_split[at[first]]
    fate = np.where(kept, MERGED, LEFT_OUT)
    if policy.conflicts == "drop":
        fate[several], kept[several] = CONFLICTING, False
    state[at[order]] = fate[run]
    state[at[first[kept]]] = TAKEN
    memory.remember(assigned, state == TAKEN, state == MERGED)
    found = {"state": state, "label": label, "split": assigned.splits.copy()}
    for name in ("label", "split"):
        found[name][state != TAKEN] = -1
    return found, votes


def _best(rows: Columns, has_split: Mask, policy: Policy) -> tuple[Rows, Rows, Rows]:
    """The best row of each text, all rows sorted by text, and where each text begins among these."""
    # By `given` + 1, of the rows that the source gives no split first, then as SPLITS: train comes last.
    preference = np.array([0, 2, 1, 0], np.int8)[rows["given"] + 1]
    when = np.where(rows["time"] == NO_TIME, 0, rows["time"])
    rank = (~has_split, preference, when if policy.keep_oldest else -when)
    order = np.lexsort([*reversed(rank), rows["text_key"]])
    text = rows["text_key"][order]
    starts = np.flatnonzero(np.append(True, text[1:] != text[:-1]))[: len(text)]
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
        # pandas 3 reads a missing text as NaN, earlier ones as None.
        row_id if isinstance(row_id, str) else fingerprint(text)
        for row_id, text in zip(facts["row_id"], facts["text"], strict=True)
    ]
    facts = facts.fillna("").assign(key=rows["text_key"][tied], label=rows["own_label"][tied], row=tied)
    others = [name for name in policy.columns if name not in ("row_id", "text")]
    facts = facts.sort_values(["key", "row_id", "label", "text", *others, "row"])
    first: Rows = facts.drop_duplicates("key")["row"].to_numpy(np.intp)
    return first


def _votes(rows: Columns, first: Rows, order: Rows, starts: Rows, several: Rows, policy: Policy) -> Columns:
    """The votes for each label of the texts that have several, and the row of the text that may be taken."""
    ends = np.append(starts, len(order))
    voters = np.concatenate([np.empty(0, np.intp), *(order[ends[text] : ends[text + 1]] for text in several)])
    best = np.repeat(first[several], np.diff(ends)[several])
    by_label = np.lexsort([rows["own_label"][voters], rows["text_key"][voters]])
    voters, best = voters[by_label], best[by_label]
    text, label = rows["text_key"][voters], rows["own_label"][voters]
    begin = np.flatnonzero(np.append(True, (text[1:] != text[:-1]) | (label[1:] != label[:-1])))[: len(text)]
    votes: Columns = {"text_key": text[begin], "label": label[begin], "row": best[begin]}
    votes["rows"] = np.diff(np.append(begin, len(voters)))
    # Of their texts the latest: tonight's are at hand.
    votes |= {name: np.maximum.reduceat(rows[name][voters], begin) for name in ("time", "seen", "text_at")}
    votes["best"] = np.logical_or.reduceat(voters == best, begin)
    by = ("best", "seen", "time", *(() if policy.conflicts == "newest" else ("rows",)), "text_key")
    rank = np.lexsort([-votes["label"], *(votes[name] for name in by)])
    text = votes["text_key"][rank]
    votes["chosen"] = np.zeros(len(rank), bool)
    if policy.conflicts != "drop":
        votes["chosen"][rank[np.append(text[1:] != text[:-1], True)[: len(text)]]] = True
    return {name: votes[name] for name in ("text_key", "label", "rows", "chosen", "row", "text_at")}


def _relabelled(before: Sequence[Columns], after: Columns) -> int:
    """Texts of the test split whose label is another than it was."""
    tests = [take(rows, (rows["state"] == TAKEN) & (rows["split"] == _TEST)) for rows in (*before, after)]
    old, new = joined(tests[:-1]), tests[-1]
    # A text is taken once.
    _, was, now = np.intersect1d(old["text_key"], new["text_key"], assume_unique=True, return_indices=True)
    return int((old["label"][was] != new["label"][now]).sum())
