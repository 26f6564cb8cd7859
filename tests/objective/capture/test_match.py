"""Matches whose layers are module paths: what they compare, and what they are called."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, OutputsError, ShapeError


class Net(nn.Module):
    """Returns its logits, and every hidden layer as an adaptor would."""

    def __init__(self, width, depth, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(4 if place == 0 else width, width) for place in range(depth))
            self.head = nn.Linear(width, 3)
        self.double()

    def forward(self, x):
        hidden = []
        for layer in self.layers:
            x = layer(x)
            hidden.append(x)
            x = torch.tanh(x)
        return {"logits": self.head(x), "hidden": hidden}


@pytest.fixture
def nets():
    return Net(5, 2, 1), Net(5, 4, 2).eval()


@pytest.fixture
def x(random):
    return random(2, 6, 4)


@pytest.fixture
def run(nets, x):
    """The loss of the two nets on one batch, by way of ``Objective.capture``."""

    def value(objective, student=None, **keys):
        model, teacher = nets if student is None else (student, nets[1])
        with objective.capture(model, teacher) as capture:
            with torch.no_grad(), capture.teacher.reading():
                given = teacher(x)
            with capture.student.reading():
                made = model(x)
            made, given = {**made, **keys}, {**given, **keys}
            joined = {"student": capture.student.join(made), "teacher": capture.teacher.join(given)}
        if objective.needs_materialize:
            objective.materialize(**joined)
        return objective(**joined)

    return value


def by(match, student, teacher, **keys):
    keys = {"layer_S": student, "layer_T": teacher, **keys}
    return {"kd_loss_weight": 0, "intermediate_matches": [match(**keys)]}


@pytest.mark.parametrize("student", [1, -1, "layers.1", "layers.1:output", "layers.[1]", "**.1", "layers.1@0"])
@pytest.mark.parametrize("teacher", [2, "layers.2"])
def test_a_path_compares_exactly_what_the_adaptor_s_index_does(build, match, run, student, teacher):
    expected = run(build(**by(match, 1, 2))).total
    assert torch.equal(run(build(**by(match, student, teacher))).total, expected)


def test_gradients_are_those_of_the_adaptor_s_index_too(build, match, run, nets):
    found = []
    for student, teacher in ((1, 2), ("layers.1", "layers.2")):
        nets[0].zero_grad()
        run(build(**by(match, student, teacher))).total.backward()
        found.append(nets[0].layers[0].weight.grad)
    assert torch.equal(*found)
    assert nets[1].layers[0].weight.grad is None


def test_one_student_layer_may_be_in_several_matches(build, match, run):
    matches = [match(layer_S="layers.0", layer_T=f"layers.{place}") for place in range(4)]
    found = run(build(kd_loss_weight=0, intermediate_matches=matches))
    single = [run(build(**by(match, 0, place))).total for place in range(4)]
    assert list(found.terms) == [f"hidden_plain_mse_layers.0_layers.{place}" for place in range(4)]
    assert all(map(torch.equal, (term.value for term in found.terms.values()), single))


def test_what_is_read_is_what_paths_says(build, match):
    matches = [match(layer_S="layers.0", layer_T=1), match(layer_S="layers.0", layer_T="head")]
    objective = build(intermediate_matches=[*matches, match(layer_S=["layers.1", 0], layer_T=["a", "b:input"])])
    assert objective.paths("student") == ("layers.0", "layers.1")
    assert objective.paths("teacher") == ("head", "a", "b:input")


def test_a_list_of_paths_feeds_a_loss_of_several_features(build, match, run):
    expected = run(build(**by(match, [0, 1], [1, 3], loss="pair_mse"))).total
    found = build(**by(match, ["layers.0", 1], ["layers.1", "layers.3"], loss="pair_mse"))
    assert torch.equal(run(found).total, expected)


@pytest.mark.parametrize(
    ("student", "teacher"), [("layers.*", [1, 3]), (["layers.*"], ["layers.[13]"]), ([0, 1], "layers.[13]")]
)
def test_in_a_list_a_glob_means_all_it_matches_in_the_model_s_order(build, match, run, student, teacher):
    expected = run(build(**by(match, [0, 1], [1, 3], loss="pair_mse"))).total
    assert torch.equal(run(build(**by(match, student, teacher, loss="pair_mse"))).total, expected)


def test_terms_are_named_by_their_paths(build, match):
    objective = build(**by(match, ["layers.*"], [1, "layers.3:output[0]"], loss="pair_mse"))
    assert [term.name for term in objective.terms] == ["hidden_pair_mse_layers.*_1-layers.3:output[0]"]


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        ("layer.1", "layers.1", "0.layer_S: no module 'layer.1' in the student. Did you mean 'layers.1' or"),
        ("layers.1", "layers.9", "0.layer_T: no module 'layers.9' in the teacher. 'layers' holds 0, 1, 2, 3."),
        (
            "layers.*",
            "layers.0",
            "0.layer_S: 'layers.*' matches 2 modules of the student: layers.0, layers.1. A match of",
        ),
        (["layers.0", "x.1"], [0, 1], "0.layer_S.1: no module 'x.1' in the student."),
        (
            ["layers.*"],
            ["layers.*"],
            "0: the number of layers in layer_S, 2 (layers.0, layers.1), differs from that in layer_T, 4 (layers.0,",
        ),
        (
            ["layers.*"],
            [0, 1, 2],
            "0: the number of layers in layer_S, 2 (layers.0, layers.1), differs from that in layer_T, 3 (0, 1, 2).",
        ),
    ],
)
def test_a_wrong_path_is_reported_with_the_field_that_holds_it(build, match, nets, student, teacher, says):
    objective = build(**by(match, student, teacher, loss="pair_mse"))
    with pytest.raises(ConfigError, match=f"^intermediate_matches.{re.escape(says)}"):
        objective.connect(*nets)


def test_one_objective_connects_to_one_model_after_another(build, match, run, nets):
    objective = build(**by(match, ["layers.*"], [1, 2], loss="pair_mse"))
    expected = run(build(**by(match, [0, 1], [1, 2], loss="pair_mse"))).total
    with pytest.raises(ConfigError, match=r"layers in layer_S, 3 "):
        objective.connect(Net(5, 3, 1), nets[1])
    assert torch.equal(run(objective).total, expected)


def test_nothing_captured_says_how_to_capture(build, match, nets, x):
    objective = build(**by(match, "layers.0", 0))
    with pytest.raises(
        OutputsError, match=r"^intermediate_matches.0.layer_S: nothing was captured at 'layers.0'.*objective.capture"
    ):
        objective(nets[0](x), nets[1](x))


def test_a_module_that_was_not_called_is_reported(build, match):
    objective = build(**by(match, "layers.0", 0))
    made = Outputs(captured={"layers.1": torch.ones(1)})
    with pytest.raises(OutputsError, match=r"layer_S: the student's forward pass did not call 'layers.0'"):
        objective(made, made)


def test_outputs_that_hold_what_was_captured_need_no_model(build, match, random):
    ours, theirs = random(2, 3), random(2, 3)
    report = build(**by(match, "a", "b"))(Outputs(captured={"a": ours}), Outputs(captured={"b": theirs}))
    torch.testing.assert_close(report.total, (ours - theirs).square().mean())


def test_a_projection_is_made_from_what_was_captured(build, match, run):
    student = Net(7, 2, 1)
    objective = build(**by(match, "layers.1", "layers.2", proj=["linear", "auto", "auto"]))
    run(objective, student).total.backward()
    assert [tuple(p.shape) for p in objective.parameters()] == [(5, 7), (5,)]
    assert student.layers[0].weight.grad.any()


def test_a_mask_counts_for_what_is_captured(build, match, run):
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    expected = run(build(**by(match, 1, 2, loss="masked_mse")), inputs_mask=mask)
    found = run(build(**by(match, "layers.1", "layers.2", loss="masked_mse")), inputs_mask=mask)
    assert torch.equal(found.total, expected.total)


def test_a_loss_may_ask_for_each_side_s_own_mask(build, match, offer, random):
    """Defect 2.2.15: the teacher's mask was never looked at, though the two sides may be tokenized differently."""

    def pooled(student_features, teacher_features, student_mask, teacher_mask):
        ours, theirs = student_features[student_mask].mean(0), teacher_features[teacher_mask].mean(0)
        return (ours - theirs).square().mean()

    ours, theirs = random(2, 3, 4), random(2, 5, 4)
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    made, given = ({"hidden": [h], "inputs_mask": m} for h, m in zip((ours, theirs), masks, strict=True))
    expected = (ours[masks[0].bool()].mean(0) - theirs[masks[1].bool()].mean(0)).square().mean()
    torch.testing.assert_close(build(**by(match, 0, 0, loss=offer(pooled)))(made, given).total, expected)


