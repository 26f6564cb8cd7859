"""Tests of the value of a loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from kdplug.contracts.loss import INTEGER_INPUTS, OWN_PARAMETERS, RANDOM, READS_TEACHER
from kdplug.errors import PluginError
from kdplug.testing.law import advise, are_finite, broken, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase, read_outcome
from kdplug.testing.sample import Sample, Shape, seeded


class ValueLaws(LossCase):
    """Laws on the return value of a loss, and its side effects on inputs."""

    @classmethod
    def _choose(cls) -> None:
        super()._choose()
        if cls._trouble is None:
            cls._check_declared()

    @classmethod
    def _check_declared(cls) -> None:
        """Raise ``PluginError`` for a declaration that no law can test."""
        if cls.t2 is not None and not cls.asks_for("temperature"):
            raise PluginError(
                f"{cls.__name__}: t2 has no effect, since the loss does not request temperature. Remove t2"
            )
        layout = cls.layout_of()
        if cls.zero_at_equality and cls._found.signature.widths and not layout.are_alike:
            raise PluginError(
                f"{cls.__name__}: zero_at_equality cannot hold, since the loss is built for a student of shape "
                f"{list(layout.student)} and cannot get the teacher's tensor, {list(layout.teacher)}. Remove the declaration, or "
                "declare equal shapes"
            )

    def test_it_returns_a_finite_scalar(self) -> None:
        """Catches a value per item, a Python number without gradient, a mean without its count, and float64 inputs that
        are rounded to float32, which other laws would report as a wrong value.
        """
        for sample in self.samples():
            outcome = self.evaluate(sample)
            if not are_finite([outcome.value]):
                broken(f"returned {number(outcome.value)} for ordinary inputs")
            if outcome.total.dtype is not torch.float64:
                broken(
                    f"returned {str(outcome.total.dtype).removeprefix('torch.')} for float64 inputs. Cast half precision with "
                    "tensor.to(torch.promote_types(tensor.dtype, torch.float32)) instead of tensor.float()"
                )
            if outcome.is_sum and not self.returns_sum():
                broken("returned an undeclared LossSum: annotate '-> LossSum', or declare sums = True")
            if self.returns_sum() and not outcome.is_sum:
                broken(
                    "is declared to return a LossSum, but returned a scalar. Return LossSum(total, count), or correct the declaration"
                )

    @advise("Correct the sign or the constant, or do not declare non_negative")
    @where(lambda laws: laws.non_negative)
    def test_it_is_never_negative(self) -> None:
        """Catches a flipped sign; a formula that is not a divergence."""
        for seed in range(8):
            value = number(self.evaluate(self.sample(seed)).value)
            if value < -1e-12:
                broken(f"is declared non-negative, but is {value:.3g}")

    @advise(
        "Subtract the value at equality, such as the teacher's entropy, and treat both sides in the same way; or do not "
        "declare zero_at_equality"
    )
    @where(lambda laws: laws.zero_at_equality)
    def test_it_is_zero_where_student_equals_teacher(self) -> None:
        """Catches a cross-entropy named KL (its value at equality is the teacher's entropy); positions shifted by one."""
        for sample in self.samples():
            value = number(self.evaluate(sample.but(student=sample.teacher)).value)
            if abs(value) > 1e-9:
                broken(f"is declared to be 0 if the student equals the teacher, but is {value:.3g}")

    @advise(
        "Correct the sign. If parameters, labels or random draws move the minimum by definition, state this fact, or "
        "name the test in except_for"
    )
    @unless(RANDOM, OWN_PARAMETERS, READS_TEACHER, INTEGER_INPUTS)
    @where(lambda laws: laws.asks_for_teacher() and laws.layout_of().are_alike)
    def test_no_student_is_better_than_the_teacher_itself(self) -> None:
        """Catches a correlation or similarity with the wrong sign, which training drives away from the teacher."""
        for seed in range(12):
            for sample in (self.sample(seed), _near_teacher(self.sample(seed))):
                there, here = (number(self.evaluate(one).value) for one in (sample.but(student=sample.teacher), sample))
                if there > here + 1e-9:
                    broken(f"is {there:.6g} if the student equals the teacher, but less ({here:.6g}) if it does not")

    @advise(
        "Clamp labels to 0 before they are used as an index, and count only the items with a label: "
        "LossSum(total, (labels >= 0).sum())"
    )
    @where(lambda laws: laws.asks_for("labels"))
    def test_items_without_a_label_stay_finite(self) -> None:
        """Catches the label -100 taken as an index, or a mean over no labelled items."""
        sample = self.sample(masked=False)
        for labels in (torch.full_like(sample.labels, -100), _without_first(sample.labels)):
            outcome, gradients = self.gradients(sample.but(labels=labels))
            if not are_finite([outcome.value]) or not are_finite(gradients):
                broken(f"items without a label (-100) give the value {number(outcome.value)} or a non-finite gradient")

    @advise("Use x - y instead of x.sub_(y), or clone first")
    def test_its_inputs_are_not_modified(self) -> None:
        """Catches an in-place edit of the teacher's logits or of a mask, which every later term then reads."""
        for sample in self.samples():
            given = sample.both(torch.clone).but(labels=sample.labels.clone())
            given = given.but(mask=None if sample.mask is None else sample.mask.clone())
            with torch.no_grad():
                self.evaluate(given)
            pairs = [("student", given.student, sample.student), ("teacher", given.teacher, sample.teacher)]
            pairs.append(("labels", (given.labels,), (sample.labels,)))
            if given.mask is not None and sample.mask is not None:
                pairs.append(("mask", (given.mask,), (sample.mask,)))
            for side, after, before in pairs:
                if any(not torch.equal(one, two) for one, two in zip(after, before, strict=True)):
                    broken(f"modified its input in place: {side}")

    @advise("Use reshape or flatten instead of view")
    def test_it_takes_tensors_that_are_not_contiguous(self) -> None:
        """Catches ``view`` on a transposed feature, which raises during a run."""
        for sample in self.samples():
            found = self.evaluate(sample.both(_strided)).value
            if not is_close(found, self.evaluate(sample).value):
                broken("depends on the memory layout of its inputs")

    @advise("Draw each call from a new torch.Generator(device).manual_seed(draw_seed)")
    @where(lambda laws: laws.asks_for("draw_seed"))
    def test_its_draws_follow_the_draw_seed(self) -> None:
        """Catches draws from the global generator, or from one with the same seed for each batch, whose noise adds up."""
        sample, component = self.sample(masked=False), self.build_in(torch.float64)
        values = []
        for ambient, draw_seed in ((1, 3), (2, 3), (2, 4)):
            with seeded(ambient):
                before = torch.get_rng_state()
                values.append(number(read_outcome(component(**sample.but(draw_seed=draw_seed).values())).value))
                if not torch.equal(before, torch.get_rng_state()):
                    broken("advances the global generator: draw from torch.Generator(device).manual_seed(draw_seed)")
        if values[0] != values[1]:
            broken("gives different values for the same draw_seed: a resumed run would differ")
        if values[1] == values[2]:
            broken("requests draw_seed, but gives the same value for two seeds")

    def test_shapes_that_do_not_fit_are_an_error(self) -> None:
        """Catches a teacher of width 1, or a batch of 1, that is silently broadcast."""
        for what, sample in self._misfits():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.evaluate(sample)
            except Exception:  # noqa: S112 any error is accepted
                continue
            broken(f"{what} is broadcast without an error. Check the shapes and raise a ShapeError (or ValueError)")

    def _misfits(self) -> Iterator[tuple[str, Sample]]:
        """Yield samples whose tensors do not match each other, with a description of the mismatch."""
        sample = self.sample(masked=False)
        layout = sample.layout
        teachers = layout.teacher_shapes if self.reads_teacher() else ()
        layers = list(zip(layout.student_shapes, teachers, strict=False))
        for axis, size in enumerate(layout.student):
            if not layers or not all(
                _is_shared(axis, student, teacher, self.may_differ) for student, teacher in layers
            ):
                continue
            teacher, student = (_narrowed(side, axis, len(layers)) for side in (sample.teacher, sample.student))
            yield f"a teacher of size 1 but a student of {size} (axis {axis})", sample.but(teacher=teacher)
            yield f"a student of size 1 but a teacher of {size} (axis {axis})", sample.but(student=student)
        if self.asks_for("mask"):
            mask = self.sample(masked=True).mask
            assert mask is not None
            for axis in range(mask.dim()):
                narrow = mask.narrow(axis, 0, 1)
                yield f"a mask of shape {list(narrow.shape)} instead of {list(mask.shape)}", sample.but(mask=narrow)


def _is_shared(axis: int, student: Shape, teacher: Shape, may_differ: tuple[int, ...]) -> bool:
    """Return whether both sides must have the same size along ``axis``, above 1."""
    if len(student) != len(teacher) or axis >= len(student) or {axis, axis - len(student)} & set(may_differ):
        return False
    return student[axis] == teacher[axis] > 1


def _narrowed(tensors: tuple[Tensor, ...], axis: int, count: int) -> tuple[Tensor, ...]:
    """Cut the first ``count`` tensors to size 1 along ``axis``."""
    return tuple(tensor.narrow(axis, 0, 1) if place < count else tensor for place, tensor in enumerate(tensors))


def _near_teacher(sample: Sample) -> Sample:
    near = tuple(
        teacher + (student - teacher) * 0.1 for student, teacher in zip(sample.student, sample.teacher, strict=True)
    )
    return sample.but(student=near)


def _strided(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _without_first(labels: Tensor) -> Tensor:
    kept = labels.clone()
    kept[0] = -100
    return kept
