"""Which layers a match compares, and which positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdplug import ConfigError, OutputsError, ShapeError


@pytest.fixture
def one(build, match):
    """An objective with a single match."""
    return lambda **keys: build(kd_loss_weight=0, intermediate_matches=[match(**keys)])


@pytest.fixture
def seen(offer):
    """What an offered match loss was called with."""
    calls = []

    def loss(student_features, teacher_features, mask, labels, temperature, progress):
        calls.append((student_features, teacher_features, mask, labels, temperature, progress))
        first = student_features[0] if isinstance(student_features, tuple) else student_features
        return first.sum()

    offer(loss)
    return calls


@pytest.mark.parametrize(("layer_S", "layer_T"), [(0, 0), (2, 1), (-1, -2)])
def test_an_index_names_a_layer_from_either_end(one, student, teacher, layer_S, layer_T):
    total = one(layer_S=layer_S, layer_T=layer_T)(student, teacher).total
    assert total == F.mse_loss(student["hidden"][layer_S], teacher["hidden"][layer_T])


def test_attention_is_a_feature_too(one, student, teacher):
    total = one(feature="attention", layer_S=1)(student, teacher).total
    torch.testing.assert_close(total, F.mse_loss(student["attention"][1], teacher["attention"][0]))


def test_a_list_of_layers_arrives_as_a_tuple(one, seen, student, teacher):
    one(loss="offered", layer_S=[2, -3], layer_T=[0, 3])(student, teacher)
    ((mine, theirs, *_),) = seen
    assert (type(mine), type(theirs)) == (tuple, tuple)
    assert all(a is b for a, b in zip(mine, [student["hidden"][2], student["hidden"][0]], strict=True))
    assert all(a is b for a, b in zip(theirs, [teacher["hidden"][0], teacher["hidden"][3]], strict=True))


def test_a_list_of_one_layer_is_still_a_tuple(one, seen, student, teacher):
    one(loss="offered", layer_S=[0], layer_T=[0])(student, teacher)
    assert type(seen[0][0]) is tuple


def test_hidden_as_a_bare_tensor_is_one_layer(one, student, teacher):
    mine, theirs = {"hidden": student["hidden"][0]}, {"hidden": teacher["hidden"][0]}
    assert one()(mine, theirs).total == one()(student, teacher).total
    with pytest.raises(ConfigError, match="there is no layer 1: the student returned 1 hidden layer, 0 \\(or -1\\)"):
        one(layer_S=1)(mine, theirs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"layer_T": 4},
            r"^intermediate_matches\.1\.layer_T: there is no layer 4: the teacher returned 4 hidden layers",
        ),
        ({"layer_S": -4}, r"^intermediate_matches\.1\.layer_S: there is no layer -4: .*3 hidden layers, 0 to 2"),
        ({"layer_S": [0, 7], "layer_T": [0, 0]}, r"^intermediate_matches\.1\.layer_S: there is no layer 7"),
    ],
)
def test_a_wrong_index_names_the_match_the_index_and_the_number_of_layers(
    build, match, student, teacher, keys, message
):
    with pytest.raises(ConfigError, match=message):
        build(intermediate_matches=[match(), match(**keys)])(student, teacher)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_missing_feature_is_an_error_that_says_how_to_get_it(one, student, teacher, side):
    del {"student": student, "teacher": teacher}[side]["hidden"]
    with pytest.raises(OutputsError, match=rf"^intermediate_matches\.0\.feature: the {side} returned no 'hidden'") as e:
        one()(student, teacher)
    assert "output_hidden_states=True" in str(e.value)


def test_an_empty_tuple_of_attentions_says_that_the_kernel_returns_none(one, student, teacher):
    student["attention"] = ()
    with pytest.raises(OutputsError, match="the student returned no layers in 'attention'") as caught:
        one(feature="attention")(student, teacher)
    assert 'attn_implementation="eager"' in str(caught.value)


def test_features_that_no_match_reads_may_be_missing(one, student, teacher):
    assert one()({"hidden": student["hidden"]}, {"hidden": teacher["hidden"], "attention": ()}).total.isfinite()


# Masks


def test_padding_that_holds_nan_changes_nothing(one, student, teacher, mask):
    objective = one(loss="masked_mse")
    student["inputs_mask"] = mask
    expected = objective(student, teacher).total
    with torch.no_grad():
        student["hidden"][0][mask == 0] = float("nan")
        teacher["hidden"][0][mask == 0] = float("nan")
    total = objective(student, teacher).total
    total.backward()
    assert total == expected
    assert student["hidden"][0].grad.isfinite().all()


def test_without_masks_a_loss_gets_none(one, seen, student, teacher):
    one(loss="offered")(student, teacher)
    assert seen[0][2] is None


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_on_one_side_serves_both_and_arrives_as_bool(one, seen, student, teacher, mask, side, dtype):
    {"student": student, "teacher": teacher}[side]["inputs_mask"] = mask.to(dtype)
    one(loss="offered")(student, teacher)
    assert seen[0][2].dtype == torch.bool
    assert torch.equal(seen[0][2], mask.bool())


def test_of_two_masks_the_positions_valid_on_both_sides_count(one, seen, student, teacher, mask):
    student["inputs_mask"], teacher["inputs_mask"] = mask, mask.flip(1).float()
    one(loss="offered")(student, teacher)
    assert torch.equal(seen[0][2], mask.bool() & mask.flip(1).bool())


def test_masks_of_different_shapes_are_an_error(one, student, teacher, mask):
    student["inputs_mask"], teacher["inputs_mask"] = mask, mask[:, :3]
    with pytest.raises(
        ShapeError, match=r"^intermediate_matches\.0: the student's inputs_mask \[3, 4\] and .*\[3, 3\]"
    ):
        one(loss="masked_mse")(student, teacher)


def test_masks_that_no_loss_asks_for_may_differ(one, student, teacher, mask):
    student["inputs_mask"], teacher["inputs_mask"] = mask, mask[:, :3]
    assert one()(student, teacher).total.isfinite()


def test_a_batch_that_is_all_padding_gives_0_and_finite_gradients(one, student, teacher):
    student["inputs_mask"] = torch.zeros(3, 4)
    total = one(loss="masked_mse")(student, teacher).total
    total.backward()
    assert total == 0
    assert not student["hidden"][0].grad.any()


# The other inputs


def test_a_loss_gets_the_labels_the_temperature_and_the_progress(one, seen, student, teacher):
    student["labels"] = torch.arange(3)
    one(loss="offered")(student, teacher, progress=0.25)
    assert (seen[0][3].tolist(), seen[0][4], seen[0][5]) == ([0, 1, 2], 4.0, 0.25)


def test_labels_of_several_heads_cannot_serve_a_match(one, seen, student, teacher):
    student["labels"] = [torch.arange(3), torch.arange(3)]
    with pytest.raises(
        OutputsError,
        match=r"^intermediate_matches\.0: the loss requests labels, but the student returned labels of 2 heads",
    ):
        one(loss="offered")(student, teacher)


def test_a_loss_from_a_textbrewer_map_is_called_by_position(build, match, student, teacher, mask):
    from kdplug import MATCH_LOSS_MAP

    MATCH_LOSS_MAP["my_L1_loss"] = lambda feature_S, feature_T, mask=None: (feature_S - feature_T)[mask].abs().mean()
    student["inputs_mask"] = mask
    total = build(kd_loss_weight=0, intermediate_matches=[match(loss="my_L1_loss")])(student, teacher).total
    assert total == F.l1_loss(student["hidden"][0][mask.bool()], teacher["hidden"][0][mask.bool()])


def test_a_shape_error_of_a_loss_names_the_match(build, match, offer, student, teacher):
    def strict(student_features, teacher_features):
        raise ShapeError("heads 1 and 2 differ")

    objective = build(intermediate_matches=[match(), match(loss=offer(strict))])
    with pytest.raises(ShapeError, match=r"^intermediate_matches\.1\.loss: heads 1 and 2 differ$"):
        objective(student, teacher)
