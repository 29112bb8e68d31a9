"""The metrics of an epoch by the library `evaluate`: F1 and its kin, and those of `training.metrics`.

    python -m nightgate.training.epoch_metrics 5 matthews_correlation my_metric.py     # try them on a few rows

`evaluate` imports torch and transformers, so it is used in processes of their own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.config.training import is_metric_file, metric_name
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.metrics.confusion import Scores
from nightgate.metrics.from_counts import SHIPPED
from nightgate.training.protocol import MetricValue

log = logging.getLogger(__name__)

_MODULE = str(Path(__file__).with_name("evaluation_module.py"))


class EpochMetrics:
    """Computes the metrics of predictions; its modules are opened once.

    Args:
        own: `training.metrics`.
        folder: for the files that `evaluate` makes; the user's cache may be read-only.

    Raises:
        ConfigurationError: one of `own` cannot be opened.
    """

    def __init__(self, num_labels: int, folder: Path, own: Sequence[str] = ()) -> None:
        self._num_labels, self._folder = num_labels, folder
        modules_before = os.environ.get("HF_MODULES_CACHE")
        if all(name in SHIPPED or is_metric_file(name) for name in own):
            # Modules of the hub are read from the user's cache when the hub is away. `evaluate` reads this at import.
            os.environ.setdefault("HF_MODULES_CACHE", str(folder))
        import evaluate

        if modules_before is None:
            os.environ.pop("HF_MODULES_CACHE", None)
        self._load = evaluate.load
        self._standard = self._opened(_MODULE)
        self._own = {name: self._own_module(name) for name in own}

    def scores(self, references: NDArray[np.int64], predictions: NDArray[np.int64]) -> Scores:
        """Scores of predicted against true class indices, both [rows], at least one row."""
        found = self._standard.compute(references=references, predictions=predictions, num_labels=self._num_labels)
        return Scores(**found)

    def own(self, references: NDArray[np.int64], predictions: NDArray[np.int64]) -> tuple[MetricValue, ...]:
        """Values of the pipeline's own metrics on the same rows. One that fails has no value, and ends nothing."""
        found: list[MetricValue] = []
        for name in self._own:
            try:
                found += self._values(name, references, predictions)
            except (Exception, SystemExit) as error:
                log.warning("training.metrics: %r has no value: %s", name, _brief(error))
                log.debug("failed", exc_info=error)
                found.append(MetricValue(metric_name(name), None, _brief(error)))
        return tuple(found)

    def try_own(self) -> None:
        """Compute the pipeline's own metrics on two rows of each label.

        Raises:
            ConfigurationError: one raises, or gives no numbers.
        """
        references = np.tile(np.arange(self._num_labels, dtype=np.int64), 2)
        predictions = np.sort(references)
        for name in self._own:
            try:
                self._values(name, references, predictions)
            except (Exception, SystemExit) as error:
                raise ConfigurationError(
                    f"training.metrics: {name!r} fails on {len(references)} rows of class indices: {_brief(error)}",
                    next_step="mend it, or take it out of training.metrics",
                ) from error

    def _values(self, name: str, references: NDArray[np.int64], predictions: NDArray[np.int64]) -> list[MetricValue]:
        options = {"num_labels": self._num_labels} if name in SHIPPED else {}
        result = self._own[name].compute(references=references, predictions=predictions, **options)
        return [_stored(key, value) for key, value in _numbers(metric_name(name), result)]

    def _own_module(self, name: str) -> Any:
        if name in SHIPPED:
            return self._opened(_MODULE, config_name=name)
        try:
            return self._opened(name) if is_metric_file(name) else self._load(name, keep_in_memory=True)
        except (Exception, SystemExit) as error:
            where = "a file" if is_metric_file(name) else f"one of {', '.join(SHIPPED)}, or of the hub"
            raise ConfigurationError(
                f"training.metrics: {name!r} cannot be opened by `evaluate.load` as {where}: {_brief(error)}",
                next_step="correct the path, or what the file imports"
                if is_metric_file(name)
                else "correct the name, or connect to the network for a metric of the hub",
            ) from error

    def _opened(self, path: str, **options: Any) -> Any:
        return self._load(path, keep_in_memory=True, cache_dir=str(self._folder), **options)


def _numbers(name: str, result: Any) -> list[tuple[str, float]]:
    """The numbers of what a metric returns: `name` where it is one, else `name.key`, and `name.key.0` of a list."""
    if not isinstance(result, dict) or not result:
        raise TypeError(f"it returned {result!r:.80} and not numbers by name")
    found: list[tuple[str, float]] = []
    for key, value in result.items():
        values, own_name = np.asarray(value), name if len(result) == 1 else f"{name}.{key}"
        if values.dtype.kind not in "biuf" or values.ndim > 1:
            raise TypeError(f"its {key} is {value!r:.80}, neither a number nor a list of numbers")
        if values.ndim == 0:
            found.append((own_name, float(values)))
        else:
            found += ((f"{own_name}.{place}", float(one)) for place, one in enumerate(values))
    return found


def _stored(name: str, value: float) -> MetricValue:
    return MetricValue(name, value) if math.isfinite(value) else MetricValue(name, None, str(value))


def _brief(error: BaseException) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:500]


def main(arguments: Sequence[str]) -> None:
    """Print why metrics cannot be used, as reason and next step in JSON; {} where they can."""
    problem = {}
    with TemporaryDirectory() as folder:
        try:
            EpochMetrics(int(arguments[0]), Path(folder), arguments[1:]).try_own()
        except NightgateError as error:
            problem = {"reason": error.reason, "next_step": error.next_step}
    # On a line of its own, whatever the metrics printed.
    sys.stdout.write(f"\n{json.dumps(problem)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
