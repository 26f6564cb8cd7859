"""The projection of maps: its laws, and a convolution written position by position."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from vision_oracle import convolved, draw, standardised

import kdplug
from kdplug.testing import ProjectionLaws
from kdplug_vision.projection import Conv


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_it_is_a_convolution_with_batch_norm_and_relu(kernel_size):
    torch.manual_seed(271828)
    maps = draw(2, 3, 4, 5)
    plain = Conv(3, 4, kernel_size=kernel_size).double()
    np.testing.assert_allclose(plain(maps).detach().numpy(), convolved(plain.layers[0], maps.numpy()), rtol=1e-10)
    full = Conv(3, 4, kernel_size=kernel_size, batch_norm=True, relu=True).double()
    expected = np.maximum(standardised(convolved(full.layers[0], maps.numpy())), 0)
    np.testing.assert_allclose(full(maps).detach().numpy(), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_a_kernel_without_a_centre_is_an_error(kernel_size):
    with pytest.raises(kdplug.SettingError, match="kernel_size: must be >="):
        Conv(3, 4, kernel_size=kernel_size)


class TestConv(ProjectionLaws):
    entry = "kdplug-vision:conv"


class TestConvWithBatchNorm(ProjectionLaws):
    entry = "kdplug-vision:conv"
    settings: ClassVar = {"batch_norm": True}
    tokenwise = False
