"""What is compared: the stock `Trainer` as it comes and at its best, then the engine with one more part in each row."""

from __future__ import annotations

from dataclasses import dataclass

from nightgate.engine.step import Wins

DEFAULTS, BEST, OURS = "defaults", "best", "ours"


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    wins: Wins | None = None
    """What the engine does; None for the stock Trainer."""

    @property
    def is_tuned(self) -> bool:
        """Whether threads and OpenMP are set as Nightgate sets them, and not left as torch finds them."""
        return self.name != DEFAULTS


VARIANTS = (
    # Dynamic padding, random order, fp32, fused AdamW.
    Variant(DEFAULTS, "Trainer, defaults"),
    # Grouped by length; on a GPU bf16 where it is native, and loading in 4 processes.
    Variant(BEST, "Trainer at its best"),
    Variant("packed", "ours: packed texts", Wins(cls_only=False, trimmed=False)),
    Variant("first", "+ last layer for first tokens", Wins(trimmed=False)),
    Variant(OURS, "+ trimmed vocabulary (ours)", Wins()),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
