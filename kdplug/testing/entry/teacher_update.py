"""Laws for teacher updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdplug.testing.law import Laws, broken, is_close, where
from kdplug.testing.sample import draw, seeded

STEPS = 10


class TeacherUpdateLaws(Laws):
    """Laws for a teacher update, as pytest tests.

    ::

        class TestMyUpdate(TeacherUpdateLaws):
            entry = "myupdate"
            settings = {"decay": 0.9}
    """

    keeps_equality: ClassVar[bool] = True
    """Declares that a teacher equal to the student stays equal to it."""

    by_number: ClassVar[bool] = True
    """Declares that each number of a tensor is updated by itself, whatever the others are."""

    shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((4, 3), (), (5,), (2, 3, 3, 3))
    """Shapes of the parameters to try."""

    @classmethod
    def kind_of(cls) -> str:
        return "teacher_updates"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_a_tensor_like_the_teachers", lambda: self.update(*self.pair())

    @staticmethod
    def pair(shape: tuple[int, ...] = (4, 3)) -> tuple[Tensor, Tensor]:
        """Return a teacher's and a student's tensor in float64, which depend on the shape alone."""
        return draw(shape, 1), draw(shape, 2)

    def update(self, teacher: Tensor, student: Tensor, step: int = 3) -> Tensor:
        """Return the teacher's tensor after ``step`` of 10 optimizer steps."""
        with torch.no_grad():
            found: Tensor = self.build()(
                teacher_tensor=teacher, student_tensor=student, progress=step / STEPS, step=step, total_steps=STEPS
            )
        return found

    def _over_the_run(self, teacher: Tensor, student: Tensor) -> Iterator[Tensor]:
        return (self.update(teacher, student, step) for step in range(1, STEPS + 1))

    def test_it_returns_a_tensor_like_the_teachers(self) -> None:
        """Catches a scalar, a missing return, a weight of 0 / 0 in the first step."""
        for shape in self.shapes:
            for found in self._over_the_run(*self.pair(shape)):
                value: Any = found
                if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
                    what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    broken(f"must return a tensor {list(shape)}, like the teacher's, got {what}. Return the new tensor")
                if not bool(torch.isfinite(value).all()):
                    broken(
                        "returned a number that is not finite for ordinary tensors. Check a division by step or progress"
                    )

    def test_the_precision_is_the_teachers(self) -> None:
        """Catches a result in float64 of a Python number or a buffer, and one that is rounded to float16."""
        for dtype in (torch.float32, torch.float64):
            teacher, student = (one.to(dtype) for one in self.pair())
            found = self.update(teacher, student)
            if found.dtype is not dtype:
                broken(f"returned {found.dtype} for {dtype}. Compute in the precision of teacher_tensor")
            pairs = zip(self._over_the_run(teacher, student), self._over_the_run(teacher, student * 1.001), strict=True)
            moves = any(not torch.equal(one, two) for one, two in self._both_ends(teacher, student))
            if moves and not any(bool((one != two).all()) for one, two in pairs):
                broken("ignores a change of the student by a thousandth: do not convert to half precision")

    def _both_ends(self, teacher: Tensor, student: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._over_the_run(teacher, student), self._over_the_run(teacher, student + 1), strict=True)

    def test_its_inputs_are_not_modified(self) -> None:
        """Catches ``student_tensor.mul_(…)``, which would change the student."""
        given, before = self.pair(), self.pair()
        self.update(*given)
        for name, one, two in zip(("teacher_tensor", "student_tensor"), given, before, strict=True):
            if not torch.equal(one, two):
                broken(f"modified its input in place: {name}. Use x * y instead of x.mul_(y)")

    def test_the_same_inputs_give_the_same_tensor(self) -> None:
        """Catches random numbers and a count of calls: processes and resumed runs would have different teachers."""
        pair = self.pair()
        with seeded(1):
            built = self.build()
            values = {
                "teacher_tensor": pair[0],
                "student_tensor": pair[1],
                "progress": 0.3,
                "step": 3,
                "total_steps": STEPS,
            }
            first = built(**values).clone()
        with seeded(2):
            again = built(**values)
        if not torch.equal(first, again):
            broken(
                "a second call gives another tensor. Use no random numbers, and progress or step in place of a count of calls"
            )

    def test_it_keeps_no_state(self) -> None:
        """Catches a buffer with a running mean, which no checkpoint holds."""
        target = self.build().target
        held = list(target.state_dict()) if isinstance(target, nn.Module) else []
        if held:
            broken(f"has parameters or buffers ({', '.join(held)}), which are not saved. Make each a setting")

    def test_the_student_moves_the_teacher(self) -> None:
        """Catches a decay of 1, or exchanged inputs: the teacher would keep its start over the whole run."""
        teacher, student = self.pair()
        if all(torch.equal(one, two) for one, two in self._both_ends(teacher, student)):
            broken("gives the same tensor for any student at each step of a run. Read student_tensor")

    @where(lambda laws: laws.keeps_equality)
    def test_a_teacher_equal_to_the_student_stays_equal(self) -> None:
        """Catches weights that do not add up to 1, with which all parameters grow or vanish."""
        teacher, _ = self.pair()
        for found in self._over_the_run(teacher, teacher.clone()):
            if not is_close(found, teacher, 1e-6):
                broken(
                    "changes a teacher that is equal to the student. Let both weights add up to 1, or declare "
                    "keeps_equality = False"
                )

    @where(lambda laws: laws.by_number)
    def test_each_number_is_updated_by_itself(self) -> None:
        """Catches a mean or a norm over the tensor, and numbers that change places."""
        teacher, student = self.pair((6,))
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        found, again = self.update(teacher, student), self.update(teacher[order], student[order])
        part = self.update(teacher[:2], student[:2])
        if not is_close(again, found[order], 1e-6) or not is_close(part, found[:2], 1e-6):
            broken(
                "a number of the result depends on other numbers of the tensors. Compute element by element, or declare by_number = False"
            )
