"""The compiled kernels give what plain torch gives, with the same dropout masks; skipped where they were not built."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nightgate import forward, kernels, packing
from nightgate.attention import Layout, attend, attend_from_first
from nightgate.dropout import Dropout, add_and_norm
from nightgate.kernels import Kernel
from tests.test_packing import LABELS, build, gradients, texts

LENGTHS = ([1], [1, 1, 1], [1, 2, 3, 17, 33], [4, 9, 9, 90], [16, 16, 64], [130])
DIMS = (5, 8, 24, 32, 64)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    found, why = kernels.load()
    if found is None:
        pytest.skip(why)
    return found


def both(
    kernel: Kernel | None, lengths: list[int], dim: int, rate: float, dtype: torch.dtype, heads: int = 3
) -> tuple[Tensor, ...]:
    """What all tokens and what the first ones attend to, and the gradients of both."""
    torch.manual_seed(sum(lengths) + dim)
    layout, width = Layout(np.array(lengths), torch.device("cpu")), heads * dim
    # Scores up to about 10: softmax is far from flat.
    qkv = (1.5 * torch.randn(layout.tokens, 3 * width, dtype=torch.float64)).to(dtype).requires_grad_()
    weights = torch.randn(layout.tokens, width, dtype=torch.float64).to(dtype)
    dropout = Dropout()
    dropout.seed(5)
    everything = attend(qkv, layout, heads, dropout, rate, kernel)
    query = qkv[layout.first, :width]
    first = attend_from_first(query, qkv[:, width:], layout, heads, dropout, rate, kernel)
    (of_everything,) = torch.autograd.grad((everything * weights).sum(), qkv)
    (of_first,) = torch.autograd.grad((first * weights[: len(lengths)]).sum(), qkv)
    return everything.detach(), first.detach(), of_everything, of_first


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_the_kernel_and_plain_torch_agree(kernel: Kernel, lengths: list[int], dim: int, rate: float) -> None:
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        ours, plain = (both(chosen, lengths, dim, rate, dtype) for chosen in (kernel, None))
        for found, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("instructions", range(3))
def test_every_instruction_set_gives_the_same(
    kernel: Kernel, instructions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if instructions > kernel.instructions:
        pytest.skip("this processor does not have these instructions")
    monkeypatch.setattr(kernel, "instructions", instructions)
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        for dim, rate in ((5, 0.0), (24, 0.1), (32, 0.1)):
            ours, plain = (both(chosen, [1, 2, 17, 17, 70], dim, rate, dtype) for chosen in (kernel, None))
            for found, expected in zip(ours, plain, strict=True):
                torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)


def test_single_precision_is_as_close_to_the_truth_as_plain_torch_is(kernel: Kernel) -> None:
    lengths, dim = [3, 41, 41, 128], 32
    exact = both(None, lengths, dim, 0.1, torch.float64)
    ours, plain = (both(chosen, lengths, dim, 0.1, torch.float32) for chosen in (kernel, None))
    for found, other, truth in zip(ours, plain, exact, strict=True):
        # Root of the mean square, as the largest of thousands of errors is a matter of luck.
        error, others = ((x.double() - truth).pow(2).mean().sqrt() for x in (found, other))
        assert float(error) < 1.5 * float(others)


def both_norms(kernel: Kernel | None, rows: int, width: int, rate: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(rows + width)
    norm = torch.nn.LayerNorm(width, eps=1e-12, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(width) + 0.5)
        norm.bias.copy_(torch.randn(width))
    residual, values, weights = (torch.randn(rows, width, dtype=torch.float64).to(dtype) for _ in range(3))
    inputs = (residual.requires_grad_(), values.requires_grad_(), *norm.parameters())
    dropout = Dropout()
    dropout.seed(9)
    out = add_and_norm(residual, values, norm, dropout, rate, kernel)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (31, 48), (32, 384), (97, 384), (640, 32)])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("instructions", range(3))
def test_residual_dropout_and_norm_are_those_of_plain_torch(
    kernel: Kernel, rows: int, width: int, rate: float, instructions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if instructions > kernel.instructions:
        pytest.skip("this processor does not have these instructions")
    monkeypatch.setattr(kernel, "instructions", instructions)
    assert kernel.takes_norm(torch.zeros(rows, width), torch.nn.LayerNorm(width))
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        ours, plain = (both_norms(chosen, rows, width, rate, dtype) for chosen in (kernel, None))
        for found, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)


def test_a_norm_that_the_kernel_does_not_know_is_left_to_torch(kernel: Kernel) -> None:
    assert not kernel.takes_norm(torch.zeros(3, 20), torch.nn.LayerNorm(20))
    assert not kernel.takes_norm(torch.zeros(3, 32), torch.nn.LayerNorm(32, bias=False))
    assert not kernel.takes_norm(torch.zeros(3, 32, dtype=torch.bfloat16), torch.nn.LayerNorm(32))
    for found, expected in zip(
        both_norms(kernel, 5, 20, 0.1, torch.float64), both_norms(None, 5, 20, 0.1, torch.float64), strict=True
    ):
        assert torch.equal(found, expected)


def test_the_kernel_has_the_gradient_of_what_it_computed(kernel: Kernel) -> None:
    layout = Layout(np.array([2, 4]), torch.device("cpu"))
    qkv = torch.randn(6, 3 * 8, dtype=torch.float64, requires_grad=True)

    def attended(values: Tensor) -> Tensor:
        dropout = Dropout()
        dropout.seed(7)
        return attend(values, layout, 2, dropout, 0.4, kernel)

    assert torch.autograd.gradcheck(attended, qkv)


def test_very_large_scores_stay_finite_and_nan_stays_nan(kernel: Kernel) -> None:
    layout = Layout(np.array([3, 20]), torch.device("cpu"))
    qkv = 100 * torch.randn(23, 3 * 32)
    plain = attend(qkv, layout, 1, Dropout(), 0.0)
    torch.testing.assert_close(attend(qkv, layout, 1, Dropout(), 0.0, kernel), plain, rtol=0, atol=1e-2)
    # Negative scores alone: what stands behind a text's end may not win.
    qkv = torch.ones(23, 3 * 32)
    qkv[:, :32] = -100
    assert torch.equal(attend(qkv, layout, 1, Dropout(), 0.0, kernel), torch.ones(23, 32))
    qkv[5, 3] = torch.nan
    found = attend(qkv, layout, 1, Dropout(), 0.0, kernel)
    assert torch.isfinite(found[:3]).all()
    assert found[5].isnan().all()


def test_the_result_is_the_same_bits_in_every_call_and_with_any_number_of_threads(kernel: Kernel) -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 2, 3, 2):
            torch.set_num_threads(number)
            attended = both(kernel, [1, 7, 30, 41, 41, 128], 32, 0.1, torch.float32, heads=12)
            found.append((*attended, *both_norms(kernel, 248, 384, 0.1, torch.float32)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))


def test_a_model_gives_the_same_logits_and_gradients_either_way_and_says_which(kernel: Kernel) -> None:
    model, encoded = build("bert", {}), texts(0)
    rows = np.arange(16)
    labels = torch.from_numpy(rows % LABELS)
    compiled, plain = forward.choose(model, encoded), forward.choose(model, encoded, compiled=False)
    assert "attention and norms compiled for" in compiled.reason
    assert "attention and norms in plain torch, as asked for" in plain.reason
    assert isinstance(compiled, forward.Packed)
    assert isinstance(plain, forward.Packed)
    assert compiled.classifier.kernel is kernel
    logits, found = gradients(compiled, encoded, rows, labels)
    other_logits, other = gradients(plain, encoded, rows, labels)
    torch.testing.assert_close(logits, other_logits, rtol=0, atol=1e-13)
    for name, expected in other.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-13, msg=name)


@pytest.mark.usefixtures("kernel")
def test_the_kernel_starts_no_threads_of_its_own() -> None:
    code = """
