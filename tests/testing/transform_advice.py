"""Advice for student transforms, followed."""

from __future__ import annotations

import torch
from testing import transform_mutant as wrong
from testing.advice import followed, undone
from testing.specimen import laws_of
from testing.transform_mutant import Adapter, Low
from torch import nn

from kdplug.testing import StudentTransformLaws

undone(
    NoReturn="end with 'return student'",
    FinishWithoutReturn="end with 'return student'",
    BothRandom="Start the added part at 0, or do not declare keeps_start",
    WrongSign="Put into the finished weights what the prepared student computes, or declare keeps_outputs = False",
    Dropped="Put into the finished weights what the prepared student computes, or declare keeps_outputs = False",
    KeptElsewhere="Keep everything that finish needs in the student",
    SharedBase="Change only the student that finish gets",
    OneForAll="Create new modules and parameters in each call of prepare",
)

TRAINED = "Leave requires_grad of what is to be trained at true"
undone(AllFrozen=TRAINED, Detached=TRAINED)
followed("Misspelt", "define prepare(student) and finish(student)")(Low)
followed("BothRandom", "Start the added part at 0, or do not declare keeps_start")(
    laws_of(StudentTransformLaws, wrong.BothRandom)
)
followed(
    "Dropped", "Put into the finished weights what the prepared student computes, or declare keeps_outputs = False"
)(laws_of(wrong.LowLaws, wrong.Dropped, keeps_outputs=False))


@followed("KeptInTheTransform", "Keep everything that finish needs in the student")
class FoundInTheStudent(Low):
    """Finds the adapters by their class."""


class Registered(Adapter):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.register_buffer("scale", torch.rand(()))

    forward = wrong.Scaled.forward

    def merged(self) -> nn.Linear:
        self.up.data *= self.scale
        return super().merged()


@followed("PlainAttribute", "Store it with register_buffer or as a parameter")
class ScaleInABuffer(Low):
    """Draws a scale that checkpoints hold."""

    def adapter(self, module):
        return Registered(module)


class GlobalDraws(Adapter):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.down.data.copy_(torch.rand(self.down.shape))


@followed("AnotherGenerator", "Draw from torch's global generator, and from no other")
class TheGlobalGenerator(Low):
    """Draws from torch's generator."""

    def adapter(self, module):
        return GlobalDraws(module)
