"""Stop a call in this process at one of its changes to the disk or the database, as a kill would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest


class Killed(BaseException):
    """No `except Exception` may catch it."""


@contextmanager
def killed_at(stop: int, *changes: tuple[Any, str]) -> Iterator[None]:
    """Raise `Killed` in place of the call number `stop`, from 0 on, of these functions.

    Args:
        changes: modules or classes, each with the name of a function of it.
    """
    steps = count()

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps) == stop:
                raise Killed
            return real(*arguments, **options)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for place, name in changes:
            patch.setattr(place, name, counted(getattr(place, name)))
        yield
