"""Matches that are written in Python, between modules of the two models."""

from __future__ import annotations

import re

import pytest
import torch
from small_run import MATCH, make_batches, make_distiller, make_student, make_teacher, sgd, trained, weights
from torch import nn

from kdplug import CustomMatch, LossSum
from kdplug.errors import ConfigError, SignatureError


def half_of(student, teacher, student_mask, teacher_mask) -> LossSum:
    assert student_mask is None
    assert teacher_mask is None
    return LossSum(0.5 * (student - teacher).square().sum(), student.numel())


def custom(**keys):
    keys = {"module_T": "dropout", "module_S": "dropout", "weight": 1.0, "loss": half_of, **keys}
    return {"options": {"custom_matches": [CustomMatch(**keys)]}}


def projection(seed=7):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 5).double()


def test_a_custom_match_is_the_match_that_a_config_would_write(tmp_path):
    """Defect 2.1.1: CustomMatch raised in its first step."""
    student, proj = make_student(), projection()
    distiller = make_distiller(tmp_path, make_student(), matches=[{**MATCH, "proj": ["linear", 3, 5, {"lr": 0.05}]}])
    next(distiller.objective.configured.groups())[0].load_state_dict(proj.state_dict())
    distiller.train(sgd(distiller.model_S), make_batches(3), num_epochs=2, overwrite=True)
    make_distiller(tmp_path, student, **custom(proj_func=proj, proj_group={"lr": 0.05})).train(
        sgd(student), make_batches(3), num_epochs=2, overwrite=True
    )
    torch.testing.assert_close(weights(student), weights(distiller.model_S), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights(proj), weights(distiller.objective), rtol=0, atol=1e-12)


def test_modules_may_be_named_or_given(tmp_path):
    ends = []
    for by_name in (True, False):
        student, teacher = make_student(), make_teacher()
        modules = {"module_S": "dropout", "module_T": "dropout"}
        if not by_name:
            modules = {"module_S": student.dropout, "module_T": teacher.dropout}
        ends.append(trained(tmp_path, student, teacher, **custom(**modules, proj_func=projection())))
    assert torch.equal(*ends)


def test_a_custom_match_gets_each_side_s_own_mask_and_a_function_for_a_projection(tmp_path):
    seen = []

    def loss(student, teacher, student_mask, teacher_mask):
        seen.append((tuple(student.shape), tuple(teacher.shape), student_mask, teacher_mask))
        return student.sum() * 0

    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    make = {"adaptors": (lambda b, o: {**o, "inputs_mask": ones}, lambda b, o: {**o, "inputs_mask": zeros})}
    student = make_student()
    make_distiller(tmp_path, student, **make, **custom(loss=loss, proj_func=lambda x: x[:, :2])).train(
        sgd(student), make_batches(1), num_epochs=1
    )
    assert seen == [((4, 2), (4, 5), zeros, ones)]


def test_a_custom_match_of_weight_0_is_left_out(tmp_path):
    student = make_student()
    ends = trained(tmp_path, student, **custom(weight=0, loss=lambda *_: pytest.fail("was computed")))
    assert torch.equal(ends, trained(tmp_path, make_student()))


def test_custom_matches_are_summed_before_the_hard_labels(tmp_path):
    distiller = make_distiller(tmp_path, make_student(), hard_label_weight=1, matches=[MATCH], **custom(name="mine"))
    names = [term.name for term in distiller.objective.terms]
    assert names == ["kd_loss", "hidden_hidden_mse_0_0", "mine", "hard_label_loss"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"module_S": "iner"}, "custom_matches.0.module_S: no module 'iner' in the student. Did you mean 'inner'?"),
        ({"module_T": nn.Linear(1, 1)}, "custom_matches.0.module_T: this Linear is not part of the teacher"),
        ({"module_T": 3}, "custom_matches.0.module_T: must be a module or its path, got int"),
        ({"weight": -1}, "custom_matches.0.weight: must be a finite number >= 0, got -1"),
        ({"weight": (1.0,)}, "custom_matches.0.weight: must be a finite number >= 0, got (1.0,)"),
        ({"loss": "mse"}, "custom_matches.0.loss: must be a callable, got str"),
        ({"proj_func": 3}, "custom_matches.0.proj_func: must be a module or a function, got int"),
        ({"proj_group": {"lr": 1}}, "custom_matches.0.proj_group: has no effect: proj_func is not a module"),
        ({"name": "kd_loss"}, "custom_matches: 'kd_loss' is already the name of another term"),
    ],
)
def test_what_is_wrong_with_a_custom_match_is_named_with_its_place(tmp_path, keys, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        make_distiller(tmp_path, make_student(), **custom(**keys))


def test_a_custom_loss_that_returns_no_scalar_is_named(tmp_path):
    with pytest.raises(SignatureError, match=r"^custom_matches\.0\.loss: mine must return a scalar tensor"):
        trained(tmp_path, make_student(), **custom(loss=_mine))


def _mine(student, teacher, student_mask, teacher_mask):
    return student


_mine.__name__ = "mine"
