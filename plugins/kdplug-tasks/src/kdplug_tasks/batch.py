"""Batches of model inputs, with targets that models do not receive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

import kdplug

INPUT_LENGTH = 200
"""Maximum number of characters of an example's input in its prediction."""


class Sized(Protocol):
    """A dataset with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Any: ...


class Examples(Dataset[Any]):
    """A list of examples as a dataset."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


def features(outputs: Any) -> dict[str, Any]:
    """Return ``hidden`` and ``attention``, if the model returned them.

    A feature map ``[batch, channels, height, width]`` becomes a sequence of positions ``[batch, positions, channels]``.
    """
    found: dict[str, Any] = {}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = tuple(
            state.flatten(2).transpose(1, 2) if state.dim() == 4 else state for state in outputs.hidden_states
        )
    if outputs.get("attentions") is not None:
        found["attention"] = outputs.attentions
    return found


def with_inputs(rows: Sequence[kdplug.Prediction], inputs: Sequence[str]) -> list[kdplug.Prediction]:
    """Return predictions with a short text of each example's input."""
    return [{**row, "input": one[:INPUT_LENGTH]} for row, one in zip(rows, inputs, strict=True)]


class Batch(Mapping[str, Tensor]):
    """Model inputs by name. ``targets``, also by name, are for adaptors and metrics and never reach a model.

    ``is_generated`` is true for a batch that the student generated, which has no labels; ``names`` identify examples
    whose inputs cannot be shown as text.

    Given labels, transformers models compute a loss themselves, which for most models is undefined for a batch without
    labels. Therefore adaptors compute the losses.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        *,
        is_generated: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.inputs = dict(inputs)
        self.targets = dict(targets)
        self.is_generated = is_generated
        self.names = tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        targets = {name: value.to(device, non_blocking=True) for name, value in self.targets.items()}
        return Batch(inputs, targets, is_generated=self.is_generated, names=self.names)
