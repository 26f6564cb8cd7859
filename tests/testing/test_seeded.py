"""No law draws from the global generator, whatever the entry does: a broken law breaks in every run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from testing.specimen import (
    AffineLaws,
    HiddenLaws,
    LossLaws,
    SureLaws,
    WarmthLaws,
    by_entropy,
    hidden_mse,
    laws_of,
    sure,
)
from torch import Tensor, nn
from torch.nn import functional

import kdplug
from kdplug.testing import broken_laws, law_names
from kdplug.testing.law import Laws


@kdplug.facts(random=True)
def dropped(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> kdplug.LossSum:
    """Squared error of a student with dropout."""
    return hidden_mse(functional.dropout(student_features), teacher_features, mask)


class Dropped(nn.Module):
    """The same as a class, with a noisy map."""

    random = own_parameters = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_dim, out_dim)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> kdplug.LossSum:
        """Compute the loss."""
        return hidden_mse(functional.dropout(self.layer(student_features)), teacher_features, None)


@kdplug.facts(random=True)
def noisy(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
    """Squared error of noisy logits."""
    own = (student_logits + torch.rand_like(student_logits)) / torch.as_tensor(temperature)[..., None]
    return (own - teacher_logits.detach()).square().mean()


class NoisyProjection(nn.Linear):
    """A linear layer with dropout."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)

    def forward(self, feature: Tensor) -> Tensor:
        return functional.dropout(super().forward(feature), 0.1)


def noisy_temperature(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """A temperature with noise."""
    return by_entropy(student_logits, teacher_logits, temperature) + torch.rand(())


def noisy_teacher(teacher_logits_list: Any, labels: Tensor, temperature: Tensor | float) -> Tensor:
    """A combination with noise."""
    found = sure(teacher_logits_list, labels, temperature)
    return found + torch.rand_like(found)


DRAWING = [
    laws_of(HiddenLaws, dropped),
    laws_of(LossLaws, Dropped),
    laws_of(LossLaws, noisy),
    laws_of(AffineLaws, NoisyProjection),
    laws_of(WarmthLaws, noisy_temperature),
    laws_of(SureLaws, noisy_teacher),
]


@pytest.mark.parametrize("laws", DRAWING, ids=lambda laws: laws.__name__)
def test_no_law_advances_the_global_generator(laws: type[Laws]) -> None:
    advanced = []
    for name in law_names(laws):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        broken_laws(laws, only=[name])
        if not torch.equal(torch.get_rng_state(), before):
            advanced.append(name)
    assert advanced == []
