"""`nightgate doctor`: what could keep a night from running, each line with its remedy."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from packaging.specifiers import SpecifierSet

from nightgate.errors import NightgateError
from nightgate.home import open_home

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    status: Literal["ok", "warning", "problem"]
    check: str
    found: str
    remedy: str = ""


KNOWN_BAD = {
    "sqlalchemy": (
        "<2.1,>=2.0.40",
        "Prefect 3.8 shows deployments as ready but never creates a scheduled run with another version",
    ),
    "fastapi": ("<0.151,>=0.139", "Prefect 3.8's server fails at import with another version"),
    "prefect": ("<3.9,>=3.8", "the flows are written and tested for 3.8"),
}
"""Package: the versions that work, and what happens otherwise. `pip check` sees none of these."""


def examine() -> list[Finding]:
    """All checks, in the order in which they depend on each other. A check that breaks is a finding, never an error."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _versions,
        _home,
        _database,
        _server,
        _device,
        _pipelines,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except NightgateError as error:
            findings.append(Finding("problem", check.__name__.strip("_"), error.reason, error.next_step))
    return findings


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _versions() -> Iterator[Finding]:
    for package in (*KNOWN_BAD, "torch", "transformers", "datasets", "evaluate"):
        works, otherwise = KNOWN_BAD.get(package, ("", ""))
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding("problem", package, "not installed", "install with the versions of constraints.txt")
            continue
        if SpecifierSet(works).contains(found, prereleases=True):
            yield Finding("ok", package, found)
        else:
            yield Finding("problem", package, f"{found}: {otherwise}", f"pip install '{package}{works}'")


def _home() -> Iterator[Finding]:
    home = open_home()
    probe = home.root / f".doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("problem", "home", f"{home.root}: {error.strerror}", "give this user the right to write there")
        return
    yield Finding("ok", "home", f"{home.root} (id {home.id[:8]})")
    free = shutil.disk_usage(home.root).free
    status: Literal["ok", "warning", "problem"] = "ok" if free > 5 * GIB else "warning" if free > GIB else "problem"
    remedy = (
        ""
        if status == "ok"
        else "free some space, or set NIGHTGATE_HOME to a larger disk: a night writes its model thrice"
    )
    yield Finding(status, "disk", f"{free / GIB:.1f} GiB free under the home", remedy)


def _database() -> Iterator[Finding]:
    from nightgate.database import Database, database_url, safe_url

    home = open_home()
    url = database_url(home)
    with Database.open(home, url, patience=3):
        yield Finding("ok", "database", f"{safe_url(url)} answers, at this version's revision")


def _server() -> Iterator[Finding]:
    configured = os.environ.get("PREFECT_API_URL")
    # The same setting of Prefect's by which `nightgate serve` chooses its port.
    url = configured or f"http://127.0.0.1:{os.environ.get('PREFECT_SERVER_API_PORT', '4200')}/api"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=3):
            yield Finding("ok", "prefect server", f"{url} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        if configured:
            yield Finding("problem", "prefect server", f"{url}: {error}", "start it, or unset PREFECT_API_URL")
        else:
            yield Finding(
                "warning",
                "prefect server",
                f"none at {url}: runs by hand start a temporary one, and nothing is scheduled",
                "nightgate serve",
            )


def _device() -> Iterator[Finding]:
    from nightgate.devices import pick

    choice = pick("auto")
    yield Finding("ok", "device", f"{choice.device}, {choice.precision}: {choice.reason}")


def _pipelines() -> Iterator[Finding]:
    from nightgate.pipelines import load_pipeline, pipeline_files

    for name, path in pipeline_files().items():
        try:
            load_pipeline(path)
        except NightgateError as error:
            yield Finding("problem", f"pipeline {name}", error.reason, error.next_step)
        else:
            yield Finding("ok", f"pipeline {name}", str(path))
