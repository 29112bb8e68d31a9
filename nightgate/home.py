"""The home: the folder that holds snapshots, runs, models and, by default, the metrics database.

All workers of a pipeline share it. Paths in the database are relative to it. The database stores its id, so that a
worker with another home is refused.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nightgate.durable_files import user_path, write_once
from nightgate.errors import RegistryError, StorageError, storage_errors
from nightgate.settings import read_settings


@dataclass(frozen=True)
class Home:
    root: Path
    id: str

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def golden(self) -> Path:
        """Golden rows by pipeline; created when first written to."""
        return self.root / "golden"

    @property
    def predictions(self) -> Path:
        """Of predictions that are not written out yet, by pipeline; created when first written to."""
        return self.root / "predictions"

    def report(self, run_id: str) -> Path:
        """The report of a run."""
        return self.runs / run_id / "report.html"

    def page(self, pipeline: str | None = None) -> Path:
        """The page of a pipeline's history, or of all pipelines; created when first written."""
        return self.root / "reports" / (f"{pipeline}/history.html" if pipeline else "pipelines.html")

    def relative(self, path: Path) -> str:
        """`path` as the database stores it: relative to the home, with forward slashes."""
        return path.resolve().relative_to(self.root).as_posix()

    def absolute(self, stored: str) -> Path:
        """The absolute path of a `relative` one.

        Raises:
            StorageError: `stored` points outside the home.
        """
        path = (self.root / stored).resolve()
        if not path.is_relative_to(self.root):
            raise StorageError(
                f"the database names {stored!r}, which is outside the home {self.root}",
                next_step="check what wrote that row: Nightgate stores only paths inside its home",
            )
        return path


def home_path(root: str | Path | None = None) -> Path:
    """The path of the home, which need not exist: `root`, `NIGHTGATE_HOME` or `.nightgate/` in the working folder."""
    return user_path(root or read_settings().home or ".nightgate").resolve()


def existing_home(root: str | Path | None = None, *, only_read: bool = False) -> Home:
    """Open a home that exists: a reader in the wrong folder gets an error instead of a new, empty home.

    This user need not have the right to write to it. With `only_read` the umask of the process, which may be a
    notebook or a service, stays as it is.

    Raises:
        RegistryError: there is no home.
        StorageError: the home cannot be read, or its `home.json` is damaged.
    """
    path = home_path(root)
    try:
        home = _read(path)
        if not only_read:
            _follow_mode(path)
        return home
    except NotADirectoryError as error:
        raise _in_the_way(path) from error
    except FileNotFoundError as error:
        raise RegistryError(
            f"there is no home of Nightgate at {path}",
            next_step="go to the folder that holds .nightgate/, or set NIGHTGATE_HOME; "
            "`nightgate run PIPELINE` creates a home",
        ) from error
    except PermissionError as error:
        raise StorageError(
            f"the home {path} cannot be read: {error.strerror}",
            next_step="give this user the right to read it, or set NIGHTGATE_HOME to another",
        ) from error


def find_home(root: str | Path | None = None) -> Home | None:
    """The home; None where there is none.

    Raises:
        StorageError: it cannot be read, or its `home.json` is damaged.
    """
    try:
        return existing_home(root)
    except RegistryError:
        return None


def home_for_reading() -> Home:
    """The home for commands that only read metrics; with `NIGHTGATE_DATABASE_URL` it need not exist and is not created.

    Raises:
        RegistryError: there is no home, and no other database.
        StorageError: the home cannot be read, or its `home.json` is damaged.
    """
    try:
        return existing_home(only_read=True)
    except RegistryError:
        if read_settings().database_url:
            return Home(root=home_path(), id="")
        raise


def open_home(root: str | Path | None = None) -> Home:
    """Open the home at `root`, `NIGHTGATE_HOME` or `.nightgate/`, and create it on first use.

    Raises:
        StorageError: the folder cannot be created, read or written, or its `home.json` is damaged.
    """
    path = home_path(root)
    with storage_errors(path):
        try:
            _make_folder(path)
            for folder in ("snapshots", "runs", "models"):
                (path / folder).mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise _in_the_way(path) from error
        marker = path / "home.json"
        if not marker.exists():
            write_once(marker, json.dumps({"id": uuid.uuid4().hex}).encode())
        return _read(path)


def _read(path: Path) -> Home:
    marker = path / "home.json"
    try:
        return Home(root=path, id=str(json.loads(marker.read_text(encoding="utf-8"))["id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{marker} is damaged: it must hold the home's id",
            next_step="restore it; the database has the id: SELECT value FROM setting WHERE key = 'home_id'",
        ) from error


def _in_the_way(path: Path) -> StorageError:
    return StorageError(
        f"{path} cannot be the home: a file or a broken link is in the way", next_step="set NIGHTGATE_HOME to a folder"
    )


def _make_folder(path: Path) -> None:
    """Make the home's folder for its owner, or for a group by `NIGHTGATE_HOME_ACCESS`."""
    path.mkdir(parents=True, exist_ok=True)
    if not any(path.iterdir()) and path.stat().st_uid == os.geteuid():
        with suppress(PermissionError):  # a file system without permissions
            path.chmod(0o2770 if read_settings().home_access == "group" else 0o700)
    _follow_mode(path)


def _follow_mode(path: Path) -> None:
    """Create files, in this process and those that it starts, for the users to whom the home's folder is open.

    Where it is open to all, as in homes of earlier versions, the umask stays, and `doctor` reports it.
    """
    mode = path.stat().st_mode
    if not mode & 0o007:
        os.umask(0o077 & ~mode)
