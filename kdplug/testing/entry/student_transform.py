"""Tests that every student transform must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdplug.distillers.student_transforms import separate_copy
from kdplug.testing.law import Laws, advise, are_finite, broken, is_close, where
from kdplug.testing.sample import seeded

_WIDTH, _CLASSES, _EXAMPLES, _STEPS = 6, 3, 16, 5


def _student() -> nn.Module:
    return nn.Sequential(nn.Linear(_WIDTH, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, _CLASSES))


class StudentTransformLaws(Laws):
    """Laws for a student transform, as pytest tests.

    They prepare a small network of linear layers. Override ``student`` and ``inputs`` for a transform of other layers, such
    as convolutions or a model of transformers; its output must be a tensor. ::

        class TestMyTransform(StudentTransformLaws):
            entry = "mytransform"
            keeps_start = True
    """

    keeps_start: ClassVar[bool] = False
    """Declares that a student that was just prepared has the outputs of the original one, as adapters that start at 0."""

    keeps_outputs: ClassVar[bool] = True
    """Declares that the finished student has the outputs of the trained one, up to ``tolerance``."""

    tolerance: ClassVar[float] = 1e-4
    """The largest difference of outputs that count as equal, relative and absolute."""

    @classmethod
    def kind_of(cls) -> str:
        return "student_transforms"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_a_student_that_can_be_trained", self.prepared

    def student(self) -> nn.Module:
        """Return a new student; the same one each time, since the global generator is seeded."""
        return _student()

    def inputs(self) -> Tensor:
        """Return a batch for the student."""
        return torch.randn(_EXAMPLES, _WIDTH, generator=torch.Generator().manual_seed(3))

    def fresh(self) -> nn.Module:
        """Return a new student with its fixed start."""
        with seeded(7):
            return self.student()

    def prepared(self, seed: int = 8) -> nn.Module:
        """Return a new student, prepared."""
        student = self.fresh()
        with seeded(seed):
            return self._module("prepare", student)

    def trained(self) -> nn.Module:
        """Return a prepared student after a few optimizer steps."""
        student = self.prepared()
        parameters = [one for one in student.parameters() if one.requires_grad]
        optimizer, inputs = torch.optim.SGD(parameters, lr=0.1), self.inputs()
        for _ in range(_STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(self._output(student.train(), inputs).square().mean())
            optimizer.step()
        return student.eval()

    def outputs(self, student: nn.Module) -> Tensor:
        """Return the outputs of a student in eval mode."""
        with torch.no_grad():
            return self._output(student.eval(), self.inputs())

    @staticmethod
    def _output(student: nn.Module, inputs: Tensor) -> Tensor:
        found: Any = student(inputs)
        if not isinstance(found, Tensor):
            broken(f"the student must return a tensor for these laws, got {type(found).__name__}: override student()")
        return found

    def _module(self, method: str, student: nn.Module) -> nn.Module:
        call = getattr(self.build().target, method, None)
        if call is None:
            broken(f"has no {method}: define prepare(student) and finish(student)")
        found: Any = call(student)
        if not isinstance(found, nn.Module):
            broken(f"{method} must return the student, a module, got {type(found).__name__}: end with 'return student'")
        return found

    @advise("Leave requires_grad of what is to be trained at true, and compute outputs without detach() and no_grad()")
    def test_it_returns_a_student_that_can_be_trained(self) -> None:
        """Catches a missing return, a student that is frozen as a whole, an output cut off from the parameters."""
        student = self.prepared()
        trained = [one for one in student.parameters() if one.requires_grad]
        if not trained:
            broken("prepare leaves no parameter to train")
        output = self._output(student.train(), self.inputs())
        if not output.requires_grad:
            broken("the outputs of the prepared student carry no gradient")
        gradients = torch.autograd.grad(output.square().sum(), trained, allow_unused=True)
        found = [gradient for gradient in gradients if gradient is not None]
        if not found or not any(bool(gradient.any()) for gradient in found):
            broken("no parameter of the prepared student gets a gradient")
        if not are_finite(found):
            broken("the gradient of the prepared student is not finite")

    def test_it_finishes_a_student(self) -> None:
        """Catches a finish that returns nothing, or fails on what prepare returns."""
        if not are_finite([self.outputs(self._module("finish", self.trained()))]):
            broken("the finished student's outputs are not finite: check a division or a scale")

    @advise("Start the added part at 0, or do not declare keeps_start")
    @where(lambda laws: laws.keeps_start)
    def test_it_starts_with_the_outputs_of_the_student(self) -> None:
        """Catches adapters whose two factors are both random: training then starts from a spoilt student."""
        if not is_close(self.outputs(self.prepared()), self.outputs(self.fresh()), self.tolerance):
            broken("a student that was just prepared has other outputs than the original one")

    @advise("Put into the finished weights what the prepared student computes, or declare keeps_outputs = False")
    @where(lambda laws: laws.keeps_outputs)
    def test_the_finished_student_has_the_outputs_of_the_trained_one(self) -> None:
        """Catches adapters merged with a wrong scale or sign, or dropped: the saved student is not the trained one."""
        student = self.trained()
        before = self.outputs(student)
        after = self.outputs(self._module("finish", student))
        if not is_close(after, before, self.tolerance):
            difference = float((after.double() - before.double()).abs().max())
            broken(f"the finished student's outputs differ by {difference:.3g} from those of the trained one")

    @advise("Keep everything that finish needs in the student, as parameters or buffers, and not in the transform")
    def test_finish_reads_the_student_alone(self) -> None:
        """Catches a module or mask kept in the transform: evaluations finish a copy, and a new process another student."""
        student = self.trained()
        copied = separate_copy(student)
        try:
            expected = self.outputs(self._module("finish", student))
            self.prepared(seed=9)  # what a transform keeps of a student in a global shows now
            found = self.outputs(self._module("finish", copied))
        except Exception as error:
            broken(f"a trained student cannot be finished by a new transform: {type(error).__name__}: {error}")
        if not is_close(found, expected, self.tolerance):
            broken("a copy of the trained student, finished by a new transform, has other outputs")

    @advise("Change only the student that finish gets, not modules that it shares with others")
    def test_to_finish_a_copy_leaves_the_student_in_training_unchanged(self) -> None:
        """Catches weights shared with a copy: each evaluation would change the student that is trained."""
        student = self.trained()
        before, outputs = _state(student), self.outputs(student)
        self._module("finish", separate_copy(student))
        changed = [name for name, value in _state(student).items() if not _same(value, before.get(name))]
        if changed:
            broken(f"finishing a copy changed {changed[0]} of the student")
        if not is_close(self.outputs(student), outputs, 0.0):
            broken("finishing a copy changed the outputs of the student")

    @advise("Store it with register_buffer or as a parameter, so that the student's state dict holds it")
    def test_a_checkpoint_holds_the_prepared_student(self) -> None:
        """Catches a mask or scale in a plain attribute, which a resumed run draws or computes again."""
        student, other = self.trained(), self.prepared(seed=10)
        try:
            other.load_state_dict(student.state_dict())
        except RuntimeError as error:
            broken(f"a student prepared again cannot load the checkpoint: {str(error).splitlines()[-1].strip()}")
        if not is_close(self.outputs(other), self.outputs(student), self.tolerance):
            broken("a student prepared again with the weights of a checkpoint has other outputs")

    @advise("Draw from torch's global generator, and from no other")
    def test_the_same_seed_prepares_the_same_student(self) -> None:
        """Catches random numbers of another generator: the arms of a recipe would start from different students."""
        one, two = _state(self.prepared()), _state(self.prepared())
        different = [name for name in one if not _same(one[name], two.get(name))]
        if different or one.keys() != two.keys():
            broken(f"two students prepared with one seed differ in {(different or ['their names'])[0]}")

    @advise("Create new modules and parameters in each call of prepare")
    def test_two_students_share_nothing(self) -> None:
        """Catches a module created once, in the class or __init__, and put into every student."""
        transform: Any = self.build().target
        one, two = (transform.prepare(self.fresh()) for _ in range(2))
        own = {id(value) for value in (*one.parameters(), *one.buffers())}
        if any(id(value) in own for value in (*two.parameters(), *two.buffers())):
            broken("two prepared students share a parameter or a buffer")


def _state(student: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in student.state_dict().items()
    }


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    return bool(one == two)
