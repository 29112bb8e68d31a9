"""AdamW, clipping and the schedule of the learning rate, from a pipeline's recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nightgate.config.training import Training


def make_optimizer(model: nn.Module, recipe: Training) -> torch.optim.AdamW:
    """Fused AdamW, with weight decay on all weights except biases and norms."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "bias" not in name else plain).append(parameter)
    on_gpu = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        # A CUDA graph reads the rate from memory.
        lr=torch.tensor(recipe.learning_rate, device=next(model.parameters()).device)
        if on_gpu
        else recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
        capturable=on_gpu,
    )


def clip(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale gradients, sparse ones too, so that their common norm is at most `max_norm`."""
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in found]
    norm = nn.utils.get_total_norm(values, foreach=True)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))


class TableGradient:
    """The gradient of a word table, of which a batch uses few rows.

    Autograd would allocate, clear and free a dense gradient in every step, and clipping would read it twice: 90 MB of a
    multilingual table. Here it is sparse until the optimiser needs it dense, in a buffer that is zero between steps.
    """

    def __init__(self, table: nn.Embedding) -> None:
        table.sparse = True
        self._weight, self._zeros = table.weight, torch.zeros_like(table.weight)
        self._weight.register_post_accumulate_grad_hook(_coalesce)  # type: ignore[no-untyped-call]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Give the parameter its dense gradient within the block, and none after it."""
        gradient = self._weight.grad
        if gradient is None or not gradient.is_sparse:  # the model does not use its table, or computes with it
            yield
            return
        rows = gradient.indices()[0]
        self._weight.grad = self._zeros.index_copy_(0, rows, gradient.values())
        yield
        self._weight.grad = None
        self._zeros.index_fill_(0, rows, 0)


def _coalesce(weight: Tensor) -> None:
    assert weight.grad is not None
    if weight.grad.is_sparse:
        weight.grad = weight.grad.coalesce()


def learning_rates(recipe: Training, total_steps: int) -> Callable[[int], float]:
    """A function from the number of a step, from 1, to its learning rate, by the schedules of transformers."""
    from transformers import get_scheduler

    # A warm-up begins at 0: as the only step of a short night it would learn nothing.
    warmup = min(math.ceil(recipe.warmup_ratio * total_steps), total_steps - 1)
    shape = recipe.lr_scheduler_type
    name = "constant_with_warmup" if shape == "constant" and warmup else shape
    unused = torch.optim.SGD([torch.zeros(1)], lr=recipe.learning_rate)
    factor = get_scheduler(name, unused, num_warmup_steps=warmup, num_training_steps=total_steps).lr_lambdas[0]
    return lambda step: recipe.learning_rate * float(factor(step - 1))
