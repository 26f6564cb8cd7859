"""The epoch that a loss may request: 0 in the first pass over the data, the same after a resume."""

from __future__ import annotations

import pytest
import torch
from killer import Killed, Killer
from multi_task_scene import TWO, loaders, make
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug import DistillationConfig, LossSum, Objective, losses

SEEN = []


def recorder(student_logits, teacher_logits, epoch) -> LossSum:
    SEEN.append(epoch)
    return LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))


def of_features(student_features, teacher_features, epoch):
    SEEN.append(epoch)
    return student_features.square().mean() + teacher_features.square().mean()


@pytest.fixture(autouse=True)
def _entries():
    SEEN.clear()
    losses.register("recorder")(recorder)
    losses.register("of_features")(of_features)


def epochs(folder, *, accumulation=1, killed_at=None, resume=None, **length):
    """The epochs of a run over passes of three batches, in order."""
    SEEN.clear()
    student = make_student()
    distiller = make_distiller(
        folder,
        student,
        training={"gradient_accumulation_steps": accumulation, "ckpt_steps": 1} if "num_steps" in length else {},
        kd_loss_type="recorder",
        options={"observers": [] if killed_at is None else [Killer(killed_at)]},
    )
    data = torch.utils.data.DataLoader(torch.cat(make_batches(3)), batch_size=4, shuffle=True)
    distiller.train(sgd(student), data, resume=resume, **length)
    return list(SEEN)


def test_it_counts_the_passes_over_the_data(tmp_path):
    assert epochs(tmp_path / "epochs", num_epochs=2.5) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert epochs(tmp_path / "steps", num_steps=7) == [0, 0, 0, 1, 1, 1, 2]
    assert epochs(tmp_path / "windows", accumulation=2, num_steps=4) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("killed_at", [2, 3, 4])
def test_a_resumed_run_goes_on_with_the_same_epochs(tmp_path, killed_at):
    with pytest.raises(Killed):
        epochs(tmp_path, num_steps=7, killed_at=killed_at)
    whole = [0, 0, 0, 1, 1, 1, 2]
    assert epochs(tmp_path, num_steps=7, resume="auto") == whole[killed_at - 1 :]


def test_each_task_counts_the_passes_over_its_own_data(tmp_path):
    student = make_student()
    distiller = make(tmp_path, student, config=DistillationConfig(kd_loss_type="recorder"), seed=1)
    distiller.objective.double()
    seen = {task: [] for task in TWO}
    for task in TWO:
        loss = distiller.objective.of(task).configured["0"].logits.logit_loss
        loss.target = lambda *values, own=seen[task]: own.append(values[-1]) or recorder(*values)
    distiller.train(sgd(student), loaders(a=(8, 4), b=(4, 4)), num_steps=9, tau=0)
    assert seen["a"] == [place // 2 for place in range(len(seen["a"]))]
    assert seen["b"] == list(range(len(seen["b"])))
    assert len(seen["a"]) + len(seen["b"]) == 9


@pytest.mark.parametrize(
    "term", [{"loss": "recorder"}, {"loss": "of_features", "layer_S": 0, "layer_T": 0, "feature": "hidden"}]
)
def test_an_own_loop_gives_it_or_gets_0(term):
    objective = Objective(DistillationConfig(terms=[term]))
    outputs = {"logits": torch.randn(2, 3), "hidden": [torch.randn(2, 4)]}
    objective(outputs, outputs)
    objective(outputs, outputs, epoch=3)
    assert SEEN == [0, 3]
