"""Between a kill and a resume the data, the teacher or the script changes: the run is refused, and the error says what changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import resume_scene
import torch
from killer import Killed, Killer
from resume_scene import LOADERS, distiller, flipped, go, kill, rows
from small_run import Net, make_student, make_teacher
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.general import GeneralDistiller
from kdplug.errors import RunError

pytestmark = pytest.mark.attack("resume after data, teacher or script changed")


@pytest.mark.parametrize("kind", LOADERS)
def test_a_changed_label_is_found_and_the_data_are_named(tmp_path, kind):
    data = rows()
    kill("general", tmp_path, loader=LOADERS[kind](data))
    data[17, 3] += 1
    with pytest.raises(RunError, match=r"changed since: data\."):
        go("general", tmp_path, loader=LOADERS[kind](data))


def test_the_error_ends_with_the_page_that_says_what_is_compared(tmp_path):
    kill("general", tmp_path)
    with pytest.raises(RunError, match=r"docs/how-to/plan-a-run\.md#how-data-and-teacher-are-compared$"):
        go("general", tmp_path, loader=LOADERS["tensors"](rows() + 1))
    page = (Path(__file__).parents[2] / "docs/how-to/plan-a-run.md").read_text()
    assert "\n### How data and teacher are compared\n" in page


@pytest.mark.parametrize("kind", LOADERS)
def test_the_same_data_are_resumed(tmp_path, kind):
    kill("general", tmp_path, loader=LOADERS[kind](rows()))
    go("general", tmp_path, loader=LOADERS[kind](rows()))


def test_a_dataset_that_fingerprints_itself_names_the_part_that_changed(tmp_path):
    data = rows()
    kill("general", tmp_path, loader=LOADERS["own fingerprint"](data))
    data[17, 3] += 1
    with pytest.raises(RunError, match=r"data\.fingerprint\.labels: ") as caught:
        go("general", tmp_path, loader=LOADERS["own fingerprint"](data))
    assert "texts" not in str(caught.value)


@pytest.mark.parametrize("kind", ["general", "basic", "several teachers", "several tasks"])
def test_every_distiller_refuses_another_teacher(tmp_path, kind):
    kill(kind, tmp_path)
    teacher = make_teacher()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(-5)
    path = {"several teachers": r"teacher\.1\.weights", "several tasks": r"teacher\.b\.weights"}
    with pytest.raises(RunError, match=rf"(?s)changed since: teacher\..*{path.get(kind, 'teacher.weights')}: changed"):
        go(kind, tmp_path, teacher=teacher)


@pytest.mark.parametrize("kind", ["general", "basic", "several teachers", "several tasks", "trainer"])
def test_every_distiller_refuses_other_data(tmp_path, kind):
    data = rows()
    kill(kind, tmp_path, loader=LOADERS["own dataset"](data))
    data[5, 0] += 1
    path = "data.tasks.b.content" if kind == "several tasks" else "data.content"
    with pytest.raises(RunError, match=rf"(?s)changed since: data\..*{path} \(24 examples compared\): changed"):
        go(kind, tmp_path, loader=LOADERS["own dataset"](data))


@pytest.mark.parametrize("kind", ["general", "basic", "several teachers", "several tasks", "trainer"])
def test_every_distiller_resumes_what_is_the_same_and_what_is_said_to_be_meant(tmp_path, kind):
    kill(kind, tmp_path)
    go(kind, tmp_path)
    changed = LOADERS["tensors"](rows() + 1)
    go(kind, tmp_path, loader=changed, resume_changed=True)


def test_one_flipped_bit_anywhere_in_the_teacher_is_found(tmp_path, attempts):
    kill("general", tmp_path)
    draw = random.Random(0)
    for _ in range(20):
        teacher = make_teacher()
        parameter = draw.choice(list(teacher.parameters()))
        with torch.no_grad():
            parameter.copy_(flipped(parameter, draw.randrange(parameter.numel() * 8), draw.randrange(8)))
        try:
            go("general", tmp_path, teacher=teacher)
            attempts.record(False)
        except RunError as error:
            attempts.record("teacher.weights: changed" in str(error))
    assert attempts.held == attempts.tried


def test_one_flipped_bit_anywhere_in_the_data_is_found(tmp_path, attempts):
    kill("general", tmp_path)
    draw = random.Random(1)
    for _ in range(20):
        data = rows()
        try:
            go("general", tmp_path, loader=LOADERS["tensors"](flipped(data, draw.randrange(data.numel() * 8), 0)))
            attempts.record(False)
        except RunError as error:
            attempts.record("data.content: changed" in str(error))
    assert attempts.held == attempts.tried


class Relu(Net):
    """The weights of ``Net`` and another function."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.activation = nn.ReLU()


