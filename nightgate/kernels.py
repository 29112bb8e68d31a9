"""The compiled kernels of `_kernels.c`, where they were built: a C compiler at installation is all that it takes.

    kernel, why = load()        # (None, "attention and norms in plain torch: ...") where it cannot be used

They run on torch's own OpenMP threads. What they compute is what `attention` and `dropout` compute in plain torch, with
the same dropout masks.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from nightgate.dropout import Kept

INTERFACE = 1
"""Of the C file that this module is written for."""
VECTOR = 16
"""Widths of layer norm are multiples of this."""
BITS_BEHIND = 64
"""Random numbers behind the last cell that the kernel reads and does not use: it takes whole vectors."""
_INSTRUCTIONS = ("the base instruction set", "AVX2", "AVX-512")

Sizes = NDArray[np.int64]


class _Call(ctypes.Structure):
    """`Attention` in the C file."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "log_sum", "d_out")),
        *((name, ctypes.c_void_p) for name in ("d_query", "d_key", "d_value", "scratch", "bits")),
        ("threshold", ctypes.c_int64),
        ("kept_scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("texts", "heads", "dim", "longest", "query_stride", "key_stride")),
        *((name, ctypes.c_void_p) for name in ("starts", "lengths", "cells", "head_step", "step")),
        *((name, ctypes.c_int64) for name in ("first_only", "double_precision", "instructions", "threads")),
        ("start", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("next_task", "next_thread")),
    )


