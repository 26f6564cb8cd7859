"""The shift of teacher outputs within groups of equal predicted class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdplug.config.distillation import DistillationConfig
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import ConfigError
from kdplug.objective.objective import Objective
from kdplug.recipes.shuffle import QUANTILES, Shuffle, cycle


def made(**distillation):
    return Shuffle(Objective(DistillationConfig.from_dict({"kd_loss_type": "mse", **distillation})))


def shuffled(teacher, student=None, **distillation):
    student = {"logits": teacher["logits"]} if student is None else student
    return made(**distillation)(student, teacher)


def logits_of(*items, classes=3, seed=0):
    return torch.randn(*items, classes, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_each_unit_gets_another_of_its_group_and_only_singletons_keep_their_own(keys):
    found = cycle([torch.tensor(keys)])
    source = found.source.tolist()
    assert sorted(source) == list(range(len(keys)))
    assert [keys[place] for place in source] == keys
    own = [place for place, one in enumerate(source) if place == one]
    assert own == [place for place, key in enumerate(keys) if keys.count(key) == 1]
    assert int(found.singletons) == len(own)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_several_keys_form_one_group_together(pairs):
    found = cycle([torch.tensor(column) for column in zip(*pairs, strict=True)])
    assert [pairs[place] for place in found.source.tolist()] == pairs
    assert int(found.singletons) == sum(pairs.count(pair) == 1 for pair in pairs)


def test_the_outputs_of_a_class_stay_in_it_and_only_change_owners():
    logits = logits_of(64)
    found = shuffled({"logits": logits}).logits[0]
    classes = logits.argmax(-1)
    assert torch.equal(found.argmax(-1), classes)
    assert not any(torch.equal(one, other) for one, other in zip(found, logits, strict=True))
    for label in range(3):
        rows, moved = logits[classes == label], found[classes == label]
        assert torch.equal(rows.sort(0).values, moved.sort(0).values)
        assert torch.equal(moved, rows.roll(-1, 0))


def test_outputs_that_depend_on_the_class_alone_are_unchanged():
    logits = torch.tensor([[2.0, 1.0], [0.0, 5.0]])[torch.tensor([0, 1, 1, 0, 1])]
    assert torch.equal(shuffled({"logits": logits}).logits[0], logits)


def test_only_positions_that_count_are_exchanged():
    logits, mask = logits_of(4, 7), torch.rand(4, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    found = shuffled({"logits": logits, "logits_mask": mask}).logits[0]
    assert torch.equal(found[~mask], logits[~mask])
    assert torch.equal(found[mask], shuffled({"logits": logits[mask]}).logits[0])


def test_the_mask_of_the_student_counts_if_the_teacher_has_none():
    logits, mask = logits_of(4, 7), torch.zeros(4, 7, dtype=torch.bool)
    mask[:, :3] = True
    both = shuffled({"logits": logits, "logits_mask": mask}).logits[0]
    assert torch.equal(shuffled({"logits": logits}, {"logits": logits, "logits_mask": mask}).logits[0], both)


def test_features_of_a_fixed_shape_follow_their_example():
    logits, pooled, maps = logits_of(32), torch.randn(32, 5), torch.randn(32, 2, 3, 3)
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1.0}
    matches = [{**match, "layer_T": layer, "layer_S": layer} for layer in (0, 1)]
    shift = made(intermediate_matches=matches)
    found = shift({"logits": logits}, {"logits": logits, "hidden": [pooled, maps, torch.zeros(1)]})
    source = [next(i for i, row in enumerate(logits) if torch.equal(row, moved)) for moved in found.logits[0]]
    assert torch.equal(found.hidden[0], pooled[source])
    assert torch.equal(found.hidden[1], maps[source])
    assert torch.equal(found.hidden[2], torch.zeros(1))


@pytest.mark.parametrize("layer", [torch.zeros(32, 6, 5), torch.zeros(32, 2, 6, 6)])
def test_features_of_a_sequence_are_refused(layer):
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1.0, "layer_T": 0, "layer_S": 0}
    shift, logits = made(intermediate_matches=[match]), logits_of(32)
    with pytest.raises(ConfigError, match=r"controls: cannot contain shuffled: the teacher's hidden 0 .* sequence"):
        shift({"logits": logits, "inputs_mask": torch.ones(32, 6)}, {"logits": logits, "hidden": [layer]})


def test_features_whose_shape_varies_between_batches_are_refused():
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1.0, "layer_T": 0, "layer_S": 0}
    shift, logits = made(intermediate_matches=[match]), logits_of(32)
    shift({"logits": logits}, {"logits": logits, "hidden": [torch.zeros(32, 6, 5)]})
    with pytest.raises(ConfigError, match="is a feature of a sequence"):
        shift({"logits": logits}, {"logits": logits, "hidden": [torch.zeros(32, 7, 5)]})


def test_features_are_refused_if_logits_are_of_positions():
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1.0, "layer_T": 0, "layer_S": 0}
    shift, logits = made(intermediate_matches=[match]), logits_of(4, 7)
    with pytest.raises(ConfigError, match="cannot follow logits that have one row per position"):
        shift({"logits": logits}, {"logits": logits, "hidden": [torch.zeros(4, 5)]})


def test_an_objective_without_logits_is_refused():
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1.0, "layer_T": 0, "layer_S": 0}
    config = DistillationConfig.from_dict({"kd_loss_weight": 0, "intermediate_matches": [match]})
    with pytest.raises(ConfigError, match="no loss reads logits of the teacher"):
        Shuffle(Objective(config))({}, {"logits": logits_of(4), "hidden": [torch.zeros(4, 5)]})


def test_numbers_are_exchanged_within_their_quantile():
    values = torch.randn(30, 1, generator=torch.Generator().manual_seed(3))
    found = shuffled({"logits": values}).logits[0]
    groups = values[:, 0].argsort().argsort() * QUANTILES // 30
    assert not (found == values).any()
    for group in range(QUANTILES):
        assert torch.equal(found[groups == group].sort(0).values, values[groups == group].sort(0).values)


def test_factored_logits_are_shifted_as_dense_ones():
    factored = FactoredLogits(torch.randn(20, 4), torch.randn(5, 4), torch.randn(5))
    found = shuffled({"logits": factored}).logits[0]
    assert isinstance(found, FactoredLogits)
    torch.testing.assert_close(found.dense(), shuffled({"logits": factored.dense()}).logits[0])


def test_sparse_logits_are_shifted_as_dense_ones():
    logits = logits_of(20, classes=8)
    found = shuffled({"logits": SparseLogits.top(logits, 3, [1.0, 2.0])}, {"logits": logits}).logits[0]
    dense = SparseLogits.top(shuffled({"logits": logits}).logits[0], 3, [1.0, 2.0])
    assert torch.equal(found.ids, dense.ids)
    assert torch.equal(found.log_probs, dense.log_probs)
    assert torch.equal(found.tail, dense.tail)
    assert torch.equal(found.tails[2.0], dense.tails[2.0])


def test_heads_are_grouped_together_and_move_together():
    one, other = logits_of(60, classes=2), logits_of(60, classes=3, seed=1)
    found = shuffled({"logits": [one, other]}).logits
    for place in range(60):
        (source,) = [i for i in range(60) if torch.equal(one[i], found[0][place])]
        assert torch.equal(found[1][place], other[source])
        assert (one[source].argmax(), other[source].argmax()) == (one[place].argmax(), other[place].argmax())


def test_the_share_of_singletons_counts_the_units_of_all_batches():
    shift = made()
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    shift({"logits": logits}, {"logits": logits})
    shift({"logits": logits[:2]}, {"logits": logits[:2]})
    assert shift.share == pytest.approx(2 / 6)


def test_a_batch_without_counting_positions_is_unchanged():
    logits, mask = logits_of(2, 3), torch.zeros(2, 3)
    found = shuffled({"logits": logits, "logits_mask": mask})
    assert isinstance(found, Outputs)
    assert torch.equal(found.logits[0], logits)