@pytest.mark.parametrize("teacher", [lambda: Relu(5, seed=2), lambda: make_teacher(dropout=0.5)])
def test_a_teacher_with_the_same_weights_and_other_layers_is_another_one(tmp_path, teacher):
    kill("general", tmp_path)
    with pytest.raises(RunError, match=r"teacher\.architecture: changed"):
        go("general", tmp_path, teacher=teacher())


def test_another_adaptor_is_found(tmp_path):
    kill("general", tmp_path, adaptor=lambda batch, outputs: outputs)
    with pytest.raises(RunError, match=r"teacher\.adaptor: changed"):
        go("general", tmp_path, adaptor=lambda batch, outputs: {"logits": -outputs["logits"]})


def test_the_adaptor_of_a_trainer_without_a_teacher_is_found(tmp_path):
    kill("trainer", tmp_path)
    with pytest.raises(RunError, match=r"student\.adaptor: changed"):
        go("trainer", tmp_path, adaptor=lambda batch, outputs: {"losses": outputs["losses"] * 2})


ORDERS = {
    "sampler": lambda data: DataLoader(TensorDataset(data), batch_size=4),
    "batch_size": lambda data: DataLoader(TensorDataset(data), batch_size=8, shuffle=True),
    "collate_fn": lambda data: DataLoader(
        TensorDataset(data), batch_size=4, shuffle=True, collate_fn=lambda items: torch.stack([one for (one,) in items])
    ),
    "drop_last": lambda data: DataLoader(TensorDataset(data), batch_size=4, shuffle=True, drop_last=True),
}


@pytest.mark.parametrize("what", ORDERS)
def test_a_loader_that_makes_other_batches_of_the_same_data_is_found(tmp_path, what):
    kill("general", tmp_path)
    with pytest.raises(RunError, match=rf"data\.{what}: "):
        go("general", tmp_path, loader=ORDERS[what](rows()))


