"""Choice of device and precision, with the reason for the log."""

from __future__ import annotations

from typing import NamedTuple

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


class Picked(NamedTuple):
    """The chosen device and precision."""

    device: torch.device
    dtype: torch.dtype
    """Type of autocast; weights and moments stay float32."""
    reason: str

    @property
    def precision(self) -> str:
        """'bf16', 'fp16' or 'fp32'."""
        return PRECISIONS[self.dtype]


def pick(precision: str) -> Picked:
    """Device and dtype for `training.precision` ('auto', 'bf16', 'fp16', 'fp32')."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    place = torch.cuda.get_device_name(device) if has_gpu else "the CPU"
    if precision != "auto":
        return Picked(device, DTYPES[precision], f"{precision} on {place}: training.precision = {precision!r}")
    if not has_gpu:
        reason = f"fp32 on the CPU: no GPU that this PyTorch ({torch.__version__}) can use"
        return Picked(device, torch.float32, reason)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Picked(device, torch.bfloat16, f"bf16 on {place}: it computes bf16 natively")
    return Picked(device, torch.float16, f"fp16 with loss scaling on {place}: it has no native bf16")


def describe(device: torch.device) -> str:
    """The device as the database stores it: 'cpu' or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
