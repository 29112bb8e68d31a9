"""Forget a person's rows: take them out of everything in the home and the database that holds their text or id.

    found = find(db, "reviews", ["4711"])               # what `forget` would do
    found = forget(db, "reviews", ["4711"], by="ada")

Idempotent: what a killed process left is finished by the same call. A model keeps what it learnt, so the versions that
were trained on the rows are named. What stays are hashes: of texts in test sets, of ids in the split memory and of the
texts that a version learnt, which prove what a model has seen, and of the id in the audit row.
"""

from __future__ import annotations

import html
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate import locks
from nightgate.data.batches import hash_of_forgotten
from nightgate.data.deltas import DELTAS
from nightgate.data.snapshots import MANIFEST_FILE, open_snapshot
from nightgate.data.snapshots import Snapshot as Rows
from nightgate.data.split_memory import SplitMemory, hashes_of
from nightgate.data.tip import MEMORY, NEAR, hold_data, keep_out
from nightgate.database.data_schema import Forgotten
from nightgate.database.gate_schema import SeedStudy
from nightgate.database.refresh_schema import DataCheck, Refresh
from nightgate.database.schema import Attempt, QuarantinedRow, Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.durable_files import write_whole
from nightgate.errors import RegistryError, SnapshotError, storage_errors
from nightgate.home import Home
from nightgate.registry.compaction import Forest, damage_passed_over, read_forest
from nightgate.registry.leakage import REMOVED, learnt_from, trainings
from nightgate.registry.redaction import has_file, in_deltas, redact_deltas, redact_file, rows_of, texts_of
from nightgate.registry.versions import require_pipeline
from nightgate.runs.claim import RESUMABLE
from nightgate.runs.lifecycle import fail_dead_runs, lock_pipeline
from nightgate.sources.source import origin_without_id
from nightgate.training.checkpoints import has_checkpoint, remove_checkpoints

log = logging.getLogger(__name__)

GONE = "(forgotten)"
"""In place of a text."""
_TEXT_FILES = {".html", ".json", ".jsonl", ".log", ".txt"}
_SHORTEST = 8
"""Characters of an id or a text that is looked for in logs: a shorter one is a part of others."""
_BEGINNING = 40
"""Characters of a text that are looked for; what follows up to the end of its line, string or element goes too."""
_SPELLINGS = (
    str,
    html.escape,
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1].replace("<", "\\u003c"),
)
_LEARNT = {"train", "validation", REMOVED}


SNAPSHOT, GOLDEN = "rows of a snapshot", "golden rows"
ENTRIES = "entries, all versions of the rows"
STRAY = "damaged or unfinished, may hold rows: removed whole"
QUARANTINE, REASON = "quarantined rows: emptied", "reasons that quote a row"
CHECKPOINTS = "checkpoints of a run that can go on: removed, it starts anew"
MENTION = "mentions in a log or a report"
NOT_REACHED = (
    "out of reach: the source itself, backups, copies and exports outside the home, and the logs of a Prefect server"
)


@dataclass(frozen=True)
class Place:
    """Something that holds rows to forget."""

    path: str
    """Relative to the home, or a table of the database."""
    what: str
    rows: int | None = None


@dataclass
class OfId:
    """What was found of one id."""

    snapshots: int = 0
    rows: int = 0
    golden_rows: int = 0
    quarantined: int = 0
    versions: dict[int, str] = field(default_factory=dict)
    """Versions that were trained on its rows, or selected by them: by number, how."""


@dataclass(frozen=True)
class Found:
    places: tuple[Place, ...]
    of: dict[str, OfId]
    """By id."""

    @property
    def versions(self) -> dict[int, str]:
        """Of all ids, by number."""
        return dict(sorted((number, how) for one in self.of.values() for number, how in one.versions.items()))


def find(db: Database, pipeline_name: str, ids: Collection[str]) -> Found:
    """Everything that `forget` would change.

    Raises:
        RegistryError: the pipeline is unknown.
        SnapshotError: a snapshot cannot be read.
    """
    return _search(db, pipeline_name, ids)[0]


def forget(db: Database, pipeline_name: str, ids: Collection[str], *, by: str) -> Found:
    """Take the rows with these ids out of all that is kept; a later refresh leaves them out.

    Raises:
        RegistryError: the pipeline is unknown, a run of it is at work, or nothing has one of the ids.
        SnapshotError: a snapshot is damaged.
        StorageError: the disk is full, read-only or forbidden.
    """
    require_pipeline(db, pipeline_name)
    with hold_data(db.home, pipeline_name, f"forget by {by}"):
        found = _forget(db, pipeline_name, ids, by=by)
    # What a killed prediction left holds texts, and is made again. No refresh waits for one at work, of hours.
    with storage_errors(db.home.root):
        for left in (db.home.predictions / pipeline_name).glob("*"):
            with locks.hold(db.home, f"predict-{left.name}", holder=f"forget by {by}", on_wait=log.info):
                shutil.rmtree(left, ignore_errors=True)
    db.write(lambda session: _finish(session, pipeline_name, ids))
    return found


