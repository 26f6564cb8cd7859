"""Defects of projections."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import AffineLaws
from torch import nn


@mutant(AffineLaws, "test_it_brings_the_students_width_to_the_teachers", "fails on [2, 3]")
def widths_swapped(in_dim, out_dim):
    return nn.Linear(out_dim, in_dim)


SHARED = {widths: nn.Linear(*widths).double() for widths in AffineLaws.widths}


@mutant(AffineLaws, "test_two_projections_share_nothing", "share modules or parameters")
def one_module_for_every_match(in_dim, out_dim):
    return SHARED[in_dim, out_dim]


@mutant(AffineLaws, "test_each_token_is_projected_on_its_own", "changed the projection of the others")
class NormalizedOverTheBatch(nn.Module):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, feature):
        found = self.linear(feature)
        return found - found.mean(0, keepdim=True)


@mutant(AffineLaws, "test_gradient_reaches_the_student_and_every_parameter", "gradient does not reach parameter unused")
class WithALayerThatIsNeverUsed(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)
        self.unused = nn.Parameter(torch.zeros(1))


@mutant(AffineLaws, "test_its_input_is_not_modified", "modified the student's feature in place")
class ActivationInPlace(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)

    def forward(self, feature):
        return super().forward(feature.relu_() if not feature.requires_grad else feature.relu())


@mutant(AffineLaws, "test_gradient_agrees_with_finite_differences", "gradient does not match the value")
class DetachedFactor(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)

    def forward(self, feature):
        found = super().forward(feature)
        return found * found.detach()


@mutant(
    AffineLaws,
    "test_half_precision_autocast_stays_near_float32",
    "under float16 autocast its output is far from that in float32",
)
class OverflowInHalfPrecision(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)

    def forward(self, feature):
        return super().forward(feature) * 1e3 * 1e3 / 1e6


@mutant(
    AffineLaws,
    "test_a_copy_and_a_loaded_state_project_alike",
    "a module that loaded the state_dict projects differently",
)
class ScaleThatIsNotSaved(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)
        self.register_buffer("scale", torch.rand(()), persistent=False)

    def forward(self, feature):
        return super().forward(feature) * self.scale


@mutant(AffineLaws, "test_torch_compile_traces_it_whole", "torch.compile cannot trace it without graph breaks")
class BranchOnAValueOfTheFeature(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)

    def forward(self, feature):
        return super().forward(feature) if feature.sum().item() < 1e9 else feature
