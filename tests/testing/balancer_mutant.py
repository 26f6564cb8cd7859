"""Defects of balancers."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import InverseLaws
from torch import nn

RETURNS = "test_it_returns_a_finite_weight_for_each_term"


@mutant(InverseLaws, RETURNS, "must return a tensor with a weight for each of the 3 terms, got []")
class OneWeightForAll:
    def update(self, values):
        return 1 / values.mean()


@mutant(InverseLaws, RETURNS, "got list")
class AListOfWeights:
    def update(self, values):
        return [1 / value for value in values]


@mutant(InverseLaws, RETURNS, "returned a weight that is not finite in update 1")
class DividedByNothing(nn.Module):
    def __init__(self, num_terms):
        super().__init__()
        self.register_buffer("last", torch.zeros(num_terms))

    def update(self, values):
        found = values / self.last
        self.last.copy_(values)
        return found


@mutant(InverseLaws, RETURNS, "returned a weight below 0")
class Signed:
    def update(self, values):
        return values - values.mean()


@mutant(InverseLaws, "test_very_small_and_very_large_values_give_finite_weights", "not finite for values around 1e+06")
class Exponential:
    def update(self, values):
        return torch.exp(values)


@mutant(InverseLaws, "test_its_inputs_are_not_modified", "modified its input in place: values")
class HalvedInPlace:
    def update(self, values):
        return 1 / values.mul_(0.5)


@mutant(InverseLaws, "test_weights_that_were_returned_do_not_change", "the weights of an update changed in a later one")
class SameTensor(nn.Module):
    def __init__(self, num_terms):
        super().__init__()
        self.register_buffer("weights", torch.ones(num_terms))

    def update(self, values):
        return self.weights.mul_(0.9).add_(values, alpha=0.1)


@mutant(InverseLaws, "test_the_same_run_gives_the_same_weights", "a second run with the same values returned different")
class RandomWeights:
    def update(self, values):
        return torch.rand_like(values)


@mutant(InverseLaws, "test_its_state_is_in_buffers", "has the parameter 'logs', which no loss trains")
class TrainedLogs(nn.Module):
    def __init__(self, num_terms):
        super().__init__()
        self.logs = nn.Parameter(torch.zeros(num_terms))

    def update(self, values):
        return torch.exp(-self.logs.detach()) / values


@mutant(InverseLaws, "test_its_state_is_in_buffers", "keeps a tensor in the plain attribute 'average'")
class PlainAverage:
    def __init__(self, num_terms):
        self.average = torch.ones(num_terms, dtype=torch.float64)

    def update(self, values):
        self.average = 0.9 * self.average + 0.1 * values
        return 1 / self.average


@mutant(InverseLaws, "test_a_resumed_run_has_the_same_weights", "resumed from its state dict after update 1")
class CountsInAnAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def update(self, values):
        self.steps += 1
        return torch.full_like(values, float(self.steps))


@mutant(InverseLaws, "test_it_does_not_wait_for_the_device", "it reads a number from a tensor")
class Branches:
    def update(self, values):
        return values if values.sum() > 1 else 1 / values


@mutant(InverseLaws, "test_the_order_of_the_terms_does_not_matter", "is declared symmetric")
class FirstIsFixed:
    def update(self, values):
        return values[0] / values
