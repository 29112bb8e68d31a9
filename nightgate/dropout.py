"""Dropout on the CPU by sixteen random bits an element, and the residual sum and layer norm that follow it.

torch's own masks take longer than GELU. The compiled kernel (`kernels`) and plain torch read the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nightgate.kernels import BITS_BEHIND, Kernel

LEVELS = 1 << 16
"""Dropout rates on the CPU are multiples of 1/65536: 0.1 becomes 0.100006. The scale is that of the rate in use."""


@dataclass(frozen=True)
class Kept:
    """Which cells dropout keeps: those whose random bits are not below the threshold."""

    bits: Tensor
    """int16, a few more than there are cells."""
    threshold: int
    scale: float
    """What kept cells are multiplied by."""
    cells: tuple[NDArray[np.int64], ...]
    """Of attention, of each text: its first cell; the step from head to head, and from query to query."""

    def mask(self, count: int, dtype: torch.dtype) -> Tensor:
        """Ones and zeros, [count]."""
        return torch.ge(self.bits[:count], self.threshold, out=torch.empty(count, dtype=dtype))


class Dropout:
    """A sequence of masks on the CPU, which `seed` starts. Elsewhere, and under autocast, dropout is torch's."""

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.SFC64(0))

    def seed(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(list(entropy)))

    def mask(self, count: int, rate: float, like: Tensor) -> tuple[Tensor | None, float]:
        """Ones and zeros, [count], in `like`'s dtype, and what the kept are multiplied by; None keeps everything."""
        kept = self.kept(count, rate)
        return (None, 1.0) if kept is None else (kept.mask(count, like.dtype), kept.scale)

    def kept(self, count: int, rate: float, *cells: NDArray[np.int64]) -> Kept | None:
        """Which of `count` cells are kept; None keeps everything."""
        threshold = round(rate * LEVELS)
        if not threshold:
            return None
        raw = self._generator.integers(0, 1 << 64, -(-(count + BITS_BEHIND) // 4), dtype=np.uint64)
        bits = torch.from_numpy(raw.view(np.int16))
        return Kept(bits, threshold - LEVELS // 2, LEVELS / (LEVELS - threshold), cells)

    def add(self, residual: Tensor, values: Tensor, rate: float) -> Tensor:
        """`residual + dropout(values)`."""
        if not rate or values.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return residual + (functional.dropout(values, rate) if rate else values)
        mask, scale = self.mask(values.numel(), rate, values)
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


def add_and_norm(
    residual: Tensor, values: Tensor, norm: nn.LayerNorm, dropout: Dropout, rate: float, kernel: Kernel | None = None
) -> Tensor:
    """`norm(residual + dropout(values))`."""
    # Under autocast the two may be of different precision, and the norm is of another still.
    if kernel is None or torch.is_autocast_enabled("cpu") or not kernel.takes_norm(values, norm):
        return norm(dropout.add(residual, values, rate))  # type: ignore[no-any-return]
    kept = dropout.kept(values.numel(), rate)
    normed: Tensor = _Norm.apply(  # type: ignore[no-untyped-call]
        kernel, kept, norm.eps, residual, values, norm.weight, norm.bias
    )
    return normed


class _Norm(torch.autograd.Function):
    """Residual, dropout and layer norm by the kernel."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, kept: Kept | None, epsilon: float, residual: Tensor, values: Tensor, *affine: Tensor
    ) -> Tensor:
        weight, bias = affine
        out, total, moments = kernel.norm(residual.contiguous(), values.contiguous(), weight, bias, epsilon, kept)
        ctx.save_for_backward(total, moments, weight)
        ctx.kernel, ctx.kept = kernel, kept
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.kernel.norm_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.kept)
