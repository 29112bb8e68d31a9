"""Deferred rows against dense AdamW: the same weights, and the smaller rounding error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from nightgate.deferred import DeferredRows, gauss, pays, untouched_factor, window

ROWS, WIDTH, STEPS, WARMUP = 200, 8, 500, 40
BETAS, EPS = (0.9, 0.999), 1e-8
NEVER = 7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rate(step: int) -> float:
    """Linear warmup, then linearly to 0."""
    return 1e-3 * min(step / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def start() -> Tensor:
    return 0.05 * torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients() -> Iterator[tuple[Tensor, Tensor]]:
    """Ids of a step, most of them often, a few every 90 steps, one never, and gradients from 1e-1 to 1e-9."""
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        ids = (ROWS * torch.rand(12, generator=generator) ** 4).long().unique()  # type: ignore[no-untyped-call]
        ids = ids[(ids != NEVER) & ((ids > 3) | (step % 90 == 0))]
        shape = (len(ids), WIDTH)
        sizes = 10 ** (-1 - 8 * torch.rand(shape, generator=generator, dtype=torch.float64))
        yield ids, sizes * torch.randn(shape, generator=generator, dtype=torch.float64)


def dense(dtype: torch.dtype, weight_decay: float, betas: tuple[float, float] = BETAS) -> Tensor:
    weight = torch.nn.Parameter(start().to(dtype))
    optimizer = torch.optim.AdamW([weight], betas=betas, eps=EPS, weight_decay=weight_decay)
    for step, (ids, gradient) in enumerate(gradients(), start=1):
        weight.grad = torch.zeros_like(weight).index_copy_(0, ids, gradient.to(dtype))
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
    return weight.detach()


@dataclass
class Run:
    """A deferred run that can be settled, and go on in a fresh object, after given steps."""

    dtype: torch.dtype = torch.float64
    weight_decay: float = 0.0
    betas: tuple[float, float] = BETAS
    settle_after: tuple[int, ...] = ()
    resume_after: tuple[int, ...] = ()

    def __call__(self) -> Tensor:
        weight = start().to(self.dtype)
        deferred = self.over(weight)
        for step, (ids, gradient) in enumerate(gradients(), start=1):
            rows = deferred.rows(ids)
            rows.grad = gradient.to(self.dtype)
            deferred.update(rows)
            if step in self.settle_after:
                deferred.settle()
            if step in self.resume_after:
                stored = {kind: tensor.clone() for kind, tensor in deferred.state().items()}
                weight = weight.clone()
                deferred = self.over(weight)
                deferred.restore(**stored, step=step)
        deferred.settle()
        return weight

    def over(self, weight: Tensor) -> DeferredRows:
        return DeferredRows(weight, betas=self.betas, eps=EPS, weight_decay=self.weight_decay, rate=rate)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [BETAS, (0.9, 0.95), (0.0, 0.999)])
def test_in_float64_it_is_dense_adam(weight_decay: float, betas: tuple[float, float]) -> None:
    difference = Run(weight_decay=weight_decay, betas=betas)() - dense(torch.float64, weight_decay, betas)
    assert largest(difference) < 1e-12


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_in_float32_its_error_is_no_larger_than_that_of_dense_adam(weight_decay: float) -> None:
    exact = dense(torch.float64, weight_decay)
    ours = Run(torch.float32, weight_decay)().double() - exact
    theirs = dense(torch.float32, weight_decay).double() - exact
    assert largest(ours) <= 1.2 * largest(theirs)
    assert ours.norm() <= 1.2 * theirs.norm()


def test_rows_never_touched_stay_bit_for_bit_without_decay() -> None:
    assert torch.equal(Run(torch.float32)()[NEVER], start().float()[NEVER])


def test_rows_never_touched_decay_by_the_product_of_all_steps() -> None:
    factor = untouched_factor(rate, 0.1, STEPS)
    assert factor == pytest.approx(np.prod([1 - 0.1 * rate(k) for k in range(1, STEPS + 1)]), rel=1e-14)
    torch.testing.assert_close(Run(weight_decay=0.1)()[NEVER], start()[NEVER] * factor, rtol=1e-14, atol=0)
    assert untouched_factor(rate, 0.0, STEPS) == 1.0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_settling_on_the_way_changes_nothing_beyond_rounding(weight_decay: float) -> None:
    plain, settled = (Run(weight_decay=weight_decay, settle_after=after)() for after in ((), (1, 2, 77, 300)))
    assert largest(plain - settled) < 1e-14


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_resumed_run_is_bit_for_bit_the_run_that_settled_there(weight_decay: float) -> None:
    resumed, settled = (
        Run(weight_decay=weight_decay, resume_after=(250,))(),
        Run(weight_decay=weight_decay, settle_after=(250,))(),
    )
    assert torch.equal(resumed, settled)


def test_what_is_handed_out_is_current_and_a_leaf_of_its_own() -> None:
    weight = start()
    deferred = Run().over(weight)
    for ids, gradient in gradients():
        rows = deferred.rows(ids)
        rows.grad = gradient
        deferred.update(rows)
        if deferred.step == 100:
            break
    some = torch.tensor([30, 2, 11])
    rows = deferred.rows(some)
    assert rows.is_leaf
    assert rows.requires_grad
    deferred.settle()
    assert largest(rows.detach() - weight[some]) < 1e-16


def test_a_gap_longer_than_the_window_loses_nothing() -> None:
    gap = 3 * window(BETAS, torch.finfo(torch.float64).eps)
    weight, once = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0])
    deferred = DeferredRows(weight, betas=BETAS, eps=EPS, weight_decay=0.0, rate=lambda _: 1e-3)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.0)
    for step in range(gap):
        ids = once if step == 0 else torch.tensor([1])
        gradient = torch.full((1, 3), 1e-9, dtype=torch.float64)
        parameter.grad = torch.zeros_like(parameter).index_copy_(0, ids, gradient)
        optimizer.step()
        rows = deferred.rows(ids)
        rows.grad = gradient
        deferred.update(rows)
    deferred.settle()
    assert largest(weight - parameter.detach()) < 1e-15


def test_quadrature_is_exact_for_few_points_and_close_for_many_at_every_s() -> None:
    rng = np.random.default_rng(0)
    nodes = np.sort(rng.uniform(1, 4, (3, 300)))
    masses = 0.9 ** np.arange(300) * rng.uniform(0.5, 1, (3, 300))
    masses[0, 1:], masses[1] = 0, 0
    alphas, betas = gauss(masses, nodes, 1e-12 * (masses / nodes).sum(1))
    for s in (0.0, 1e-3, 1.0, 1e6):
        below = s + alphas[-1]
        for alpha, beta in zip(alphas[-2::-1], betas[:0:-1], strict=True):
            below = s + alpha - beta / below
        np.testing.assert_allclose(betas[0] / below, (masses / (s + nodes)).sum(1), rtol=4e-12)


@pytest.mark.parametrize(
    ("kept", "touched", "betas", "expected", "reason"),
    [
        (60_000, 450, BETAS, True, "450 of 60000"),
        (1200, 100, BETAS, False, "one in 12"),
        (1201, 100, BETAS, True, "100 of 1201"),
        (60_000, 450, (0.9, 0.81), False, "ever faster"),
        (60_000, 450, (0.9, 0.9), False, "steps"),
        (60_000, 450, (0.99, 0.999), False, "steps"),
        (60_000, 450, (0.9, 0.98), True, "450 of 60000"),
    ],
)
def test_deferral_pays_where_a_step_touches_few_rows(
    kept: int, touched: int, betas: tuple[float, float], expected: bool, reason: str
) -> None:
    verdict, why = pays(kept, touched, betas)
    assert verdict is expected
    assert reason in why
