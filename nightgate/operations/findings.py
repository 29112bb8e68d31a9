"""What a check of `nightgate doctor` returns, and what several of them ask of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from nightgate.home import Home, home_path, open_home

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    status: Status
    check: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Seen:
    """What a check found, and what others make use of."""

    findings: Sequence[Finding] = ()
    used: frozenset[str] = frozenset()
    """Pipelines that have run here, or are deployed: what is wrong with others stops no night."""
    ahead: timedelta | None = None
    """By how much the clock on the other side is ahead of this machine's."""


def here() -> Home | None:
    """The home, if there is one: the doctor makes none."""
    path = home_path()
    return open_home(path) if (path / "home.json").is_file() else None


def mounts() -> list[tuple[str, str]]:
    """Mount point and kind of every file system of this machine."""
    import psutil

    return [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]


def file_system_of(path: Path, known: Iterable[tuple[str, str]]) -> str:
    """The kind of file system that `path` lies on, such as `ext4` or `nfs4`; '' where that is unknown."""
    inside = [(point, kind) for point, kind in known if path.is_relative_to(point)]
    # Of two on the same mount point the later one counts, which `max` would not give.
    return max(reversed(inside), key=lambda one: len(one[0]), default=("", ""))[1]


def is_network(kind: str) -> bool:
    """Whether several machines may share a file system of this kind: SQLite's locks do not hold there."""
    known = ("nfs", "cifs", "smb", "ceph", "gluster", "lustre", "beegfs", "gpfs", "afs", "9p", "fuse.sshfs")
    return kind.lower().removeprefix("fuse.").startswith(known) or kind == "fuse.sshfs"
