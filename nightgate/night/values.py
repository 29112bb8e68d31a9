"""What the steps of a night return and later ones take: ids, numbers and paths; arrays stay in files.

As text each is short enough for the name of a task in Prefect's UI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nightgate.data.golden_rows import GoldenSet
from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Serving
from nightgate.metrics.confusion import Scores
from nightgate.registry.versions import VersionRow
from nightgate.runs.evaluations import Evaluation
from nightgate.training.protocol import ScoreResult, TrainResult


@dataclass(frozen=True)
class Evaluated:
    """The champion and the anchor on rows that came since they were chosen."""

    found: tuple[Evaluation, ...] | None
    """Empty without a champion; None: they could not be evaluated."""
    flaw: str = ""
    """Why not."""

    @property
    def champion(self) -> Evaluation | None:
        return next(iter(self.found or ()), None)

    @property
    def alarms(self) -> frozenset[str] | None:
        """Of the champion; None: it could not be evaluated."""
        if self.found is None or (self.champion and not self.champion.is_whole):
            return None
        return frozenset(name for one in self.found for name in one.alarms)

    def __str__(self) -> str:
        return "; ".join(map(str, self.found or ())) or ("no champion" if self.found is not None else "not evaluated")


@dataclass(frozen=True)
class Trained:
    """A fine-tuned candidate and what it started from."""

    result: TrainResult
    started_from: int | None
    """The version that training went on from; None: the base model."""
    base_model_revision: str | None

    def __str__(self) -> str:
        count = self.result.epochs_run
        return f"{count} epoch{'' if count == 1 else 's'}, the best one is epoch {self.result.best_epoch}"


@dataclass(frozen=True)
class Model:
    """One side of tonight's comparison."""

    folder: Path
    version: VersionRow | None = None
    """None: the candidate, which has no number yet."""
    flaw: str = ""
    """Why it cannot be scored; '' where it can."""
    relabelled: bool = False
    """As in `nightgate.gate.evidence.Side`."""


@dataclass(frozen=True)
class Scored:
    """The sides of tonight's comparison, and the files that hold their predictions on the same rows."""

    champion: VersionRow | None
    anchor: VersionRow | None
    models: Mapping[str, Model]
    """By side; an anchor that is the champion is no side of its own."""
    golden: GoldenSet
    result: ScoreResult

    def __str__(self) -> str:
        return ", ".join(
            name if model.version is None else f"{name} {model.version.version}" for name, model in self.models.items()
        )


@dataclass(frozen=True)
class Served:
    """How a fresh process served the saved models."""

    candidate: Serving
    champion: Serving | None = None


@dataclass(frozen=True)
class Judged:
    """The gate's decision and the candidate's scores on the rows that decided."""

    decision: Decision
    test: Scores

    def __str__(self) -> str:
        return self.decision.verdict
