"""A loss under test: its author's declarations, and helpers for the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdplug.contracts.loss import (
    INTEGER_INPUTS,
    READS_TEACHER,
    SHAPES,
    WHOLE_SEQUENCES,
    LossSum,
    declares,
    reduction_of,
    stated_facts,
)
from kdplug.errors import PluginError, did_you_mean
from kdplug.host.component import Component
from kdplug.host.kind import NAMED
from kdplug.objective.projection import declared_axis
from kdplug.testing.law import Laws, broken, number
from kdplug.testing.sample import (
    WHOLE_NUMBERS,
    Draws,
    Sample,
    SampleLayout,
    Shape,
    draw,
    make_sample,
    num_examples,
    seeded,
)

USUAL_SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "logits": (3, 4, 5),
        "sequences": (3, 4, 6),
        "pooled": (3, 6),
        "maps": (3, 4, 2, 5),
        "attention": (3, 2, 4, 4),
        "relations": (3, 4, 6),
    }
)
"""Shapes by name, of sizes that differ, so that an exchanged axis or a wrong divisor shows."""

_USUAL_TEACHERS: Mapping[str, Shape] = MappingProxyType({"relations": (3, 4, 9)})
"""Shapes of the teacher's tensor, where the name means another one than the student's."""

ShapeName = Literal["logits", "sequences", "pooled", "maps", "attention", "relations"]
Shapes = ShapeName | Shape | list[ShapeName | Shape]

_SIDES = ("student", "teacher")
_WORDS = ("logits", "features")

_MANY = 150_000
"""A number of items above float16's maximum, 65504, even with a third masked out."""

