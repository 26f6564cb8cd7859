"""Temperature schedulers with parameters: trained, saved, and refused or warned of where their gradient would be lost."""

from __future__ import annotations

import pytest
import torch
from factored_scene import Scene
from torch import nn

from kdplug import ConfigError, DistillationConfig, LossSum, Objective, OutputsError, SignatureError, SparseLogits


class Learned(nn.Module):
    """The configured temperature times a factor that is learned."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.tensor(start))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, temperature):
        self.calls += 1
        return temperature * self.log_factor.exp()


class ByItem(nn.Module):
    """A temperature for each item, from its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits, temperature):
        return temperature + self.slope * (student_logits - teacher_logits).square().sum(-1)


@pytest.fixture(autouse=True)
def learned(offer):
    offer(Learned, "temperature_schedulers", "learned")
    offer(ByItem, "temperature_schedulers", "by_item")


@pytest.fixture
def of():
    """An objective of terms, in float64."""
    return lambda *terms, **keys: Objective(DistillationConfig(terms=list(terms), **keys)).double()


def scheduled(objective):
    """The schedulers of an objective's terms."""
    return [term.temperature.scheduler for term in objective.configured.terms()]


@pytest.mark.parametrize("loss", ["ce", "whole"])
@pytest.mark.parametrize("scheduler", ["learned", "by_item"])
def test_its_gradient_is_the_finite_difference(of, offer, student, teacher, mask, loss, scheduler):
    offer(
        lambda student_logits, teacher_logits, temperature: (temperature * student_logits.sum(-1)).sum(), name="whole"
    )
    student["logits_mask"] = mask
    objective = of({"loss": loss}, temperature=2, temperature_scheduler=scheduler)
    (parameter,) = objective.parameters()
    (gradient,) = torch.autograd.grad(objective(student, teacher).total, parameter)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            parameter += step
            values.append(objective(student, teacher).total)
            parameter -= step
    torch.testing.assert_close(gradient, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_the_models_get_the_gradient_of_a_fixed_temperature(of, student, teacher):
    student["logits"], teacher["logits"] = student["logits"].detach(), teacher["logits"].requires_grad_()
    leaf = student["logits"].clone().requires_grad_()
    found = []
    for objective in (
        of({"loss": "ce"}, temperature=2, temperature_scheduler="learned"),
        of({"loss": "ce"}, temperature=2),
    ):
        leaf.grad = None
        objective({"logits": leaf}, teacher).total.backward()
        found.append(leaf.grad)
    assert torch.equal(*found)
    assert teacher["logits"].grad is None


def test_it_is_in_the_optimizers_groups_and_in_the_state(of):
    objective = of({"loss": "ce"}, temperature_scheduler="learned")
    (scheduler,) = scheduled(objective)
    (group,) = objective.param_groups()
    assert [id(one) for one in group["params"]] == [id(scheduler.log_factor)]
    assert [name.rpartition(".")[2] for name in objective.state_dict()] == ["log_factor", "calls"]


def test_a_parameter_of_one_element_is_one_temperature(of, offer, student, teacher):
    class One(Learned):
        def __init__(self):
            super().__init__()
            self.log_factor = nn.Parameter(torch.zeros(1))

    offer(One, "temperature_schedulers", "one")
    found = []
    for name in ("one", "learned"):
        objective = of({"loss": "ce"}, temperature=2, temperature_scheduler=name)
        objective(student, teacher).total.backward()
        found.append(scheduled(objective)[0].log_factor.grad.sum())
    assert torch.equal(*found)


def test_terms_have_a_scheduler_each(of, student, teacher):
    objective = of(
        {"loss": "ce", "temperature": 1},
        {"loss": "ce", "temperature": 4},
        {"loss": "ce", "temperature_scheduler": ["learned", 0.5]},
        {"loss": "ce", "temperature_scheduler": "none"},
        temperature=2,
        temperature_scheduler="learned",
    )
    schedulers = scheduled(objective)
    assert len({id(one) for one in schedulers[:3]}) == 3
    assert schedulers[3] is None
    objective(student, teacher).total.backward()
    gradients = [one.log_factor.grad.item() for one in schedulers[:3]]
    assert len(set(gradients)) == 3
    for term, gradient in zip(({"temperature": 1}, {"temperature": 4}, {}), gradients, strict=True):
        start = 0.0 if term else 0.5
        alone = of({"loss": "ce", **term}, temperature=2, temperature_scheduler=["learned", start])
        alone(student, teacher).total.backward()
        assert scheduled(alone)[0].log_factor.grad.item() == gradient


def test_a_term_without_items_or_weight_keeps_it_in_the_graph(of, build, offer, student, teacher):
    offer(lambda progress: 0.0, "weight_schedulers", "off")
    student["logits_mask"] = torch.zeros(3, 4)
    for keys in ({}, {"weight_scheduler": "off"}):
        objective = of({"loss": "ce", **keys}, temperature_scheduler="learned")
        objective(student, teacher).total.backward()
        assert scheduled(objective)[0].log_factor.grad == 0


# Where the gradient would be lost

CHUNKED = r"^temperature_scheduler: local:learned reads the logits of all 12 items at once, but logits are computed from FactoredLogits"
SPARSE = r"^temperature_scheduler: may compute other temperatures than those of the teacher's SparseLogits"


def test_logits_in_chunks_refuse_it(offer):
    def ce_of_items(student_logits, teacher_logits, temperature) -> LossSum:
        values = -((teacher_logits / temperature).softmax(-1) * (student_logits / temperature).log_softmax(-1)).sum(-1)
        return LossSum(values.sum(), values.numel())

    keys = {"kd_loss_type": offer(ce_of_items), "temperature_scheduler": "learned"}
    with pytest.raises(ConfigError, match=CHUNKED):
        Scene().run(**keys, logit_chunk=5)
    whole, dense = Scene().run(**keys), Scene().run(factored=(), **keys)
    torch.testing.assert_close(whole[0], dense[0])


def test_a_sparse_teacher_refuses_it(of, student, teacher):
    teacher["logits"] = SparseLogits.top(teacher["logits"], 3, 2.0)
    with pytest.raises(OutputsError, match=SPARSE):
        of({"loss": "ce"}, temperature=2, temperature_scheduler="learned")(student, teacher)


def test_a_combiner_at_the_temperature_refuses_it_and_another_does_not(offer, student, teacher, random):
    offer(lambda teacher_logits_list, temperature: sum(teacher_logits_list) / temperature, "teacher_combiners", "warm")
    offer(lambda teacher_logits_list: sum(teacher_logits_list) / 2, "teacher_combiners", "cold")
    keys = {"kd_loss_type": "ce", "temperature_scheduler": "learned"}
    teachers = [teacher, {"logits": random(3, 4, 5)}]
    objective = Objective(DistillationConfig(teacher_combiner="warm", **keys), teachers=2)
    with pytest.raises(
        ConfigError, match=r"^temperature_scheduler: local:learned computes a temperature with gradient, but"
    ):
        objective(student, teachers)
    with torch.no_grad():
        objective(student, teachers)
    cold = Objective(DistillationConfig(teacher_combiner="cold", **keys), teachers=2)
    cold(student, teachers).total.backward()
    assert scheduled(cold)[0].log_factor.grad.abs() > 1e-6


class Plain:
    """Holds a parameter, and is no module."""

    def __init__(self) -> None:
        self.factor = nn.Parameter(torch.ones(()))

    def __call__(self, temperature):
        return temperature * self.factor


class Nested:
    """Holds a module, and is none."""

    def __init__(self) -> None:
        self.factor = nn.Linear(1, 1)

    def __call__(self, temperature):
        return temperature * self.factor.weight.sum()


class Unregistered(nn.Module):
    """A module whose tensor is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones((), requires_grad=True)

    def forward(self, temperature):
        return temperature * self.factor


@pytest.mark.parametrize("target", [Plain, Nested, Unregistered])
def test_a_parameter_that_no_module_holds_is_refused_at_build(build, offer, target):
    name = offer(target, "temperature_schedulers", "plain")
    words = r"^temperature_scheduler: local:plain keeps tensors in plain attributes \(factor\), which would be neither trained nor"
    with pytest.raises(SignatureError, match=words):
        build(kd_loss_type="ce", temperature_scheduler=name)


def test_a_weight_scheduler_that_is_no_module_and_holds_a_parameter_is_refused(build, offer):
    class Weight(Plain):
        def __call__(self, progress):
            return self.factor.item() * progress

    name = offer(Weight, "weight_schedulers", "plain")
    with pytest.raises(SignatureError, match=r"^kd_loss_weight_scheduler: local:plain has parameters or buffers"):
        build(kd_loss_weight_scheduler=name)


WITHOUT = r"^kd_loss: its temperature scheduler local:{} has trainable parameters without a gradient.*: {}\. {}"


def test_a_loss_that_drops_the_gradient_is_warned_of_once(build, offer, student, teacher):
    def dropping(student_logits, teacher_logits, temperature):
        return (student_logits / temperature.detach() - teacher_logits).square().mean()

    objective = build(kd_loss_type=offer(dropping), temperature_scheduler="learned").double()
    with pytest.warns(
        UserWarning, match=WITHOUT.format("learned", "log_factor", r"Look for detach\(\), .* local:offered")
    ):
        objective(student, teacher)
    objective(student, teacher)


def test_a_scheduler_that_drops_its_gradient_is_warned_of_with_the_parameters_it_drops(build, offer, student, teacher):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.lost = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))

        def forward(self, temperature):
            return temperature * self.used * self.lost.detach()

    name = offer(Half, "temperature_schedulers", "half")
    with pytest.warns(UserWarning, match=WITHOUT.format("half", "lost", "Look for")):
        build(kd_loss_type="ce", temperature_scheduler=name)(student, teacher)


def test_a_loss_without_a_temperature_is_warned_of(build, offer, student, teacher):
    name = offer(lambda student_logits, teacher_logits: (student_logits - teacher_logits).square().mean())
    words = WITHOUT.format(
        "learned", "log_factor", "local:offered does not request temperature. Set temperature_scheduler"
    )
    with pytest.warns(UserWarning, match=words):
        build(kd_loss_type=name, temperature_scheduler="learned")(student, teacher)


def test_nothing_is_said_of_a_scheduler_that_is_trained_or_not_to_be_trained(build, offer, student, teacher):
    class Frozen(Learned):
        def __init__(self):
            super().__init__()
            self.log_factor.requires_grad_(False)

    build(kd_loss_type="ce", temperature_scheduler="learned").double()(student, teacher)
    name = offer(Frozen, "temperature_schedulers", "frozen")
    build(kd_loss_type="ce", temperature_scheduler=name).double()(student, teacher)


def test_it_is_looked_at_in_training_and_only_after_a_batch_with_items(build, offer, student, teacher):
    name = offer(lambda student_logits, teacher_logits: (student_logits - teacher_logits).square().mean())
    objective = build(kd_loss_type=name, temperature_scheduler="learned")
    with torch.no_grad():
        objective(student, teacher)
    objective.eval()
    objective(student, teacher)
    objective.train()
    objective({**student, "logits_mask": torch.zeros(3, 4)}, teacher)
    with pytest.warns(UserWarning, match=WITHOUT.format("learned", "log_factor", "local:offered")):
        objective(student, teacher)
