"""Projections: whose they are, how wide, and where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdplug import RunError, ShapeError, SignatureError


@pytest.fixture
def projected(build, match):
    """An objective whose matches have these projections, onto the teacher's wide layer."""
    return lambda *projections, **keys: build(
        kd_loss_weight=0, intermediate_matches=[match(layer_T=3, proj=proj, **keys) for proj in projections]
    ).double()


def projections(objective):
    return [module for module, _ in objective.configured.groups()]


def test_the_students_side_is_projected(projected, student, teacher):
    objective = projected(["linear", 6, 8])
    expected = F.mse_loss(next(objective.configured.groups())[0](student["hidden"][0]), teacher["hidden"][3])
    assert objective(student, teacher).total == expected


def test_one_projection_serves_every_listed_layer(build, match, student, teacher):
    lists = match(loss="pair_mse", layer_S=[0, 1], layer_T=[1, 2], proj=["linear", 6, 6])
    objective = build(kd_loss_weight=0, intermediate_matches=[lists]).double()
    project = next(objective.configured.groups())[0]
    expected = sum(F.mse_loss(project(student["hidden"][i]), teacher["hidden"][i + 1]) for i in (0, 1))
    torch.testing.assert_close(objective(student, teacher).total, expected, rtol=1e-13, atol=0)


def test_every_match_has_a_projection_of_its_own(projected):
    objective = projected(["linear", 6, 8], ["linear", 6, 8])
    assert projections(objective)[0] is not projections(objective)[1]
    assert len(list(objective.parameters())) == 4


def test_every_projection_is_a_parameter_group_with_its_own_options(projected):
    first, second = projected(["linear", 6, 8, {"lr": 0.1, "weight_decay": 0.0}], ["linear", 6, 8]).param_groups()
    assert {key: value for key, value in first.items() if key != "params"} == {"lr": 0.1, "weight_decay": 0.0}
    assert set(second) == {"params"}
    assert [len(group["params"]) for group in (first, second)] == [2, 2]


