"""Tests that every teacher combiner must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdplug.testing.law import Laws, advise, broken, is_close, where
from kdplug.testing.sample import draw, seeded

TEMPERATURE = 2.0


def softened(logits: Tensor) -> Tensor:
    """Return the distribution at the temperature that the laws configure."""
    return (logits / TEMPERATURE).softmax(-1)


@dataclass(frozen=True, slots=True)
class TeacherSample:
    """The inputs of one call: logits ``[*items, classes]`` of each teacher and of the student, labels ``[*items]``."""

    teachers: tuple[Tensor, ...]
    student: Tensor
    labels: Tensor
    temperature: Tensor | float = TEMPERATURE

    def values(self) -> dict[str, Any]:
        """Return every input by name."""
        return {
            "teacher_logits_list": self.teachers,
            "student_logits": self.student,
            "labels": self.labels,
            "temperature": self.temperature,
            "progress": 0.5,
            "step": 5,
            "total_steps": 10,
        }

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the teachers' logits, the student's, the labels."""
        return (*self.teachers, self.student, self.labels)

    def but(self, **changes: Any) -> TeacherSample:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def each(self, change: Callable[[Tensor], Tensor]) -> TeacherSample:
        """Return a copy with ``change`` applied to all logits."""
        return self.but(teachers=tuple(map(change, self.teachers)), student=change(self.student))

    def reordered(self, order: Tensor) -> TeacherSample:
        """Return a copy with the first axis's items in the order ``order``."""
        return self.each(lambda logits: logits[order]).but(labels=self.labels[order])

    def with_classes(self, order: Tensor) -> TeacherSample:
        """Return a copy with the classes in the order ``order``, and matching labels."""
        return self.each(lambda logits: logits[..., order]).but(labels=order.argsort()[self.labels])

    def with_spoilt_item(self) -> TeacherSample:
        """Replace the last item's logits by very different ones, for every teacher but the first.

        This changes which teacher is the most confident over the whole batch.
        """

        def spoilt(logits: Tensor) -> Tensor:
            found = logits.clone()
            found[-1] = 1e3 * found[-1].flip(-1)
            return found

        return self.but(teachers=(self.teachers[0], *map(spoilt, self.teachers[1:])), student=spoilt(self.student))

    def ruled_out(self, ruling: int, value: float) -> TeacherSample:
        """Return a copy in which the first ``ruling`` teachers give ``value`` to class 1."""

        def without(logits: Tensor) -> Tensor:
            found = logits.clone()
            found[..., 1] = value
            return found

        return self.but(teachers=(*map(without, self.teachers[:ruling]), *self.teachers[ruling:]))


class CombinerCase(Laws):
    """A teacher combiner and its test inputs."""

    teachers: ClassVar[int] = 3
    """Number of teachers."""

    classes: ClassVar[int] = 5
    """Number of classes."""

    leading: ClassVar[tuple[tuple[int, ...], ...]] = ((4,), (3, 2))
    """Axes to try before the classes: items, or a batch of tokens."""

    @classmethod
    def kind_of(cls) -> str:
        return "teacher_combiners"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_logits_in_the_shape_of_each_teachers", lambda: self.combine(self.sample())

    def sample(self, leading: tuple[int, ...] | None = None) -> TeacherSample:
        """Return float64 logits that depend only on the arguments."""
        shape = (*(leading or self.leading[0]), self.classes)
        labels = torch.arange(math.prod(shape[:-1])) % self.classes
        teachers = tuple(draw(shape, 10 + place) for place in range(self.teachers))
        return TeacherSample(teachers, draw(shape, 1), labels.reshape(shape[:-1]))

    def combine(self, sample: TeacherSample) -> Tensor:
        """Return the combined logits."""
        found: Tensor = self.build()(**sample.values())
        return found

    @staticmethod
    def tolerance(found: Tensor) -> float:
        """Return the allowed rounding error: a combiner may compute in float32."""
        return 1e-9 if found.dtype is torch.float64 else 1e-4


