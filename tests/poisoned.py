"""A student that is spoiled in the middle of a run."""

from __future__ import annotations

import torch
from small_run import make_student
from torch import nn


class Poisoned(nn.Module):
    """A student whose gradient, but not whose loss, is not a number in its third step."""

    def __init__(self):
        super().__init__()
        self.inner = make_student()
        self.calls = 0

    def forward(self, x):
        outputs = self.inner(x)
        self.calls += 1
        if self.calls == 3:
            zero = (outputs["logits"].sum() * 0).abs()
            outputs["logits"] = outputs["logits"] + torch.sqrt(zero)
        return outputs
