"""Losses read the extras of both adaptors and the parameters of both models that their term names."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import kdplug
from kdplug import ConfigError, DistillationConfig, LossSum, OutputsError, RunError, SignatureError


def value_relation(student_extras, teacher_extras):
    """The relation between the values of two tokens, as MiniLMv2 compares it; widths may differ."""
    ours, theirs = (
        (one["values"] @ one["values"].transpose(-1, -2)).log_softmax(-1) for one in (student_extras, teacher_extras)
    )
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def through_teacher_head(student_features, teacher_logits, teacher_parameters):
    """SRRL: the student's features give the teacher's logits through the teacher's classifier."""
    weight, bias = teacher_parameters["fc:parameter.weight"], teacher_parameters["fc:parameter.bias"]
    return (student_features @ weight.T + bias - teacher_logits).square().mean()


class Small(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.Linear(4, width).double()
        self.bn = nn.BatchNorm1d(width).double()
        self.fc = nn.Linear(width, 5).double()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        hidden = self.bn(self.body(x))
        return {"logits": self.fc(hidden) * self.scale, "hidden": [hidden]}


@pytest.fixture
def extras(student, teacher, random):
    """Outputs with values of different widths under extras."""
    student["extras"] = {"values": random(3, 4, 6, requires_grad=True), "unread": torch.arange(3)}
    teacher["extras"] = {"values": random(3, 4, 8, requires_grad=True)}
    return student, teacher


def reading(*inputs, layers=False, seen=None):
    """A loss with these inputs that records what it gets."""
    first = "student_features" if layers else "student_logits"
    code = f"def spy({', '.join([first, *inputs])}):\n    seen.append(({', '.join([*inputs, ''])}))\n    return {first}.mean()"
    names = {"seen": [] if seen is None else seen}
    exec(code, names)
    return names["spy"]


# Extras


def test_a_loss_reads_the_extras_that_its_term_names(of, offer, extras):
    student, teacher = extras
    found = of({"loss": offer(value_relation), "extras": ["values"], "weight": 2})(student, teacher).total
    torch.testing.assert_close(found, 2 * value_relation(student["extras"], teacher["extras"]))
    found.backward()
    assert student["extras"]["values"].grad.abs().sum() > 0
    assert teacher["extras"]["values"].grad is None


def test_a_term_on_extras_alone_needs_neither_logits_nor_layers(of, offer, extras):
    objective = of({"loss": offer(value_relation), "extras": ["values"]})
    student, teacher = ({"extras": one["extras"]} for one in extras)
    assert objective(student, teacher).total == value_relation(student["extras"], teacher["extras"])
    assert objective.terms[0].reads == {"extras"}


@pytest.mark.parametrize("layers", [False, True])
def test_extras_are_given_with_logits_and_with_features(of, offer, extras, layers):
    student, teacher = extras
    seen = []
    keys = {"layer_S": 0, "layer_T": 0, "feature": "hidden"} if layers else {}
    of(
        {
            "loss": offer(reading("student_extras", "teacher_extras", layers=layers, seen=seen)),
            "extras": ["values"],
            **keys,
        }
    )(student, teacher)
    ours, theirs = seen[0]
    assert (list(ours), list(theirs)) == (["values"], ["values"])
    assert ours["values"] is student["extras"]["values"]
    assert torch.equal(theirs["values"], teacher["extras"]["values"])
    assert not theirs["values"].requires_grad


def test_half_precision_extras_are_float32_and_integers_stay(of, offer):
    def spy(student_extras, teacher_extras):
        assert student_extras["a"].dtype is teacher_extras["a"].dtype is torch.float32
        assert student_extras["ids"].dtype is torch.int64
        return student_extras["a"].mean()

    given = {"extras": {"a": torch.zeros(2, dtype=torch.bfloat16, requires_grad=True), "ids": torch.arange(2)}}
    objective = of({"loss": offer(spy), "extras": ["a", "ids"], "weight_scheduler": "growth"})
    objective(given, given, progress=0.5)
    objective(given, given, progress=0.0).total.backward()
    assert given["extras"]["a"].grad.tolist() == [0, 0]


def test_a_mask_of_inputs_is_given_with_extras_alone(of, offer, extras, mask):
    def masked(student_extras, mask) -> LossSum:
        return LossSum(torch.where(mask.unsqueeze(-1), student_extras["values"], 0).sum(), mask.sum())

    student, teacher = extras
    objective = of({"loss": offer(masked), "extras": ["values"]})
    report = objective({**student, "inputs_mask": mask}, {**teacher, "inputs_mask": mask})
    assert report.terms["offered"].count == 7
    assert objective.terms[0].mask_key == "inputs_mask"
    assert objective.terms[0].reads == {"extras", "inputs_mask"}


def test_a_scheduled_term_of_weight_0_stays_connected_to_extras_and_parameters(of, offer, extras):
    student, teacher = extras
    model = Small()
    objective = of(
        {
            "loss": offer(reading("student_extras", "student_parameters")),
            "extras": ["values"],
            "reads_S": ["fc:parameter.weight"],
            "weight_scheduler": "growth",
        }
    )
    objective.connect(model, model)
    objective(student, teacher, progress=0.0).total.backward()
    assert student["extras"]["values"].grad.abs().sum() == 0
    assert model.fc.weight.grad.abs().sum() == 0


def test_a_batch_without_items_stays_connected_to_what_the_term_names(of, offer, extras):
    student, teacher = extras
    student["logits_mask"] = torch.zeros(3, 4)
    model = Small()
    loss = offer(reading("teacher_logits", "student_extras", "student_parameters"))
    objective = of({"loss": loss, "extras": ["values"], "reads_S": ["fc:parameter.weight"]})
    objective.connect(model)
    objective(student, teacher).total.backward()
    assert student["extras"]["values"].grad.abs().sum() == 0
    assert model.fc.weight.grad.abs().sum() == 0


def test_an_extra_that_an_adaptor_did_not_return_is_named_with_its_side(of, offer, extras):
    student, teacher = extras
    objective = of({"loss": offer(value_relation), "extras": ["values"]})
    with pytest.raises(
        OutputsError, match=r"^terms\.0\.extras: the teacher returned no extra 'values', only value\. Did you"
    ):
        objective(student, {"extras": {"value": torch.zeros(1)}})
    with pytest.raises(
        OutputsError, match=r"^terms\.0\.extras: the student returned no extra 'values', and no extras at all"
    ):
        objective({"logits": student["logits"]}, teacher)


TWO = {"teachers": ["a", "b"]}


def test_a_term_reads_the_extras_of_its_teacher(of, offer, extras):
    student, teacher = extras
    other = {**teacher, "extras": {"values": teacher["extras"]["values"] * 3}}
    objective = of({"loss": offer(value_relation), "extras": ["values"], "teacher": "b"}, **TWO)
    assert objective(student, [teacher, other]).total == value_relation(student["extras"], other["extras"])
    with pytest.raises(OutputsError, match=r"^terms\.0\.extras: the teacher 'b' returned no extra 'values'"):
        objective(student, [teacher, {"logits": teacher["logits"]}])


@pytest.mark.parametrize(
    ("inputs", "keys"), [(["teacher_extras"], {"extras": ["a"]}), (["teacher_parameters"], {"reads_T": [":buffer.a"]})]
)
@pytest.mark.parametrize("with_logits", [True, False])
def test_combined_teachers_have_no_extras_and_no_parameters(of, offer, inputs, keys, with_logits):
    loss = reading(*inputs) if with_logits else value_relation
    keys = keys if with_logits else {"extras": ["values"]}
    with pytest.raises(ConfigError, match=r"^terms\.0\.teacher: must name one of the 2 teachers"):
        of({"loss": offer(loss), **keys}, **TWO)
    of({"loss": "offered", **keys, "teacher": "a"}, **TWO)


# Keys


@pytest.mark.parametrize(
    ("inputs", "keys", "message"),
    [
        (
            ["student_extras"],
            {},
            r"^terms\.0\.extras: is required, since local:offered requests student_extras\. .*extras: \[values\]",
        ),
        (["teacher_parameters"], {}, r"^terms\.0\.reads_T: is required, since .*reads_T: \[fc:parameter\.weight\]"),
        (["student_parameters"], {"reads_T": ["a:parameter.b"]}, r"^terms\.0\.reads_S: is required"),
        (
            [],
            {"extras": ["values"]},
            r"^terms\.0\.extras: has no effect: local:offered does not request student_extras or",
        ),
        (
            [],
            {"reads_S": ["a:parameter.b"]},
            r"^terms\.0\.reads_S: has no effect: .* does not request student_parameters",
        ),
        (
            ["student_parameters"],
            {"reads_S": ["a:parameter.b"], "reads_T": ["a:parameter.b"]},
            r"^terms\.0\.reads_T: has no effect: .* does not request teacher_parameters",
        ),
    ],
)
def test_a_term_names_what_its_loss_reads_and_nothing_else(of, offer, inputs, keys, message):
    with pytest.raises(ConfigError, match=message):
        of({"loss": offer(reading(*inputs)), **keys})


def test_shorter_spellings_cannot_name_extras(build, match, offer, matches_only):
    offer(reading("student_extras"), name="alone")
    offer(reading("student_extras", layers=True), name="compared")
    with pytest.raises(
        ConfigError, match=r"^kd_loss_type: local:alone requests student_extras, which only a term can name\."
    ):
        build(kd_loss_type="alone")
    with pytest.raises(ConfigError, match=r"^intermediate_matches\.0\.loss: local:compared .* with extras: \[values\]"):
        build(intermediate_matches=[match(loss="compared")], **matches_only)


def test_a_loss_that_names_widths_needs_layers(of, offer):
    class Sized(nn.Module):
        def __init__(self, in_dim):
            super().__init__()

        def forward(self, student_extras):
            return student_extras["a"].mean()

    with pytest.raises(SignatureError, match=r"^terms\.0\.loss: local:offered takes in_dim, the widths of features"):
        of({"loss": offer(Sized), "extras": ["a"]})


class Bank(nn.Module):
    """A memory bank over the extras of the student, which reads neither logits nor features."""

    def __init__(self, num_examples):
        super().__init__()
        self.register_buffer("bank", torch.arange(4.0 * num_examples).view(num_examples, 4))

    def forward(self, student_extras, example_ids):
        return (student_extras["a"] - self.bank[example_ids]).square().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_term_without_layers_gets_example_ids_and_their_number(of, offer, dtype):
    objective = of({"loss": offer(Bank), "extras": ["a"]})
    values, ids = torch.tensor([[3], [9]], dtype=dtype), [4, 1]
    read = {"extras": {"a": values}}
    objective.materialize(read, {}, num_examples=5)
    assert objective.configured.terms()[0].loss.bank.dtype is (dtype if dtype.is_floating_point else torch.float32)
    bank = torch.arange(20.0).view(5, 4)
    torch.testing.assert_close(
        objective(read, {}, example_ids=ids).total.float(), (values - bank[ids]).square().mean().float()
    )
    with pytest.raises(
        OutputsError, match=r"^terms\.0\.loss: local:offered requests example_ids, but the batch has none"
    ):
        objective(read, {})


def test_a_term_that_reads_parameters_alone_gets_example_ids(of, offer):
    def weighted(student_parameters, example_ids):
        return student_parameters[":parameter.weight"].sum() * example_ids.sum()

    objective, model = of({"loss": offer(weighted), "reads_S": [":parameter.weight"]}), nn.Linear(2, 2)
    objective.connect(model)
    assert objective({}, {}, example_ids=[1, 2, 3]).total == 6 * model.weight.sum()


@pytest.mark.parametrize("key", ["temperature", "temperature_scheduler"])
def test_a_temperature_that_a_term_without_layers_does_not_use_is_an_error(of, offer, key):
    offer(lambda temperature: temperature, "temperature_schedulers", "warm")
    term = {"loss": offer(reading("student_extras", "temperature", layers=False), name="warmed"), "extras": ["a"]}
    of(term | {key: {"temperature": 3, "temperature_scheduler": "local:warm"}[key]})
    plain = {"loss": offer(lambda student_extras: student_extras["a"].mean(), name="plain"), "extras": ["a"]}
    with pytest.raises(
        ConfigError, match=rf"^terms\.0\.{key}: has no effect: local:plain does not request temperature"
    ):
        of(plain | {key: {"temperature": 3, "temperature_scheduler": "local:warm"}[key]})


def test_a_term_that_reads_extras_alone_is_written_in_full_without_a_temperature(of, offer):
    term = {"loss": offer(lambda student_extras: student_extras["a"].mean()), "extras": ["a"]}
    (written,) = DistillationConfig(terms=[term]).resolved().terms
    assert (written.temperature, written.temperature_scheduler) == (None, None)
    of(written.to_dict())


# Parameters


def test_a_loss_reads_the_parameters_of_the_teacher(of, offer):
    student, teacher = Small(), Small()
    objective = of(
        {
            "loss": offer(through_teacher_head),
            "layer_S": 0,
            "layer_T": 0,
            "feature": "hidden",
            "reads_T": ["fc:parameter.weight", "fc:parameter.bias"],
        }
    )
    objective.connect(student, teacher)
    x = torch.randn(8, 4, dtype=torch.float64)
    ours, theirs = student(x), teacher(x)
    total = objective(ours, theirs).total
    expected = (ours["hidden"][0] @ teacher.fc.weight.T + teacher.fc.bias - theirs["logits"]).square().mean()
    torch.testing.assert_close(total, expected)
    total.backward()
    assert student.body.weight.grad.abs().sum() > 0
    assert teacher.fc.weight.grad is None
    assert not [name for name, _ in objective.named_parameters()]


def test_the_students_parameters_carry_gradient_and_keys_are_the_paths_as_written(of, offer):
    def spread(student_parameters, teacher_parameters):
        assert list(student_parameters) == ["fc:parameter.weight", ":parameter.scale", "bn:buffer.running_var"]
        assert list(teacher_parameters) == ["bn:buffer.num_batches_tracked"]
        return student_parameters["fc:parameter.weight"].square().sum() * student_parameters[":parameter.scale"]

    student, teacher = Small(), Small()
    reads = ["fc:parameter.weight", ":parameter.scale", "bn:buffer.running_var"]
    objective = of({"loss": offer(spread), "reads_S": reads, "reads_T": ["bn:buffer.num_batches_tracked"]})
    objective.connect(student, teacher)
    objective(student(torch.randn(3, 4, dtype=torch.float64)), {}).total.backward()
    torch.testing.assert_close(student.fc.weight.grad, 2 * 2 * student.fc.weight.detach())
    torch.testing.assert_close(student.scale.grad, student.fc.weight.detach().square().sum())
    assert teacher.fc.weight.grad is None


def decay(student_parameters):
    return sum(one.square().sum() for one in student_parameters.values())


def test_tied_frozen_and_replaced_parameters_are_read_as_they_are(of, offer):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    objective = of({"loss": offer(decay), "reads_S": ["0:parameter.weight", "1:parameter.weight"]})
    objective.connect(model)
    objective({}, {}).total.backward()
    torch.testing.assert_close(model[0].weight.grad, 4 * model[0].weight.detach())
    model[0].weight.requires_grad_(False)
    assert not objective({}, {}).total.requires_grad
    model[1].weight = nn.Parameter(torch.ones(3, 3))
    objective({}, {}).total.backward()
    assert torch.equal(model[1].weight.grad, torch.full((3, 3), 2.0))


def test_a_module_that_is_replaced_later_is_read(of, offer):
    model, read = nn.Sequential(nn.Sequential(nn.Linear(3, 3))), "0.0:parameter.weight"
    objective = of({"loss": offer(decay), "reads_S": [read]})
    objective.connect(torch.compile(model, backend="eager"))
    for change in (lambda: nn.Linear(3, 3), lambda: torch.compile(nn.Linear(3, 3), backend="eager")):
        model[0][0] = change()
        objective({}, {}).total.backward()
        torch.testing.assert_close(model[0][0].weight.grad, 2 * model[0][0].weight.detach())
    model[0] = nn.Sequential(nn.Linear(3, 3))
    assert objective({}, {}).total == model[0][0].weight.square().sum()
    model[0] = nn.Identity()
    with pytest.raises(RunError, match=rf"^terms\.0: the student's {read} was removed"):
        objective({}, {})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "fc:parameter.weigth",
            r"reads_S\.0: no parameter 'weigth' in the student's module 'fc'\. Did you mean 'fc:parameter\.weight'",
        ),
        ("cf:parameter.weight", r"reads_S\.0: no module 'cf' in the student"),
        ("bn:parameter.running_var", r"Did you mean 'bn:buffer\.running_var'"),
        (
            ":parameter.scales",
            r"no parameter 'scales' in the student's model itself\. Did you mean ':parameter\.scale'",
        ),
        (
            "body:buffer.x",
            r"no buffer 'x' in the student's module 'body'\. The module holds body:parameter\.weight, body:parameter\.bias",
        ),
    ],
)
def test_a_wrong_path_is_an_error_with_the_nearest_one(of, offer, path, message):
    objective = of({"loss": offer(decay), "reads_S": [path]})
    with pytest.raises(
        ConfigError, match=rf"^terms\.0\..*{message}" if "reads_S" not in message else rf"^terms\.0\.{message}"
    ):
        objective.connect(Small())


