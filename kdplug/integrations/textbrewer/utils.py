"""TextBrewer's ``utils``: the table of a model's parameters, and two small functions that scripts import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from torch import nn

from kdplug.integrations.textbrewer.parameter_table import LayerNode, display_parameters

__all__ = ["LayerNode", "cycle", "display_parameters", "initializer_builder"]

Item = TypeVar("Item")


def cycle(iterable: Iterable[Item]) -> Iterator[Item]:
    """The items again and again. It ends where a whole pass gives none, instead of looking for one forever."""
    empty = False
    while not empty:
        empty = True
        for item in iterable:
            empty = False
            yield item


def initializer_builder(std: float) -> Callable[[nn.Module], None]:
    """What ``module.apply`` takes: weights of linear layers and embeddings drawn from N(0, ``std``²), biases 0."""

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return init_weights
