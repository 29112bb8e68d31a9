"""The folder of a version: a stock Hugging Face model, README.md, and the manifest `nightgate.json`, written last.

A version is made in a staging folder beside its final place and renamed when it is whole and on disk, so that a
numbered folder is never half-written. Nothing in it is a pickle: weights are `safetensors`, the rest is text.

A version never changes. Its files are read-only; what proves it is their SHA-256, compared whenever it is loaded. The
folder stays writable, so that retention can remove it without being root: a file too many is found by name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightgate.durable_files import sync, write_whole
from nightgate.errors import ModelError, storage_errors

log = logging.getLogger(__name__)

MANIFEST = "nightgate.json"
CARD = "README.md"
FORMAT = 1
PICKLES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
"""Suffixes of files that may hold pickled code or that no loader of ours reads."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
RESTORE = "`nightgate rollback` to the champion before, or restore the folder from a backup"


class Staging:
    """A version on its way: model files in place, number not known yet.

    `place` may be called again with the same or another number, because a database transaction may be repeated.
    """

    def __init__(self, models: Path, best_model: Path, label_names: Sequence[str]) -> None:
        """Link (or copy) and hash the model.

        Args:
            models: folder of the pipeline's versions, home/models/<pipeline>/; the caller holds the pipeline's lock.

        Raises:
            ModelError: `best_model` is not a complete stock folder with these labels, or holds a pickle.
            StorageError: the disk is full, read-only or not ours.
        """
        names = _model_files(best_model, label_names)
        self.models = models
        self.files: dict[str, dict[str, Any]] = {}
        self.folder = models / f".staging-{uuid.uuid4().hex}"
        with storage_errors(models):
            try:
                models.mkdir(parents=True, exist_ok=True)
                # Only a process that was killed leaves one behind, and the lock says that it is not at work.
                for left in models.glob(".staging-*"):
                    shutil.rmtree(left, ignore_errors=True)
                self.folder.mkdir()
                for name in names:
                    self.files[name] = _take(best_model / name, self.folder / name)
            except BaseException:
                self.discard()
                raise

    @property
    def size_bytes(self) -> int:
        """Of the model's files; card and manifest, which come later, are small."""
        return sum(facts["bytes"] for name, facts in self.files.items() if name != CARD)

    def place(self, version: int, card: str, facts: Mapping[str, Any]) -> Path:
        """Write card and manifest, then rename to `v0001`: the last step, so a folder with that name is whole.

        Raises:
            StorageError: the disk is full, read-only or not ours.
        """
        target = self.models / f"v{version:04d}"
        if self.folder == target:
            return target
        with storage_errors(self.models):
            write_whole(self.folder / CARD, card.encode())
            _make_read_only(self.folder / CARD)
            self.files[CARD] = _hashed(self.folder / CARD)
            manifest = {"format": FORMAT, **facts, "version": version, "files": dict(sorted(self.files.items()))}
            manifest["seal"] = _seal(manifest)
            write_whole(self.folder / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
            _make_read_only(self.folder / MANIFEST)
            _clear_the_way(target)
            self.folder.rename(target)
            sync(self.models)
        self.folder = target
        return target

    def discard(self) -> None:
        """Remove what was not placed. A placed folder stays: its row may have been committed after all."""
        if self.folder.name.startswith(".staging-"):
            shutil.rmtree(self.folder, ignore_errors=True)


def verify_version(path: Path) -> dict[str, Any]:
    """The manifest of the version at `path`, after every file was read and its SHA-256 compared.

    Raises:
        ModelError: the folder or its manifest is missing or damaged, or a file is missing, altered or too many.
    """
    manifest = read_manifest(path)
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if not file.is_dir() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    } - {MANIFEST}
    if missing := sorted(set(files) - present):
        raise ModelError(f"{path} lacks {', '.join(missing)}, which its manifest lists", next_step=RESTORE)
    if extra := sorted(present - set(files)):
        # A loader prefers some names over others: one more file can change what is loaded.
        raise ModelError(
            f"{path} holds {', '.join(extra)}, which its manifest does not list",
            next_step="move what does not belong there out of the folder, then run the same command again",
        )
    for name, expected in files.items():
        found = _hashed(path / name)
        if found != expected:
            raise ModelError(
                f"{path / name} is altered: expected SHA-256 {expected['sha256']} ({expected['bytes']} bytes), "
                f"found {found['sha256']} ({found['bytes']} bytes)",
                next_step=RESTORE,
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest alone, checked against its own seal; no other file is read.

    Raises:
        ModelError: the folder or its manifest is missing or damaged.
    """
    if not path.is_dir():
        raise ModelError(f"the version's folder {path} is missing", next_step=RESTORE)
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        sealed = manifest["seal"] == _seal(manifest) and isinstance(manifest["files"], dict)
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} holds no {MANIFEST}: it is not a version, or an incomplete one", next_step=RESTORE
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path / MANIFEST} is damaged: {error!r}", next_step=RESTORE) from error
    if not sealed:
        raise ModelError(
            f"{path / MANIFEST} is altered: its contents do not match the seal that was written with them",
            next_step=RESTORE,
        )
    return manifest


def _model_files(folder: Path, label_names: Sequence[str]) -> list[str]:
    """Relative names of the files that make up the stock model in `folder`."""
    again = "run the night again: training writes this folder anew"
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.name not in (MANIFEST, CARD)
    )
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{folder} is not a complete model: it needs config.json and model.safetensors, and holds "
            f"{', '.join(names) or 'nothing'}",
            next_step=again,
        )
    if not any(name in names for name in TOKENIZER_FILES):
        raise ModelError(f"{folder} holds no tokenizer, only {', '.join(names)}", next_step=again)
    if pickles := [name for name in names if Path(name).suffix in PICKLES]:
        raise ModelError(
            f"{folder} holds {', '.join(pickles)}: a version holds safetensors and text only",
            next_step="remove what is not part of a stock safetensors model from that folder",
        )
    try:
        by_class = json.loads((folder / "config.json").read_bytes()).get("id2label", {})
        found = [by_class[str(index)] for index in range(len(by_class))]
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged: {error!r}", next_step=again) from error
    if found != list(label_names):
        raise ModelError(
            f"{folder / 'config.json'} names the labels {found}, but the pipeline has {list(label_names)}",
            next_step=again,
        )
    return names


def _take(source: Path, target: Path) -> dict[str, Any]:
    """Link, or copy to another file system; hash and flush.

    A link is as safe as a copy: files of a trained folder come to their names by rename, whole, and are only ever
    replaced or removed, which leaves the other name alone. What a symbolic link leads to keeps no such promise.
    Read-only becomes the trained folder's file too, then: it is the same one, and nothing writes into it again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or not _linked(source, target):
        shutil.copyfile(source, target)
    _make_read_only(target)
    sync(target)
    return _hashed(target)


def _make_read_only(file: Path) -> None:
    """Nobody may write it; who may read it stays as it was."""
    file.chmod(stat.S_IMODE(file.stat().st_mode) & ~0o222)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _hashed(file: Path) -> dict[str, Any]:
    with file.open("rb") as reader:
        digest = hashlib.file_digest(reader, "sha256")
        return {"sha256": digest.hexdigest(), "bytes": reader.tell()}


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything in the manifest but the seal itself: nothing else vouches for that file."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _clear_the_way(target: Path) -> None:
    """Move away a folder that stands where the next version belongs.

    The caller's transaction has just allotted the number, so no row names that folder: a crash between rename and
    commit left it.
    """
    if not target.exists():
        return
    orphans = target.parent / "orphans"
    orphans.mkdir(exist_ok=True)
    away = orphans / f"{target.name}-{uuid.uuid4().hex[:8]}"
    target.rename(away)
    log.warning("%s has no row in the database, a crash left it there: moved to %s", target, away)
