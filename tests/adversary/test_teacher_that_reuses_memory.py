"""A teacher that returns the outputs of each batch in the same memory."""

from __future__ import annotations

import pytest
import torch
from small_run import make_distiller, make_student, make_teacher, sgd, weights
from torch import nn

from kdplug import RunError

attack = pytest.mark.attack("a teacher that returns its outputs in the same memory each time")


class Reusing(nn.Module):
    """Writes the logits into memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_teacher()
        self.memory = torch.zeros(8, 3).double()

    def forward(self, x):
        outputs = self.inner(x)
        logits = self.memory[: len(x)].copy_(outputs["logits"].detach())
        return {"logits": logits, "hidden": outputs["hidden"]}


def trained(folder, teacher, accumulation, sizes=(4, 3, 4, 5)):
    student = make_student()
    training = {"gradient_accumulation_steps": accumulation}
    batches = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).split(sizes)
    make_distiller(folder, student, teacher, training=training).train(sgd(student), list(batches), num_epochs=1)
    return weights(student)


@attack
def test_it_is_read_before_it_is_overwritten(tmp_path):
    assert torch.equal(trained(tmp_path / "a", Reusing(), 1), trained(tmp_path / "b", make_teacher(), 1))


@attack
@pytest.mark.parametrize("accumulation", [2, 4])
def test_it_is_an_error_where_several_outputs_are_kept(tmp_path, accumulation):
    with pytest.raises(RunError, match="overwrote the outputs of an earlier micro-batch"):
        trained(tmp_path, Reusing(), accumulation)
