"""Rewrite the deltas of a pipeline: join those between which no snapshot ends, and drop rows that no snapshot needs.

    compact(folder)                                       # after retention has removed snapshots
    rewrite(read_forest(folder), {"000007-1f2e3d4c": mask})   # without some rows

Each delta that changes, and each after it, is written to a folder of its own. Then the manifests and at last tip.json
are replaced by ones that name these. All that they named before is there until then, so a kill at any point breaks
nothing; the next refresh removes what it left. Snapshots keep their ids.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.data.columns import take
from nightgate.data.deltas import (
    DELTA_FILE,
    DELTAS,
    TEXTS_FILE,
    Chain,
    Delta,
    new_delta,
    read_delta,
    read_signed,
    signed,
)
from nightgate.data.snapshots import MANIFEST_FILE
from nightgate.data.tip import Tip, read_tip, remove_leftovers, write_tip
from nightgate.durable_files import replacing
from nightgate.errors import SnapshotError, storage_errors

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
Head = dict[str, str]
MOST_UNUSED = 32
"""Deltas with which no snapshot ends: where there are more, they are joined. Each costs a refresh a millisecond."""
LARGE = 2
"""A first delta with more than so many times the rows of those to join it with stays as it is."""


@dataclass(frozen=True)
class Forest:
    """All deltas that the tip or a snapshot of a pipeline needs."""

    folder: Path
    tip: Tip
    manifests: dict[Path, dict[str, Any]]
    """Those that name deltas, by file."""
    chains: dict[str, Chain]
    """The chain that ends with each delta, by its name; of two where one goes on from the other that one first."""

    def runs(self) -> Iterator[list[Delta]]:
        """Deltas in a row, the last of which a snapshot or the tip ends with, or several others go on from."""
        parents = [_parent(chain.deltas[-1]) for chain in self.chains.values()]
        heads = [self.tip.head, *(manifest["head"] for manifest in self.manifests.values())]
        ends = {head["delta"] for head in heads if head} | {name for name in parents if parents.count(name) > 1}
        run: list[Delta] = []
        for name, chain in self.chains.items():
            run.append(chain.deltas[-1])
            if name in ends:
                yield run
                run = []


def read_forest(folder: Path, *, verify: bool = False) -> Forest:
    """The deltas under a pipeline's folder, without those of damaged snapshots, which stay as they are.

    Args:
        verify: compare the checksums of all files: those of what is written anew say nothing of what it was.

    Raises:
        SnapshotError: a manifest or a delta is out of reach.
    """
    tip, manifests = read_tip(folder), dict[Path, dict[str, Any]]()
    deltas: dict[str, Delta] = {}
    children: dict[str, list[str]] = {"": []}

    def follow(head: Mapping[str, str] | None) -> None:
        found: list[Delta] = []
        while head is not None and head["delta"] not in deltas:
            found.append(read_delta(folder, head, verify=verify))
            head = found[-1].facts["parent"]
        for delta in found:
            deltas[delta.path.name] = delta
            children.setdefault(_parent(delta), []).append(delta.path.name)

    followed = replace(tip, head=None)
    with damage_passed_over():
        follow(tip.head)
        followed = tip
    for file in sorted(folder.glob(f"s-*/{MANIFEST_FILE}")):
        if ".damaged-" not in file.parent.name:
            with damage_passed_over():
                manifest = read_signed(file)
                if "head" in manifest:
                    follow(manifest["head"])
                    manifests[file] = manifest
    chains = {"": Chain()}
    waiting = children[""][::-1]
    while waiting:
        name = waiting.pop()
        chains[name] = Chain((*chains[_parent(deltas[name])].deltas, deltas[name]))
        waiting += children.get(name, [])[::-1]
    del chains[""]
    return Forest(folder, followed, manifests, chains)


@contextmanager
def damage_passed_over() -> Iterator[None]:
    """End the block, with a line in the log, where a snapshot is damaged or incomplete.

    Raises:
        SnapshotError: it is out of reach and may well be whole.
    """
    try:
        yield
    except SnapshotError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        log.warning("%s", error.reason)


def compact(folder: Path) -> bool:
    """Join deltas where more than MOST_UNUSED can be, or where half of their rows are superseded; whether it did.

    The caller holds the pipeline's snapshots.

    Raises:
        SnapshotError: as of `read_forest`.
        StorageError: the disk is full or read-only.
    """
    if not (folder / DELTAS).is_dir():
        return False
    with storage_errors(folder):
        forest = read_forest(folder)
        runs = [run for run in forest.runs() if len(run) > 1]
        rows = sum(delta.facts["index"] for run in runs for delta in run)
        gone = sum(len(delta.superseded()) for run in runs for delta in run[1:])
        if sum(len(run) - 1 for run in runs) <= MOST_UNUSED and 2 * gone <= rows:
            remove_leftovers(folder, read_tip(folder))
            return False
        rewrite(read_forest(folder, verify=True), join=True)
    return True


def rewrite(
    forest: Forest,
    dropped: Mapping[str, Mask] | None = None,
    *,
    join: bool = False,
    change: Callable[[dict[str, Any], Chain], dict[str, Any]] = lambda manifest, _: manifest,
) -> None:
    """Write the deltas anew where they change, and let manifests and tip name them. The caller holds the lock.

    Args:
        dropped: rows of the index to leave out, by delta, with all entries of the same row in later ones.
        join: make one of deltas in a row.
        change: what else changes in a manifest, given its new chain.
    """
    written = {"": _Written(Chain())}
    for run in forest.runs():
        done = written[_parent(run[0])]
        for group in _groups(run) if join else [[delta] for delta in run]:
            done = _write(forest, group, done, dropped or {})
        written[run[-1].path.name] = done
    for file, manifest in forest.manifests.items():
        done = written[manifest["head"]["delta"]]
        if done.is_new:
            with replacing(file) as draft:
                draft.write_bytes(signed(change({**manifest, "head": _head(done)}, done.chain)))
                draft.chmod(draft.stat().st_mode & 0o444)
    tip = forest.tip
    if tip.head is not None:
        # A night whose snapshot was removed has nothing that later nights could not tell. The last one stays: it says
        # up to when the source was read.
        nights = [
            replace(night, head=_head(written[night.head["delta"]]))
            for night in tip.nights
            if night.head["delta"] in written
            and (night == tip.nights[-1] or (forest.folder / night.snapshot / MANIFEST_FILE).is_file())
        ]
        write_tip(forest.folder, replace(tip, head=_head(written[tip.head["delta"]]), nights=nights))
    remove_leftovers(forest.folder, read_tip(forest.folder))


@dataclass(frozen=True)
class _Written:
    """The new chain up to a delta, and where what the old one had is in it."""

    chain: Chain
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Of each row of the old index; -1: dropped."""
    texts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Of each text; -1: dropped."""
    rows: int = 0
    """Of the new index."""
    is_new: bool = False


def _head(written: _Written) -> Head:
    head = written.chain.head
    assert head is not None
    return head


def _groups(run: list[Delta]) -> list[list[Delta]]:
    sizes = [delta.facts["index"] for delta in run]
    return [run[:1], run[1:]] if len(run) > 1 and sizes[0] > LARGE * sum(sizes[1:]) else [run]


def _write(forest: Forest, group: Sequence[Delta], before: _Written, dropped: Mapping[str, Mask]) -> _Written:
    """Write one delta of a group of them, unless nothing changes."""
    index = Chain(tuple(group)).index(superseded=True)
    gone = np.concatenate([delta.superseded() for delta in group])
    first = len(before.places)
    kept = ~np.concatenate([dropped.get(delta.path.name, np.zeros(delta.facts["index"], bool)) for delta in group])
    kept[gone[gone >= first] - first] = False
    needed = np.zeros(sum(delta.text_rows for delta in group), bool)
    own = index["text_at"][kept] - len(before.texts)
    needed[own[own >= 0]] = True

    places = np.concatenate([before.places, _moved(kept, before.rows)])
    texts = np.concatenate([before.texts, _moved(needed, before.chain.text_rows)])
    rows = before.rows + int(kept.sum())
    is_new = before.is_new or len(group) > 1 or not (kept.all() and needed.all())
    if not is_new:
        return _Written(Chain((*before.chain.deltas, *group)), places, texts, rows)

    index = take(index, kept)
    index["text_at"] = np.where(index["text_at"] < 0, -1, texts[index["text_at"]])
    gone = places[gone[gone < first]]
    # The same name after a kill, so that nothing is written twice.
    content = [before.chain.head, [delta.path.name for delta in group], hashlib.sha256(kept.tobytes()).hexdigest()]
    number, mark = group[-1].number, hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    delta = _known(forest.folder / DELTAS / f"{number:06d}-{mark}")
    if delta is None:
        schema = pq.read_schema(group[0].path / TEXTS_FILE)
        with new_delta(forest.folder, number, schema, mark=mark) as draft:
            if len(group) == 1 and needed.all():
                draft.link_texts(group[0])
            else:
                for table in _texts(group, needed):
                    draft.add_texts(table)
            draft.finish(before.chain, number, index, gone[gone >= 0])
        delta = draft.delta
    assert delta is not None
    return _Written(Chain((*before.chain.deltas, delta)), places, texts, rows, is_new=True)


def _moved(kept: Mask, first: int) -> NDArray[np.int64]:
    """New places, from `first` on, of what is kept."""
    return np.where(kept, first + np.cumsum(kept) - 1, -1)


def _texts(group: Sequence[Delta], needed: Mask) -> Iterator[pa.Table]:
    """The texts of the deltas that are needed, in pieces."""
    first = 0
    for delta in group:
        with pq.ParquetFile(delta.path / TEXTS_FILE) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number)
                yield table.filter(pa.array(needed[first : first + table.num_rows]))
                first += table.num_rows


def _known(path: Path) -> Delta | None:
    """The delta in this folder, if a killed call has written it."""
    try:
        return Delta(path, json.loads((path / DELTA_FILE).read_bytes()))
    except FileNotFoundError:
        return None


def _parent(delta: Delta) -> str:
    return delta.facts["parent"]["delta"] if delta.facts["parent"] else ""
