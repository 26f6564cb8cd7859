"""Losses that take the widths of the features, and options of their own parameter group."""

from __future__ import annotations

import pytest
import torch

from kdplug import (
    ConfigError,
    LossSum,
    RunError,
    ShapeError,
    SignatureError,
)


def total(objective, student, teacher, **keys):
    return objective(student=student, teacher=teacher, **keys).total


class Regressor(torch.nn.Module):
    """FitNet's regressor inside the loss."""

    def __init__(self, in_dim, out_dim, *, bias: bool = True) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(in_dim, out_dim, bias=bias)

    def forward(self, student_features, teacher_features) -> LossSum:
        error = (self.layer(student_features) - teacher_features).square().mean(-1)
        return LossSum(error.sum(), error.numel())


class PerLayer(torch.nn.Module):
    """One layer for each width."""

    def __init__(self, in_dim, out_dim) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(ours, out_dim[-1]) for ours in in_dim)

    def forward(self, student_features, teacher_features):
        made = [layer(one) for layer, one in zip(self.layers, student_features, strict=True)]
        return sum((one - teacher_features[-1]).square().mean() for one in made)


class OfMaps(Regressor):
    axis = 1

    def __init__(self, in_dim, out_dim) -> None:
        super().__init__(in_dim, out_dim)
        self.layer = torch.nn.Conv2d(in_dim, out_dim, 1)


WIDE = {"feature": "hidden", "layer_S": 1, "layer_T": 3}


def materialized(objective, student, teacher):
    objective.materialize(student, teacher)
    return objective.double()


def test_a_loss_class_gets_the_widths_of_the_features(of, offer, student, teacher):
    objective = of({"loss": {"name": offer(Regressor), "bias": False}, **WIDE})
    assert objective.needs_materialize
    materialized(objective, student, teacher)
    layer = objective.configured["0"].loss.layer
    assert (layer.in_features, layer.out_features, layer.bias) == (6, 8, None)
    error = (layer(student["hidden"][1]) - teacher["hidden"][3]).square().mean()
    torch.testing.assert_close(total(objective, student, teacher), error)
    assert list(objective.state_dict()) == ["configured.0.loss.layer.weight"]


def test_a_loss_on_lists_gets_lists_of_widths(of, offer, student, teacher):
    objective = of({"loss": offer(PerLayer), **WIDE, "layer_S": [0, 1], "layer_T": [2, 3]})
    materialized(objective, student, teacher)
    assert [(one.in_features, one.out_features) for one in objective.configured["0"].loss.layers] == [(6, 8), (6, 8)]


def test_after_a_projection_the_student_has_its_width(of, offer, student, teacher):
    objective = materialized(of({"loss": offer(Regressor), **WIDE, "proj": ["linear", 6, 3]}), student, teacher)
    assert objective.configured["0"].loss.layer.in_features == 3


def test_widths_are_those_of_the_axis_that_the_loss_declares(of, offer, random):
    student, teacher = {"hidden": [random(2, 3, 4, 5, requires_grad=True)]}, {"hidden": [random(2, 7, 4, 5)]}
    objective = of({"loss": offer(OfMaps), "feature": "hidden", "layer_S": 0, "layer_T": 0})
    assert materialized(objective, student, teacher).configured["0"].loss.layer.weight.shape == (7, 3, 1, 1)


def test_the_loss_is_built_before_it_is_used(of, offer, student, teacher):
    objective = of({"loss": offer(Regressor), **WIDE})
    for use in (lambda: objective(student, teacher), objective.param_groups):
        with pytest.raises(
            RunError, match=r"^terms\.0\.loss: local:offered takes the widths of the features.*materialize"
        ):
            use()


def test_a_loss_on_logits_has_no_widths(of, offer):
    class OnLogits(Regressor):
        def forward(self, student_logits, teacher_logits):
            return student_logits.mean()

    with pytest.raises(SignatureError, match=r"^terms\.0\.loss: local:offered takes in_dim and out_dim, the widths of"):
        of({"loss": offer(OnLogits)})


def test_a_loss_has_its_own_optimizer_options(of, offer, student, teacher):
    terms = [{"loss": offer(Regressor), **WIDE, "loss_options": {"lr": 0.5}}, {"loss": "scaled", **WIDE, "layer_T": 0}]
    objective = materialized(of(*terms), student, teacher)
    first, rest = objective.param_groups()
    assert first["lr"] == 0.5
    assert {id(one) for one in first["params"]} == {id(one) for one in objective.configured["0"].loss.parameters()}
    assert "lr" not in rest
    assert len(rest["params"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 1}, r"^terms\.0\.loss_options: has no effect: local:plain_mse has no parameters to train"),
        ({"lr": -1}, r"^terms\.0\.loss_options\.lr: must be >= 0"),
        ({"params": 1}, r"^terms\.0\.loss_options\.params: is set by"),
        (3, r"^terms\.0\.loss_options: must be a mapping of optimizer options"),
    ],
)
def test_wrong_options_are_named_with_their_path(of, options, message):
    with pytest.raises(ConfigError, match=message):
        of({"loss": "plain_mse", "feature": "hidden", "layer_S": 0, "layer_T": 0, "loss_options": options})


