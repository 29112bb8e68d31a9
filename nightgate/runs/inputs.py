"""The inputs of a night: named values of all that can change its result besides the champion, the anchor and a freeze.

    inputs(pipeline, db.home, snapshot_id)          # {"snapshot": "s-...", "torch": "2.10.0", "base model": "...", ...}

A scheduled night trains where one of them has changed (`nightgate.night.reasons`). No model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nightgate.config.pipeline import Pipeline
from nightgate.config.training import Training
from nightgate.durable_files import sha256_of, write_whole
from nightgate.engine import base_model_folder
from nightgate.errors import DataError, ModelError, StorageError
from nightgate.home import Home
from nightgate.provenance import base_model_revision, code_version, library_versions
from nightgate.settings import read_settings
from nightgate.sources.found_files import matching_files

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub; without its answer the commit in the local cache counts."""
MISSING = "missing"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def inputs(pipeline: Pipeline, home: Home, snapshot_id: str, seed_spread: float | None = None) -> dict[str, str]:
    """The inputs of a night on this machine, by name.

    Args:
        seed_spread: between seeds, where the gate's margin is in units of it.
    """
    settings, libraries = read_settings(), library_versions()
    del libraries["datasets"]  # what it read is in the snapshot
    found = {
        "snapshot": snapshot_id,
        "configuration": pipeline.config_hash,
        "approval": str(pipeline.gate.approval).lower(),
        "code": code_version(),
        "base model": _base_model(pipeline.training, home),
        "golden file": _golden_file(pipeline.data.golden),
        "seed spread": "" if seed_spread is None else repr(seed_spread),
        "processes": str(settings.processes),
        "CUDA graphs": str(settings.cuda_graphs).lower(),
        "Python": platform.python_version(),
        **libraries,
    }
    return {name: value for name, value in found.items() if value}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A clause for each input that differs."""
    return [
        f"{name} was {before.get(name, 'none')} and is {now.get(name, 'none')}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]


def _base_model(training: Training, home: Home) -> str:
    """A hash of the folder's files, or the hub's commit."""
    try:
        folder = base_model_folder.local_folder(training.base_model)
        if folder is not None:
            return _hash_of(folder, home.root / "base-models.json")
    except (ModelError, OSError):  # the training reports it
        return MISSING
    return _commit(training.base_model, training.base_model_revision) or MISSING


def _commit(name: str, revision: str) -> str | None:
    """The hub's commit of a name at a revision; where the hub does not answer, that in the local cache."""
    if _COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=HUB_TIMEOUT).sha
    except Exception:  # noqa: BLE001 - offline, unreachable or gone: the training reports it
        return base_model_revision(name, revision)


def _golden_file(golden: str) -> str:
    if not golden:
        return ""
    try:
        return _joined(sha256_of(file.path) if file.is_local else file.version for file in matching_files((golden,)))
    except (DataError, OSError):
        return MISSING


def _hash_of(folder: Path, cache: Path) -> str:
    """Hash of the names and contents of the files that are loaded.

    Weights take a second a gigabyte: a file is read again only if size, times or inode differ from those in `cache`.
    """
    known = _read(cache)
    found: dict[str, list[Any]] = {}
    for pattern in base_model_folder.FILES:
        for path in folder.glob(pattern):
            facts = path.stat()
            state = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
            *before, content = known.get(str(path), [None])
            found[str(path)] = [*state, content if before == state else sha256_of(path)]
    if any(known.get(path) != entry for path, entry in found.items()):
        kept = {path: entry for path, entry in known.items() if Path(path).exists()}
        with suppress(StorageError):
            write_whole(cache, json.dumps(kept | found, indent=1).encode())
    return _joined(f"{Path(path).name} {entry[-1]}" for path, entry in sorted(found.items()))


def _read(cache: Path) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(cache.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
