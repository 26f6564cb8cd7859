"""Methods on feature maps, against formulas written element by element."""

from __future__ import annotations

import numpy as np
import torch
from kdplug_papers.regression import FitNet
from numpy.typing import NDArray
from paper_laws import PaperLaws

Array = NDArray[np.float64]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolved(weight: Array, bias: Array, image: Array) -> Array:
    """A 3 × 3 convolution with padding 1 of one example ``[C, H, W]``, element by element."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    found = np.zeros((len(weight), height, width))
    for out in range(len(weight)):
        for row in range(height):
            for column in range(width):
                window = padded[:, row : row + 3, column : column + 3]
                found[out, row, column] = (weight[out] * window).sum() + bias[out]
    return found


def test_fitnet_is_the_mean_squared_error_of_its_regressor():
    torch.manual_seed(0)
    loss = FitNet(3, 4).double()
    student, teacher = draw(2, 3, 5, 6), draw(2, 4, 5, 6, seed=1)
    convolution = loss.regressor[0]
    weight, bias = (one.detach().numpy() for one in (convolution.weight, convolution.bias))
    maps = np.stack([convolved(weight, bias, example.numpy()) for example in student])
    total = 0.0
    for channel in range(4):
        values = maps[:, channel]
        normal = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        total += float(((np.maximum(normal, 0) - teacher[:, channel].numpy()) ** 2).sum())
    torch.testing.assert_close(loss(student, teacher).item(), total / (2 * 4 * 5 * 6), **EXACT)


class TestFitNet(PaperLaws):
    entry = "kdplug-papers:fitnet"
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    non_negative = True
    trains = ("regressor.0.weight", "regressor.1.weight")