def _forget(db: Database, pipeline_name: str, ids: Collection[str], *, by: str) -> Found:
    found, quotes = _search(db, pipeline_name, ids)
    db.write(lambda session: _begin(session, pipeline_name, found, by))
    home = db.home
    keep_out(home.snapshots / pipeline_name, ids)
    # What shows the rows goes last: a call after a kill finds by it what is left elsewhere.
    with storage_errors(home.root):
        for place in found.places:
            path = home.absolute(place.path)
            if place.what == MENTION:
                write_whole(path, quotes.sub(GONE.encode(), path.read_bytes()))
            elif place.what == CHECKPOINTS:
                remove_checkpoints(path)
            elif place.what == STRAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        db.write(lambda session: _empty(session, pipeline_name, ids, quotes))
        redact_deltas(home.snapshots / pipeline_name, ids)
        for place in found.places:
            path = home.absolute(place.path)
            if place.what in {GOLDEN, SNAPSHOT} and has_file(open_snapshot(path, verify=False)):
                redact_file(path, ids)
    db.write(lambda session: _follow_manifests(session, db, pipeline_name))
    return found


def _search(db: Database, pipeline_name: str, ids: Collection[str]) -> tuple[Found, re.Pattern[bytes]]:
    """What is found, and what finds quotes of the rows."""
    require_pipeline(db, pipeline_name)
    of = {one: OfId() for one in ids}
    sides: dict[str, dict[Path, set[str]]] = {one: {} for one in ids}
    excerpts = sa.select(QuarantinedRow.excerpt).where(
        QuarantinedRow.row_id.in_(ids), QuarantinedRow.pipeline == pipeline_name
    )
    texts = {excerpt for (excerpt,) in _rows(db, excerpts)}
    places = []
    forest = read_forest(db.home.snapshots / pipeline_name, verify=True)
    entries, in_snapshots = in_deltas(forest, ids)
    texts |= in_snapshots
    if entries:
        places.append(Place(db.home.relative(forest.folder / DELTAS), ENTRIES, entries))
    snapshots = _snapshots(db.home, pipeline_name, forest)
    for folder, snapshot in snapshots.items():
        if not entries and not has_file(snapshot):
            continue
        counts = rows_of(snapshot, ids)
        is_golden = folder.is_relative_to(db.home.golden)
        if counts:
            texts |= texts_of(snapshot, ids) if has_file(snapshot) else set()
            places.append(Place(db.home.relative(folder), GOLDEN if is_golden else SNAPSHOT, sum(counts.values())))
        for (one, split), number in counts.items():
            if is_golden:
                of[one].golden_rows += number
                continue
            of[one].rows += number
            sides[one].setdefault(folder, set()).add(split)
    trained, learnt = trainings(db, pipeline_name), set[Path]()
    for one, facts in of.items():
        facts.snapshots = len(sides[one])
        held = sides[one] | _in_memory(db, pipeline_name, one, snapshots)
        facts.versions = _known_before(db, pipeline_name, one) | learnt_from(trained, held, one)
        learnt |= {folder for folder, splits in held.items() if splits & _LEARNT}
    quotes = _quotes(ids, texts)
    in_database, quarantined = db.read(lambda session: _empty(session, pipeline_name, ids, quotes, dry_run=True))
    for one, facts in of.items():
        facts.quarantined = quarantined[one]
    places += [Place(db.home.relative(path), CHECKPOINTS) for path in _checkpoints(db, pipeline_name, learnt)]
    for file in _text_files(db, pipeline_name):
        if number := len(quotes.findall(file.read_bytes())):
            places.append(Place(db.home.relative(file), MENTION, number))
    strays = _strays(snapshots, forest, db.home.golden / pipeline_name)
    places += [Place(db.home.relative(path), STRAY) for path in strays]
    return Found((*in_database, *places), of), quotes


# --- what holds rows ---


