"""What made a model: this code's version, the base model's revision, the libraries and the machine.

Nothing here loads a model: files and the metadata of installed packages say it all.
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
from nightgate.durable_files import sha256_of

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""In the order in which a base model's are looked for."""
_IN_HUB_CACHE = re.compile(r"/snapshots/([0-9a-f]{40})$")


@cache
def code_version() -> str:
    """The package's version; from a git checkout with its commit, and `.dirty` where files differ from it.

    Such as `0.1.0+8443adb7c0de` or `0.1.0+8443adb7c0de.dirty`.
    """
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
        return __version__  # no git here, or a checkout of another user's that git does not trust
    return f"{__version__}+{described.stdout.strip()}"


def library_versions() -> dict[str, str]:
    """Installed versions, by package."""
    return {name: metadata.version(name) for name in LIBRARIES}


def environment(device: str | None = None, precision: str | None = None) -> dict[str, Any]:
    """Where a model is trained, as JSON: Python, system, processor, device and libraries.

    Args:
        device: as `attempt.device` has it: 'cpu' or the GPU's name; None where it is not known.
        precision: as `attempt.precision` has it.
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
    """Which weights `training.base_model` means on this machine, from what lies here: the hub is not asked.

    A commit of the hub (40 hex digits), `package==version` for a folder inside a package, or `sha256:` and 12 hex
    digits of a folder's weights. None: there is nothing here by that name.
    """
    if base_model.startswith("package:"):
        return _package_version(base_model.removeprefix("package:").partition("/")[0])
    folder = Path(base_model).expanduser()
    if not folder.is_dir():
        return _cached_commit(base_model, revision)
    # A folder of the hub's cache that was named as such is still that commit.
    commit = _IN_HUB_CACHE.search(folder.resolve().as_posix())
    return commit[1] if commit else _hash_of_weights(folder)


def _package_version(package: str) -> str | None:
    """Of the distribution that holds a Python package; most are called alike but for hyphens."""
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
    """As `sha256sum` says it of one file; of several, over what it says of each."""
    for pattern in _WEIGHTS:
        hashes = [sha256_of(file) for file in sorted(folder.glob(pattern))]
        if hashes:
            whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
            return f"sha256:{whole[:12]}"
    return None


def _processor() -> str:
    """The processor's own name, where the system tells it; else its kind, such as x86_64."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()
