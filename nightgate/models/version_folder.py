"""The folder of a version: a stock Hugging Face model, README.md, and the manifest `nightgate.json`, written last.

A version is made in a staging folder beside its final place and renamed when it is complete and on disk, so a numbered
folder is never half-written. Nothing in it is a pickle: weights are `safetensors`, the rest is text.

A version never changes: its files are read-only, and their SHA-256 is compared whenever it is loaded. The folder stays
writable, so that retention can remove it without being root; extra files are found by name.
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
LEARNT_FILE = "learnt.parquet"
"""What the line of the version has learnt (`nightgate.training.continued`), which grows with the rows."""
FORMAT = 1
PICKLES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
"""Suffixes of files that may hold pickled code, or weights in formats that are not loaded."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
RESTORE = "restore the folder from a backup, or `nightgate rollback PIPELINE --reason TEXT` to the previous champion"


class Staging:
    """A version without a number: its model files in a staging folder.

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
                # Left by killed processes: the caller's lock excludes a live one.
                for left in models.glob(".staging-*"):
                    shutil.rmtree(left, ignore_errors=True)
                self.folder.mkdir()
                for name in names:
                    self.files[name] = _link_or_copy(best_model / name, self.folder / name)
            except BaseException:
                self.discard()
                raise

    @property
    def size_bytes(self) -> int:
        """Size of the model's files, without card and manifest."""
        return sum(facts["bytes"] for name, facts in self.files.items() if name != CARD)

    def place(self, version: int, card: str, facts: Mapping[str, Any]) -> Path:
        """Write card and manifest, then rename the folder to `v0001`: a folder with that name is complete.

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
            if target.exists():
                # The transaction has just allotted the number: a crash between rename and commit left this folder.
                _clear(target)
            self.folder.rename(target)
            sync(self.models)
        self.folder = target
        return target

    def discard(self) -> None:
        """Remove the staging folder. A placed folder stays: its row may have been committed."""
        if self.folder.name.startswith(".staging-"):
            shutil.rmtree(self.folder, ignore_errors=True)


def has_another_copy(folder: Path) -> bool:
    """Whether the weights in `folder` have another name on this disk, in the checkpoints of the run that made them."""
    weights = [*folder.glob("*.safetensors")]
    return bool(weights) and all(file.stat().st_nlink > 1 for file in weights)


def _clear(target: Path) -> None:
    """Remove a numbered folder without a row; one with the only copy of its weights is moved to `orphans/`."""
    if has_another_copy(target):
        shutil.rmtree(target)
        return
    away = target.parent / "orphans" / f"{target.name}-{uuid.uuid4().hex[:8]}"
    away.parent.mkdir(exist_ok=True)
    target.rename(away)
    log.warning("%s was left by a crash and has no row in the database: moved to %s", target, away)


def verify_version(path: Path, *, contents: bool = True) -> dict[str, Any]:
    """Compare the SHA-256 of every file of the version at `path`; returns the manifest.

    Args:
        contents: read the files; otherwise only their names and sizes are compared.

    Raises:
        ModelError: the folder or its manifest is missing or damaged, or a file is missing, altered or extra.
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
        # Loaders prefer some names over others: an extra file can change what is loaded.
        raise ModelError(
            f"{path} holds {', '.join(extra)}, which its manifest does not list",
            next_step="move these files out of the folder, then run the same command again",
        )
    for name, expected in files.items():
        file = path / name
        found = _hashed(file) if contents else {**expected, "bytes": file.stat().st_size}
        if found != expected:
            raise ModelError(
                f"{path / name} is altered: expected SHA-256 {expected['sha256']} ({expected['bytes']} bytes), "
                f"found {found['sha256']} ({found['bytes']} bytes)",
                next_step=RESTORE,
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the version at `path`, checked against its own seal; no other file is read.

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
            f"{path} holds no {MANIFEST}: it is not a version, or not a complete one", next_step=RESTORE
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path / MANIFEST} is damaged: {error!r}", next_step=RESTORE) from error
    if not sealed:
        raise ModelError(f"{path / MANIFEST} is altered: its content does not match its seal", next_step=RESTORE)
    return manifest


def _model_files(folder: Path, label_names: Sequence[str]) -> list[str]:
    """Relative names of the files of the stock model in `folder`."""
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
            next_step="remove the files that are not part of a stock safetensors model",
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


def _link_or_copy(source: Path, target: Path) -> dict[str, Any]:
    """Link `source`, or copy it to another file system; flush and hash it.

    A hard link is as safe as a copy: files of a trained folder are only replaced or removed, never written in place.
    The target of a symbolic link may be, so it is copied. The trained folder's file becomes read-only with its link.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or not _linked(source, target):
        shutil.copyfile(source, target)
    _make_read_only(target)
    sync(target)
    return _hashed(target)


def _make_read_only(file: Path) -> None:
    """Remove all write permissions; read permissions stay."""
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
    """SHA-256 of the manifest without its seal."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