def _snapshots(home: Home, pipeline_name: str, forest: Forest) -> dict[Path, Rows]:
    """Snapshots and golden sets that can be read, by folder."""
    found = {}
    for place in (home.snapshots / pipeline_name, home.golden / pipeline_name):
        for file in sorted(place.glob(f"[!.]*/{MANIFEST_FILE}")):
            folder, known = file.parent, forest.manifests.get(file)
            with damage_passed_over():
                if ".damaged-" not in folder.name:
                    found[folder] = Rows(known["id"], folder, known) if known else open_snapshot(folder)
    return found


def _strays(snapshots: Mapping[Path, Rows], forest: Forest, golden: Path) -> Iterator[Path]:
    """Folders and files of rows that nothing can read: damaged ones, and what killed processes left."""
    known = {*snapshots, *(forest.folder / name for name in (DELTAS, MEMORY, NEAR))}
    for place in (forest.folder, golden):
        yield from (path for path in place.glob("*/") if path not in known)
    yield from (path for path in (forest.folder / DELTAS).glob("*") if path.name not in forest.chains)
    for folder, snapshot in snapshots.items():
        yield from (path for path in folder.iterdir() if path.name not in {*snapshot.manifest["files"], MANIFEST_FILE})


def _text_files(db: Database, pipeline_name: str) -> Iterator[Path]:
    """Logs, reports and jobs of the pipeline's runs and seed studies, and pages of their history."""
    yield from filter(Path.is_file, (db.home.page(pipeline_name), db.home.page()))
    runs = [run for (run,) in _rows(db, _runs(pipeline_name))]
    studies = sa.select(SeedStudy.study_id).where(SeedStudy.pipeline == pipeline_name)
    runs += [f"seeds-{study}" for (study,) in _rows(db, studies)]
    for run in runs:
        for path in (db.home.runs / run).rglob("*"):
            if path.suffix in _TEXT_FILES and path.is_file():
                yield path


