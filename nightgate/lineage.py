"""What made a model: the version of this code and of the libraries that its numbers may depend on."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from nightgate import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


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