def test_masks_that_differ_in_shape_are_still_refused_to_a_loss_that_asks_for_one(build, match, random):
    made, given = ({"hidden": [random(2, n, 4)], "inputs_mask": torch.ones(2, n)} for n in (3, 5))
    with pytest.raises(ShapeError, match="differ in shape"):
        build(**by(match, 0, 0, loss="masked_mse"))(made, given)


def test_capturing_leaves_no_hook(build, match, run, nets):
    run(build(**by(match, "layers.1", "layers.2")))
    assert not any(module._forward_hooks for net in nets for module in net.modules())


def test_several_teachers_are_captured_each_for_its_own_matches(match, x, nets):
    from kdplug import DistillationConfig, Objective

    student, first, second = nets[0], nets[1], Net(5, 4, 9).eval()
    matches = [match(layer_S="layers.0", layer_T="layers.2", teacher=place) for place in (0, 1)]
    objective = Objective(DistillationConfig(kd_loss_weight=0, intermediate_matches=matches), teachers=2)
    with objective.capture(student, [first, second]) as capture:
        with capture.student.reading():
            made = student(x)
        given = []
        for model, reader in zip((first, second), capture.teachers, strict=True):
            with torch.no_grad(), reader.reading():
                outputs = model(x)
            given.append(reader.join(outputs))
        values = [term.value for term in objective(capture.student.join(made), given).terms.values()]
    expected = [(made["hidden"][0] - one.hidden[2]).square().mean() for one in given]
    assert all(map(torch.equal, values, expected))
