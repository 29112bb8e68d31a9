"""`nightgate doctor`: what could keep a night from running, each line with its remedy.

This module checks the machine, `doctor_database` the metrics database and `doctor_pipelines` the pipeline files and
what they need. The check of the Prefect server is an argument, because the library does not import Prefect.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from humanize import naturalsize
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nightgate.errors import NightgateError
from nightgate.home import home_path, open_home
from nightgate.operations import database_checks, pipeline_checks
from nightgate.operations.findings import Finding, Seen, file_system_of, here, is_network, mounts
from nightgate.settings import read_settings, shown_settings, unknown_settings

GIB = 2**30
HANG_SECONDS = 20.0
"""Everything that asks a network has a limit of some 3 s of its own: this is for what none can be set for, such as a
file server that is gone."""


@dataclass(frozen=True)
class Check:
    """One group of checks: its name, should it break, and what does it."""

    name: str
    run: Callable[[], Seen | Iterable[Finding]]
    clock: str = ""
    """Whose clock `ahead` speaks of."""


@dataclass
class _Pending:
    """A check in a thread of its own: those that wait for a network do so side by side."""

    check: Check
    seen: Seen | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"doctor-{self.check.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.seen = _carried_out(self.check)

    def result(self, seconds: float) -> Seen:
        self.thread.join(seconds)
        stuck = f"no word of this check within {seconds:.0f} s"
        remedy = "look at the network, and at file systems of other machines (df, mount)"
        return self.seen or Seen([Finding("problem", self.check.name, stuck, remedy)])


KNOWN_BAD = {
    "sqlalchemy": (
        "<2.1,>=2.0.40",
        "Prefect 3.8 shows deployments as ready but never creates a scheduled run with another version",
    ),
    "fastapi": ("<0.151,>=0.139", "Prefect 3.8's server fails at import with another version"),
    "prefect": ("<3.9,>=3.8", "the flows are written and tested for 3.8"),
    "torch": (">=2.8", "the training is tested with that and newer ones"),
    "transformers": (">=5.0", "the training is written for the models and tokenizers of 5"),
    "datasets": (
        ">=4.5",
        "the sources are tested with that and newer ones; before 4.0 it runs the scripts of data sets",
    ),
    "evaluate": (">=0.4.5", "the metrics are tested with that and newer ones"),
}
"""Package: the versions that work, and what happens otherwise. Of the first two `pip check` sees nothing."""


def examine(server: Callable[[], Seen] | None = None) -> list[Finding]:
    """All findings, in the order in which they depend on each other. A check that breaks is a finding, never an error.

    Args:
        server: asks the Prefect server.
    """
    settings = _carried_out(Check("settings", _settings)).findings
    if any(finding.status == "problem" for finding in settings):
        return list(settings)  # every other check would break on the same variables
    pending = [_Pending(Check("prefect server", server, clock="the Prefect server"))] if server else []
    pending.append(_Pending(Check("pipelines", pipeline_checks.examine)))
    pending.append(_Pending(Check("database", database_checks.examine, clock="the database")))
    local = [Check("python", _python), Check("versions", _versions), Check("home", _home), Check("device", _device)]
    seen = [_carried_out(check) for check in local]
    asked = [one.result(HANG_SECONDS) for one in pending]
    used = frozenset(name for one in asked for name in one.used)
    clocks = [(one.check.clock, answer.ahead) for one, answer in zip(pending, asked, strict=True)]
    by_name = {one.check.name: answer for one, answer in zip(pending, asked, strict=True)}
    findings = [*settings, *(finding for one in seen for finding in one.findings)]
    for name in ("database", "prefect server"):
        findings += by_name[name].findings if name in by_name else ()
    findings += (_softened(finding, used) for finding in by_name["pipelines"].findings)
    findings += (clock_finding(whose, ahead) for whose, ahead in clocks if ahead is not None)
    return findings


def _carried_out(check: Check) -> Seen:
    try:
        answer = check.run()
        return answer if isinstance(answer, Seen) else Seen(tuple(answer))
    except NightgateError as error:
        return Seen([Finding("problem", check.name, error.reason, error.next_step)])
    except Exception as error:  # noqa: BLE001 - who is ill wants to hear all that is wrong, and not the first of it
        told = f"the check broke: {type(error).__name__}: {error}".splitlines()[0]
        return Seen([Finding("problem", check.name, told, "report it: this is a fault of Nightgate")])


def _softened(finding: Finding, used: frozenset[str]) -> Finding:
    """What a pipeline lacks that nobody runs, such as an example's base model, is no problem yet."""
    about, _, name = finding.check.partition(" ")
    if finding.status != "problem" or about not in {"model", "data"} or name in used:
        return finding
    return replace(finding, status="warning", found=f"{finding.found} ({name} has not run here)")


