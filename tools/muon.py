"""Muon (Jordan et al., 2024) for the many small matrices of the demo's networks.

The same steps as torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`. torch's orthogonalises matrix by matrix and in
bf16, which on a CPU without bf16 instructions takes several times as long as the gradients do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pushes singular values towards 1
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices (rows, columns): Nesterov momentum, made orthogonal, times the learning rate of an Adam step."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            updates = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                updates[parameter.shape].append((parameter, parameter.grad.lerp(momentum, group["momentum"])))
            for shape, pairs in updates.items():
                length = group["lr"] * 0.2 * max(shape) ** 0.5  # so that entries move as far as by AdamW
                for (parameter, _), update in zip(
                    pairs, orthogonal(torch.stack([update for _, update in pairs])), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=length)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (N, rows, columns) with singular values near 1 in place of their own, by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