def test_parameters_without_numbers_are_an_error(of, offer):
    model = Small()
    model.lazy = nn.LazyLinear(3)
    model.far = nn.Linear(2, 2, device="meta")
    model.packed = nn.Module()
    model.packed.weight = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    model.eighth = nn.Module()
    model.eighth.register_buffer("weight", torch.zeros(2).to(torch.float8_e4m3fn))
    for path, message in (
        ("lazy:parameter.weight", "has no shape yet: run the model once first"),
        ("far:parameter.weight", "is on the meta device"),
        ("packed:parameter.weight", "must be a dense floating-point tensor .* got torch.strided, torch.uint8"),
        ("eighth:buffer.weight", "must be a dense floating-point tensor .* got torch.strided, torch.float8_e4m3fn"),
    ):
        with pytest.raises(ConfigError, match=rf"^terms\.0\.reads_S\.0: the student's {path} {message}"):
            of({"loss": offer(decay, name=path.partition(":")[0]), "reads_S": [path]}).connect(model)


def test_an_own_loop_has_to_connect_the_models_and_a_copy_again(of, offer):
    model = Small()
    objective = of({"loss": offer(decay), "reads_S": ["fc:parameter.weight"]})
    with pytest.raises(
        RunError, match=r"^terms\.0: local:offered reads parameters of the student, which is not connected: call obj"
    ):
        objective({}, {})
    with objective.capture(model, Small().eval()):
        assert objective({}, {}).total == model.fc.weight.square().sum()
    for copied in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective.configured.terms()[0].named))):
        if isinstance(copied, kdplug.Objective):
            with pytest.raises(RunError, match="not connected"):
                copied({}, {})
    assert objective({}, {}).total == model.fc.weight.square().sum()


def test_a_compiled_module_is_read_through_its_wrapper(of, offer):
    model = Small()
    model.fc = torch.compile(model.fc, backend="eager")
    objective = of({"loss": offer(decay), "reads_S": ["fc:parameter.weight", ":parameter.scale"]})
    objective.connect(torch.compile(model, backend="eager"))
    assert objective({}, {}).total == model.fc.weight.square().sum() + 4
