"""CTKD: its value, its reversed gradient, and a temperature that moves against the loss."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from by_element import close
from kdplug_papers.temperature import CTKD

from kdplug.testing import SchedulerLaws


@pytest.mark.parametrize(("progress", "epoch"), [(0.0, 0.0), (0.01, 2.4), (1 / 30, 8.0), (0.5, 10.0)])
def test_the_gradient_is_reversed_by_a_strength_that_rises_over_ten_epochs(progress, epoch):
    scheduler = CTKD().double()
    temperature = scheduler(progress)
    temperature.sum().backward()
    share = 1 / (1 + math.exp(-1))
    close(temperature, 1 + 20 * share)
    decay = (math.cos(epoch * math.pi / 10) + 1) / 2 * (0 - -1) + -1
    close(scheduler.position.grad, decay * 20 * share * (1 - share))


def test_it_starts_at_initial_within_its_bounds():
    temperature = CTKD(low=2, span=4, initial=-1000)(0.5)
    torch.testing.assert_close(temperature, torch.tensor([2.0]))


class TestCTKD(SchedulerLaws):
    entry = "kdplug-papers:ctkd"
    except_for: ClassVar = {"test_the_configured_temperature_is_used": "the paper trains the temperature alone"}
