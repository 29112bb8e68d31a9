"""The checks of `nightgate doctor` on the metrics database: access, a shared home, and runs to reconcile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from humanize import naturaldelta
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from nightgate import locks
from nightgate.database.connection import database_url, parse_url, sqlite_path
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.database_urls import safe_url
from nightgate.errors import DatabaseError
from nightgate.home import Home, find_home, home_path
from nightgate.operations.findings import Finding, Seen, file_system_of, is_network, mounts
from nightgate.operations.status import used_pipelines
from nightgate.registry import champion_link, freezes
from nightgate.registry.approvals import command, open_approvals
from nightgate.runs.liveness import cause_of_death, now
from nightgate.settings import read_settings

SECONDS = 3
"""Limit of a connection, and of waiting for a lock."""
RECENT = timedelta(days=14)
RECONCILE = "nightgate reconcile"
RESTORE = "docs/restore.md"


def examine() -> Seen:
    """All checks that read the database.

    Raises:
        NightgateError: it cannot be used.
    """
    home = find_home()
    db = opened(home)
    if db is None:
        return Seen(tuple(_blank(home)))
    with db:
        findings = [_writable(db), *place_findings(db.home.root, sqlite_path(_url(home)), mounts())]
        findings += [*_shared_home(db, db.home), *_workers(db), *_runs(db), *_slots(db.home), *_approvals(db)]
        findings += [*_champion_links(db, db.home), *_freezes(db)]
        return Seen(findings, frozenset(used_pipelines(db)), _ahead(db))


def opened(home: Home | None) -> Database | None:
    """The database with short limits; None: it has no tables yet.

    Raises:
        DatabaseError: it cannot be used.
    """
    if home is None and not read_settings().database_url:
        return None
    url = _url(home)
    if url.get_backend_name() == "postgresql" and "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(SECONDS)})
    where, full_url = home or Home(home_path(), ""), url.render_as_string(hide_password=False)
    with Database.open(where, full_url, check=False, patience=SECONDS) as db:
        if db.is_blank():
            return None
    return Database.open(where, full_url, any_home=True, patience=SECONDS)


def _url(home: Home | None) -> URL:
    return parse_url(database_url(home or Home(home_path(), "")))


def _blank(home: Home | None) -> Iterator[Finding]:
    """A database without tables: usual before the first night, a loss after it."""
    if home is None and not read_settings().database_url:
        return  # the finding about the home has the remedy
    url = _url(home)
    runs, models = ([*home.runs.glob("*/")], [*home.models.glob("*/v[0-9]*/")]) if home else ([], [])
    if runs or models:
        found = f"{safe_url(url)} has no tables, but the home the files of {len(runs)} runs and {len(models)} versions"
        yield Finding("problem", "database", found, f"restore it ({RESTORE}); for an empty one: nightgate db upgrade")
    elif url.get_backend_name() == "sqlite":
        remedy = "the first night makes it: nightgate run sample"
        yield Finding("ok", "database", f"there is none at {safe_url(url)} yet", remedy)
    else:
        yield Finding("warning", "database", f"{safe_url(url)} has no tables yet", "nightgate db upgrade")


def _writable(db: Database) -> Finding:
    try:
        # Of no row: `BEGIN IMMEDIATE` alone is not refused on a SQLite file that can only be read.
        db.write(lambda session: session.execute(sa.text("UPDATE setting SET value = value WHERE key = ''")))
    except DatabaseError as error:
        return Finding("problem", "database", f"this user cannot write: {error.reason}", error.next_step)
    return Finding("ok", "database", f"{db.name} answers, at this version's revision")


def place_findings(home: Path, database: Path | None, known: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Problems with the location of the database.

    Args:
        database: SQLite's file; None for a server.
        known: from `findings.mounts`.
    """
    if database is None:
        return
    known = list(known)
    remedy = "set NIGHTGATE_DATABASE_URL to a PostgreSQL server that all workers reach"
    kind, home_kind = file_system_of(database, known), file_system_of(home, known)
    if is_network(kind):
        found = f"{database} is SQLite on {kind}: its locks do not hold between machines, and rows get lost"
        yield Finding("problem", "database place", found, remedy)
    elif is_network(home_kind):
        found = f"the home is on {home_kind}, shared with other machines, its database ({database}) on this one alone"
        yield Finding("problem", "database place", found, remedy)


