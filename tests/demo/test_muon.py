"""The training scripts' Muon takes the steps of torch's own."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from muon import Muon


def test_its_steps_are_those_of_torch_but_for_the_rounding():
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (48, 16), (16, 16), (16, 48)]
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = [matrix.clone() for matrix in ours]
    first = [matrix.clone() for matrix in ours]
    optimisers = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for optimiser, matrices in zip(optimisers, (ours, theirs), strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimiser.step()
    for mine, other, start in zip(ours, theirs, first, strict=True):
        moved = (other - start).norm()
        assert moved > 0.1
        assert (mine - other).norm() < 0.02 * moved  # torch's is in bf16
