"""A loss under test: its author's declarations, and helpers for the laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdplug.contracts.loss import WHOLE_SEQUENCES, LossSum, declares, reduction_of
from kdplug.errors import PluginError
from kdplug.host.component import Component
from kdplug.objective.named_inputs import NAMED_INPUTS
from kdplug.objective.projection import declared_axis
from kdplug.testing.law import Laws, broken
from kdplug.testing.sample import Draws, Sample, SampleLayout, draw, make_sample, num_examples, seeded

_SHAPES = {"logits": (3, 4, 5), "hidden": (3, 4, 6), "attention": (3, 2, 4, 4)}
_SIDES = ("student", "teacher")
_WORDS = ("logits", "features")

_MANY = 150_000
"""A number of items above float16's maximum, 65504, even with a third masked out."""


class Outcome(NamedTuple):
    """A loss's result as a sum and a count; the count is 1 for a scalar."""

    total: Tensor
    count: Tensor | float  # type: ignore[assignment]  # hides ``tuple.count``
    is_sum: bool

    @property
    def value(self) -> Tensor:
        return LossSum(self.total, self.count).value


class LossCase(Laws):
    """Declarations of a loss's author, in addition to the entry."""

    feature: ClassVar[Literal["hidden", "attention"]] = "hidden"
    """The feature that a match loss compares; it sets the default shapes and the axes of the mask."""

    shape: ClassVar[tuple[int, ...] | None] = None
    """The shape of the student's tensor: small, batch first. Default: [3, 4, 5] logits, [3, 4, 6] hidden, [3, 2, 4, 4]
    attention."""

    teacher_shape: ClassVar[tuple[int, ...] | None] = None
    """The shape of the teacher's tensor, if different."""

    large_shape: ClassVar[tuple[int, ...] | None] = None
    """A shape with more items than float16 can count (65504). Default: ``shape`` with a larger batch and more tokens."""

    token_axes: ClassVar[tuple[int, ...] | None] = None
    """The axes that a token mask applies to; ``()`` if the mask covers the batch only. Default: the middle one
    of three, the last two of attention, otherwise none."""

    layers: ClassVar[int] = 1
    """Number of layers that it compares; with 2 or more it gets tuples of tensors."""

    student_extras: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Shapes of the student's extras by name, examples first. If it requests neither logits nor features, they take the
    place of ``shape`` and have the same shape."""

    teacher_extras: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Shapes of the teacher's extras by name. Default: the student's."""

    student_parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Shapes of the student's parameters and buffers by path."""

    teacher_parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Shapes of the teacher's parameters and buffers by path."""

    may_differ: ClassVar[tuple[int, ...]] = ()
    """Axes along which student and teacher may differ in size."""

    draws: ClassVar[Draws] = "normal"
    """Its inputs: any numbers, positive ones, or probabilities over the last axis."""

    sums: ClassVar[bool | None] = None
    """Declares whether it returns a ``LossSum``; ``None`` infers that from the return annotation."""

    non_negative: ClassVar[bool] = False
    """Declares that it is never negative."""

    zero_at_equality: ClassVar[bool] = False
    """Declares that it is 0 if the student equals the teacher."""

    reaches_teacher: ClassVar[bool] = False
    """Declares that training student logits on it makes their distribution approach the teacher's."""

    t2: ClassVar[bool | None] = None
    """Declares, for a loss on tempered logits, whether its value is scaled by the squared temperature."""

    ignores_impossible_classes: ClassVar[bool] = False
    """Declares that classes of probability 0 on both sides change nothing: it sums over classes and does not average."""

    corrects_confident_mistakes: ClassVar[bool] = False
    """Declares that a confidently wrong student gets at least the gradient of a slightly wrong one."""

    trains: ClassVar[tuple[str, ...]] = ()
    """Declares, for a class, the names of its trained parameters."""

    oracle: ClassVar[Callable[..., Any] | None] = None
    """An independent formula for the mean value, with named inputs like a loss."""

    @classmethod
    def kind_of(cls) -> str:
        return "losses"

    @classmethod
    def on_logits(cls) -> bool:
        return cls.asks_for("student_logits") or cls.asks_for("teacher_logits")

    @classmethod
    def takes_sequences(cls) -> bool:
        return declares(cls._found.load(), WHOLE_SEQUENCES)

    @classmethod
    def on_extras(cls) -> bool:
        """Return whether it compares extras, and neither logits nor features."""
        inputs = set(cls._found.inputs)
        return "student_extras" in inputs and not inputs & {f"{side}_{word}" for side in _SIDES for word in _WORDS}

    @classmethod
    def shapes_of(cls, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of one of the inputs whose content a term names, by name."""
        declared = getattr(cls, name) or (cls.student_extras if name == "teacher_extras" else {})
        if not declared:
            raise PluginError(f"{cls.__name__} must declare {name}: the shapes of what the loss reads, by name")
        shapes: Mapping[str, tuple[int, ...]] = declared
        return shapes

    @classmethod
    def is_class(cls) -> bool:
        return cls._found.signature.makes

    @classmethod
    def returns_sum(cls) -> bool:
        if cls.sums is not None:
            return cls.sums
        return reduction_of(cls._found.load()) == "LossSum"

    @classmethod
    def layout_of(cls, *, large: bool = False) -> SampleLayout:
        what = "logits" if cls.on_logits() else cls.feature
        shape = cls.shape or _SHAPES[what]
        axes = _token_axes(what, len(shape)) if cls.token_axes is None else cls.token_axes
        teacher = cls.teacher_shape or shape
        layers = cls.layers
        if cls.on_extras():
            shape, teacher = (_only(cls.__name__, cls.shapes_of(f"{side}_extras")) for side in _SIDES)
            layers = len(cls.student_extras)
            axes = _token_axes(what, len(shape)) if cls.token_axes is None else cls.token_axes
        if large:
            shape = teacher = cls.large_shape or _grown(shape, what, axes)
        return SampleLayout("logits" if cls.on_logits() else "features", shape, teacher, axes, layers, cls.draws)

    def sample(self, seed: int = 0, *, masked: bool | None = None) -> Sample:
        """Make a small float64 sample; ``masked`` defaults to whether the loss requests a mask."""
        layout = self.layout_of()
        classes = layout.student[-1] if self.on_logits() else 5
        masked = self.asks_for("mask") if masked is None else masked
        return self.named(make_sample(layout, seed, masked=masked, classes=classes), seed)

    def named(self, sample: Sample, seed: int = 0) -> Sample:
        """Return the sample with extras and parameters of the declared shapes, if the loss requests them."""
        of_extras = tuple(self.student_extras) if self.on_extras() else ()
        names = [name for name in sorted(NAMED_INPUTS) if self.asks_for(name)]
        named = {
            name: {
                key: draw(
                    (len(sample.student[0]), *shape[1:]) if name.endswith("extras") else shape, seed * 100 + place
                )
                for place, (key, shape) in enumerate(self.shapes_of(name).items(), 70 + 7 * number)
            }
            for number, name in enumerate(names)
            if not (of_extras and name.endswith("extras"))
        }
        return sample.but(of_extras=of_extras, named=named)

    def samples(self) -> list[Sample]:
        """Return a sample without a mask, and one with a mask if the loss requests it."""
        return [self.sample(masked=False), *([self.sample(masked=True)] if self.asks_for("mask") else [])]

    def build(self) -> Component:
        """Build a fresh component with ``settings``, for the widths and the number of examples of the samples."""
        component = super().build()
        if not component.widths:
            return component
        layout, axis = self.layout_of(), declared_axis(component.entry.load(), component.entry.qualified)
        widths: dict[str, Any] = {"in_dim": layout.student[axis], "out_dim": layout.teacher[axis]}
        if self.layers > 1:
            widths = {name: [width] * self.layers for name, width in widths.items()}
        return component.with_widths(**widths, num_examples=num_examples(self.layout_of(large=True)))

    def build_in(self, dtype: torch.dtype, seed: int = 0) -> Component:
        """Build a fresh component with parameters of ``dtype``, drawn from ``seed``."""
        with seeded(seed):
            component = self.build()
        if isinstance(component.target, nn.Module):
            component.target.to(dtype)
        return component

    def evaluate(self, sample: Sample, component: Component | None = None) -> Outcome:
        """Call the loss on ``sample``; without a ``component``, on a fresh one."""
        component = component or self.build_in(sample.student[0].dtype)
        with seeded(1):
            return read_outcome(component(**sample.values()))

    def gradients(self, sample: Sample, component: Component | None = None) -> tuple[Outcome, list[Tensor]]:
        """Return the loss's result for ``sample``, and the gradient of its value for each student tensor."""
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in sample.student)
        outcome = self.evaluate(sample.but(student=leaves), component)
        if not outcome.value.requires_grad:
            broken("gradient does not reach the student: the value is detached (detach, no_grad or .item())")
        return outcome._replace(total=outcome.total.detach()), gradients_of(outcome.value, leaves)


