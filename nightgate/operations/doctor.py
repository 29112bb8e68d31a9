"""`nightgate doctor`: everything that could keep a night from running, each line with its remedy.

This module checks the machine, `database_checks` the metrics database, `integrity_checks` whether database and home are
whole, `pipeline_checks` the pipeline files. The check of the Prefect server is an argument, because the library does
not import Prefect.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from humanize import naturalsize
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nightgate.errors import NightgateError
from nightgate.home import find_home, home_path
from nightgate.operations import database_checks, integrity_checks, pipeline_checks
from nightgate.operations.findings import Finding, Seen, file_system_of, is_network, mounts
from nightgate.settings import read_settings, settings_in_force, unknown_settings

GIB = 2**30
HANG_SECONDS = 20.0
"""Network calls have limits of some 3 s; this one is for calls that cannot have any, such as to a lost file server."""
READ_SECONDS = 600.0
"""Limit of reading the database and every champion, some 100 MB/s on a network file system."""


@dataclass(frozen=True)
class Check:
    """A named group of checks."""

    name: str
    run: Callable[[], Seen | Iterable[Finding]]
    clock: str = ""
    """Owner of the clock that the result's `ahead` compares."""
    seconds: float | None = None
    """Limit; None: HANG_SECONDS."""


@dataclass
class _Pending:
    """A check in a thread of its own, so that checks wait for networks in parallel."""

    check: Check
    seen: Seen | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"doctor-{self.check.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.seen = _run(self.check)

    def result(self) -> Seen:
        seconds = self.check.seconds or HANG_SECONDS
        self.thread.join(seconds)
        stuck = f"the check did not end within {seconds:.0f} s"
        remedy = "check the network, and file systems of other machines (df, mount)"
        return self.seen or Seen([Finding("problem", self.check.name, stuck, remedy)])


KNOWN_BAD = {
    "sqlalchemy": (
        "<2.1,>=2.0.40",
        "Prefect 3.8 shows deployments as ready but never creates a scheduled run with another version",
    ),
    "fastapi": ("<0.151,>=0.139", "Prefect 3.8's server fails at import with another version"),
    "prefect": ("<3.9,>=3.8", "the flows are written and tested for 3.8"),
    "torch": (">=2.8", "training is tested with 2.8 and newer"),
    "transformers": (">=5.0", "training is written for the models and tokenizers of 5"),
    "datasets": (">=4.5", "sources are tested with 4.5 and newer; before 4.0 it runs the scripts of data sets"),
    "evaluate": (">=0.4.5", "metrics are tested with 0.4.5 and newer"),
}
"""Package: working versions, and the problem with others. `pip check` does not notice the first two."""


def examine(server: Callable[[], Seen] | None = None, *, deep: bool = False) -> list[Finding]:
    """Findings of all checks, in the order of their dependence. A check that raises is a finding.

    Args:
        server: the check of the Prefect server.
        deep: read all of the database and of every champion, whatever their size.
    """
    settings = _run(Check("settings", _settings)).findings
    if any(finding.status == "problem" for finding in settings):
        return list(settings)  # every other check would fail on the same variables
    pending = [_Pending(Check("prefect server", server, clock="the Prefect server"))] if server else []
    pending.append(_Pending(Check("pipelines", pipeline_checks.examine)))
    pending.append(_Pending(Check("database", database_checks.examine, clock="the database")))
    integrity = Check("integrity", partial(integrity_checks.examine, deep=deep), seconds=READ_SECONDS)
    pending.append(_Pending(integrity))
    local = [Check("python", _python), Check("versions", _versions), Check("home", _home), Check("device", _device)]
    findings = [*settings, *(finding for check in local for finding in _run(check).findings)]
    results = {one.check.name: one.result() for one in pending}
    used = frozenset(name for result in results.values() for name in result.used)
    for name in ("database", "integrity", "prefect server"):
        findings += results[name].findings if name in results else ()
    findings += (_softened(finding, used) for finding in results["pipelines"].findings)
    clocks = ((one.check.clock, results[one.check.name].ahead) for one in pending)
    findings += (clock_finding(owner, ahead) for owner, ahead in clocks if ahead is not None)
    return findings


def _run(check: Check) -> Seen:
    try:
        answer = check.run()
        return answer if isinstance(answer, Seen) else Seen(tuple(answer))
    except NightgateError as error:
        return Seen([Finding("problem", check.name, error.reason, error.next_step)])
    except Exception as error:  # noqa: BLE001 - the other findings are still wanted
        found = f"the check failed: {type(error).__name__}: {error}".splitlines()[0]
        return Seen([Finding("problem", check.name, found, "report it: this is a fault of Nightgate")])


def _softened(finding: Finding, used: frozenset[str]) -> Finding:
    """A missing model or source is only a warning for a pipeline that has not run, such as an example."""
    about, _, name = finding.check.partition(" ")
    if finding.status != "problem" or about not in {"model", "data"} or name in used:
        return finding
    return replace(finding, status="warning", found=f"{finding.found} ({name} has not run here)")


# --- this machine ---


