"""Provenance of a model: version of the code, revision of the base model, libraries and machine.

All of it comes from files and package metadata; no model is loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nightgate import __version__
from nightgate.durable_files import sha256_of, user_path

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of a base model's weights, in the order in which they are tried."""
_IN_HUB_CACHE = re.compile(r"/snapshots/([0-9a-f]{40})$")


@cache
def code_version() -> str:
    """The package's version; in a git checkout with its commit, such as `0.1.0+8443adb7c0de` or `...de.dirty`."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return __version__
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=.dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__  # no git, or a checkout that belongs to another user, which git does not trust
    return f"{__version__}+{described.stdout.strip()}"


def library_versions() -> dict[str, str]:
    """Installed version of each of LIBRARIES."""
    return {name: metadata.version(name) for name in LIBRARIES}


def environment(device: str | None = None, precision: str | None = None) -> dict[str, Any]:
    """The training environment as JSON: Python, system, processor, device and libraries.

    Args:
        device: as in `attempt.device`: 'cpu' or the GPU's name; None if unknown.
        precision: as in `attempt.precision`.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "device": device,
        "precision": precision,
        "libraries": library_versions(),
    }


def base_model_revision(base_model: str, revision: str = "") -> str | None:
    """Identify the local weights of `training.base_model`, without asking the hub.

    A commit of the hub (40 hex digits), `package==version` for a folder inside a package, or `sha256:` and 12 hex
    digits of a folder's weights. None if the model is not on this machine.
    """
    if base_model.startswith("package:"):
        return _package_version(base_model.removeprefix("package:").partition("/")[0])
    folder = user_path(base_model)
    if not folder.is_dir():
        return _cached_commit(base_model, revision)
    # The path may lead into the hub's cache, whose folders are named by commit.
    commit = _IN_HUB_CACHE.search(folder.resolve().as_posix())
    return commit[1] if commit else _hash_of_weights(folder)


def _package_version(package: str) -> str | None:
    """`name==version` of the distribution that contains a Python package, whose name may differ."""
    for name in (package, *metadata.packages_distributions().get(package, ())):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return f"{found.metadata['Name']}=={found.version}"
    return None


def _cached_commit(base_model: str, revision: str) -> str | None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(base_model, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def _hash_of_weights(folder: Path) -> str | None:
    """`sha256:` and 12 digits: the hash of one file, or the hash over the hashes of several."""
    for pattern in _WEIGHTS:
        hashes = [sha256_of(file) for file in sorted(folder.glob(pattern))]
        if hashes:
            whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
            return f"sha256:{whole[:12]}"
    return None


def _processor() -> str:
    """The processor's name if the system knows it, else its architecture, such as x86_64."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()