def test_the_groups_suit_an_optimizer_and_change_no_config(projected, student, teacher):
    objective = projected(["linear", 6, 8, {"lr": 0.1}])
    optimizer = torch.optim.SGD([{"params": [student["hidden"][0]]}, *objective.param_groups()], lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    objective.param_groups()[0]["lr"] = 7
    assert objective.param_groups()[0]["lr"] == 0.1


def test_what_a_loss_holds_is_a_group_too(build, match):
    objective = build(intermediate_matches=[match(loss="scaled", proj=["linear", 6, 6]), match(loss="scaled")])
    assert [len(group["params"]) for group in objective.param_groups()] == [2, 2]


def test_an_objective_without_parameters_has_no_groups(build):
    assert build().param_groups() == []


def test_frozen_parameters_are_in_no_group(projected):
    objective = projected(["linear", 6, 8]).requires_grad_(False)
    assert objective.param_groups() == []


def test_padding_that_holds_nan_does_not_reach_the_weights(projected, student, teacher, mask):
    objective = projected(["linear", 6, 8], loss="masked_mse")
    student["inputs_mask"] = mask
    objective(student, teacher).total.backward()
    expected = next(objective.configured.groups())[0].weight.grad.clone()
    student["hidden"][0].data[mask == 0] = float("nan")
    objective.zero_grad()
    objective(student, teacher).total.backward()
    torch.testing.assert_close(next(objective.configured.groups())[0].weight.grad, expected)


def test_finite_values_in_padding_are_projected_like_any_other(projected, offer, student, teacher, mask):
    student["inputs_mask"] = mask
    first = projected(["linear", 6, 8], loss=offer(lambda student_features, mask: student_features[..., 3, 0].sum()))
    expected = projections(first)[0](student["hidden"][0])[..., 3, 0].sum()
    assert first(student, teacher).total == expected


# Automatic widths


@pytest.mark.parametrize("proj", ["linear", ["linear", "auto", "auto"], ["linear", 6, "auto"], ["linear", "auto", 8]])
def test_automatic_widths_come_from_one_batch(projected, student, teacher, proj):
    objective = projected(proj)
    assert objective.needs_materialize
    objective.materialize(student=student, teacher=teacher)
    projection = next(objective.configured.groups())[0]
    assert not objective.needs_materialize
    assert (projection.in_features, projection.out_features) == (6, 8)
    assert objective(student, teacher).total.isfinite()


def test_before_that_neither_a_loss_nor_groups_can_be_had(projected, student, teacher):
    objective = projected(["linear", 6, 8], ["linear", "auto", "auto"])
    for use in (objective.param_groups, lambda: objective(student, teacher)):
        with pytest.raises(RunError, match=r"^intermediate_matches\.1\.proj: .* Call objective\.materialize\(student="):
            use()


def test_a_projection_that_exists_is_not_made_again(projected, student, teacher):
    objective = projected(["linear", 6, 8], ["linear", "auto", "auto"])
    objective.materialize(student, teacher)
    before = projections(objective)
    objective.materialize(student, teacher)
    assert projections(objective) == before


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_it_is_made_in_the_students_dtype_but_not_in_half(projected, student, teacher, dtype, expected):
    objective = projected("linear")
    objective.materialize({"hidden": [layer.to(dtype) for layer in student["hidden"]]}, teacher)
    assert {p.dtype for p in objective.parameters()} == {expected}


def test_it_is_made_on_the_students_device(projected):
    objective = projected("linear")
    objective.materialize(
        {"hidden": torch.empty(3, 4, 6, device="meta")}, {"hidden": [torch.empty(3, 4, 8, device="meta")] * 4}
    )
    assert {p.device.type for p in objective.parameters()} == {"meta"}


def test_layers_of_different_widths_cannot_share_one(build, match, student, teacher):
    lists = match(loss="pair_mse", layer_S=[0, 1], layer_T=[0, 3], proj="linear")
    with pytest.raises(ShapeError, match=r"^intermediate_matches\.0\.proj: the teacher's layers are \[6, 8\] wide"):
        build(intermediate_matches=[lists]).materialize(student, teacher)


def test_a_wrong_index_is_reported_when_widths_are_read(build, match, student, teacher):
    with pytest.raises(ValueError, match=r"^intermediate_matches\.0\.layer_T: there is no layer 9"):
        build(intermediate_matches=[match(layer_T=9, proj="linear")]).materialize(student, teacher)


# Wrong widths


def test_a_wrong_student_width_is_reported_before_the_matrix_product(projected, student, teacher):
    message = r"^intermediate_matches\.0\.proj: the student feature is 6 wide \[3, 4, 6\], but the projection takes 8"
    with pytest.raises(ShapeError, match=message):
        projected(["linear", 8, 6])(student, teacher)


def test_a_wrong_teacher_width_is_reported_where_the_loss_cannot_take_it(projected, student, teacher):
    message = r"(?s)^intermediate_matches\.0\.loss: .*output is 7 wide, but the teacher feature is 8 wide"
    with pytest.raises(ShapeError, match=message):
        projected(["linear", 6, 7])(student, teacher)


def test_a_loss_that_takes_other_widths_may_have_them(projected, offer, student, teacher):
    def gram(student_features, teacher_features):
        return (student_features @ student_features.mT - teacher_features @ teacher_features.mT).square().mean()

    assert projected(["linear", 6, 7], loss=offer(gram))(student, teacher).total.isfinite()


def test_an_entry_that_makes_no_module_is_named(build, match, offer):
    name = offer(lambda in_dim, out_dim: "no", "projections")
    with pytest.raises(
        SignatureError, match=r"^intermediate_matches\.0\.proj: local:offered must return an nn\.Module"
    ):
        build(intermediate_matches=[match(proj=[name, 6, 8])])


# Feature maps


class OneByOne(torch.nn.Conv2d):
    """A 1×1 convolution, which maps the channels of ``[B, C, H, W]``."""

    axis = 1

    def __init__(self, in_dim, out_dim) -> None:
        super().__init__(in_dim, out_dim, 1)


def maps(random):
    student = {"hidden": [random(2, 3, 4, 5, requires_grad=True)]}
    return student, {"hidden": [random(2, 7, 4, 5)]}


def test_a_projection_maps_the_axis_that_it_declares(build, match, offer, random):
    student, teacher = maps(random)
    proj = offer(OneByOne, "projections", "one_by_one")
    objective = build(kd_loss_weight=0, intermediate_matches=[match(proj=proj)])
    objective.materialize(student, teacher)
    (module,) = projections(objective)
    assert (module.in_channels, module.out_channels) == (3, 7)
    value = objective.double()(student, teacher).total
    assert value == F.mse_loss(module(student["hidden"][0]), teacher["hidden"][0])


def test_a_wrong_number_of_channels_is_an_error(build, match, offer, random):
    offer(OneByOne, "projections", "one_by_one")
    objective = build(kd_loss_weight=0, intermediate_matches=[match(proj=["one_by_one", 5, 7])])
    with pytest.raises(
        ShapeError, match=r"^intermediate_matches\.0\.proj: the student feature is 3 wide \[2, 3, 4, 5\]"
    ):
        objective(*maps(random))


@pytest.mark.parametrize(("axis", "error"), [(4, ShapeError), ("1", SignatureError)])
def test_an_axis_that_is_none_is_an_error(build, match, offer, random, axis, error):
    class Odd(OneByOne):
        pass

    Odd.axis = axis
    offer(Odd, "projections", "odd")
    with pytest.raises(error, match="axis"):
        build(kd_loss_weight=0, intermediate_matches=[match(proj="odd")]).materialize(*maps(random))
