"""Runs whose first steps show that they train nothing, or only a part of the student."""

from __future__ import annotations

import pytest
import torch
from small_run import Net, make_batches, make_distiller, make_student, sgd
from torch import nn

from kdplug.errors import RunError


@pytest.mark.attack("an optimizer with a learning rate of 0")
@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_constant_learning_rate_of_0_is_warned_of(tmp_path, rate):
    student = make_student()
    with pytest.warns(UserWarning, match=r"learning rate of the SGD is 0 and there is no scheduler") as caught:
        make_distiller(tmp_path, student).train(sgd(student, lr=rate), make_batches(3), num_epochs=1)
    assert len(caught) == 1


@pytest.mark.attack("an optimizer with a learning rate of 0")
def test_a_scheduler_that_keeps_the_rate_at_0_is_warned_of(tmp_path):
    student = make_student()
    options = {"scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_args": {"step_size": 1}}
    with pytest.warns(UserWarning, match=r"learning rate has been 0 since step"):
        make_distiller(tmp_path, student).train(sgd(student, lr=0.0), make_batches(4), num_epochs=1, **options)


class HalfBlind(Net):
    """Computes its hidden layer without a gradient."""

    def forward(self, x, scale=1.0):
        with torch.no_grad():
            hidden = torch.tanh(self.inner(x * scale))
        logits = self.head(hidden)
        return {"logits": logits, "hidden": [hidden], "losses": logits.square().mean()}


class Deep(Net):
    """Returns its hidden layer, and a second one between that and the logits."""

    def __init__(self, width, seed):
        super().__init__(width, seed=seed)
        self.middle = nn.Linear(width, width, dtype=self.inner.weight.dtype)

    def forward(self, x, scale=1.0):
        hidden = torch.tanh(self.inner(x * scale))
        logits = self.head(torch.tanh(self.middle(hidden)))
        return {"logits": logits, "hidden": [hidden], "losses": logits.square().mean()}


CUT_OFF = (
    r"^4 of the student's 6 trained parameters got no gradient in the first 8 step.*they do not train: head.weight, "
    r"head.bias, middle.weight, …\. .*loss on logits, or a match of a later layer"
)
FEATURES = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", "auto", "auto"]}


@pytest.mark.attack("features of an early layer that are all that is matched")
def test_what_lies_above_the_last_matched_layer_is_warned_of(tmp_path):
    student = Deep(3, seed=1)
    distiller = make_distiller(tmp_path, student, matches=[FEATURES], kd_loss_weight=0)
    with pytest.warns(UserWarning, match=CUT_OFF) as caught:
        distiller.train(sgd(student), make_batches(4), num_epochs=2)
    assert len(caught) == 1


class Blind(Net):
    def forward(self, x, scale=1.0):
        with torch.no_grad():
            return super().forward(x, scale)


NO_GRADIENT = r"^2 of the student's 4 trained parameters got no gradient in the first {} step.*so they do not train: inner.weight, inner.bias"


@pytest.mark.attack("a student that computes a part without a gradient")
@pytest.mark.parametrize(("accumulation", "steps"), [(1, 3), (1, 25), (2, 25)])
def test_parameters_without_a_gradient_are_warned_of_once(tmp_path, accumulation, steps):
    student = HalfBlind(3, seed=1)
    distiller = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": accumulation})
    with pytest.warns(UserWarning, match=NO_GRADIENT.format(min(steps, 10))) as caught:
        distiller.train(sgd(student), make_batches(4), num_steps=steps)
    assert len(caught) == 1


class SometimesBlind(HalfBlind):
    """Skips its hidden layer's gradient in all passes but the fifth."""

    seen = 0

    def forward(self, x, scale=1.0):
        self.seen += 1
        return Net.forward(self, x, scale) if self.seen == 5 else super().forward(x, scale)


@pytest.mark.attack("a student that computes a part without a gradient")
def test_a_part_that_gets_its_gradient_later_is_no_warning(tmp_path, recwarn):
    student = SometimesBlind(3, seed=1)
    make_distiller(tmp_path, student).train(sgd(student), make_batches(4), num_steps=12)
    assert not [one for one in recwarn if "no gradient" in str(one.message)]


@pytest.mark.attack("a student that computes everything without a gradient")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_student_without_any_gradient_is_an_error(tmp_path, accumulation):
    student = Blind(3, seed=1)
    distiller = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": accumulation})
    with pytest.raises(
        RunError,
        match=r"loss of step 1 has no gradient.*\(terms: kd_loss\).*torch.no_grad.*detach.*returns student\[:0\].sum\(\)",
    ):
        distiller.train(sgd(student), make_batches(4), num_epochs=1)
