"""An objective with a balancer, in a loop of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.errors import RunError, SignatureError
from kdplug.objective.objective import Objective

TERMS = [{"loss": "kl", "weight": 2}, {"loss": "mse", "weight_scheduler": "linear_growth"}]


def models():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), nn.Linear(4, 3).double().requires_grad_(False)


def batch(seed):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Seen(nn.Module):
    """Keeps what it gets, and weighs the terms by 2 and 3."""

    def __init__(self, num_terms, weights, shares, *, layer: str | None = None):
        super().__init__()
        self.built, self.found, self.layer = (num_terms, weights, shares), [], layer

    def update(self, values, gradients, progress, step, total_steps, epoch):
        self.found.append((values.tolist(), gradients.tolist(), progress, step, total_steps, epoch))
        return torch.tensor([2.0, 3.0])


@pytest.fixture(autouse=True)
def registered():
    kdplug.balancers.register("values_only")(ValuesOnly)
    kdplug.balancers.register("trained")(Trained)
    kdplug.balancers.register("loose")(Loose)


class ValuesOnly(nn.Module):
    """Weighs each term by its value."""

    def update(self, values):
        return values.clone()


class Trained(nn.Module):
    """Has a parameter."""

    def __init__(self):
        super().__init__()
        self.logs = nn.Parameter(torch.zeros(2))

    def update(self, values):
        return values


class Loose:
    """Keeps a tensor that is not saved."""

    def __init__(self):
        self.average = torch.zeros(2)

    def update(self, values):
        return values


def objective_of(balancer, terms=TERMS):
    return Objective(DistillationConfig(terms=terms, balancer=balancer)).train()


def test_a_balancer_gets_unweighted_values_gradient_norms_and_the_place_in_the_run():
    kdplug.balancers.register("seen")(type("Seen", (Seen,), {"__doc__": "Keeps what it gets."}))
    student, teacher = models()
    objective = objective_of("seen", [TERMS[0], {"loss": "mse", "weight": {"share": 0.5}}])
    balancer = objective.balance.balancer
    assert balancer.built == (2, (2.0, 1.0), (None, 0.5))
    report = objective(student=student(batch(1)), teacher=teacher(batch(1)), progress=0.25, step=3, total_steps=12)
    objective.balance.update(report, student, 0.25, 3, 12, epoch=1)
    values = [report.terms[name].value for name in ("kl", "mse")]
    norms = [
        torch.cat([one.flatten() for one in torch.autograd.grad(value, student.parameters(), retain_graph=True)]).norm()
        for value in values
    ]
    ((seen, gradients, *rest),) = balancer.found
    assert seen == pytest.approx([float(value.detach()) for value in values])
    assert gradients == pytest.approx([float(norm) for norm in norms])
    assert rest == [0.25, 3, 12, 1]


def test_the_weights_apply_from_the_next_call_and_multiply_those_of_the_config():
    student, teacher = models()
    objective = objective_of("values_only")
    first = objective(student=student(batch(1)), teacher=teacher(batch(1)), progress=0.5)
    values = [float(term.value.detach()) for term in first.terms.values()]
    assert float(first.total.detach()) == pytest.approx(2 * values[0] + 0.5 * values[1])
    objective.balance.update(first)
    second = objective(student=student(batch(1)), teacher=teacher(batch(1)), progress=0.5)
    assert float(second.total.detach()) == pytest.approx(2 * values[0] ** 2 + 0.5 * values[1] ** 2)
    assert float(first.terms["kl"].factor(first.total)) == 2  # a report keeps the weights of its own call
    assert second.total.dtype == torch.float64


def test_a_term_of_weight_0_keeps_its_last_value_and_the_weights_wait_for_its_first():
    student, teacher = models()
    objective = objective_of("values_only")

    def step(seed, progress):
        report = objective(student=student(batch(seed)), teacher=teacher(batch(seed)), progress=progress)
        objective.balance.update(report)
        return {name: float(term.value.detach()) for name, term in report.terms.items()}

    step(1, 0.0)  # mse is scheduled at 0
    assert objective.balance.weights.tolist() == [1, 1]
    assert int(objective.balance.updates) == 0
    values = step(2, 0.5)
    assert objective.balance.weights.tolist() == pytest.approx(list(values.values()))
    later = step(3, 0.0)
    assert objective.balance.weights.tolist() == pytest.approx([later["kl"], values["mse"]])


def test_a_value_that_is_not_finite_changes_neither_weights_nor_state():
    student, teacher = models()
    objective = objective_of("uncertainty")
    report = objective(student=student(batch(1)), teacher=teacher(batch(1)), progress=1.0)
    objective.balance.update(report)
    before = {name: value.clone() for name, value in objective.balance.named_buffers() if name != "values"}
    broken = objective(student=student(batch(2)) * float("inf"), teacher=teacher(batch(2)), progress=1.0)
    objective.balance.update(broken)
    for name, value in before.items():
        assert torch.equal(dict(objective.balance.named_buffers())[name], value)
    objective.balance.update(objective(student=student(batch(3)), teacher=teacher(batch(3)), progress=1.0))
    assert int(objective.balance.updates) == 2


def test_a_loop_that_forgets_the_update_is_an_error():
    student, teacher = models()
    objective = objective_of("dwa")
    objective(student=student(batch(1)), teacher=teacher(batch(1)), step=0)
    with pytest.raises(
        RunError, match=r"^balancer: kdplug-presets:dwa was not updated after step 0\. In your own loop, call"
    ):
        objective(student=student(batch(2)), teacher=teacher(batch(2)), step=1)
    objective.eval()
    objective(student=student(batch(2)), teacher=teacher(batch(2)), step=1)


def test_a_loop_without_steps_gets_a_warning():
    student, teacher = models()
    objective = objective_of("dwa")
    with pytest.warns(UserWarning, match="was not updated in 500 calls of the objective, so the weights do not change"):
        [objective(student=student(batch(1)), teacher=teacher(batch(1))) for _ in range(500)]


def test_shares_that_are_not_calibrated_are_an_error_in_training_only():
    student, teacher = models()
    objective = objective_of("none", [{"loss": "kl", "weight": {"share": 1}}])
    with pytest.raises(
        RunError, match=r"^balancer: kdplug-presets:share computes the weights before training, from 8 steps"
    ):
        objective(student=student(batch(1)), teacher=teacher(batch(1)))
    with torch.no_grad():
        objective(student=student(batch(1)), teacher=teacher(batch(1)))


def test_a_loaded_objective_is_calibrated():
    student, teacher = models()
    terms = [{"loss": "kl", "weight": {"share": 0.4}}, {"loss": "mse", "weight": {"share": 0.6}}]
    first, second = objective_of("none", terms), objective_of("none", terms)
    with first.balance.calibrating():
        for seed in range(3):
            first.balance.update(first(student=student(batch(seed)), teacher=teacher(batch(seed))), student)
    second.load_state_dict(first.state_dict())
    one, two = (made(student=student(batch(9)), teacher=teacher(batch(9))).total for made in (first, second))
    assert torch.equal(one, two)
    assert float(first.balance.weights[1]) != 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trained", "local:trained has the parameter 'logs', which no loss would train"),
        ("loose", "local:loose keeps a tensor in the plain attribute 'average'"),
    ],
)
def test_state_that_is_no_buffer_is_an_error(name, message):
    with pytest.raises(SignatureError, match=f"^balancer: {message}"):
        objective_of(name)


def test_a_function_is_no_balancer():
    kdplug.balancers.register("function")(lambda values: values)
    with pytest.raises(SignatureError, match="is a function, but a balancer is a class with an update method"):
        objective_of("function")


def test_without_a_balancer_there_is_none():
    objective = Objective(DistillationConfig(terms=TERMS))
    assert objective.balance is None
    assert not list(objective.buffers())
