"""Durable, atomic files: written completely or not at all, even across a power cut."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nightgate.errors import storage_errors


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with `~` for their folder; `~NAME` stays as it is where no user has that name."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises RuntimeError


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; a block without an exception renames it to `final`.

    An existing file is replaced atomically. An existing folder is removed first, so it may only be one that a killed
    attempt left.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield draft
        is_folder = draft.is_dir()
        for path in (*sorted(draft.rglob("*")), draft) if is_folder else (draft,):
            sync(path)
        if is_folder and final.exists():
            shutil.rmtree(final)
        draft.replace(final)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        raise
    sync(final.parent)


def remove_drafts(folder: Path, *, nested: bool = False) -> None:
    """Remove the temporary files and folders of `replacing` that killed processes left in `folder`.

    Args:
        nested: In its folders, too.
    """
    for draft in [*folder.glob("**/.*.tmp" if nested else ".*.tmp")]:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file atomically and durably.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with storage_errors(path), replacing(path) as draft:
        draft.touch(mode)
        draft.write_bytes(content)


def write_once(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file unless there is one: of several processes at once, the first one's content stays."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
        sync(draft)
        # A hard link fails if the name exists.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk: a rename is part of the folder, not of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
