"""Hard labels are divided once, by all labels of the step, however the batch was cut and whoever computed it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from label_run import FORMS, train
from small_run import make_batches, make_distiller, make_student, sgd, weights
from two_processes import run_in_two_processes

from kdplug.errors import RunError

pytestmark = pytest.mark.filterwarnings(
    "ignore:2 of the student's 6 trained parameters got no gradient"
)  # its other head

ALL = list(range(12))
CUTS = {
    "2 and 12 labels": ([[0, 1, 4], [2, 3, 5]], [0, 1, 2, 3, 4, 5]),
    "none in one of them": ([[4, 7], [2, 3, 5, 6]], [2, 3, 4, 5, 6, 7]),
    "ragged": ([[0], [1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]], ALL),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("form", FORMS)
def test_cutting_a_batch_leaves_the_gradient_unchanged(tmp_path, form, cut):
    pieces, batch = cut
    whole, reported = train(tmp_path / "whole", [batch], form, accumulation=1)
    student, result = train(tmp_path / "cut", pieces, form, accumulation=len(pieces))
    torch.testing.assert_close(weights(student), weights(whole), rtol=0, atol=1e-10)
    for name, term in reported.report.terms.items():
        assert result.report.terms[name].value.item() == pytest.approx(term.value.item(), rel=1e-10)


def test_a_step_without_labels_trains_on_the_rest(tmp_path):
    student, result = train(tmp_path, [[4, 7], [10, 11]], "of_each_label", accumulation=2)
    assert result.report.terms["hard_label_loss"].value == 0
    assert torch.isfinite(weights(student)).all()


def test_adaptors_that_return_more_losses_for_one_micro_batch_than_for_another_are_reported(tmp_path):
    student = make_student()

    def adaptor(batch, outputs):
        loss = outputs["logits"].square()
        return {**outputs, "losses": [loss] * len(batch)}

    distiller = make_distiller(
        tmp_path, student, adaptors=(None, adaptor), hard_label_weight=1, training={"gradient_accumulation_steps": 2}
    )
    batches = make_batches(2)
    batches[1] = batches[1][:3]
    with pytest.raises(
        RunError, match=r"hard_label_loss compares a different number of heads or losses .*: 3 in one and 4 in another"
    ):
        distiller.train(sgd(student), batches, num_epochs=1)


@pytest.mark.parametrize(
    ("training", "is_told"),
    [
        ({"gradient_accumulation_steps": 2}, True),
        ({"gradient_accumulation_steps": 2, "normalization": "micro_batch"}, False),
        ({}, False),
    ],
)
def test_a_scalar_is_warned_of_once_where_micro_batches_are_pooled(tmp_path, training, is_told):
    student = make_student()
    distiller = make_distiller(tmp_path, student, hard_label_weight=1, training=training)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller.train(sgd(student), make_batches(4), num_epochs=2)
    told = [str(one.message) for one in caught if "hard_label_loss" in str(one.message)]
    assert len(told) == is_told
    assert all("Return kdplug.LossSum(total, count), or one loss per item" in one for one in told)


RUNS = [
    # the second process has no label in its first step
    ("of_each_label", 1, [[2, 3], [4, 7], [0, 1], [5, 6]], [[2, 3, 4, 7], [0, 1, 5, 6]]),
    ("as_sum", 2, [[0, 1], [10, 11], [2, 3], [4, 7]], [[0, 1, 10, 11, 2, 3, 4, 7]]),
]

SCRIPT = f"""
import os, sys, torch
from pathlib import Path
from label_run import train
from small_run import weights
for form, accumulation, batches, _ in {RUNS!r}:
    folder = Path(sys.argv[1]) / form
    student, result = train(folder, batches, form, accumulation=accumulation)
    torch.save({{"weights": weights(student), "step": result.step}}, folder / f"{{os.environ['RANK']}}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two gloo processes left each run."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(folder, SCRIPT)
    return folder


@pytest.mark.parametrize(("form", "joined"), [(form, joined) for form, _, _, joined in RUNS])
def test_two_processes_train_what_one_does(two_processes, tmp_path, form, joined):
    student, result = train(tmp_path, joined, form, accumulation=1)
    for rank in (0, 1):
        record = torch.load(two_processes / form / f"{rank}.pt")
        assert record["step"] == result.step
        torch.testing.assert_close(record["weights"], weights(student), rtol=0, atol=1e-10)
    lines = [(place / "log.jsonl").read_text().splitlines() for place in (two_processes / form, tmp_path)]
    for ours, alone in zip(*lines, strict=True):
        assert json.loads(ours) == pytest.approx(json.loads(alone), rel=1e-9)
