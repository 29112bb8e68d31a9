"""Nightgate: nightly retraining of text classifiers behind a promotion gate that can be trusted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightgate.frames.champions import champion as champion
    from nightgate.frames.champions import versions as versions
    from nightgate.frames.changes import changes as changes
    from nightgate.frames.changes import checks as checks
    from nightgate.frames.nights import epochs as epochs
    from nightgate.frames.nights import history as history
    from nightgate.frames.nights import slices as slices
    from nightgate.registry.champions import load_champion as load_champion

__version__ = "0.1.0"
__all__ = [
    *("__version__", "champion", "changes", "checks", "epochs", "history", "load_champion", "slices", "versions"),
]

_HOMES = {
    "champion": "nightgate.frames.champions",
    "changes": "nightgate.frames.changes",
    "checks": "nightgate.frames.changes",
    "epochs": "nightgate.frames.nights",
    "history": "nightgate.frames.nights",
    "load_champion": "nightgate.registry.champions",
    "slices": "nightgate.frames.nights",
    "versions": "nightgate.frames.champions",
}


def __getattr__(name: str) -> Any:
    # On first use: `import nightgate` stays free of torch, pandas and SQLAlchemy.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nightgate' has no attribute {name!r}")
