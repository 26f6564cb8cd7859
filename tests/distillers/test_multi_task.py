"""What a user of ``MultiTaskDistiller`` sees."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from multi_task_scene import TWO, Examples, Notes, loaders, make
from small_run import MATCH, PROJECTED, Net, make_batches, make_student, sgd, weights
from torch.utils.data import DataLoader

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.errors import ConfigError, KdplugError, OutputsError, RunError


def test_the_arguments_are_in_textbrewers_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    for method in ("__init__", "train"):
        theirs, ours = (getattr(c, method) for c in (textbrewer.MultiTaskDistiller, MultiTaskDistiller))
        names = [name for name in inspect.signature(theirs).parameters if name != "args"]
        assert list(inspect.signature(ours).parameters)[: len(names)] == names


@pytest.mark.parametrize("matches", [[], [PROJECTED]])
def test_one_task_trains_exactly_as_general_distiller_does(tmp_path, matches):
    config, ends = DistillationConfig(intermediate_matches=matches, kd_loss_weight_scheduler="linear_decay"), []
    for cls, wrap, name in (
        (GeneralDistiller, lambda x: x, "dataloader"),
        (MultiTaskDistiller, lambda x: {"a": x}, "dataloaders"),
    ):
        student = make_student()
        torch.manual_seed(0)
        distiller = cls(
            TrainingConfig(output_dir=str(tmp_path), device="cpu"),
            config,
            wrap(Net(5, seed=2)),
            student,
            show_progress=False,
        )
        distiller.objective.double()
        distiller.train(
            sgd(student), **{name: wrap(DataLoader(Examples(10), 4))}, num_steps=7, max_grad_norm=0.1, overwrite=True
        )
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_two_tasks_train_as_a_loop_written_by_hand(tmp_path):
    student, other, notes = make_student(), make_student(), Notes()
    data = {"a": DataLoader(Examples(8, seed=1), 4), "b": DataLoader(Examples(12, seed=2), 4)}
    config = {
        "a": DistillationConfig(temperature=2),
        "b": DistillationConfig(kd_loss_type="mse", hard_label_weight=0.5),
    }
    make(tmp_path, student, config=config, notes=[notes]).train(sgd(student), data, 9)
    teachers, optimizer = {"a": Net(5, seed=2), "b": Net(5, seed=4)}, sgd(other)
    streams = {task: iter(list(loader) * 9) for task, loader in data.items()}
    for task in notes.tasks:
        batch = next(streams[task])
        read, target = other(batch), teachers[task](batch)["logits"].detach()
        if task == "a":
            loss = -((target / 2).softmax(-1) * (read["logits"] / 2).log_softmax(-1)).sum(-1).mean()
        else:
            loss = ((read["logits"] - target) / 4).square().mean() + 0.5 * read["losses"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(notes.tasks) == {"a", "b"}
    assert torch.allclose(weights(student), weights(other), rtol=0, atol=1e-14)


def test_2_1_10_ckpt_steps_may_be_more_than_num_steps(tmp_path):
    student = make_student()
    result = make(tmp_path, student, ckpt_steps=100).train(sgd(student), loaders(**TWO), 3)
    assert [path.parent.name for path in result.checkpoints] == ["step-3"]


def test_2_2_17_curves_carry_the_name_of_their_task(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    student = make_student()
    config = DistillationConfig(hard_label_weight=1, intermediate_matches=[{**PROJECTED, "name": "fit"}])
    distiller = make(tmp_path, student, config=config, log_dir=str(tmp_path / "log"), logging_steps=1)
    distiller.train(sgd(student), loaders(**TWO), 8)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    terms = [f"scalar/unweighted_{task}/{term}" for task in "ab" for term in ("kd_loss", "fit", "hard_label_loss")]
    assert sorted(log.Tags()["scalars"]) == sorted([*terms, "scalar/total_loss"])
    steps = [scalar.step for task in "ab" for scalar in log.Scalars(f"scalar/unweighted_{task}/kd_loss")]
    assert sorted(steps) == list(range(1, 9))


@pytest.mark.filterwarnings("ignore:hard_label_loss")  # a scalar
def test_with_accumulation_each_batch_is_drawn_and_the_terms_add_up(tmp_path):
    student, notes = make_student(), Notes()
    config = {"a": DistillationConfig(hard_label_weight=0.5), "b": DistillationConfig(kd_loss_weight=2)}
    distiller = make(tmp_path, student, config=config, notes=[notes], gradient_accumulation_steps=3)
    distiller.train(sgd(student), loaders(**TWO), 10)
    mixed = [report for report in notes.reports if len({name[0] for name in report.terms}) == 2]
    assert mixed
    for report in notes.reports:
        assert sum(term.weighted for term in report.terms.values()).item() == pytest.approx(
            report.total.item(), abs=1e-14
        )
    assert {round(mixed[0].terms[f"{task}/kd_loss"].weight, 9) for task in "ab"} <= {round(x / 3, 9) for x in (1, 2, 4)}


@pytest.mark.filterwarnings("ignore:the learning rate of the SGD is 0")
def test_with_accumulation_a_curve_is_the_mean_of_its_own_batches(tmp_path):
    """A frozen student gives the same loss for the same batch, whichever other task shares its step."""
    student, notes, data = make_student(), Notes(), {task: make_batches(1) for task in "ab"}
    make(tmp_path, student, notes=[notes], gradient_accumulation_steps=3).train(sgd(student, lr=0.0), data, 10, tau=0)
    values = {
        f"{round(report.terms['a/kd_loss'].value.item(), 12)}"
        for report in notes.reports
        if "a/kd_loss" in report.terms
    }
    assert len(values) == 1


def test_2_2_17_each_task_has_its_own_projection_and_settings(tmp_path):
    student = make_student()
    config = {
        "a": DistillationConfig(intermediate_matches=[{**MATCH, "proj": ["linear", "auto", "auto", {"lr": 0.5}]}]),
        "b": DistillationConfig(temperature=9, intermediate_matches=[{**MATCH, "proj": ["tanh", "auto", "auto"]}]),
    }
    optimizer = sgd(student)
    distiller = make(tmp_path, student, {"a": Net(5, seed=2), "b": Net(7, seed=4)}, config=config)
    distiller.train(optimizer, loaders(**TWO), 6)
    assert [[p.shape[0] for p in group["params"]] for group in optimizer.param_groups[1:]] == [[5, 5], [7, 7]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.1]
    assert distiller.objective.of("b").config.temperature == 9


def test_one_config_for_all_tasks_makes_a_projection_for_each(tmp_path):
    student = make_student()
    config = DistillationConfig(intermediate_matches=[PROJECTED])
    distiller = make(tmp_path, student, config=config)
    first, second = (distiller.objective.of(task).param_groups()[0]["params"][0] for task in "ab")
    assert first is not second
    distiller.train(sgd(student), loaders(**TWO), 4)
    assert not torch.equal(first, second)


def test_the_first_batches_that_widths_are_read_from_are_trained_on(tmp_path):
    ends, data = [], {task: make_batches(3) for task in "ab"}
    for widths in (["auto", "auto"], [3, 5]):
        student = make_student()
        torch.manual_seed(0)
        config = DistillationConfig(intermediate_matches=[{**MATCH, "weight": 0, "proj": ["linear", *widths]}])
        make(tmp_path, student, config=config).train(sgd(student), data, 4, tau=0, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_several_teachers_inside_a_task_are_combined(tmp_path):
    teachers = {"a": Net(5, seed=2), "b": Net(5, seed=4)}
    ends, config = [], DistillationConfig(intermediate_matches=[{**PROJECTED, "teacher": "b"}])
    options = {"show_progress": False}
    for cls, models, data in (
        (MultiTeacherDistiller, teachers, DataLoader(Examples(10), 4)),
        (MultiTaskDistiller, {"t": teachers}, {"t": DataLoader(Examples(10), 4)}),
    ):
        student = make_student()
        torch.manual_seed(0)
        distiller = cls(TrainingConfig(output_dir=str(tmp_path), device="cpu"), config, models, student, **options)
        distiller.objective.double()
        distiller.train(sgd(student), data, num_steps=5, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_each_task_has_its_adaptors_and_its_batches_reach_no_other(tmp_path):
    student, seen = make_student(), []

    def adaptor(name):
        return lambda batch, outputs: seen.append((name, len(batch))) or outputs

    both = {"T": {"a": adaptor("aT"), "b": [adaptor("bT"), None]}, "S": {"a": adaptor("aS"), "b": adaptor("bS")}}
    teachers = {"a": Net(5, seed=2), "b": [Net(5, seed=2), Net(5, seed=4)]}
    distiller = make(tmp_path, student, teachers, both["T"], both["S"])
    distiller.train(sgd(student), loaders(a=(8, 4), b=(8, 2)), 10)
    assert set(seen) == {("aT", 4), ("aS", 4), ("bT", 2), ("bS", 2)}


def test_batches_with_two_parts_and_a_cache_work_as_in_general_distiller(tmp_path):
    ends, teacher = [], Net(5, seed=2)
    batches = make_batches(3)
    cached = [
        {"teacher": None, "student": b, "teacher_cache": {"logits": teacher(b)["logits"].detach()}} for b in batches
    ]
    for data in (batches, cached):
        student = make_student()
        make(tmp_path, student, {"a": teacher}).train(sgd(student), {"a": data}, 3, tau=0, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_postprocessors_go_by_task_and_further_arguments_to_all_models(tmp_path):
    ends = []
    for processors, scale in (({"b": lambda batch: 2 * batch}, {"scale": 0.5}), ({"a": lambda b: b / 2}, {})):
        student = make_student()
        distiller = make(tmp_path, student)
        data = {task: make_batches(2) for task in "ab"}
        distiller.train(sgd(student), data, 6, tau=0, batch_postprocessors=processors, **scale, overwrite=True)
        ends.append(weights(student))
    assert torch.allclose(*ends, rtol=0, atol=1e-14)


def test_teachers_are_in_eval_mode_and_stay_as_they_are(tmp_path):
    student, teachers = make_student(), {"a": Net(5, seed=2, dropout=0.5), "b": Net(5, seed=4, dropout=0.5)}
    before, seen = [weights(teacher) for teacher in teachers.values()], set()
    for teacher in teachers.values():
        teacher.register_forward_hook(lambda module, inputs, output: seen.add(module.training))
    distiller = make(tmp_path, student, teachers)
    distiller.train(sgd(student), loaders(**TWO), 6)
    assert seen == {False}
    assert all(torch.equal(old, weights(teacher)) for old, teacher in zip(before, teachers.values(), strict=True))
    with distiller:
        assert [teacher.training for teacher in teachers.values()] == [False, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"a": DistillationConfig()}}, "distill_config: has no value for the task 'b'. The tasks are a, b"),
        ({"adaptor_S": {"A": None}}, "adaptor_S: there is no task 'A'. Did you mean 'a'?"),
        ({"adaptor_T": lambda b, o: o}, "adaptor_T: must be a mapping by task"),
        (
            {"adaptor_T": {"a": [None]}},
            "a.adaptor_T: must be a single callable or None, since the task has one teacher, got list",
        ),
        ({"teachers": [Net(5, seed=2)]}, "model_T: must map each task to its teacher, got list"),
        ({"teachers": {"a/b": Net(5, seed=2)}}, "model_T: a task's name must be a string without '.' and '/'"),
        (
            {"teachers": {"a": [Net(5, seed=2)] * 2}, "config": DistillationConfig(intermediate_matches=[MATCH])},
            "a.intermediate_matches.0.teacher: must name one",
        ),
    ],
)
def test_tasks_that_do_not_agree_are_an_error(tmp_path, change, says):
    with pytest.raises(KdplugError) as error:
        make(tmp_path, make_student(), **change)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"a": []}, "dataloaders: has no value for the task 'b'"),
        ({"a": [], "b": [], "c": []}, "dataloaders: there is no task 'c'"),
    ],
)
def test_loaders_of_other_tasks_are_an_error(tmp_path, data, says):
    with pytest.raises(ConfigError, match=says):
        make(tmp_path, make_student()).train(None, data, 1)


def test_an_error_in_a_step_names_the_task(tmp_path):
    student = make_student()
    distiller = make(
        tmp_path, student, {"a": Net(5, seed=2)}, {"a": lambda batch, outputs: {"hidden": outputs["hidden"]}}
    )
    with pytest.raises(OutputsError, match=r"^a.kd_loss_weight: is 1, but the teacher returned no logits"):
        distiller.train(sgd(student), loaders(a=(8, 4)), 1)


def test_a_task_may_have_a_name_that_torch_has_for_itself(tmp_path):
    student, names = make_student(), ("type", "keys", "training")
    distiller = make(tmp_path, student, {name: Net(5, seed=2) for name in names})
    distiller.train(sgd(student), loaders(**dict.fromkeys(names, (8, 4))), 3)
    assert distiller.objective.tasks == names


class Killed(Exception):
    """What ends a run in the middle."""


class Killer(Notes):
    """An observer that ends the run after so many steps."""

    def __init__(self, step):
        super().__init__()
        self.last = step

    def step_end(self, run, step, report):
        if step == self.last:
            raise Killed


def resumable(folder, killed_at=None, **options):
    """The weights after 20 steps over shuffled loaders of different lengths, with dropout."""
    torch.manual_seed(0)
    student, data = make_student(dropout=0.3), {}
    for task, count in (("a", 6), ("b", 9)):
        data[task] = DataLoader(Examples(count), 2, shuffle=True)
    distiller = MultiTaskDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=3, seed=5, gradient_accumulation_steps=2),
        DistillationConfig(intermediate_matches=[PROJECTED]),
        {"a": Net(5, seed=2), "b": Net(5, seed=4)},
        student,
        observers=[] if killed_at is None else [Killer(killed_at)],
        strict=True,
        show_progress=False,
    )
    distiller.objective.double()
    distiller.train(torch.optim.AdamW(student.parameters()), data, 20, **options)
    return torch.cat([weights(student), weights(distiller.objective)])


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole = resumable(tmp_path / "whole")
    for killed_at in (2, 4, 11, 19):
        folder = tmp_path / str(killed_at)
        with pytest.raises(Killed):
            resumable(folder, killed_at)
        assert torch.equal(resumable(folder, resume="auto"), whole)


def test_a_changed_tau_is_refused_when_a_run_goes_on(tmp_path):
    with pytest.raises(Killed):
        resumable(tmp_path, 4)
    with pytest.raises(RunError, match=r"shares\.a: 0\.4 -> 0\.5"):
        resumable(tmp_path, resume="auto", tau=0)


IN_PARTS = """
import sys
import torch
from small_run import *
from torch.utils.data import DataLoader
from kdplug import DistillationConfig, MultiTaskDistiller, TrainingConfig

