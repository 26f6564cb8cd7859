"""Layers and inputs written element by element in numpy, for the formulas that methods are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return a float64 tensor that depends only on the arguments."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def several(number: int, *shape: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return layers, drawn from consecutive seeds."""
    return tuple(draw(*shape, seed=seed + place) for place in range(number))


def masked(lengths: Sequence[int], longest: int) -> Tensor:
    """Return the mask of sequences that end in padding, bool ``[batch, longest]``."""
    return torch.arange(longest)[None] < torch.tensor(lengths)[:, None]


def softmax(row: Sequence[float]) -> list[float]:
    """Return the probabilities of one row of scores."""
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def dot(one: Iterable[float], two: Iterable[float]) -> float:
    """Return the dot product of two vectors."""
    return sum(a * b for a, b in zip(one, two, strict=True))


def convolved(layer: nn.Module, maps: Array) -> Array:
    """Return a convolution of stride 1 that keeps the size of the maps ``[B, C, H, W]``."""
    weight = layer.weight.detach().numpy()  # type: ignore[union-attr,operator]
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()  # type: ignore[union-attr,operator]
    size, (batch, _, height, width) = weight.shape[2], maps.shape
    padded = np.pad(maps, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    found = np.zeros((batch, len(weight), height, width))
    for example, out, row, column in np.ndindex(*found.shape):
        window = padded[example, :, row : row + size, column : column + size]
        found[example, out, row, column] = (weight[out] * window).sum() + bias[out]
    return found


def standardised(maps: Array) -> Array:
    """Return batch norm with its initial scale and shift, in training mode."""
    found = np.empty_like(maps)
    for channel in range(maps.shape[1]):
        values = maps[:, channel]
        found[:, channel] = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
    return found


def pooled(maps: Array, size: int) -> Array:
    """Return the means of ``size × size`` windows, as adaptive pooling divides a map."""
    batch, channels, height, width = maps.shape
    found = np.zeros((batch, channels, size, size))
    for row, column in np.ndindex(size, size):
        rows = slice(row * height // size, -(-(row + 1) * height // size))
        columns = slice(column * width // size, -(-(column + 1) * width // size))
        found[:, :, row, column] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return found


def enlarged(maps: Array, height: int, width: int) -> Array:
    """Return nearest neighbours."""
    rows = [row * maps.shape[2] // height for row in range(height)]
    columns = [column * maps.shape[3] // width for column in range(width)]
    return maps[:, :, rows][:, :, :, columns]


def close(found: Tensor, expected: float) -> None:
    """Compare a value with the formula's."""
    torch.testing.assert_close(found.item(), float(expected), rtol=1e-11, atol=1e-12)