_LARGEST = 1_500_000
"""Maximum number of elements of a large sample: 12 MB in float64."""


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

    shape: ClassVar[Shapes | None] = None
    """The student's tensor: a shape, small and batch first, or the name of a usual one: ``"logits"`` [3, 4, 5],
    ``"sequences"`` [3, 4, 6], ``"pooled"`` [3, 6], ``"maps"`` [3, 4, 2, 5], ``"attention"`` [3, 2, 4, 4], or
    ``"relations"``, sequences that are 6 wide for the student and 9 wide for the teacher. A list gives one for each layer.
    Default: logits for a loss on logits, otherwise sequences, or attention."""

    teacher_shape: ClassVar[Shapes | None] = None
    """The teacher's tensor, if different; a list of another length for a loss that declares ``any_layers``."""

    large_shape: ClassVar[Shape | None] = None
    """A shape with more items than float16 can count (65504). Default: ``shape`` with a larger batch and more tokens."""

    token_axes: ClassVar[tuple[int, ...] | None] = None
    """The axes that a token mask applies to; ``()`` if the mask covers the batch only. Default: the middle one
    of three, the last two of attention, otherwise none; none for layers that differ in this."""

    layers: ClassVar[int] = 1
    """Number of layers of equal shape that it compares; with 2 or more it gets tuples of tensors."""

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
    """An independent float64 formula for the mean value, with named inputs like a loss. It may also request parameters
    and buffers of a class: ``projection_weight`` is ``projection.weight``. If it returns a tensor with gradient, the
    gradients are compared too; the shapes of the samples differ in every size."""

    @classmethod
    def kind_of(cls) -> str:
        return "losses"

    @classmethod
    def asks_for_logits(cls) -> bool:
        return cls.asks_for("student_logits") or cls.asks_for("teacher_logits")

    @classmethod
    def on_logits(cls) -> bool:
        """Return whether it compares logits, and no features."""
        return cls.asks_for_logits() and not (cls.asks_for("student_features") or cls.asks_for("teacher_features"))

    @classmethod
    def stated(cls) -> Mapping[str, str]:
        return {name: f"{name} = {value!r}" for name, value in stated_facts(cls._found.load()).items()}

    @classmethod
    def states(cls, fact: str) -> bool:
        return fact in cls.stated()

    @classmethod
    def asks_for_teacher(cls) -> bool:
        return any(name.startswith("teacher_") for name in cls._found.inputs)

    @classmethod
    def reads_teacher(cls) -> bool:
        """Return whether it requests an input of the teacher, and does not state that it ignores that."""
        return cls.asks_for_teacher() and not cls.states(READS_TEACHER)

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
    def declares_reduction(cls) -> bool:
        """Return whether it declares that its scalar is a mean or a sum over items."""
        return reduction_of(cls._found.load()) in {"mean", "sum"}

    @classmethod
    def layout_of(cls, *, large: bool = False) -> SampleLayout:
        what = "logits" if cls.on_logits() else cls.feature
        stated = stated_facts(cls._found.load())
        given = cls.shape or stated.get(SHAPES) or ("sequences" if what == "hidden" else what)
        students = _in_full(given, {}) * (1 if isinstance(given, list) else cls.layers)
        theirs = cls.teacher_shape
        if theirs is None:
            teachers = _in_full(given, _USUAL_TEACHERS) * (1 if isinstance(given, list) else cls.layers)
        else:
            teachers = _in_full(theirs, {}) * (1 if isinstance(theirs, list) else len(students))
        if cls.on_extras():
            sides = (_only(cls.__name__, cls.shapes_of(f"{side}_extras")) for side in _SIDES)
            students, teachers = ((shape,) * len(cls.student_extras) for shape in sides)
        axes = _shared_axes(what, students) if cls.token_axes is None else cls.token_axes
        if large:
            grown = cls.large_shape or _grown(max(students, key=math.prod), what, axes)
            students, teachers = (
                tuple(_widened(shape, grown, axes) for shape in side) for side in (students, teachers)
            )
        layout = SampleLayout(
            "logits" if cls.on_logits() else "features",
            students,
            teachers,
            axes,
            listed=isinstance(given, list) or isinstance(theirs, list) or cls.layers > 1,
            draws=cls.draws,
            integers=frozenset(stated.get(INTEGER_INPUTS, ())),
        )
        if cls.asks_for_logits() and not cls.on_logits():
            return replace(layout, logits=(*layout.mask, USUAL_SHAPES["logits"][-1]))
        return layout

    def sample(self, seed: int = 0, *, masked: bool | None = None) -> Sample:
        """Make a small float64 sample; ``masked`` defaults to whether the loss requests a mask."""
        return self.sample_of(self.layout_of(), seed, masked=self.asks_for("mask") if masked is None else masked)

    def sample_of(self, layout: SampleLayout, seed: int = 0, *, masked: bool = False) -> Sample:
        """Make a sample of a layout; its labels are classes of the logits, or whole numbers of 0 to 4 with features."""
        classes = layout.student[-1] if self.on_logits() else WHOLE_NUMBERS
        return self.named(make_sample(layout, seed, masked=masked, classes=classes), seed)

    def named(self, sample: Sample, seed: int = 0) -> Sample:
        """Return the sample with extras and parameters of the declared shapes, if the loss requests them."""
        of_extras = tuple(self.student_extras) if self.on_extras() else ()
        names = [name for name in sorted(NAMED) if self.asks_for(name)]
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

    def build(self, layout: SampleLayout | None = None) -> Component:
        """Build a fresh component with ``settings``, for the widths and the number of examples of the samples."""
        component = super().build()
        if not component.widths:
            return component
        layout = layout or self.layout_of()
        axis = declared_axis(component.entry.load(), component.entry.qualified)
        in_dims, out_dims = ([shape[axis] for shape in side] for side in (layout.student_shapes, layout.teacher_shapes))
        widths: dict[str, Any] = {"in_dim": in_dims, "out_dim": out_dims}
        if not layout.listed:
            widths = {name: sizes[0] for name, sizes in widths.items()}
        return component.with_widths(**widths, num_examples=num_examples(self.layout_of(large=True)))

    def build_in(self, dtype: torch.dtype, seed: int = 0, layout: SampleLayout | None = None) -> Component:
        """Build a fresh component with parameters of ``dtype``, drawn from ``seed``."""
        with seeded(seed):
            component = self.build(layout)
        if isinstance(component.target, nn.Module):
            component.target.to(dtype)
        return component

    def evaluate(self, sample: Sample, component: Component | None = None) -> Outcome:
        """Call the loss on ``sample``; without a ``component``, on a fresh one."""
        component = component or self.build_in(sample.student[0].dtype, layout=sample.layout)
        with seeded(1):
            return read_outcome(component(**sample.values()))

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_a_finite_scalar", lambda: list(map(self.evaluate, self.samples()))

    def gradients(self, sample: Sample, component: Component | None = None) -> tuple[Outcome, list[Tensor]]:
        """Return the loss's result for ``sample``, and the gradient of its value for each student tensor."""
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in sample.student)
        outcome = self.evaluate(sample.but(student=leaves), component)
        if not outcome.value.requires_grad:
            broken("gradient does not reach the student: the value is detached (detach, no_grad or .item())")
        return outcome._replace(total=outcome.total.detach()), gradients_of(outcome.value, leaves)

    def summed(self, pieces: list[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Return the sum of totals over the sum of counts, and its gradient for each student layer, over all rows."""
        leaves = [tuple(tensor.clone().requires_grad_() for tensor in piece.student) for piece in pieces]
        outcomes = [self.evaluate(piece.but(student=own)) for piece, own in zip(pieces, leaves, strict=True)]
        count = sum(number(outcome.count) for outcome in outcomes)
        total = torch.stack([outcome.total for outcome in outcomes]).sum() / count
        found = torch.autograd.grad(total, [leaf for own in leaves for leaf in own], materialize_grads=True)
        layers = len(leaves[0])
        return total.detach(), [torch.cat(found[layer::layers]) for layer in range(layers)]


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


def _in_full(given: Shapes, others: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """Return the shape of each layer. Names in ``others`` mean another shape than the usual one."""
    named = {**USUAL_SHAPES, **others}
    found = []
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, str) and one not in named:
            raise PluginError(
                f"there is no usual shape named {one!r}.{did_you_mean(one, named)} The names are {', '.join(named)}"
            )
        found.append(named[one] if isinstance(one, str) else one)
    return tuple(found)


def _shared_axes(what: str, shapes: tuple[Shape, ...]) -> tuple[int, ...]:
    axes = {_token_axes(what, len(shape)) for shape in shapes}
    return axes.pop() if len(axes) == 1 else ()


def _token_axes(what: str, dims: int) -> tuple[int, ...]:
    if what == "attention":
        return (dims - 2, dims - 1)
    return (1,) if dims == 3 else ()


def _grown(shape: Shape, what: str, axes: tuple[int, ...]) -> Shape:
    """Enlarge batch and tokens of ``shape`` so much that their number, times the width of a hidden state, is large."""
    growing = {0, *axes}
    counted = growing | {len(shape) - 1} if what == "hidden" else growing
    number = min(_MANY, _LARGEST * math.prod(shape[axis] for axis in counted) // math.prod(shape))
    factor = math.ceil((number / math.prod(shape[axis] for axis in counted)) ** (1 / len(growing)))
    return tuple(size * factor if axis in growing else size for axis, size in enumerate(shape))


def _widened(shape: Shape, grown: Shape, axes: tuple[int, ...]) -> Shape:
    """Return ``shape`` with the batch and tokens of ``grown``."""
    return tuple(grown[axis] if axis in {0, *axes} else size for axis, size in enumerate(shape))


def _shown(value: object) -> str:
    return (
        f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"
    )
