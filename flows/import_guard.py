"""Prefect plugin that keeps the working folder out of a run's imports; `PREFECT_PLUGINS_ENABLED=true` loads it.

`PYTHONSAFEPATH=1` is not enough: Prefect 3.8 still puts the working folder first on `sys.path` while it imports a flow,
and a tasks.py or torch.py there would be executed in place of the installed one.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from prefect.plugins import HookContext, register_hook


class _NoModules:
    """Finder that finds no module."""

    def find_spec(self, name: str, target: ModuleType | None = None) -> ModuleSpec | None:
        del name, target
        return None


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Called by Prefect when it is imported."""
    del ctx
    guard_imports()


def guard_imports() -> None:
    """Refuse modules of the working folder, unless it is on `sys.path` already, as with an editable installation."""
    chosen = frozenset(sys.path)

    def guard(entry: str) -> _NoModules:
        if entry in chosen or entry != str(Path.cwd()):
            raise ImportError(entry)  # for Python's own finders
        return _NoModules()

    sys.path_hooks.insert(0, guard)
