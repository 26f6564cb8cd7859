"""What a user of ``BasicDistiller`` sees."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from small_run import MATCH, make_batches, make_distiller, make_student, make_teacher, sgd, weights

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.errors import ConfigError, OutputsError


def make(folder, student, teacher=None, adaptor_T=None, adaptor_S=None, **distillation):
    return BasicDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu"),
        DistillationConfig(**distillation),
        teacher or make_teacher(),
        student,
        adaptor_T,
        adaptor_S,
        show_progress=False,
    )


def test_the_arguments_are_in_textbrewers_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    for method in ("__init__", "train"):
        theirs, ours = (getattr(c, method) for c in (textbrewer.BasicDistiller, BasicDistiller))
        names = [name for name in inspect.signature(theirs).parameters if name != "args"]
        assert list(inspect.signature(ours).parameters)[: len(names)] == names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hard_label_weight": 0.5, "temperature": 2},
        {"kd_loss_weight_scheduler": "linear_decay", "hard_label_weight_scheduler": "linear_growth"},
        {"kd_loss_type": "mse", "temperature_scheduler": ["cwsm", 1]},
    ],
)
def test_it_trains_exactly_as_general_distiller_does_without_matches(tmp_path, options):
    ends = []
    for maker in (make, make_distiller):
        student = make_student()
        maker(tmp_path, student, make_teacher(), **options).train(
            sgd(student), make_batches(4), 2, max_grad_norm=0.1, overwrite=True
        )
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_its_loss_is_that_of_a_loop_written_by_hand(tmp_path):
    student, other, teacher = make_student(), make_student(), make_teacher().eval()
    make(tmp_path, student, teacher, hard_label_weight=0.3, temperature=3).train(sgd(student), make_batches(4), 1)
    optimizer = sgd(other)
    for batch in make_batches(4):
        target, read = (teacher(batch)["logits"].detach() / 3).softmax(-1), other(batch)
        kd = -(target * (read["logits"] / 3).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        (kd + 0.3 * read["losses"]).backward()
        optimizer.step()
    assert torch.allclose(weights(student), weights(other), rtol=0, atol=1e-14)


def test_intermediate_matches_are_refused_with_a_hint_and_not_ignored(tmp_path):
    with pytest.raises(
        ConfigError, match=r"intermediate_matches: BasicDistiller does not support .* has 1. Use GeneralDistiller"
    ):
        make(tmp_path, make_student(), intermediate_matches=[MATCH])


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_missing_logits_are_reported_and_are_no_key_error(tmp_path, side):
    student = make_student()
    adaptors = [None, None]
    adaptors[side == "student"] = lambda batch, outputs: {"losses": outputs["losses"]}
    with pytest.raises(OutputsError, match=f"the {side} returned no logits, only losses"):
        make(tmp_path, student, None, *adaptors).train(sgd(student), make_batches(1), 1)


def test_with_sets_the_modes_for_its_block(tmp_path):
    student, teacher = make_student().eval(), make_teacher()
    with make(tmp_path, student, teacher) as distiller:
        assert (distiller.model_S.training, teacher.training) == (True, False)
    assert (student.training, teacher.training) == (False, True)