class _NormCall(ctypes.Structure):
    """`Norm` in the C file."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("residual", "values", "weight", "bias", "sum", "out", "moments")),
        *((name, ctypes.c_void_p) for name in ("d_out", "d_sum", "d_values", "d_parameters", "bits")),
        ("threshold", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("kept_scale", "epsilon")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "double_precision", "instructions", "threads")),
        ("start", ctypes.c_void_p),
        ("next_task", ctypes.c_int64),
    )


class Kernel:
    """Attention within each text, and residual sum with layer norm, on the CPU, in float32 and float64."""

    def __init__(self, library: ctypes.CDLL, start_threads: int | None) -> None:
        self._run, self._scratch = library.attention_run, library.attention_scratch
        self._run.argtypes, self._run.restype = [ctypes.POINTER(_Call)], None
        self._scratch.argtypes, self._scratch.restype = [ctypes.c_int64] * 3, ctypes.c_int64
        self._run_norm, self._norm_blocks = library.norm_run, library.norm_blocks
        self._run_norm.argtypes, self._run_norm.restype = [ctypes.POINTER(_NormCall)], None
        self._norm_blocks.argtypes, self._norm_blocks.restype = [ctypes.c_int64], ctypes.c_int64
        self._start_threads = start_threads
        self.instructions = int(library.kernel_instructions())

    def takes(self, values: Tensor) -> bool:
        return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)

    def takes_norm(self, values: Tensor, norm: nn.LayerNorm) -> bool:
        whole_vectors = norm.normalized_shape == (values.shape[-1],) and values.shape[-1] % VECTOR == 0
        affine = norm.weight is not None and norm.bias is not None
        return self.takes(values) and whole_vectors and affine and norm.weight.dtype == values.dtype

    def forward(
        self, parts: tuple[Tensor, ...], starts: Sizes, lengths: Sizes, heads: int, kept: Kept | None
    ) -> tuple[Tensor, Tensor]:
        """What the queries attend to, [queries, width], and the logarithms that `backward` wants.

        Args:
            parts: queries, keys and values, [.., width] each, columns side by side in memory; one query a token, or
                one a text.
            starts, lengths: of each text, in tokens.
            kept: which probabilities dropout keeps; None: all.
        """
        query = parts[0]
        out = query.new_empty(query.shape)
        log_sum = query.new_empty(len(query), heads)
        self._call(parts, starts, lengths, heads, kept, out=out, log_sum=log_sum)
        return out, log_sum

    def backward(
        self,
        parts: tuple[Tensor, ...],
        starts: Sizes,
        lengths: Sizes,
        heads: int,
        kept: Kept | None,
        log_sum: Tensor,
        coming: Tensor,
        going: tuple[Tensor, ...],
    ) -> None:
        """Fill `going`, laid out like `parts`, with their gradients; `coming` is that of what was attended to."""
        d_query, d_key, d_value = going
        gradients = {"d_out": coming.contiguous(), "d_query": d_query, "d_key": d_key, "d_value": d_value}
        self._call(parts, starts, lengths, heads, kept, log_sum=log_sum, **gradients)

    def norm(
        self, residual: Tensor, values: Tensor, weight: Tensor, bias: Tensor, epsilon: float, kept: Kept | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norm of `residual` and what is kept of `values`, [.., width], their sum, and the moments of its rows."""
        out, total = torch.empty_like(values), torch.empty_like(values)
        rows = values.numel() // values.shape[-1]
        moments = values.new_empty(rows, 2)
        given = {"residual": residual, "values": values, "weight": weight, "bias": bias}
        self._call_norm(kept, epsilon, **given, sum=total, out=out, moments=moments)
        return out, total, moments

    def norm_backward(
        self, coming: Tensor, total: Tensor, moments: Tensor, weight: Tensor, kept: Kept | None
    ) -> tuple[Tensor, ...]:
        """Gradients of residual, values, weight and bias."""
        going = torch.empty_like(total)
        d_values = going if kept is None else torch.empty_like(total)
        sums = total.new_empty(self._norm_blocks(len(moments)), 2, len(weight))
        given = {"sum": total, "moments": moments, "weight": weight, "d_out": coming}
        self._call_norm(kept, 0.0, **given, d_sum=going, d_values=d_values, d_parameters=sums)
        return going, d_values, *sums.sum(0)

    def _call_norm(self, kept: Kept | None, epsilon: float, **tensors: Tensor) -> None:
        total = tensors["sum"]
        assert all(tensor.is_contiguous() and tensor.dtype == total.dtype for tensor in tensors.values())
        call = _NormCall(
            epsilon=epsilon,
            rows=len(tensors["moments"]),
            width=total.shape[-1],
            double_precision=total.dtype == torch.float64,
            instructions=self.instructions,
            threads=torch.get_num_threads(),
            start=self._start_threads,
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        if kept is not None:
            call.bits, call.threshold, call.kept_scale = kept.bits.data_ptr(), kept.threshold, kept.scale
        self._run_norm(ctypes.byref(call))

    def _call(
        self, parts: tuple[Tensor, ...], starts: Sizes, lengths: Sizes, heads: int, kept: Kept | None, **more: Tensor
    ) -> None:
        query, key, value = parts
        assert all(part.stride(1) == 1 for part in parts)
        assert key.stride(0) == value.stride(0)
        longest, dim, threads = int(lengths.max()), query.shape[1] // heads, torch.get_num_threads()
        double = query.dtype == torch.float64
        # A block of torch's: where there is no memory left it says so in the words that the engine knows.
        scratch = torch.empty(threads * self._scratch(longest, dim, double), dtype=torch.uint8)
        call = _Call(
            query=query.data_ptr(),
            key=key.data_ptr(),
            value=value.data_ptr(),
            scratch=scratch.data_ptr(),
            texts=len(lengths),
            heads=heads,
            dim=dim,
            longest=longest,
            query_stride=query.stride(0),
            key_stride=key.stride(0),
            starts=starts.ctypes.data,
            lengths=lengths.ctypes.data,
            first_only=len(query) != len(key),
            double_precision=double,
            instructions=self.instructions,
            threads=threads,
            start=self._start_threads,
            **{name: tensor.data_ptr() for name, tensor in more.items()},
        )
        if kept is not None:
            assert kept.bits.dtype == torch.int16
            call.bits, call.threshold, call.kept_scale = kept.bits.data_ptr(), kept.threshold, kept.scale
            call.cells, call.head_step, call.step = (sizes.ctypes.data for sizes in kept.cells)
        self._run(ctypes.byref(call))


@cache
def load() -> tuple[Kernel | None, str]:
    """The kernel, or None, and why."""
    in_torch = "attention and norms in plain torch"
    found = importlib.util.find_spec("nightgate._kernels")
    if found is None or found.origin is None:
        return None, f"{in_torch}: no compiler built their kernels when Nightgate was installed"
    try:
        library = ctypes.CDLL(found.origin)
        if library.kernel_interface() != INTERFACE:
            return None, f"{in_torch}: their kernels were built from another version, install Nightgate again"
    except (OSError, AttributeError) as error:
        return None, f"{in_torch}: their kernels cannot be loaded ({error})"
    start_threads = _start_of_torch_threads()
    if start_threads is None:
        return None, f"{in_torch}: their kernels cannot reach this PyTorch's threads"
    kernel = Kernel(library, start_threads)
    return kernel, f"attention and norms compiled for {_INSTRUCTIONS[kernel.instructions]}"


def _start_of_torch_threads() -> int | None:
    """Address of the function by which GCC's code enters a parallel region, in the OpenMP library that torch uses.

    The loader looks for it in what libtorch_cpu itself depends on, whatever that library's file is called: an OpenMP
    found by name may be a second one, whose threads would compete with torch's spinning ones.
    """
    try:
        libtorch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(libtorch.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