def test_an_error_while_a_loss_is_built_names_its_widths(of, offer, student, teacher):
    class Picky(Regressor):
        def __init__(self, in_dim, out_dim) -> None:
            raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width") as caught:
        of({"loss": offer(Picky), **WIDE}).materialize(student, teacher)
    assert "while building local:offered from widths in_dim=6, out_dim=8" in caught.value.__notes__[0]


def test_an_error_of_a_loss_that_takes_widths_suggests_no_projection(of, offer):
    class Maps(Regressor):
        def forward(self, student_features, teacher_features):
            raise ShapeError("takes maps [B, C, H, W]")

    objective = of({"loss": offer(Maps), "feature": "hidden", "layer_S": 0, "layer_T": 0})
    student, teacher = {"hidden": [torch.randn(2, 3, 4)]}, {"hidden": [torch.randn(2, 3, 6)]}
    objective.materialize(student, teacher)
    with pytest.raises(ShapeError, match=r"takes maps \[B, C, H, W\]$"):
        objective(student, teacher)


class Refusing(Regressor):
    """Raises its own error for maps of other channels."""

    def forward(self, student_features, teacher_features) -> LossSum:
        raise ShapeError("maps may differ in channels only")


class Convolved(Regressor):
    """A class that forgot axis = 1."""

    def __init__(self, in_dim, out_dim) -> None:
        super().__init__(in_dim, out_dim)
        self.layer = torch.nn.Conv2d(in_dim, out_dim, 1)


class Indexed(Regressor):
    def forward(self, student_features, teacher_features) -> LossSum:
        raise IndexError("no such channel")


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


HINT = "in_dim=3 and out_dim=3 are the sizes of the last axis; for [batch, channels, height, width] set axis = 1 in the class"


@pytest.mark.parametrize("loss", [Convolved, Refusing, Indexed])
def test_a_class_that_forgot_its_axis_gets_a_note_on_the_last_axis(of, offer, loss):
    maps = ({"hidden": [torch.randn(2, channels, 4, 3).double()]} for channels in (6, 8))
    student, teacher = maps
    objective = materialized(of({"loss": offer(loss), **WIDE, "layer_S": 0, "layer_T": 0}), student, teacher)
    with pytest.raises((ShapeError, IndexError)) as caught:
        objective(student=student, teacher=teacher)
    assert HINT in said(caught.value)


def test_no_note_on_the_axis_for_a_declared_axis_or_for_features_without_maps(of, offer, student, teacher):
    class OfOtherMaps(Refusing):
        axis = 1

        def forward(self, student_features, teacher_features) -> LossSum:
            raise ShapeError("never")

    maps = [{"hidden": [torch.randn(2, channels, 4, 3).double()]} for channels in (6, 8)]
    for loss, (ours, theirs), layer in ((OfOtherMaps, maps, 0), (Refusing, (student, teacher), 1)):
        objective = of({"loss": offer(loss, name=loss.__name__), **WIDE, "layer_S": layer, "layer_T": layer})
        materialized(objective, ours, theirs)
        with pytest.raises(ShapeError) as caught:
            objective(student=ours, teacher=theirs)
        assert "last axis" not in said(caught.value)


LISTS = {"layer_S": [0, 1], "layer_T": [2, 3]}


def test_lists_of_layers_for_a_class_that_takes_one_are_named_with_the_term(of, offer, student, teacher):
    objective = of({"loss": offer(Regressor), **WIDE, **LISTS})
    with pytest.raises(TypeError) as caught:
        objective.materialize(student, teacher)
    assert (
        "in terms.0.loss (local:offered): layer_S and layer_T are lists, so widths are lists; give single layers"
        in said(caught.value)
    )


def test_lists_of_layers_for_a_function_that_takes_one_are_named_too(of, offer, student, teacher):
    def single(student_features, teacher_features):
        return (student_features.mean() - teacher_features.mean()).square()

    objective = of({"loss": offer(single), "feature": "hidden", **LISTS})
    with pytest.raises(AttributeError) as caught:
        objective(student=student, teacher=teacher)
    assert "layer_S and layer_T are lists, so features are tuples; give single layers" in said(caught.value)


def test_another_error_while_a_class_is_built_names_the_term_and_no_lists(of, offer, student, teacher):
    class Failing(Regressor):
        def __init__(self, in_dim, out_dim) -> None:
            raise ValueError("never")

    objective = of({"loss": offer(Failing), **WIDE})
    with pytest.raises(ValueError, match="never") as caught:
        objective.materialize(student, teacher)
    assert "in terms.0.loss (local:offered)" in said(caught.value)
    assert "lists" not in said(caught.value)