import os, numpy as np, torch
from nightgate import kernels
from nightgate.attention import Dropout, Layout, attend
def threads(): return len(os.listdir("/proc/self/task"))
def libraries(): return sum(".so" in line and "omp" in line and "r-xp" in line for line in open("/proc/self/maps"))
kernel, _ = kernels.load()
torch.randn(3000, 300).softmax(1) @ torch.randn(300, 300)
before = threads(), libraries()
layout = Layout(np.array([40] * 16), torch.device("cpu"))
attend(torch.randn(640, 3 * 384), layout, 12, Dropout(), 0.1, kernel)
print(before == (threads(), libraries()))
"""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted in /proc")
    for number in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": number}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["True"], done.stderr


@pytest.fixture
def loaded_anew(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load` as another installation would find it."""
    kernels.load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    kernels.load.cache_clear()


def test_without_a_compiler_at_installation_attention_stays_in_plain_torch(loaded_anew: Any) -> None:
    find = importlib.util.find_spec
    # transformers, imported on the way, asks for its own.
    loaded_anew.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "nightgate._kernels" else find(name, *more)
    )
    kernel, why = kernels.load()
    assert kernel is None
    assert "no compiler built their kernels" in why
    chosen = forward.choose(build("bert", {}), texts(0))
    assert isinstance(chosen, forward.Packed)
    assert why in chosen.reason
    assert packing.packed(build("bert", {}))[1].endswith(why)


@pytest.mark.usefixtures("kernel")
def test_a_kernel_of_another_version_or_without_torchs_threads_is_not_used(loaded_anew: Any) -> None:
    loaded_anew.setattr(kernels, "INTERFACE", 0)
    assert "built from another version" in kernels.load()[1]
    kernels.load.cache_clear()
    loaded_anew.undo()
    loaded_anew.setattr(kernels, "_start_of_torch_threads", lambda: None)
    assert "cannot reach this PyTorch's threads" in kernels.load()[1]
