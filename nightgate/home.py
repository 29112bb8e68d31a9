"""The home: the folder that holds snapshots, runs, models and, by default, the metrics database.

All workers of a pipeline share it. Paths in the database are relative to it, and its id stands in the database,
so that a worker whose home is another one is refused instead of finding nothing.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from nightgate.errors import StorageError, storage_errors


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
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def cache(self) -> Path:
        """What saves work and may be deleted at any time; made when first written to."""
        return self.root / "cache"

    def relative(self, path: Path) -> str:
        """`path` as the database stores it: relative to the home, with forward slashes."""
        return path.resolve().relative_to(self.root).as_posix()

    def absolute(self, stored: str) -> Path:
        """The path of what the database calls `stored`. It never leaves the home.

        Raises:
            StorageError: `stored` points outside the home.
        """
        path = (self.root / stored).resolve()
        if not path.is_relative_to(self.root):
            raise StorageError(
                f"the database names {stored!r}, which lies outside the home {self.root}",
                next_step="check who wrote that row: Nightgate stores paths inside its home only",
            )
        return path


def open_home(root: str | Path | None = None) -> Home:
    """The home at `root`, at `NIGHTGATE_HOME` or at `.nightgate/`; made on first use.

    Raises:
        StorageError: the folder cannot be made, read or written, or its `home.json` is damaged.
    """
    path = Path(root or os.environ.get("NIGHTGATE_HOME") or ".nightgate").expanduser().resolve()
    with storage_errors(path):
        try:
            for folder in ("snapshots", "runs", "models", "locks"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise StorageError(
                f"{path} cannot be the home: a file is in the way, or a link that leads nowhere",
                next_step="set NIGHTGATE_HOME to a folder",
            ) from error
        marker = path / "home.json"
        if not marker.exists():
            # Exclusive link: of two processes that make the home at once, both read the same id afterwards.
            draft = path / f".home-{uuid.uuid4().hex}.json"
            draft.write_text(json.dumps({"id": uuid.uuid4().hex}), encoding="utf-8")
            try:
                os.link(draft, marker)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        try:
            home_id = str(json.loads(marker.read_text(encoding="utf-8"))["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{marker} is damaged: it must hold the home's id",
                next_step="restore it; the database has the id: SELECT value FROM setting WHERE key = 'home_id'",
            ) from error
    return Home(root=path, id=home_id)