SCRIPTS = {
    r"optimizer\.groups\.0\.lr: 0\.1 -> 0\.2": {"optimizer": lambda given: torch.optim.SGD(given, lr=0.2)},
    r"optimizer\.kind: 'SGD' -> 'AdamW'": {"optimizer": lambda given: torch.optim.AdamW(given, lr=0.1)},
    r"optimizer\.max_grad_norm: None -> 1\.0": {"max_grad_norm": 1.0},
    r"model_args\.scale: \(missing\) -> 2\.0": {"scale": 2.0},
    r"data\.batch_postprocessor: ": {"batch_postprocessor": lambda batch: batch},
    r"optimizer\.scheduler: None -> 'StepLR'": {
        "scheduler_class": torch.optim.lr_scheduler.StepLR,
        "scheduler_args": {"step_size": 2},
    },
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_another_argument_of_train_is_found(tmp_path, line):
    kill("general", tmp_path)
    with pytest.raises(RunError, match=line):
        go("general", tmp_path, **SCRIPTS[line])


def test_a_custom_match_with_another_loss_is_found(tmp_path):
    def match_run(loss, killed=False):
        student = make_student()
        made = GeneralDistiller(
            TrainingConfig(output_dir=str(tmp_path), device="cpu", ckpt_steps=1),
            DistillationConfig(),
            make_teacher(),
            student,
            custom_matches=[CustomMatch("head", "head", 1.0, loss)],
            observers=[Killer(3)] if killed else [],
            show_progress=False,
        )
        made.train(torch.optim.SGD(student.parameters()), LOADERS["tensors"](rows()), num_steps=6, resume="auto")

    with pytest.raises(Killed):
        match_run(lambda S, T, mask_S, mask_T: (S - T).square().mean(), killed=True)
    with pytest.raises(RunError, match=r"custom_matches\.0\.loss: changed"):
        match_run(lambda S, T, mask_S, mask_T: (S - T).abs().mean())
    match_run(lambda S, T, mask_S, mask_T: (S - T).square().mean())


def test_a_student_that_is_trained_in_other_places_is_found(tmp_path):
    kill("general", tmp_path)
    made, student = distiller("general", tmp_path, make_teacher())
    student.inner.requires_grad_(False)
    with pytest.raises(RunError, match=r"student\.parameters\.inner\.weight: .* -> '.* frozen'"):
        made.train(
            torch.optim.SGD(student.parameters(), lr=0.1), LOADERS["tensors"](rows()), num_steps=6, resume="auto"
        )


def drawn(sampler, **options):
    data = TensorDataset(rows())
    return DataLoader(data, batch_size=4, sampler=sampler, **options)


def batched(indices, batch_size=4):
    batches = BatchSampler(SubsetRandomSampler(indices), batch_size, drop_last=False)
    return DataLoader(TensorDataset(rows()), batch_sampler=batches)


DRAWS = {
    "data.sampler.indices": (
        lambda: drawn(SubsetRandomSampler(range(12))),
        lambda: drawn(SubsetRandomSampler(range(12, 24))),
    ),
    "data.sampler.weights": (
        lambda: drawn(WeightedRandomSampler([1.0] * 24, 24)),
        lambda: drawn(WeightedRandomSampler([1.0] * 23 + [9.0], 24)),
    ),
    "data.sampler.replacement": (
        lambda: drawn(RandomSampler(range(24))),
        lambda: drawn(RandomSampler(range(24), replacement=True)),
    ),
    "data.batch_sampler.sampler.indices": (lambda: batched(range(12)), lambda: batched(range(12, 24))),
    "data.batch_sampler.batch_size": (lambda: batched(range(12)), lambda: batched(range(12), 3)),
}


@pytest.mark.parametrize("path", DRAWS)
def test_a_sampler_that_draws_other_examples_of_the_same_data_is_found(tmp_path, path):
    before, after = DRAWS[path]
    kill("general", tmp_path, loader=before())
    with pytest.raises(RunError, match=rf"{path}: "):
        go("general", tmp_path, loader=after())
    go("general", tmp_path, loader=before())


def test_a_loader_that_got_a_generator_since_is_found(tmp_path):
    kill("general", tmp_path, loader=LOADERS["tensors"](rows()))
    loader = DataLoader(TensorDataset(rows()), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(9))
    with pytest.raises(
        RunError, match="generators of the dataloader and its samplers is 0 in the checkpoint and 1 in this run"
    ):
        go("general", tmp_path, loader=loader)


def test_an_optimizer_that_holds_the_parameters_in_another_order_is_found(tmp_path):
    def momentum(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    kill("general", tmp_path, optimizer=momentum)
    with pytest.raises(RunError, match=r"optimizer\.groups\.0\.names: changed"):
        go("general", tmp_path, optimizer=lambda given: momentum(list(given)[::-1]))


def test_a_student_with_the_same_weights_and_other_layers_is_another_one(tmp_path, monkeypatch):
    kill("general", tmp_path)
    student = make_student()
    student.activation = nn.ReLU()
    monkeypatch.setattr(resume_scene, "make_student", lambda: student)
    with pytest.raises(RunError, match=r"student\.architecture: changed"):
        go("general", tmp_path)