def _checkpoints(db: Database, pipeline_name: str, snapshots: Collection[Path]) -> list[Path]:
    """Folders with checkpoints of trainings on these snapshots that can go on."""
    runs = (
        sa.select(Run.run_id, Snapshot.path)
        .join(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
        .where(Run.pipeline == pipeline_name, Run.status.in_(RESUMABLE))
    )
    studies = (
        sa.select(SeedStudy.study_id, Snapshot.path)
        .join(Snapshot, (Snapshot.pipeline == SeedStudy.pipeline) & (Snapshot.snapshot_id == SeedStudy.snapshot_id))
        .where(SeedStudy.pipeline == pipeline_name)
    )
    found = [db.home.runs / run for run, path in _rows(db, runs) if db.home.absolute(path) in snapshots]
    for study, path in _rows(db, studies):
        if db.home.absolute(path) in snapshots:
            found += (db.home.runs / f"seeds-{study}").glob("seed-*")
    return [folder for folder in found if has_checkpoint(folder)]


def _known_before(db: Database, pipeline_name: str, row_id: str) -> dict[int, str]:
    """Versions that an earlier call named."""
    before = db.read(lambda session: session.get(Forgotten, (pipeline_name, hash_of_forgotten(row_id))))
    numbers = before.versions.split(", ") if before is not None and before.versions else ()
    return {int(number): "learnt from it before it was forgotten" for number in numbers}


def _in_memory(db: Database, pipeline_name: str, row_id: str, there: Collection[Path]) -> dict[Path, set[str]]:
    """Snapshots that are not there to read, and before which the id was known in training or validation."""
    query = sa.select(Snapshot.path, Snapshot.manifest).where(Snapshot.pipeline == pipeline_name)
    folder, keys = db.home.snapshots / pipeline_name / MEMORY, {"id": hashes_of([row_id])}

    @cache
    def has_it(of: str, name: str) -> bool:
        with suppress(SnapshotError):
            return bool(SplitMemory.open(folder / of, [name]).has(keys).any())
        return False

    return {
        db.home.absolute(path): {REMOVED}
        for path, manifest in _rows(db, query)
        for memory in [manifest.get("memory", {"of": "", "files": ()})]
        if db.home.absolute(path) not in there and any(has_it(memory["of"], name) for name in memory["files"])
    }


def _empty(
    session: Session, pipeline_name: str, ids: Collection[str], quotes: re.Pattern[bytes], *, dry_run: bool = False
) -> tuple[list[Place], Counter[str | None]]:
    """Empty quarantined rows with one of the ids, or that quote one, and take quotes out of reasons.

    Returns the places, and the number of quarantined rows by id.
    """
    quarantined = session.scalars(sa.select(QuarantinedRow).where(QuarantinedRow.pipeline == pipeline_name))
    rows = [row for row in quarantined if row.row_id in ids or quotes.search(f"{row.detail}\n{row.excerpt}".encode())]
    runs = session.scalars(sa.select(Run).where(Run.pipeline == pipeline_name))
    attempts = session.scalars(sa.select(Attempt).where(Attempt.run_id.in_(_runs(pipeline_name))))
    refreshes = session.scalars(sa.select(Refresh).where(Refresh.pipeline == pipeline_name)).all()
    of_refreshes = DataCheck.run_id.in_([one.refresh_id for one in refreshes])
    checks = session.scalars(sa.select(DataCheck).where(DataCheck.run_id.in_(_runs(pipeline_name)) | of_refreshes))
    reasons = [one for one in (*runs, *refreshes, *attempts, *checks) if quotes.search((one.reason or "").encode())]
    counts = Counter(row.row_id for row in rows)
    for row in () if dry_run else rows:
        row.origin = origin_without_id(row.origin, row.row_id)
        row.row_id, row.detail, row.excerpt = None, "", GONE
    for one in () if dry_run else reasons:
        one.reason = quotes.sub(GONE.encode(), (one.reason or "").encode()).decode()
    found = ((QuarantinedRow, QUARANTINE, rows), (Run, REASON, reasons))
    return [Place(f"table {kind.__tablename__}", what, len(some)) for kind, what, some in found if some], counts


def _quotes(ids: Collection[str], texts: Collection[str]) -> re.Pattern[bytes]:
    """What finds long ids as words, and long texts up to the end of their line, string or element."""
    words = [re.escape(one) for one in ids if len(one) >= _SHORTEST]
    spelt = {form(text[:_BEGINNING]) for text in texts if len(text) >= _SHORTEST for form in _SPELLINGS}
    patterns = [rf"(?<!\w){word}(?!\w)" for word in words] + [rf'{re.escape(text)}[^"<\n]*' for text in spelt]
    return re.compile("|".join(patterns or [r"(?!)"]).encode())


# --- the audit row ---


def _begin(session: Session, pipeline_name: str, found: Found, by: str) -> None:
    lock_pipeline(session, pipeline_name)
    fail_dead_runs(session, pipeline_name, datetime.now(UTC))
    if busy := session.scalar(sa.select(Run.run_id).where(Run.pipeline == pipeline_name, Run.status == "running")):
        raise RegistryError(
            f"run {busy} of {pipeline_name} is at work on the rows", next_step="wait until it has ended, or cancel it"
        )
    for one, facts in found.of.items():
        row = session.get(Forgotten, (pipeline_name, hash_of_forgotten(one)))
        if row is None and facts == OfId():
            raise RegistryError(
                f"nothing of {pipeline_name} has the id {one!r}",
                next_step="give the value of the column that data.id names; without data.id a row's id is its "
                "fingerprint",
            )
        if row is not None and row.finished_at is None:
            continue  # an interrupted call has counted more than what is left
        if row is None:
            row = Forgotten(
                pipeline=pipeline_name,
                id_hash=hash_of_forgotten(one),
                forgotten_by=by,
                begun_at=datetime.now(UTC),
                versions="",
                snapshots=0,
                rows_redacted=0,
                golden_rows=0,
                quarantined_rows=0,
            )
            session.add(row)
        row.finished_at = None
        row.snapshots += facts.snapshots
        row.rows_redacted += facts.rows
        row.golden_rows += facts.golden_rows
        row.quarantined_rows += facts.quarantined
        versions = {*filter(None, row.versions.split(", ")), *map(str, facts.versions)}
        row.versions = ", ".join(sorted(versions, key=int))


def _follow_manifests(session: Session, db: Database, pipeline_name: str) -> None:
    """Let the snapshots' rows say what their manifests do."""
    for row in session.scalars(sa.select(Snapshot).where(Snapshot.pipeline == pipeline_name)):
        folder = db.home.absolute(row.path)
        if row.files_removed_at is None and (folder / MANIFEST_FILE).is_file():
            manifest = open_snapshot(folder, verify=False).manifest
            if "redacted" in manifest:
                row.manifest, row.rows_redacted = manifest, manifest["redacted"]["rows"]


def _finish(session: Session, pipeline_name: str, ids: Collection[str]) -> None:
    for one in ids:
        session.get_one(Forgotten, (pipeline_name, hash_of_forgotten(one))).finished_at = datetime.now(UTC)


def _runs(pipeline_name: str) -> sa.Select[tuple[str]]:
    return sa.select(Run.run_id).where(Run.pipeline == pipeline_name)


def _rows(db: Database, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    return db.read(lambda session: session.execute(query).all())
