"""Defects of student transforms."""

from __future__ import annotations

import copy
import random

import torch
from testing.mutant import mutant
from torch import Tensor, nn

from kdplug.testing import StudentTransformLaws


class Adapter(nn.Module):
    """A frozen linear layer, and a low-rank difference to it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.down.T @ self.up.T

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the layer with the difference added."""
        self.base.weight += self.up @ self.down
        return self.base.requires_grad_(True)


class Low:
    """Low-rank adapters of the linear layers of a sequence."""

    def __init__(self) -> None:
        """Nothing to keep."""

    def prepare(self, student):
        for place, module in enumerate(student):
            if isinstance(module, nn.Linear):
                student[place] = self.adapter(module)
        return student

    def adapter(self, module):
        return Adapter(module)

    def finish(self, student):
        for place, module in enumerate(student):
            if isinstance(module, Adapter):
                student[place] = self.merged(module)
        return student

    def merged(self, module):
        return module.merged()


class LowLaws(StudentTransformLaws):
    keeps_start = True


TRAINED = "test_it_returns_a_student_that_can_be_trained"
ALONE = "test_finish_reads_the_student_alone"


@mutant(LowLaws, TRAINED, "prepare must return the student, a module, got NoneType")
class NoReturn(Low):
    """Forgets to return."""

    def prepare(self, student):
        super().prepare(student)


@mutant(LowLaws, TRAINED, "has no prepare")
class Misspelt:
    """Has another name for a method."""

    def __init__(self) -> None:
        """Nothing to keep."""

    def prepared(self, student):
        return student

    def finish(self, student):
        return student


@mutant(LowLaws, TRAINED, "prepare leaves no parameter to train")
class AllFrozen(Low):
    """Freezes after the adapters were added."""

    def prepare(self, student):
        return super().prepare(student).requires_grad_(False)


class Cut(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs).detach()


@mutant(LowLaws, TRAINED, "the outputs of the prepared student carry no gradient")
class Detached(Low):
    """Detaches the outputs."""

    def prepare(self, student):
        return Cut(*super().prepare(student))


@mutant(LowLaws, "test_it_finishes_a_student", "finish must return the student, a module, got NoneType")
class FinishWithoutReturn(Low):
    """Forgets to return what it finished."""

    def finish(self, student):
        super().finish(student)


class Random(Adapter):
    def __init__(self, base):
        super().__init__(base)
        nn.init.normal_(self.up)


@mutant(LowLaws, "test_it_starts_with_the_outputs_of_the_student", "has other outputs than the original one")
class BothRandom(Low):
    """Draws both factors."""

    def adapter(self, module):
        return Random(module)


MERGED = "test_the_finished_student_has_the_outputs_of_the_trained_one"


@mutant(LowLaws, MERGED, "the finished student's outputs differ by")
class Dropped(Low):
    """Drops the adapters."""

    def merged(self, module):
        return module.base


@mutant(LowLaws, MERGED, "the finished student's outputs differ by")
class WrongSign(Low):
    """Subtracts the difference."""

    def merged(self, module):
        module.up.data.neg_()
        return module.merged()


KEPT: dict[str, nn.Module] = {}


@mutant(LowLaws, ALONE, "a copy of the trained student, finished by a new transform, has other outputs")
class KeptElsewhere(Low):
    """Keeps the adapters in a table of the module."""

    def prepare(self, student):
        prepared = super().prepare(student)
        KEPT.update({str(place): module for place, module in enumerate(prepared) if isinstance(module, Adapter)})
        return prepared

    def finish(self, student):
        for place, module in enumerate(student):
            if isinstance(module, Adapter):
                student[place] = KEPT[str(place)].merged()
        return student


@mutant(LowLaws, ALONE, "a trained student cannot be finished by a new transform: AttributeError")
class KeptInTheTransform(Low):
    """Keeps the places of the adapters in the transform."""

    def prepare(self, student):
        self.places = [place for place, module in enumerate(student) if isinstance(module, nn.Linear)]
        return super().prepare(student)

    def finish(self, student):
        for place in self.places:
            student[place] = student[place].merged()
        return student


class Sharing(Adapter):
    """A copy shares the base."""

    def __deepcopy__(self, memo):
        copied = Sharing(self.base)
        copied.down, copied.up = copy.deepcopy(self.down, memo), copy.deepcopy(self.up, memo)
        return copied


@mutant(
    LowLaws,
    "test_to_finish_a_copy_leaves_the_student_in_training_unchanged",
    "finishing a copy changed 0.base.weight of the student",
)
class SharedBase(Low):
    """Shares the base with copies."""

    def adapter(self, module):
        return Sharing(module)


class Scaled(Adapter):
    def __init__(self, base):
        super().__init__(base)
        self.scale = torch.rand(())

    def forward(self, inputs):
        return self.base(inputs) + self.scale * (inputs @ self.down.T @ self.up.T)

    def merged(self):
        self.up.data *= self.scale
        return super().merged()


@mutant(LowLaws, "test_a_checkpoint_holds_the_prepared_student", "with the weights of a checkpoint has other outputs")
class PlainAttribute(Low):
    """Draws a scale that no checkpoint holds."""

    def adapter(self, module):
        return Scaled(module)


class OwnDraws(Adapter):
    def __init__(self, base):
        super().__init__(base)
        draw = random.Random()
        self.down.data.copy_(torch.tensor([[draw.random() for _ in row] for row in self.down]))


@mutant(LowLaws, "test_the_same_seed_prepares_the_same_student", "two students prepared with one seed differ in 0.down")
class AnotherGenerator(Low):
    """Draws from a generator of its own."""

    def adapter(self, module):
        return OwnDraws(module)


@mutant(LowLaws, "test_two_students_share_nothing", "two prepared students share a parameter or a buffer")
class OneForAll(Low):
    """Uses one factor for every student."""

    def __init__(self) -> None:
        """Keep the factors of the first student."""
        self.made: dict[tuple[int, int], nn.Parameter] = {}

    def adapter(self, module):
        adapter = Adapter(module)
        adapter.down = self.made.setdefault((module.in_features, module.out_features), adapter.down)
        return adapter
