"""AdamW and the schedule of its learning rate, from a pipeline's recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

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
