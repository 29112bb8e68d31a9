"""Files that survive a power cut: written whole or not at all, and vouched for by their hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightgate.errors import storage_errors


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A name beside `final` to write a file or a folder to; it becomes durable, then `final`, when the block ends well.

    A file takes the place of another at once. A folder of that name is removed first: it may not be one that is still
    needed, only what a killed attempt left.
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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all, also after a power cut.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with storage_errors(path), replacing(path) as draft:
        draft.write_bytes(content)


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a folder: a rename lives in the folder, not in the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """64 hex digits of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
