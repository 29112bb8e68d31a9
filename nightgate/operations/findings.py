"""Results of the checks of `nightgate doctor`, and facts about this machine that several checks need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    status: Status
    check: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Seen:
    """Findings of a check, and facts for other checks."""

    findings: Sequence[Finding] = ()
    used: frozenset[str] = frozenset()
    """Pipelines that have run here or are deployed; problems of others stop no night."""
    ahead: timedelta | None = None
    """How far the server's clock is ahead of this machine's."""


def mounts() -> list[tuple[str, str]]:
    """Mount point and kind of every file system of this machine."""
    import psutil

    return [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]


def file_system_of(path: Path, known: Iterable[tuple[str, str]]) -> str:
    """The kind of file system of `path`, such as `ext4` or `nfs4`; '' if unknown."""
    inside = [(point, kind) for point, kind in known if path.is_relative_to(point)]
    # Of two on the same mount point the later one counts; `max` returns the first.
    return max(reversed(inside), key=lambda one: len(one[0]), default=("", ""))[1]


def is_network(kind: str) -> bool:
    """Whether a file system of this kind is shared by machines, between which SQLite's locks do not hold."""
    known = ("nfs", "cifs", "smb", "ceph", "gluster", "lustre", "beegfs", "gpfs", "afs", "9p", "fuse.sshfs")
    return kind.lower().removeprefix("fuse.").startswith(known) or kind == "fuse.sshfs"
