"""Student transforms: low-rank adapters, and weights quantised during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Layer = nn.Linear | nn.Conv2d


class LoRA:
    """Train a low-rank difference to the weights of linear and convolutional layers, which are frozen.

    The finished student has the sums as plain weights. With ``teacher: self`` the student without adapters teaches.

    Settings: ``rank`` of the difference; ``alpha``, which divided by the rank scales it; ``layers``, names or patterns of
    the layers; ``also``, names or patterns of parameters that are trained as they are.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(
        self, *, rank: int = 8, alpha: float = 16.0, layers: Sequence[str] = ("*",), also: Sequence[str] = ()
    ) -> None:
        self.rank, self.scale = rank, alpha / rank
        self.layers, self.also = tuple(layers), tuple(also)

    def prepare(self, student: nn.Module) -> nn.Module:
        """Freeze the student and add adapters."""
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(_is_named(name, self.also))
        for layer in _layers(student, self.layers):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, self.rank, self.scale))
        student.disable_adapter = MethodType(_without_adapters, student)  # type: ignore[assignment]
        return student

    def finish(self, student: nn.Module) -> nn.Module:
        """Add the differences to the weights, and train all of them from here on."""
        del student.disable_adapter
        return _written(student, LowRank).requires_grad_(True)


class LowRank(nn.Module):
    """A weight plus a low-rank difference, which is 0 at the start."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows = weight.flatten(1)
        self.down = nn.Parameter(torch.empty_like(rows[:1].expand(rank, -1), memory_format=torch.contiguous_format))
        self.up = nn.Parameter(torch.zeros_like(rows[:, :1].expand(-1, rank), memory_format=torch.contiguous_format))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.scale = scale
        self.is_on = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight) if self.is_on else weight


@contextmanager
def _without_adapters(student: nn.Module) -> Iterator[None]:
    adapters = [module for module in student.modules() if isinstance(module, LowRank)]
    try:
        for adapter in adapters:
            adapter.is_on = False
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True


class FakeQuantize:
    """Round the weights of linear and convolutional layers to ``bits`` bits in each forward pass.

    The gradient passes the rounding straight through. Each output channel has its own scale, symmetric around 0. The
    finished student has the rounded weights as plain weights.

    Settings: ``bits``; ``layers``, names or patterns of the layers.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3; straight-through estimator: Bengio et al. 2013, arXiv:1308.3432.
    """

    def __init__(self, *, bits: int = 8, layers: Sequence[str] = ("*",)) -> None:
        self.bits, self.layers = bits, tuple(layers)

    def prepare(self, student: nn.Module) -> nn.Module:
        """Round the weights from here on."""
        for layer in _layers(student, self.layers):
            parametrize.register_parametrization(layer, "weight", Rounded(self.bits))
        return student

    def finish(self, student: nn.Module) -> nn.Module:
        """Keep the rounded weights."""
        return _written(student, Rounded)


class Rounded(nn.Module):
    """A weight rounded to a grid of its channel."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-12) / self.most
        scale = scale.view(-1, *[1] * (weight.dim() - 1))
        rounded: Tensor = (weight.detach() / scale).round() * scale
        return weight + (rounded - weight.detach())


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _layers(student: nn.Module, patterns: Sequence[str]) -> list[Layer]:
    found = [one for name, one in student.named_modules() if isinstance(one, Layer) and _is_named(name, patterns)]
    if not found:
        raise ValueError(f"no linear or convolutional layer of the student has a name like {', '.join(patterns)}")
    return found


def _written(student: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Replace weights with a parametrization of a kind, which must be the only one, by what they compute."""
    for layer in list(student.modules()):
        if isinstance(layer, Layer) and parametrize.is_parametrized(layer, "weight"):
            (own,) = layer.parametrizations["weight"]  # type: ignore[index]
            assert isinstance(own, kind)
            with torch.no_grad():
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return student
