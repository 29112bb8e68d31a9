"""What is compared: the stock `Trainer` three times, then the engine with one more of its wins in each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.batches import Order

REFERENCE = "dynamic"
BEST = "best"
OURS = "ours"
EFFECT_OF_WINS = ("packed", "cls", "trimmed", "deferred", OURS)


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    what: str
    """What exactly runs."""
    side: Literal["stock", "engine"]
    order: Order = "random"
    to_max_length: bool = False
    at_its_best: bool = False
    """Stock, with the settings that are fastest on this device."""
    wins: dict[str, bool] = field(default_factory=dict)
    evaluated: bool = True
    """False where evaluation is that of the row above."""

    @property
    def is_tuned(self) -> bool:
        """Whether threads and OpenMP are set as Nightgate sets them; otherwise they are as torch finds them."""
        return self.side == "engine" or self.at_its_best


def _wins(count: int) -> dict[str, bool]:
    names = ("packed", "cls_only", "trimmed", "deferred", "compiled")
    return {name: place < count for place, name in enumerate(names)}


VARIANTS = (
    Variant(
        "max_length",
        "stock, padded to 128",
        'rows tokenised with padding="max_length", default collator',
        "stock",
        to_max_length=True,
    ),
    Variant(
        REFERENCE,
        "stock, dynamic padding (reference)",
        "default TrainingArguments: DataCollatorWithPadding, random order, fp32, fused AdamW, torch's own threads",
        "stock",
    ),
    Variant(
        BEST,
        "stock at its best",
        "dynamic padding, train_sampling_strategy='group_by_length', OpenMP threads that wait without spinning; "
        "on a GPU bf16 where it is native, loading in 4 processes and pinned memory",
        "stock",
        order="grouped",
        at_its_best=True,
    ),
    Variant("packed", "ours: packed texts", "no padding, attention within each text", "engine", wins=_wins(1)),
    Variant("cls", "+ last layer for first tokens", "the head reads nothing else", "engine", wins=_wins(2)),
    Variant(
        "trimmed",
        "+ trimmed vocabulary",
        "the table holds the tokens of these rows alone",
        "engine",
        wins=_wins(3),
        evaluated=False,
    ),
    Variant(
        "deferred",
        "+ deferred exact Adam",
        "table rows are stepped when next needed",
        "engine",
        wins=_wins(4),
        evaluated=False,
    ),
    Variant(OURS, "+ compiled attention and norms (ours)", "in C where it was built", "engine", wins=_wins(5)),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
