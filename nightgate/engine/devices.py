"""Choice of device and precision, with the reason for the log.

On a GPU the hardware decides. On a CPU `auto` means bf16 where the CPU computes it natively and faster than float32
(`pick`), the model is wide enough (`for_model`), and its logits stay as they are (`forward.choose`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}

LEAST_GAIN = 1.3
"""Least speed of a matrix product in bf16 against float32. Native bf16 is 2 to 5 times as fast."""
LEAST_WIDTH = 128
"""Least hidden width of a model for bf16 on a CPU."""
TIMED_SHAPE = (640, 384, 1536)
"""Tokens of a batch, width and inner width of Multilingual-MiniLM."""


class Picked(NamedTuple):
    """The chosen device and precision."""

    device: torch.device
    dtype: torch.dtype
    """Type of autocast; weights and moments stay float32."""
    reason: str
    is_tentative: bool = False
    """A model that is narrow, or whose logits would differ, is computed in float32."""

    @property
    def precision(self) -> str:
        """'bf16', 'fp16' or 'fp32'."""
        return PRECISIONS[self.dtype]

    def autocast(self) -> torch.autocast:
        """A context in which matrix products are computed in this precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def in_fp32(self, why: str) -> Picked:
        """The same device, in float32."""
        return Picked(self.device, torch.float32, f"fp32 on {_name(self.device)}: {why}")


def pick(precision: str, name: str | None = None) -> Picked:
    """Device and dtype for `training.precision` ('auto', 'bf16', 'fp16', 'fp32').

    The first call takes some 0.1 s on a CPU with native bf16.

    Args:
        name: of the device, for PyTorch; None: a GPU if there is one.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        # Older releases of PyTorch do not know the CPU's capabilities.
        return pick_on_cpu(precision, getattr(torch.cpu, "get_capabilities", dict)(), gain_of_bf16)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    place = _name(device)
    if precision != "auto":
        return Picked(device, DTYPES[precision], f"{precision} on {place}: training.precision = {precision!r}")
    if device.type != "cuda":
        return Picked(device, torch.float32, f"fp32 on {place}")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Picked(device, torch.bfloat16, f"bf16 on {place}: it computes bf16 natively")
    return Picked(device, torch.float16, f"fp16 with loss scaling on {place}: it has no native bf16")


def pick_on_cpu(precision: str, capabilities: Mapping[str, Any], gain: Callable[[], float]) -> Picked:
    """Precision on a CPU: bf16 or float32 for 'auto'.

    Args:
        capabilities: as `torch.cpu.get_capabilities` names them.
        gain: measures the speed of bf16 against float32; not called where bf16 is emulated.
    """
    full = Picked(torch.device("cpu"), torch.float32, "")
    names = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if precision != "auto":
        is_slow = precision == "fp16" or (precision == "bf16" and not names)
        note = f", slow because this CPU emulates {precision}" if is_slow else ""
        reason = f"{precision} on the CPU: training.precision = {precision!r}{note}"
        return Picked(full.device, DTYPES[precision], reason)
    if not names:
        no_gpu = f"no GPU that this PyTorch ({torch.__version__}) can use"
        return full.in_fp32(f"it does not compute bf16 natively (AVX512-BF16 or AMX); {no_gpu}")
    if not (times := gain()) >= LEAST_GAIN:
        return full.in_fp32(f"a matrix product in bf16 is {times:.1f} times as fast, needed are {LEAST_GAIN}")
    reason = f"bf16 on the CPU: {names[0]}, a matrix product is {times:.1f} times as fast as in fp32"
    return Picked(full.device, torch.bfloat16, reason, is_tentative=True)


def for_model(picked: Picked, model: Any) -> Picked:
    """`picked`, or float32 for a model that is too narrow for bf16 to pay on a CPU."""
    width = int(getattr(model.config.get_text_config(), "hidden_size", 0))
    if not picked.is_tentative or width >= LEAST_WIDTH:
        return picked
    return picked.in_fp32(f"the model's hidden width is {width}, bf16 begins at {LEAST_WIDTH}")


@cache
def gain_of_bf16() -> float:
    """Speed of a matrix product in bf16 against float32, by the time of one thread, whatever else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _seconds(torch.float32) / _seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def _seconds(dtype: torch.dtype, repeats: int = 5) -> float:
    """Least time of a matrix product; the first call prepares kernels."""
    tokens, width, inner = TIMED_SHAPE
    hidden, weight = torch.ones(tokens, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        began = time.thread_time()
        functional.linear(hidden, weight)
        seconds.append(time.thread_time() - began)
    return min(seconds)


def _name(device: torch.device) -> str:
    return describe(device) if device.type == "cuda" else f"the {device.type.upper()}"


def describe(device: torch.device) -> str:
    """The device as the database stores it: 'cpu' or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
