"""Lazy modules in terms: their shapes would be unknown when a checkpoint is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import SignatureError
from kdplug.objective.custom_term import CustomTerm
from kdplug.objective.objective import Objective


class LazyLogits(nn.Module):
    """A loss on logits with a head of unknown width."""

    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(1)

    def forward(self, student_logits, teacher_logits):
        return (self.head(student_logits) - self.head(teacher_logits)).square().mean()


class LazyFeatures(nn.Module):
    """A loss on features with buffers of unknown width."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LazyBatchNorm1d(affine=False)

    def forward(self, student_features, teacher_features):
        return (self.norm(student_features) - teacher_features).square().mean()


def lazy(in_dim, out_dim):
    return nn.LazyLinear(out_dim)


def test_a_lazy_kd_loss_is_an_error_when_the_objective_is_built(build, offer):
    with pytest.raises(
        SignatureError, match=r"^kd_loss_type: kd_loss: .*offered has the lazy parameter 'loss\.head\.weight'"
    ):
        build(kd_loss_type=offer(LazyLogits))


def test_a_lazy_match_loss_is_an_error_when_the_objective_is_built(build, offer, match, matches_only):
    with pytest.raises(
        SignatureError, match=r"^intermediate_matches\.0: .*offered has the lazy parameter 'loss\.norm\."
    ):
        build(intermediate_matches=[match(loss=offer(LazyFeatures))], **matches_only)


def test_a_lazy_projection_is_an_error_when_it_is_built(build, offer, match, matches_only):
    name = offer(lazy, "projections")
    with pytest.raises(SignatureError, match=r"^intermediate_matches\.0: .*could not be loaded from a checkpoint"):
        build(intermediate_matches=[match(proj=[name, 2, 3])], **matches_only)
    objective = build(intermediate_matches=[match(proj=[name, "auto", "auto"])], **matches_only)
    with pytest.raises(SignatureError, match=r"^intermediate_matches\.0: .*could not be loaded from a checkpoint"):
        objective.materialize({"hidden": [torch.ones(2, 3)]}, {"hidden": [torch.ones(2, 4)]})


def test_a_lazy_custom_match_is_an_error():
    term = CustomTerm("mine", layer_student="a", layer_teacher="b", loss=LazyFeatures())
    with pytest.raises(SignatureError, match=r"^custom_matches\.0: mine: LazyFeatures has the lazy parameter"):
        Objective(DistillationConfig(kd_loss_type="ce"), custom_matches=[term])
