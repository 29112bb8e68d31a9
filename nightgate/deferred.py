"""Exact Adam on the embedding rows of each batch alone; a row makes up for the steps it missed when it is next needed.

Dense Adam moves every row in every step, because the moments of a row without a gradient decay but do not vanish.
With m and v the moments of a row after its last step, q = beta1 / sqrt(beta2), s = sqrt(v), the j-th missed step, which
is step t of the run, moves a weight by

    m a_j / (s + e_j),   a_j = rate(t) sqrt(1 - beta2^t) / (1 - beta1^t) q^j,   e_j = eps sqrt(1 - beta2^t) beta2^(-j/2)

(AdamW's own step, numerator and denominator multiplied by sqrt(1 - beta2^t) beta2^(-j/2)). Decoupled weight decay
multiplies a_j by the decays that follow it. Two facts make this cheap.

The a_j fall like q^j: steps after the first K, q^K = epsilon (1 - q), move a weight together by less than the dtype's
epsilon times one step of the same rate. K is 174 in float32 and 366 in float64 at betas (0.9, 0.999).

The e_j hardly differ: beta2 is near 1. The sum over j is the integral of 1 / (s + e) over a measure with mass a_j at
e_j, a Stieltjes function of s, and Gauss's quadrature gives it to 1e-8 with 2 or 3 nodes and to 1e-14 with 4, where a
replay takes K. With p the orthogonal polynomial whose roots are the nodes, the remainder is the sum of
a_j p(e_j)^2 / (s + e_j), divided by p(-s)^2: relative to the sum itself, nowhere more than e_max / e_min times what it
is at s = 0. There it is computed, and nodes are added until it is below the dtype's epsilon. Where e grows by more than
`SPREAD`, as in the first steps of a run, the measure is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adamw import adamw

SPREAD = 4.0
"""e_max / e_min of one quadrature."""
MOST_NODES = 16
"""Enough for 1e-14 by the worst-case bound 4 ((r - 1) / (r + 1))^(2 nodes), r = sqrt(SPREAD)."""
CHUNK = 512
"""Rows settled at a time."""
BLOCK = 1 << 15
"""Elements caught up at a time: they stay in the cache and, at torch's grain, in one thread. Two threads
that wait passively for each other after every operation are slower: 5.0 ms against 3.6 for 440 rows of 384."""
DENSE_ROWS_PER_TOUCHED = 12
"""Two threads, float32, rows of 384: a zeroed gradient, its norm and fused AdamW take 0.7 us per row of 60,000, `rows`
and `update` 7.5 us per row of 440."""
LONGEST_WINDOW = 500
WIDEST_WINDOW = 20.0
"""e_max / e_min over the whole window; more takes three cuts and tens of nodes."""

_Array = NDArray[np.float64]


class DeferredRows:
    """AdamW over the rows of `weight`, of which each step touches a few.

    Args:
        weight: [rows, width], float32 or float64 on the CPU; written in place. A row is current after `settle`, or in
            what `rows` hands out.
        rate: the learning rate of step k, counted from 1; asked once, when the step is done.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        rate: Callable[[int], float],
    ) -> None:
        assert weight.dtype in (torch.float32, torch.float64)
        self.weight = weight.detach()
        self.beta1, self.beta2 = betas
        self.eps, self.weight_decay, self._rate = eps, weight_decay, rate
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.step = 0
        self._ratio = self.beta1 / math.sqrt(self.beta2)
        precision = torch.finfo(weight.dtype).eps
        self._window = window(betas, precision)
        self._tolerance = max(precision / 8, 1e-14)
        self._handed_out: tuple[Tensor, Tensor, Tensor] | None = None
        self._begin_at(0)

    def rows(self, ids: Tensor) -> Tensor:
        """Current copies of these rows, [ids, width], as a leaf for autograd.

        Args:
            ids: int64, each row once.
        """
        weight = self.weight.index_select(0, ids)
        exp_avg, exp_avg_sq = self.exp_avg.index_select(0, ids), self.exp_avg_sq.index_select(0, ids)
        self._catch_up(weight, exp_avg, exp_avg_sq, self._last[ids.numpy()])
        self._handed_out = ids, exp_avg, exp_avg_sq
        return weight.requires_grad_()

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """The next step, by the gradient of what `rows` handed out last."""
        assert self._handed_out is not None
        assert rows.grad is not None
        (ids, exp_avg, exp_avg_sq), self._handed_out = self._handed_out, None
        rate = self._rate(self.step + 1)
        adamw(
            [rows],
            [rows.grad],
            [exp_avg],
            [exp_avg_sq],
            [],
            [torch.tensor(float(self.step))],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
        self.weight.index_copy_(0, ids, rows)
        self.exp_avg.index_copy_(0, ids, exp_avg)
        self.exp_avg_sq.index_copy_(0, ids, exp_avg_sq)
        self._count_step(rate)
        self._last[ids.numpy()] = self.step

    def settle(self) -> None:
        """Bring all rows up to date."""
        for begin in range(0, len(self.weight), CHUNK):
            part = slice(begin, begin + CHUNK)
            self._catch_up(self.weight[part], self.exp_avg[part], self.exp_avg_sq[part], self._last[part])
        self._begin_at(self.step)

    def state(self) -> dict[str, Tensor]:
        """The settled moments, not copied."""
        self.settle()
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    @torch.no_grad()
    def restore(self, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> None:
        """Go on from settled moments; the weight is the caller's to restore."""
        self.exp_avg.copy_(exp_avg)
        self.exp_avg_sq.copy_(exp_avg_sq)
        self.step = step
        self._begin_at(step)

    def _begin_at(self, step: int) -> None:
        """All rows are current as of `step`: nothing before it is needed any more."""
        self._handed_out = None
        self._origin = step
        self._last: NDArray[np.int64] = np.full(len(self.weight), step, dtype=np.int64)
        # Of the steps after the origin: rate and bias corrections, 0 where still to come; log of all decays up to it.
        self._factors: _Array = np.zeros(0)
        self._log_decays: _Array = np.zeros(0)
        self._roots: _Array = np.zeros(0)
        self._grow(1024)

    def _grow(self, steps: int) -> None:
        more = steps - len(self._factors)
        self._factors = np.append(self._factors, np.zeros(more))
        self._log_decays = np.append(self._log_decays, np.zeros(more))
        self._roots = np.sqrt(1 - self.beta2 ** (self._origin + 1.0 + np.arange(steps)))

    def _count_step(self, rate: float) -> None:
        at = self.step - self._origin
        if at + 1 + self._window > len(self._factors):
            self._grow(2 * (at + 1 + self._window))
        self.step += 1
        self._factors[at] = rate * self._roots[at] / (1 - self.beta1**self.step)
        self._log_decays[at] = math.log1p(-rate * self.weight_decay) + (self._log_decays[at - 1] if at else 0.0)

    @torch.no_grad()
    def _catch_up(self, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last: NDArray[np.int64]) -> None:
        """In place: the steps from `last` (of each row) up to now, without gradients."""
        distinct, place = np.unique(last, return_inverse=True)
        missed = self.step - distinct
        if not missed.any():
            return

        def columns(values: Sequence[_Array]) -> Tensor:
            """[values, rows, 1]."""
            return torch.from_numpy(np.stack(values)[:, place, None]).to(weight.dtype)

        # Moments are zero before a row's first step: it moves by nothing, and its spread of e would ask for many nodes.
        moved = np.where(distinct > 0, distinct, self.step)
        fractions = [(columns(alphas), columns(betas)) for alphas, betas in self._fractions(moved)]
        shrink = columns([np.power(self.beta1, missed), np.power(self.beta2, missed), self._decay(distinct)])
        block = max(BLOCK // weight.shape[1], 1)
        for begin in range(0, len(last), block):
            part = slice(begin, begin + block)
            root = exp_avg_sq[part].sqrt()
            if self.weight_decay:
                weight[part].mul_(shrink[2, part])
            for alphas, betas in fractions:
                below = root + alphas[-1, part]
                for k in range(len(alphas) - 1, 0, -1):
                    below = torch.addcdiv(root, betas[k, part], below, value=-1).add_(alphas[k - 1, part])
                weight[part].addcdiv_(exp_avg[part] * betas[0, part], below, value=-1)
            exp_avg[part].mul_(shrink[0, part])
            exp_avg_sq[part].mul_(shrink[1, part])

    def _fractions(self, last: NDArray[np.int64]) -> Iterator[tuple[list[_Array], list[_Array]]]:
        """The sums over j as continued fractions b0 / (s + a0 - b1 / (s + a1 - ...)): (a, b), each for all gaps."""
        begin = last - self._origin
        steps = min(int(self.step - last.min()), self._window)
        past = np.arange(1.0, steps + 1)
        masses = sliding_window_view(self._factors, steps)[begin] * self._ratio**past
        # In units of eps: powers of nodes near 1e-8 would underflow.
        nodes = sliding_window_view(self._roots, steps)[begin] * self.beta2 ** (-past / 2)
        if self.weight_decay:
            masses *= np.exp(self._log_decay_now - sliding_window_view(self._log_decays, steps)[begin])
        tolerance = self._tolerance * (masses / nodes).sum(1)
        # The nodes of the oldest gap spread most.
        widest, cut = nodes[last.argmin()], 0
        while cut < steps:
            part = slice(cut, int(np.searchsorted(widest, SPREAD * widest[cut], side="right")))
            alphas, betas = gauss(masses[:, part], nodes[:, part], tolerance)
            yield [self.eps * alpha for alpha in alphas], [betas[0], *(self.eps**2 * beta for beta in betas[1:])]
            cut = part.stop

    def _decay(self, last: NDArray[np.int64]) -> _Array:
        """What each gap's weight decays multiply to."""
        begin = last - self._origin
        return np.exp(self._log_decay_now - np.where(begin > 0, self._log_decays[begin - 1], 0.0))

    @property
    def _log_decay_now(self) -> float:
        return float(self._log_decays[self.step - self._origin - 1])


def pays(kept_rows: int, unique_per_step: float, betas: tuple[float, float]) -> tuple[bool, str]:
    """Whether catching up costs less than fused AdamW over all `kept_rows`, and why."""
    beta1, beta2 = betas
    if beta1 >= math.sqrt(beta2):
        return False, f"betas {betas} let a row without a gradient move ever faster"
    steps = window(betas, torch.finfo(torch.float32).eps)
    if steps > LONGEST_WINDOW or steps * -math.log(beta2) / 2 > math.log(WIDEST_WINDOW):
        return False, f"betas {betas} let a row without a gradient move for {steps} steps, which is long to make up for"
    touched = f"a step touches {unique_per_step:.0f} of {kept_rows} embedding rows"
    if kept_rows <= DENSE_ROWS_PER_TOUCHED * unique_per_step:
        return False, f"{touched}, and more than one in {DENSE_ROWS_PER_TOUCHED} is cheaper dense"
    return True, touched


def untouched_factor(rate: Callable[[int], float], weight_decay: float, steps: int) -> float:
    """What `steps` steps multiply a weight by that never has a gradient; exactly 1 without weight decay."""
    return math.exp(math.fsum(math.log1p(-rate(k) * weight_decay) for k in range(1, steps + 1)))


def window(betas: tuple[float, float], precision: float) -> int:
    """After how many missed steps the others no longer count; see the module's docstring."""
    ratio = betas[0] / math.sqrt(betas[1])
    assert ratio < 1
    return math.ceil(math.log(precision * (1 - ratio)) / math.log(ratio)) if ratio else 1


def gauss(masses: _Array, nodes: _Array, tolerance: _Array) -> tuple[list[_Array], list[_Array]]:
    """Recurrence coefficients (a, b) of the orthogonal polynomials of many discrete measures, by Stieltjes's procedure.

    As many as it takes for b0 / (s + a0 - b1 / (s + a1 - ...)) to be within `tolerance` [measures] of the sum of
    masses / (s + nodes) [measures, points] at s = 0, where the error is largest.
    """
    exact = (masses / nodes).sum(1)
    alphas: list[_Array] = []
    betas: list[_Array] = []
    former, current = np.zeros_like(nodes), np.ones_like(nodes)
    norm = np.ones(len(nodes))
    while True:
        weights = masses * current * current
        former_norm, norm = norm, weights.sum(1)
        # As many nodes as points are exact, the norm is 0 from there on, and so is b: any positive a will do.
        there = norm > 0
        alphas.append(np.where(there, (weights * nodes).sum(1) / np.where(there, norm, 1.0), nodes[:, 0]))
        betas.append(np.where(there, norm / np.where(former_norm > 0, former_norm, 1.0), 0.0))
        below = alphas[-1]
        for alpha, beta in zip(alphas[-2::-1], betas[:0:-1], strict=True):
            below = alpha - beta / below
        if len(alphas) == MOST_NODES or (np.abs(exact - betas[0] / below) <= tolerance).all():
            return alphas, betas
        step = (nodes - alphas[-1][:, None]) * current
        former, current = current, step - betas[-1][:, None] * former
