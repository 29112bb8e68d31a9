"""Training losses of an epoch, which end a run where they are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nightgate.errors import NonFiniteLossError

CHECK_BASE_MODEL = "check the base model: its first loss is not finite, so its weights hold NaN or infinity"
STABILISE = "lower training.learning_rate, raise training.warmup_ratio, or set training.precision = 'fp32'"


@dataclass
class Losses:
    """Losses of an epoch, read from the device in groups; one that is not finite is an error."""

    epoch: int
    precision: str
    group: int
    total: float = 0.0
    examples: int = 0
    _unread: list[tuple[int, float, int, Tensor]] = field(default_factory=list)

    def add(self, step: int, rate: float, examples: int, loss: Tensor) -> None:
        self._unread.append((step, rate, examples, loss.detach()))
        if len(self._unread) >= self.group:
            self.read()

    def read(self) -> None:
        if not self._unread:
            return
        values = torch.stack([loss for *_, loss in self._unread]).tolist()
        for (step, rate, examples, _), value in zip(self._unread, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the training loss is {value} in epoch {self.epoch}, step {step} "
                    f"(learning rate {rate:g}, {self.precision})",
                    next_step=CHECK_BASE_MODEL if step == 1 else STABILISE,
                )
            self.total += value * examples
            self.examples += examples
        self._unread.clear()

    @property
    def mean(self) -> float:
        return self.total / max(self.examples, 1)