# --- this machine ---


def _settings() -> Iterator[Finding]:
    for name, value in shown_settings(read_settings()).items():
        yield Finding("ok", name, value or "not set")
    for told in unknown_settings():
        yield Finding("warning", "settings", told, "rename or unset it")


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _versions() -> Iterator[Finding]:
    for package, (works, otherwise) in KNOWN_BAD.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding("problem", package, "not installed", "install with the versions of constraints.txt")
            continue
        if SpecifierSet(works).contains(found, prereleases=True):
            yield Finding("ok", package, found)
        else:
            yield Finding("problem", package, f"{found}: {otherwise}", f"pip install '{package}{works}'")
    wrong = [told for package in ("nightgate", *KNOWN_BAD) for told in _unmet(package)]
    if wrong:
        yield Finding("problem", "dependencies", "; ".join(wrong), "install with the versions of constraints.txt")
    else:
        yield Finding("ok", "dependencies", "all that these packages ask of each other is met")


def _unmet(package: str) -> Iterator[str]:
    """What an installed package asks for and does not find."""
    try:
        asked = requires(package) or ()
    except PackageNotFoundError:
        return  # told already, or a checkout that is run without being installed
    for text in asked:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield f"{package} needs {requirement.name}, which is not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{package} needs {requirement.name}{requirement.specifier}, not {found}"


def _home() -> Iterator[Finding]:
    path = home_path()
    home = here()
    if home is None:
        if path.exists() and not path.is_dir():
            open_home(path)  # says what is in the way
        told = f"there is none at {path} yet"
        if read_settings().home:
            remedy = "mount it if other workers have one; else `nightgate db upgrade` makes it"
            yield Finding("problem", "home", told, remedy)
        else:
            remedy = "go to the folder that holds .nightgate/, or set NIGHTGATE_HOME; `nightgate db upgrade` makes one"
            yield Finding("warning", "home", told, remedy)
        return
    probe = home.root / f".doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("problem", "home", f"{home.root}: {error.strerror}", "give this user the right to write there")
        return
    kind = file_system_of(home.root, mounts())
    where = f", on {kind}, a network file system" if is_network(kind) else ""
    yield Finding("ok", "home", f"{home.root} (id {home.id[:8]}{where})")
    yield disk_finding(shutil.disk_usage(home.root).free)


def disk_finding(free: int) -> Finding:
    """Of the bytes that are free under the home."""
    told = f"{naturalsize(free, binary=True)} free under the home"
    if free > 5 * GIB:
        return Finding("ok", "disk", told)
    remedy = "free some space, or set NIGHTGATE_HOME to a larger disk: a night writes its model thrice"
    return Finding("warning" if free > GIB else "problem", "disk", told, remedy)


def _device() -> Iterator[Finding]:
    import torch

    from nightgate.engine.devices import pick

    choice = pick("auto")
    memory = torch.cuda.mem_get_info(choice.device) if choice.device.type == "cuda" else None
    told = f"{choice.device}, {choice.precision}: {choice.reason}"
    yield device_finding(told, memory, has_driver=Path("/proc/driver/nvidia/version").exists())


def device_finding(told: str, memory: tuple[int, int] | None, *, has_driver: bool) -> Finding:
    """What nights train on.

    Args:
        memory: free and total bytes of the GPU; None where PyTorch finds none.
        has_driver: the machine has one of NVIDIA's.
    """
    if memory is None:
        if not has_driver:
            return Finding("ok", "device", told)
        remedy = "install a build of PyTorch for this driver (pytorch.org), or give this user the right to /dev/nvidia*"
        return Finding("warning", "device", f"{told}; the machine has an NVIDIA driver all the same", remedy)
    free, total = memory
    told += f"; {naturalsize(free, binary=True)} of {naturalsize(total, binary=True)} are free"
    if free < total / 4:
        return Finding("warning", "device", told, "see who uses it (nvidia-smi): a batch that does not fit is split")
    return Finding("ok", "device", told)


def clock_finding(whose: str, ahead: timedelta) -> Finding:
    """This machine's clock beside another one's. Nights, deadlines and leases are compared across machines."""
    seconds = ahead.total_seconds()
    told = f"{abs(seconds):.1f} s {'behind' if seconds > 0 else 'ahead of'} that of {whose}"
    if abs(seconds) <= 30:
        return Finding("ok", "clock", told)
    remedy = "let all machines set their clocks by NTP (timedatectl set-ntp true)"
    return Finding("warning" if abs(seconds) <= 120 else "problem", "clock", told, remedy)