class TeacherCombinerLaws(CombinerCase):
    """Tests that every teacher combiner must pass, for pytest.

    ::

        class TestMyCombiner(TeacherCombinerLaws):
            entry = "mycombiner"
            settings = {"trim": 1}
            symmetric = True
    """

    symmetric: ClassVar[bool] = False
    """Declares that the order of the teachers does not matter."""

    keeps_agreement: ClassVar[bool] = True
    """Declares that teachers that agree are combined into their common distribution, at the temperature."""

    def test_it_returns_logits_in_the_shape_of_each_teachers(self) -> None:
        """Catches a mean over the wrong axis, a list instead of a tensor, a weight of 0 / 0."""
        for leading in self.leading:
            sample = self.sample(leading)
            found: Any = self.combine(sample)
            if not isinstance(found, Tensor) or found.shape != sample.student.shape:
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                broken(
                    f"must return logits {list(sample.student.shape)}, like each teacher's, got {what}: reduce only over teachers"
                )
            if not bool(torch.isfinite(found).all()):
                broken("returned non-finite logits for ordinary teachers: clamp a sum of weights before dividing by it")

    def test_the_result_carries_no_gradient(self) -> None:
        """Catches a teacher, or the student, that is trained through the combined logits if it is not frozen."""
        given = self.sample()
        teachers = tuple(logits.clone().requires_grad_() for logits in given.teachers)
        found = self.combine(given.but(teachers=teachers, student=given.student.clone().requires_grad_()))
        if found.requires_grad:
            broken("the combined logits require grad: compute them under torch.no_grad(), or detach each input")

    def test_nothing_in_it_waits_to_be_trained(self) -> None:
        """Catches learned teacher weights, which keep their initial values: a combiner is part of the teacher side."""
        target = self.build().target
        named = target.named_parameters() if isinstance(target, nn.Module) else ()
        waiting = [name for name, parameter in named if parameter.requires_grad]
        if waiting:
            broken(
                f"has parameters, which would never be trained: {', '.join(waiting)}. Make each a setting or a buffer"
            )

    @advise("Use x + y instead of x.add_(y), or clone first")
    def test_its_inputs_are_not_modified(self) -> None:
        """Catches a sum accumulated in the first teacher's logits, which every later term then reads."""
        given, before = self.sample(), self.sample()
        self.combine(given)
        names = [*(f"teacher_logits_list[{place}]" for place in range(self.teachers)), "student_logits", "labels"]
        for name, one, two in zip(names, given.tensors(), before.tensors(), strict=True):
            if not torch.equal(one, two):
                broken(f"modified its input in place: {name}")

    @advise("Use no random numbers and do not count calls; a choice may depend on step")
    def test_the_same_inputs_give_the_same_logits(self) -> None:
        """Catches a randomly chosen teacher, or a count of calls: a resumed run then uses another teacher."""
        sample = self.sample()
        with seeded(1):
            combiner = self.build()
            first = combiner(**sample.values()).clone()
        with seeded(2):
            again = combiner(**sample.values())
        if not torch.equal(first, again):
            broken(f"differs by {_apart(first, again):.3g} on a second call: it depends on more than its inputs")

    @advise("Divide a sum over teachers by their number, or declare keeps_agreement = False")
    @where(lambda laws: laws.keeps_agreement)
    def test_teachers_that_agree_are_combined_into_what_they_say(self) -> None:
        """Catches a sum instead of a mean, weights that do not add up to 1, a teacher missing from the mean."""
        sample = self.sample()
        agreeing = sample.but(teachers=sample.teachers[:1] * self.teachers)
        found, expected = self.combine(agreeing), sample.teachers[0]
        if not is_close(softened(found), softened(expected), self.tolerance(found)):
            apart = _apart(softened(found), softened(expected))
            broken(f"teachers that agree are combined into another distribution: probabilities differ by {apart:.3g}")

    @advise("Treat all teachers in the same way, or do not declare symmetric")
    @where(lambda laws: laws.symmetric)
    def test_the_order_of_the_teachers_does_not_matter(self) -> None:
        """Catches a teacher that counts more because of its place in the list, or is ignored."""
        sample = self.sample()
        first = self.combine(sample)
        for turn in range(1, self.teachers):
            again = self.combine(sample.but(teachers=sample.teachers[turn:] + sample.teachers[:turn]))
            if not is_close(again, first, self.tolerance(first)):
                broken(
                    f"is declared symmetric, but changes by {_apart(first, again):.3g} with the order of the teachers"
                )

    @advise("Compute weights for each item, over its classes and teachers alone")
    def test_items_are_combined_each_on_their_own(self) -> None:
        """Catches weights computed over the whole batch, through which padding and other items affect an item."""
        for leading in self.leading:
            sample = self.sample(leading)
            spoilt = self.combine(sample.with_spoilt_item())
            if not is_close(spoilt[:-1], self.combine(sample)[:-1], self.tolerance(spoilt)):
                broken("the logits of one item changed those of the others")

    @advise("Return each item's logits at its own place, computed with its own label")
    def test_items_keep_their_places(self) -> None:
        """Catches logits assigned to the next item; a label read for another one."""
        sample = self.sample()
        order = torch.tensor([*range(len(sample.labels))][::-1])
        found, again = self.combine(sample), self.combine(sample.reordered(order))
        if not is_close(again, found[order], self.tolerance(found)):
            broken("reordered items do not get their logits in the same order")

    @advise("Reduce or sort over teachers, the first axis of torch.stack, and not along classes")
    def test_classes_keep_their_places(self) -> None:
        """Catches logits sorted along the classes instead of the teachers."""
        sample = self.sample()
        order = torch.tensor([*range(self.classes)][::-1])
        found, again = self.combine(sample), self.combine(sample.with_classes(order))
        if not is_close(again, found[..., order], self.tolerance(found)):
            broken("reordered classes do not get their logits in the same order")

    @advise("Use log_softmax and logsumexp instead of log(softmax), and do not add large numbers")
    def test_logits_of_ten_thousand_stay_finite(self) -> None:
        """Catches ``log(softmax(x))`` or ``exp(x)``, which become infinite."""
        sample = self.sample().each(lambda logits: (logits * 1e4).float())
        found, exact = self.combine(sample), self.combine(sample.each(Tensor.double))
        if not bool(torch.isfinite(found).all()):
            broken("logits of 1e4 are combined into non-finite logits")
        if not is_close(found, exact, 1e-3):
            broken(f"logits of 1e4 differ by {_apart(found, exact):.3g} between float32 and float64")

    @advise("Select with torch.where instead of a product with 0, and change no other class of the item")
    def test_a_class_that_teachers_rule_out_makes_no_nan(self) -> None:
        """Catches ``0 * -inf`` and ``-inf - -inf``: padded vocabularies and constrained decoding rule classes out."""
        for ruling in (1, self.teachers):
            found = self.combine(self.sample().ruled_out(ruling, value=-math.inf))
            whose = "one teacher's" if ruling == 1 else "every teacher's"
            if bool(torch.isnan(found).any()) or bool((found == math.inf).any()):
                broken(f"a class with {whose} logit -inf gives logits that are nan or inf")
            if not bool(torch.isfinite(found[..., 0]).all()):
                broken(f"a class with {whose} logit -inf gives the other classes infinite logits")

    @advise("Divide logits by temperature.unsqueeze(-1) if the temperature is a tensor")
    @where(lambda laws: laws.asks_for("temperature"))
    def test_a_temperature_for_each_item_is_taken(self) -> None:
        """Catches a scheduled temperature broadcast along the classes, or over the teachers."""
        for leading in self.leading:
            sample = self.sample(leading)
            same = self.combine(
                sample.but(temperature=torch.full(sample.labels.shape, TEMPERATURE, dtype=torch.float64))
            )
            if same.shape != sample.student.shape or not is_close(same, self.combine(sample), self.tolerance(same)):
                broken(
                    f"a temperature of {TEMPERATURE:g} for each of the items {list(sample.labels.shape)} gives "
                    "different logits from one temperature for all"
                )

    @advise("Replace labels below 0 before they are used as an index, as labels.clamp_min(0) does")
    @where(lambda laws: laws.asks_for("labels"))
    def test_items_without_a_label_stay_finite(self) -> None:
        """Catches -100, which marks an item without a label, taken as an index."""
        sample = self.sample()
        labels = sample.labels.clone()
        labels[0] = -100
        if not bool(torch.isfinite(self.combine(sample.but(labels=labels))).all()):
            broken("items without a label (-100) get non-finite logits")


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one.double() - two.double()).abs().max())
