"""Loss inputs for the laws: small tensors from a seed, never from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Draws = Literal["normal", "positive", "probabilities"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SampleLayout:
    """The shapes of a loss's inputs.

    ``token_axes`` are the axes that the mask's second axis applies to: ``(1,)`` for ``[batch, tokens, width]``, ``(2,
    3)`` for ``[batch, heads, tokens, tokens]``, empty if the mask covers the batch only.
    """

    word: Literal["logits", "features"]
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    token_axes: tuple[int, ...]
    layers: int = 1
    draws: Draws = "normal"

    @property
    def mask(self) -> tuple[int, ...]:
        """The shape of the mask, and of labels."""
        return (self.student[0], *(self.student[axis] for axis in self.token_axes[:1]))


def draw(shape: tuple[int, ...], seed: int, draws: Draws = "normal") -> Tensor:
    """Return a float64 tensor that depends only on the arguments."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if draws == "positive":
        return found.abs() + 0.1
    return found.softmax(-1) if draws == "probabilities" else found


@dataclass(frozen=True, slots=True)
class Sample:
    """The inputs of one call. ``student`` and ``teacher`` hold one tensor per layer."""

    layout: SampleLayout
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    mask: Tensor | None
    labels: Tensor
    temperature: float | Tensor = 2.0
    draw_seed: int = 0

    def values(self) -> dict[str, Any]:
        """Return every input by name."""
        return {
            f"student_{self.layout.word}": self._as_given(self.student),
            f"teacher_{self.layout.word}": self._as_given(self.teacher),
            "teacher_sparse": None,
            "mask": self.mask,
            "student_mask": self.mask,
            "teacher_mask": self.mask,
            "labels": self.labels,
            "temperature": self.temperature,
            "progress": 0.5,
            "step": 5,
            "total_steps": 10,
            "epoch": 1,
            "draw_seed": self.draw_seed,
        }

    def _as_given(self, tensors: tuple[Tensor, ...]) -> Any:
        return tensors[0] if self.layout.layers == 1 else tensors

    def but(self, **changes: Any) -> Sample:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def both(self, change: Change) -> Sample:
        """Return a copy with ``change`` applied to every tensor of both sides."""
        return self.but(student=tuple(map(change, self.student)), teacher=tuple(map(change, self.teacher)))

    def rows(self, index: list[int]) -> Sample:
        """Select examples of the batch, in the order of ``index``."""
        found = self.both(lambda tensor: tensor[index])
        temperature = self.temperature[index] if isinstance(self.temperature, Tensor) else self.temperature
        mask = None if self.mask is None else self.mask[index]
        return found.but(mask=mask, labels=self.labels[index], temperature=temperature)

    def tokens(self, index: list[int]) -> Sample:
        """Select tokens of each example, in the order of ``index``."""

        def chosen(tensor: Tensor) -> Tensor:
            for axis in self.layout.token_axes:
                tensor = tensor.index_select(axis, torch.tensor(index))
            return tensor

        mask = None if self.mask is None else self.mask[:, index]
        return self.both(chosen).but(mask=mask, labels=self.labels[:, index])

    def hidden_slots(self, tensor: Tensor) -> Tensor:
        """Return bool in the shape of ``tensor``: the positions that the mask excludes."""
        assert self.mask is not None
        hidden = torch.zeros(tensor.shape, dtype=torch.bool)
        if not self.layout.token_axes:
            return hidden | _spread(~self.mask, {0: 0}, tensor.dim())
        for axis in self.layout.token_axes:
            hidden = hidden | _spread(~self.mask, {0: 0, axis: 1}, tensor.dim())
        return hidden

    def fill_hidden(self, filling: float) -> Sample:
        """Return a copy with ``filling`` in every position that the mask excludes, on both sides."""
        return self.both(lambda tensor: tensor.masked_fill(self.hidden_slots(tensor), filling))


def make_sample(layout: SampleLayout, seed: int = 0, *, masked: bool = False, classes: int = 5) -> Sample:
    """Make a sample of float64 tensors; with a mask, each example but the first ends in padding."""
    student = tuple(draw(layout.student, seed * 100 + layer, layout.draws) for layer in range(layout.layers))
    teacher = tuple(draw(layout.teacher, seed * 100 + 50 + layer, layout.draws) for layer in range(layout.layers))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, layout.mask, generator=generator)
    return Sample(layout, student, teacher, _padding(layout.mask) if masked else None, labels)


def _padding(shape: tuple[int, ...]) -> Tensor:
    """Return a mask whose row ``i`` excludes its last ``i`` tokens, but keeps at least one.

    A mask without token axes excludes the last example.
    """
    if len(shape) == 1:
        return torch.arange(shape[0]) < max(1, shape[0] - 1)
    kept = (shape[1] - torch.arange(shape[0]) % shape[1]).clamp_min(1)
    return torch.arange(shape[1])[None, :] < kept[:, None]


def _spread(mask: Tensor, axes: dict[int, int], dims: int) -> Tensor:
    """View ``mask`` with ``dims`` axes, whose axis ``key`` is the mask's axis ``value``."""
    shape = [mask.shape[axes[axis]] if axis in axes else 1 for axis in range(dims)]
    return mask.reshape(shape)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block; restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