def run(folder, size):
    data = {"a": DataLoader(torch.cat(make_batches(6)), size), "b": DataLoader(torch.cat(make_batches(10)), size)}
    teachers = {"a": Net(5, seed=2), "b": [Net(5, seed=2), Net(5, seed=4)]}
    torch.manual_seed(0)
    student = make_student()
    config = DistillationConfig(intermediate_matches=[{**PROJECTED, "teacher": 0}])
    training = TrainingConfig(output_dir=folder, device="cpu", gradient_accumulation_steps=2)
    distiller = MultiTaskDistiller(training, config, teachers, student, show_progress=False)
    distiller.objective.double()
    distiller.train(sgd(student), data, 9, max_grad_norm=0.1, overwrite=True)
    return torch.cat([weights(student), weights(distiller.objective)])

if __name__ == "__main__":
    found = run(sys.argv[1], 2)
    torch.save(found, f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_draw_the_same_tasks_and_train_as_one_does_on_the_same_global_batch(tmp_path):
    (tmp_path / "script.py").write_text(IN_PARTS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [*launch, "script.py", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, timeout=150, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scope = {"__name__": "one"}
    exec(IN_PARTS, scope)
    one = scope["run"](str(tmp_path), 4)
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt"), one, rtol=0, atol=1e-12)
