"""Fast dropout on the CPU from sixteen random bits an element: torch's own masks take longer than GELU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 1 << 16
"""Dropout rates on the CPU are multiples of 1/65536: 0.1 becomes 0.100006. The scale is that of the rate in use."""


class Dropout:
    """A seeded sequence of dropout masks on the CPU, the same in every precision. On a GPU, dropout is torch's."""

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.SFC64(0))

    def seed(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(list(entropy)))

    def mask(self, count: int, rate: float, dtype: torch.dtype) -> tuple[Tensor | None, float]:
        """A mask of ones and zeros, [count], and the scale of kept elements; None keeps all."""
        threshold = round(rate * LEVELS)
        if not threshold:
            return None, 1.0
        raw = self._generator.integers(0, 1 << 64, -(-count // 4), dtype=np.uint64)
        bits = torch.from_numpy(raw.view(np.int16))[:count]
        kept = torch.ge(bits, threshold - LEVELS // 2, out=torch.empty(count, dtype=dtype))
        return kept, LEVELS / (LEVELS - threshold)

    def add(self, residual: Tensor, values: Tensor, rate: float) -> Tensor:
        """`residual + dropout(values)`."""
        if rate and values.device.type != "cpu":
            return residual + functional.dropout(values, rate)
        mask, scale = self.mask(values.numel(), rate, values.dtype)
        if mask is None:
            return residual + values
        added: Tensor = _AddKept.apply(residual, values, mask.view_as(values), scale)  # type: ignore[no-untyped-call]
        return added


class _AddKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.addcmul(residual, values, mask, value=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return gradient, torch.mul(gradient, mask).mul_(ctx.scale), None, None