def _settings() -> Iterator[Finding]:
    for name, value in settings_in_force(read_settings()).items():
        yield Finding("ok", name, value)
    for unknown in unknown_settings():
        yield Finding("warning", "settings", unknown, "rename or unset it")


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _versions() -> Iterator[Finding]:
    for package, (works, otherwise) in KNOWN_BAD.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding("problem", package, "not installed", f"pip install '{package}{works}'")
            continue
        if SpecifierSet(works).contains(found, prereleases=True):
            yield Finding("ok", package, found)
        else:
            yield Finding("problem", package, f"{found}: {otherwise}", f"pip install '{package}{works}'")
    if unmet := [one for package in ("nightgate", *KNOWN_BAD) for one in _unmet(package)]:
        wanted = " ".join(dict.fromkeys(f"'{requirement}'" for requirement, _ in unmet))
        yield Finding("problem", "dependencies", "; ".join(text for _, text in unmet), f"pip install {wanted}")
    else:
        yield Finding("ok", "dependencies", "the requirements of these packages are met")


def _unmet(package: str) -> Iterator[tuple[str, str]]:
    """Requirements of an installed package that are not met, each with its description."""
    try:
        required = requires(package) or ()
    except PackageNotFoundError:
        return  # reported already, or a checkout that runs without being installed
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield wanted, f"{package} needs {requirement.name}, which is not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield wanted, f"{package} needs {wanted}, not {found}"


def _home() -> Iterator[Finding]:
    path = home_path()
    home = find_home()
    if home is None:
        yield _no_home(path)
        return
    probe = home.root / f".doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("problem", "home", f"{home.root}: {error.strerror}", "give this user write permission there")
        return
    kind = file_system_of(home.root, mounts())
    where = f", on {kind}, a network file system" if is_network(kind) else ""
    yield Finding("ok", "home", f"{home.root} (id {home.id[:8]}{where})")
    yield access_finding(home.root)
    yield disk_finding(shutil.disk_usage(home.root).free)


def _no_home(path: Path) -> Finding:
    """No home is usual before the first night, and for who works in the wrong folder."""
    found = f"there is none at {path} yet"
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110 - Path.exists raises
    if not os.access(there, os.W_OK):
        remedy = f"give this user the right to write to {there}, or set NIGHTGATE_HOME to another folder"
        return Finding("problem", "home", f"{found}, and this user cannot make it", remedy)
    if read_settings().home:
        other = "if other workers have one, mount it"
    else:
        other = "if there is one, go to the folder that holds it, or set NIGHTGATE_HOME"
    return Finding("warning", "home", found, f"the first night makes it (nightgate run sample); {other}")


def access_finding(root: Path) -> Finding:
    """Which users of this machine the home is open to."""
    check, mode = "home access", stat.S_IMODE(root.stat().st_mode)
    is_for_group = read_settings().home_access == "group"
    path = shlex.quote(str(root))
    share = f"chmod -R g=u,o= {path}; find {path} -type d -exec chmod g+s {{}} +"
    if mode & 0o007:
        if closed := next((parent for parent in root.parents if not parent.stat().st_mode & 0o001), None):
            return Finding("ok", check, f"{mode:04o}, inside {closed}, which is closed to others")
        can = "read and write" if mode & 0o002 else "read"
        remedy = share if is_for_group else f"chmod -R go= {path}"
        return Finding("warning", check, f"{mode:04o}: every user of this machine can {can} it", remedy)
    if mode & 0o070:
        return Finding("ok", check, f"{mode:04o}: for its owner and its group")
    if is_for_group:
        found = f"{mode:04o}: for its owner alone, and NIGHTGATE_HOME_ACCESS is group"
        return Finding("warning", check, found, share)
    return Finding("ok", check, f"{mode:04o}: for its owner alone")


def disk_finding(free: int) -> Finding:
    """Whether this many free bytes are enough for a night."""
    found = f"{naturalsize(free, binary=True)} free under the home"
    if free > 5 * GIB:
        return Finding("ok", "disk", found)
    remedy = "free some space, or set NIGHTGATE_HOME to a larger disk: a night writes its model three times"
    return Finding("warning" if free > GIB else "problem", "disk", found, remedy)


def _device() -> Iterator[Finding]:
    import torch

    from nightgate.engine.devices import pick

    choice = pick("auto")
    memory = torch.cuda.mem_get_info(choice.device) if choice.device.type == "cuda" else None
    described = f"{choice.device}, {choice.precision}: {choice.reason}"
    yield device_finding(described, memory, has_driver=Path("/proc/driver/nvidia/version").exists())


def device_finding(described: str, memory: tuple[int, int] | None, *, has_driver: bool) -> Finding:
    """The device on which nights train.

    Args:
        memory: free and total bytes of the GPU; None where PyTorch finds none.
        has_driver: the machine has an NVIDIA driver.
    """
    if memory is None:
        if not has_driver:
            return Finding("ok", "device", described)
        remedy = "install a build of PyTorch for this driver (pytorch.org), or give this user access to /dev/nvidia*"
        return Finding("warning", "device", f"{described}, although the machine has an NVIDIA driver", remedy)
    free, total = memory
    found = f"{described}; {naturalsize(free, binary=True)} of {naturalsize(total, binary=True)} are free"
    if free < total / 4:
        return Finding("warning", "device", found, "see what uses it (nvidia-smi): a batch that does not fit is split")
    return Finding("ok", "device", found)


def clock_finding(owner: str, ahead: timedelta) -> Finding:
    """Difference between a server's clock and this machine's: nights, deadlines and leases are compared."""
    seconds = ahead.total_seconds()
    found = f"{abs(seconds):.1f} s {'behind' if seconds > 0 else 'ahead of'} that of {owner}"
    if abs(seconds) <= 30:
        return Finding("ok", "clock", found)
    remedy = "synchronise the clocks of all machines by NTP (timedatectl set-ntp true)"
    return Finding("warning" if abs(seconds) <= 120 else "problem", "clock", found, remedy)