def _only(owner: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    found = set(shapes.values())
    if len(found) > 1:
        raise PluginError(
            f"{owner}: the extras of one side must have the same shape, got {', '.join(map(str, sorted(found)))}"
        )
    return found.pop()


def gradients_of(value: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradient of ``value`` for each leaf, 0 if there is none."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]


def read_outcome(result: Any) -> Outcome:
    """Convert a loss's return value."""
    if isinstance(result, Tensor) and result.dim() == 0:
        return Outcome(result, 1, is_sum=False)
    if not isinstance(result, LossSum):
        broken(f"returned {_shown(result)}: a loss must return a scalar tensor or a LossSum")
    total, count = result
    scalar = isinstance(count, (int, float)) or (isinstance(count, Tensor) and count.dim() == 0)
    if not (scalar and isinstance(total, Tensor) and total.dim() == 0):
        broken(f"returned a LossSum that is not a pair of scalars: total {_shown(total)}, count {_shown(count)}")
    return Outcome(total, count, is_sum=True)


def _token_axes(what: str, dims: int) -> tuple[int, ...]:
    if what == "attention":
        return (dims - 2, dims - 1)
    return (1,) if dims == 3 else ()


def _grown(shape: tuple[int, ...], what: str, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Enlarge batch and tokens of ``shape`` so much that their number, times the width of a hidden state, is large."""
    growing = {0, *axes}
    counted = growing | {len(shape) - 1} if what == "hidden" else growing
    number = math.prod(shape[axis] for axis in counted)
    factor = math.ceil((_MANY / number) ** (1 / len(growing)))
    return tuple(size * factor if axis in growing else size for axis, size in enumerate(shape))


def _shown(value: object) -> str:
    return (
        f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"
    )