def _shared_home(db: Database, home: Home) -> Iterator[Finding]:
    """Whether this home is that of the database, and not a copy."""
    known = db.home_id()
    if known is None:
        return
    remedy = "set NIGHTGATE_HOME to the folder that the other workers share"
    if not home.id:
        if read_settings().home:
            found = f"the database belongs to home {known[:8]}, and there is none at {home.root}"
            yield Finding("problem", "home shared", found, f"mount it there, or {remedy}")
        return
    if known != home.id:
        found = f"the database belongs to home {known[:8]}, and {home.root} is home {home.id[:8]}"
        yield Finding("problem", "home shared", found, f"{remedy}, or NIGHTGATE_DATABASE_URL to a database of its own")
        return
    yield Finding("ok", "home shared", "it is the home of this database")


def _workers(db: Database) -> Iterator[Finding]:
    query = "SELECT DISTINCT host FROM attempts WHERE started_at > :since ORDER BY host"
    since = {"since": datetime.now(UTC) - RECENT}
    hosts = db.read(lambda session: session.scalars(selecting(query, since)).all())
    found = f"runs of the last {RECENT.days} days: on {', '.join(hosts) or 'no machine'}"
    if len(hosts) > 1 and db.dialect == "sqlite":
        remedy = "if these are several machines and not containers on one, set NIGHTGATE_DATABASE_URL to PostgreSQL"
        yield Finding("warning", "workers", f"{found}, with one SQLite file", remedy)
    else:
        yield Finding("ok", "workers", found)


def _runs(db: Database) -> Iterator[Finding]:
    query = selecting(
        "SELECT a.* FROM nightly_runs AS r JOIN attempts AS a ON a.run_id = r.run_id AND a.attempt = r.attempts "
        "WHERE r.status = 'running' ORDER BY a.run_id"
    )

    def dead(session: Session) -> list[tuple[str, str]]:
        rows = session.execute(query).all()
        moment = now(session)
        return [(attempt.run_id, cause_of_death(attempt, moment)) for attempt in rows]

    found = db.read(dead)
    for run_id, death in found:
        if death:
            yield Finding("warning", "runs", f"run {run_id} is recorded as running: {death}", RECONCILE)
    if not any(death for _, death in found):
        yield Finding("ok", "runs", f"{len(found)} running, none of them dead")


def _slots(home: Home) -> Iterator[Finding]:
    files = (home.root / "locks").glob(f"{locks.SLOT}*.*")
    slots = sorted({path.name.removeprefix(locks.SLOT).partition(".")[0] for path in files})
    found = [(slot, places) for slot in slots if (places := locks.queue(home, locks.SLOT + slot))]
    for slot, places in found:
        yield Finding("ok", "slots", f"{slot}: {_queue_text(places, read_settings().slot_limit(slot))}")
    if not found:
        yield Finding("ok", "slots", "none is held or waited for")


def _queue_text(places: list[locks.Place], limit: int) -> str:
    holders = [place.holder for place in places if not place.waits]
    waiting = [place for place in places if place.waits]
    text = f"{len(holders)} of {limit} held" + (f" by {', '.join(holders)}" if holders else "")
    if waiting:
        longest = datetime.now(UTC) - datetime.fromisoformat(min(one.since for one in waiting))
        text += f", {len(waiting)} waiting, the longest for {naturaldelta(longest)}"
    return text


def _approvals(db: Database) -> Iterator[Finding]:
    waiting = open_approvals(db)
    moment = datetime.now(UTC)
    for one in waiting:
        found = f"version {one.version} of {one.pipeline} waits until {one.deadline:%Y-%m-%d %H:%M} UTC"
        if one.deadline <= moment:
            yield Finding("warning", "approvals", f"{found}: overdue", RECONCILE)
        else:
            yield Finding("ok", "approvals", found, command(one.pipeline, one.run_id))


def _champion_links(db: Database, home: Home) -> Iterator[Finding]:
    if not home.id:
        return  # the home is not on this machine
    for pipeline in sorted(used_pipelines(db)):
        if wrong := champion_link.disagreement(db, home, pipeline):
            yield Finding("warning", "champion links", wrong, RECONCILE)


def _freezes(db: Database) -> Iterator[Finding]:
    for pipeline in sorted(used_pipelines(db)):
        if freeze := freezes.frozen(db, pipeline):
            yield Finding("warning", "freezes", f"{pipeline} is {freeze}", freeze.remedy)


def _ahead(db: Database) -> timedelta | None:
    if db.dialect != "postgresql":
        return None
    before = datetime.now(UTC)
    theirs = db.read(now)
    return theirs - (before + (datetime.now(UTC) - before) / 2)
