"""Loss inputs for the tests: small tensors from a seed, never from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Draws = Literal["normal", "positive", "probabilities"]
Change = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]

WHOLE_NUMBERS = 5
"""Whole numbers of a sample are below this one: classes, or codes of a codebook."""


@dataclass(frozen=True, slots=True)
class SampleLayout:
    """The shapes of a loss's inputs: one for each layer of a side.

    ``token_axes`` are the axes that the mask's second axis applies to: ``(1,)`` for ``[batch, tokens, width]``, ``(2,
    3)`` for ``[batch, heads, tokens, tokens]``, empty if the mask covers the batch only. A loss that is ``listed`` gets
    tuples of features. ``logits`` is the shape of the logits that a loss on features requests in addition: they are the
    last tensor of each side. ``integers`` are the inputs that hold whole numbers.
    """

    word: Literal["logits", "features"]
    student_shapes: tuple[Shape, ...]
    teacher_shapes: tuple[Shape, ...]
    token_axes: tuple[int, ...]
    listed: bool = False
    draws: Draws = "normal"
    logits: Shape | None = None
    integers: frozenset[str] = frozenset()

    @property
    def student(self) -> Shape:
        """The shape of the student's first tensor."""
        return self.student_shapes[0]

    @property
    def teacher(self) -> Shape:
        """The shape of the teacher's first tensor."""
        return self.teacher_shapes[0]

    @property
    def are_alike(self) -> bool:
        """True if each tensor of the student has the shape of the teacher's."""
        return self.student_shapes == self.teacher_shapes

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
    """The inputs of one call. ``student`` and ``teacher`` hold one tensor per layer.

    ``of_extras`` names the layers if they are extras. ``named`` holds other extras and parameters: the input, the name in
    it, and the tensor.
    """

    layout: SampleLayout
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    mask: Tensor | None
    labels: Tensor
    temperature: float | Tensor = 2.0
    draw_seed: int = 0
    places: tuple[int, ...] = ()
    """The place of each example in the data: all are below ``NUM_EXAMPLES``."""
    of_extras: tuple[str, ...] = ()
    named: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return every input by name."""
        return {
            **self._tensors("student", self.student),
            **self._tensors("teacher", self.teacher),
            "teacher_sparse": None,
            "mask": self.mask,
            "student_mask": self.mask,
            "teacher_mask": self.mask,
            "labels": self.labels,
            "example_ids": self.example_ids,
            "temperature": self.temperature,
            "progress": 0.5,
            "step": 5,
            "total_steps": 10,
            "epoch": 1,
            "draw_seed": self.draw_seed,
            **self.named,
        }

    @property
    def example_ids(self) -> Tensor:
        """The ids of the examples: one per example, or one per item of logits."""
        ids = torch.tensor(self.places, dtype=torch.int64)
        if self.layout.word != "logits":
            return ids
        items = self.student[0].shape[:-1]
        each = -(-items.numel() // max(1, len(ids)))
        return ids.repeat_interleave(each)[: items.numel()].reshape(items)

    def _tensors(self, side: str, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        """Return the features or logits of one side by name; a single one unless layers are ``listed``."""
        if self.of_extras:
            return {f"{side}_extras": dict(zip(self.of_extras, tensors, strict=True))}
        layout, more = self.layout, {}
        if layout.logits is not None:
            tensors, more = tensors[:-1], {f"{side}_logits": tensors[-1]}
        return {f"{side}_{layout.word}": tensors if layout.listed else tensors[0], **more}

    def but(self, **changes: Any) -> Sample:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def both(self, change: Change) -> Sample:
        """Return a copy with ``change`` applied to every tensor of both sides; ``named`` ones follow its dtype only."""
        student, teacher = (tuple(map(change, side)) for side in (self.student, self.teacher))
        return self.but(student=student, teacher=teacher, named=self._each_named(lambda one: one.to(student[0].dtype)))

    def _each_named(self, change: Change, *kinds: str) -> dict[str, dict[str, Tensor]]:
        """Return ``named`` with ``change`` applied to the tensors of some kinds, by default of all."""
        return {
            name: {key: change(one) if name.endswith(kinds or ("s",)) else one for key, one in tensors.items()}
            for name, tensors in self.named.items()
        }

    def rescaled(self, change: Change) -> Sample:
        """Return a copy with ``change`` applied to every tensor of both sides that does not hold whole numbers."""
        return self.both(lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)

    def rows(self, index: list[int]) -> Sample:
        """Select examples of the batch, in the order of ``index``."""
        found = self.both(lambda tensor: tensor[index])
        temperature = self.temperature[index] if isinstance(self.temperature, Tensor) else self.temperature
        mask = None if self.mask is None else self.mask[index]
        ids = self.example_ids
        places = tuple(ids.reshape(len(ids), -1)[index, 0].tolist()) if ids.numel() else ()
        named = found._each_named(lambda tensor: tensor[index], "_extras")  # noqa: SLF001  the same class
        return found.but(mask=mask, labels=self.labels[index], temperature=temperature, places=places, named=named)

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
        """Return a copy with ``filling`` in every position that the mask excludes, on both sides.

        Whole numbers are left as they are.
        """
        return self.rescaled(lambda tensor: tensor.masked_fill(self.hidden_slots(tensor), filling))


def make_sample(layout: SampleLayout, seed: int = 0, *, masked: bool = False, classes: int = 5) -> Sample:
    """Make a sample of float64 tensors; with a mask, each example but the first ends in padding."""
    student, teacher = (_drawn(layout, side, seed * 100 + first) for side, first in (("student", 0), ("teacher", 50)))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, layout.mask, generator=generator)
    mask = _padding(layout.mask) if masked else None
    return Sample(layout, student, teacher, mask, labels, places=_places(layout, seed))


NUM_EXAMPLES = 16
"""The least number of examples in the data of the samples."""


def num_examples(layout: SampleLayout) -> int:
    """Return the number of examples in the data that a sample is drawn from."""
    return max(NUM_EXAMPLES, 2 * layout.student[0])


def _places(layout: SampleLayout, seed: int) -> tuple[int, ...]:
    """Return different places in the data, in no order."""
    order = torch.randperm(num_examples(layout), generator=torch.Generator().manual_seed(seed))
    return tuple(order[: layout.student[0]].tolist())


def _drawn(layout: SampleLayout, side: str, seed: int) -> tuple[Tensor, ...]:
    """Return the tensors of one side, one seed after the other."""
    shapes = layout.student_shapes if side == "student" else layout.teacher_shapes
    if f"{side}_{layout.word}" in layout.integers:
        return tuple(_whole_numbers(shape, seed + layer) for layer, shape in enumerate(shapes))
    found = tuple(draw(shape, seed + layer, layout.draws) for layer, shape in enumerate(shapes))
    return found if layout.logits is None else (*found, draw(layout.logits, seed + len(shapes)))


def _whole_numbers(shape: Shape, seed: int) -> Tensor:
    return torch.randint(WHOLE_NUMBERS, shape, generator=torch.Generator().manual_seed(seed))


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
