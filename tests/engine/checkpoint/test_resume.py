"""A run that was killed and gone on with ends in the same bits as one that was not."""

from __future__ import annotations

import json
import random
import shutil

import numpy
import pytest
import torch
from killer import Killed, Killer
from safetensors.torch import load_file
from small_run import AUTO, PROJECTED, make_batches, make_distiller, make_student, sgd, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdplug.engine.checkpoint.checkpoint import latest
from kdplug.errors import RunError


class Noisy(Dataset):
    """Examples that are drawn anew each time, from each of the generators that a dataset may use."""

    def __len__(self):
        return 22

    def __getitem__(self, place):
        jitter = torch.randn(4, dtype=torch.float64) + random.random() + numpy.random.rand()  # noqa: NPY002  the global generator is the point
        return torch.full((4,), float(place), dtype=torch.float64) / 22 + 0.1 * jitter


def plain():
    data = torch.randn(22, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return TensorDataset(data)


LOADERS = {
    "in order": lambda: DataLoader(plain(), batch_size=4),
    "shuffled": lambda: DataLoader(plain(), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(
        plain(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "random data": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2),
}


def run(folder, loader, *, accumulation=1, killed_at=None, resume=None, match=PROJECTED, adjust=None, **more):
    """Train 3 passes; the student's and objective's weights, and the journal."""
    torch.manual_seed(0)  # as a script does that builds its projections anew: a kill may come before any checkpoint
    student = make_student(dropout=0.3)
    if adjust is not None:
        adjust(student)
    observers = [] if killed_at is None else [Killer(killed_at)]
    distiller = make_distiller(
        folder,
        student,
        matches=[match],
        training={
            "gradient_accumulation_steps": accumulation,
            "ckpt_frequency": 2,
            "logging_steps": 1,
            "seed": 7,
            "keep_last": None,
        },
        options={"observers": observers},
        kd_loss_weight_scheduler="linear_decay",
        **more,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    schedule = {"scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_args": {"step_size": 4, "gamma": 0.5}}
    distiller.train(optimizer, loader, num_epochs=3, max_grad_norm=1.0, resume=resume, **schedule)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return torch.cat([weights(student), weights(distiller.objective)]), lines


def is_bit_identical(one, other):
    return torch.equal(one[0], other[0]) and one[1] == other[1]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, kind, accumulation):
    whole = run(tmp_path / "whole", LOADERS[kind](), accumulation=accumulation)
    for killed_at in (1, 4, 5):
        folder = tmp_path / f"killed-{killed_at}"
        with pytest.raises(Killed):
            run(folder, LOADERS[kind](), accumulation=accumulation, killed_at=killed_at)
        torch.manual_seed(99)
        assert is_bit_identical(run(folder, LOADERS[kind](), accumulation=accumulation, resume="auto"), whole)


def views(student):
    """Its weights overlap in memory, and neither is contiguous."""
    student.inner.weight = nn.Parameter(student.inner.weight.detach().T.contiguous().T)
    student.head.weight = nn.Parameter(student.inner.weight.detach()[:, 1:])


def test_a_student_whose_weights_are_views_of_the_same_memory_ends_in_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", LOADERS["shuffled"](), adjust=views)
    with pytest.raises(Killed):
        run(tmp_path / "run", LOADERS["shuffled"](), killed_at=4, adjust=views)
    assert is_bit_identical(run(tmp_path / "run", LOADERS["shuffled"](), resume="auto", adjust=views), whole)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", LOADERS["random data"](), match=AUTO)
    for killed_at in (4, 7, 8, 11, 16):
        with pytest.raises(Killed):
            run(tmp_path / "run", LOADERS["random data"](), killed_at=killed_at, resume="auto", match=AUTO)
    assert is_bit_identical(run(tmp_path / "run", LOADERS["random data"](), resume="auto", match=AUTO), whole)


@pytest.mark.parametrize(
    ("split", "scheduler", "owner"),
    [(True, None, "optimizer"), (False, torch.optim.lr_scheduler.LambdaLR, "learning-rate scheduler")],
)
def test_an_error_names_what_does_not_match_the_checkpoint(tmp_path, split, scheduler, owner):
    with pytest.raises(Killed):
        run(tmp_path, LOADERS["in order"](), killed_at=5)
    student = make_student(dropout=0.3)
    own = list(student.parameters())
    groups = [{"params": own[:1]}, {"params": own[1:]}] if split else own
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED], kd_loss_weight_scheduler="linear_decay")
    given = {} if scheduler is None else {"scheduler_class": scheduler, "scheduler_args": {"lr_lambda": lambda _: 1.0}}
    message = rf"step-\d+ does not match the {owner} of this run: .*\. Construct the {owner} as in the run that saved"
    with pytest.raises(RunError, match=message):
        distiller.train(
            torch.optim.AdamW(groups), LOADERS["in order"](), num_epochs=3, resume="auto", resume_changed=True, **given
        )


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = run(tmp_path, LOADERS["shuffled"]())
    assert is_bit_identical(run(tmp_path, LOADERS["shuffled"](), resume="auto"), whole)


class Epochs(TensorDataset):
    """A dataset that is told the pass, and counts what it is asked for."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.asked, self.epoch = 0, 0

    def __getitem__(self, place):
        self.asked += 1
        return super().__getitem__(place)

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_the_same_objects_go_on_after_an_interruption(tmp_path):
    """As in a notebook: loader, optimizer, teacher and distiller have been used by then."""
    student, killer = make_student(dropout=0.3), Killer(8)
    training = {"ckpt_frequency": 2, "seed": 7}
    distiller = make_distiller(
        tmp_path, student, matches=[PROJECTED], training=training, options={"observers": [killer]}
    )
    loader = DataLoader(Epochs(*plain().tensors), batch_size=4, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    options = {"num_epochs": 3, "scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_args": {"step_size": 2}}
    with pytest.raises(Killed):
        distiller.train(optimizer, loader, **options)
    killer.step = None
    assert distiller.train(optimizer, loader, resume="auto", **options).step == 18


def test_a_checkpoint_can_be_named(tmp_path):
    whole = run(tmp_path, LOADERS["shuffled"]())
    assert torch.equal(run(tmp_path, LOADERS["shuffled"](), resume=tmp_path / "step-9")[0], whole[0])


def branch(folder, temperature, *, killed_at=None, keep_last=None, **train):
    """Train 6 steps with a checkpoint after each; the weights."""
    torch.manual_seed(0)
    student = make_student()
    training = {"ckpt_steps": 1, "seed": 7, "keep_last": keep_last}
    options = {"observers": [] if killed_at is None else [Killer(killed_at)]}
    distiller = make_distiller(folder, student, training=training, options=options, temperature=temperature)
    distiller.train(sgd(student), make_batches(6), num_steps=6, **train)
    return weights(student)


@pytest.mark.parametrize("killed_at", [3, 4, 6])
def test_a_killed_run_from_an_earlier_checkpoint_does_not_resume_from_the_later_ones(tmp_path, killed_at):
    old = branch(tmp_path / "whole", 2)
    folder = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    whole = branch(tmp_path / "whole", 4, resume=tmp_path / "whole" / "step-2", resume_changed=True)
    assert not torch.equal(whole, old)
    later = {file: file.read_bytes() for file in folder.glob("step-6/*")}
    with pytest.raises(Killed):
        branch(folder, 4, resume=folder / "step-2", resume_changed=True, killed_at=killed_at)
    assert {file: file.read_bytes() for file in folder.glob("step-6/*")} == later
    assert latest(folder) == folder / f"step-{killed_at - 1}"
    assert torch.equal(branch(folder, 4, resume="auto", resume_changed=True), whole)
    assert latest(folder) == folder / "step-6"


def test_a_run_that_branched_twice_has_the_checkpoints_before_each_branch(tmp_path):
    branch(tmp_path, 2)
    for step, temperature in ((4, 3), (2, 4)):
        with pytest.raises(Killed):
            branch(tmp_path, temperature, resume=tmp_path / f"step-{step}", resume_changed=True, killed_at=step + 2)
    assert latest(tmp_path) == tmp_path / "step-3"
    for step in (3, 2):
        shutil.rmtree(tmp_path / f"step-{step}")
    assert latest(tmp_path) == tmp_path / "step-1"
    shutil.rmtree(tmp_path / "step-1")
    assert latest(tmp_path) is None


def test_the_later_checkpoints_can_still_be_named(tmp_path):
    old = branch(tmp_path, 2)
    with pytest.raises(Killed):
        branch(tmp_path, 4, resume=tmp_path / "step-2", resume_changed=True, killed_at=4)
    assert torch.equal(branch(tmp_path, 2, resume=tmp_path / "step-6"), old)
    assert latest(tmp_path) == tmp_path / "step-6"


def test_a_run_that_cannot_start_from_an_earlier_checkpoint_changes_nothing(tmp_path):
    branch(tmp_path, 2)
    student = make_student()
    optimizer = torch.optim.SGD([{"params": [one]} for one in student.parameters()], lr=0.1)
    with pytest.raises(RunError, match="does not match the optimizer"):
        make_distiller(tmp_path, student, training={"ckpt_steps": 1, "seed": 7}).train(
            optimizer, make_batches(6), num_steps=6, resume=tmp_path / "step-2", resume_changed=True
        )
    assert latest(tmp_path) == tmp_path / "step-6"


def test_a_run_from_an_earlier_checkpoint_keeps_the_last_ones_up_to_its_step(tmp_path):
    branch(tmp_path, 2)
    with pytest.raises(Killed):
        branch(tmp_path, 4, resume=tmp_path / "step-2", resume_changed=True, killed_at=4, keep_last=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-2", "step-3", "step-4", "step-5", "step-6"]


def resumed(folder, made, *, killed_at=None, callback=None, match=PROJECTED, **train):
    """Train 4 steps with the optimizer ``made`` returns for a student; the weights, and the optimizer."""
    torch.manual_seed(0)
    student = make_student()
    options = {"observers": [] if killed_at is None else [Killer(killed_at)]}
    distiller = make_distiller(folder, student, matches=[match], training={"ckpt_steps": 1, "seed": 7}, options=options)
    optimizer = made(student)
    distiller.train(optimizer, make_batches(4), num_steps=4, callback=callback, **train)
    return torch.cat([weights(student), weights(distiller.objective)]), optimizer


def adam(**settings):
    return lambda student: torch.optim.AdamW(student.parameters(), **settings)


@pytest.mark.parametrize(("match", "own"), [(AUTO, 1.0), (PROJECTED, 0.05)])
def test_a_changed_setting_of_the_optimizer_is_that_of_the_resumed_run(tmp_path, match, own):
    """The others are as the run left them, such as one that its callback set."""

    def adjust(model, step):
        for group in held[0].param_groups:
            group["eps"] = 0.5

    held = []

    def first(student):
        held[:] = [adam(lr=0.01, weight_decay=0.1)(student)]
        return held[0]

    with pytest.raises(Killed):
        resumed(tmp_path, first, callback=adjust, killed_at=4, match=match)
    made = adam(lr=1.0, weight_decay=0.1, betas=(0.5, 0.6))
    with pytest.raises(RunError, match=r"optimizer\.groups\.0\.lr: 0\.01 -> 1\.0"):
        resumed(tmp_path, made, resume="auto", match=match)
    _, optimizer = resumed(tmp_path, made, resume="auto", resume_changed=True, match=match)
    found = [[group[name] for name in ("lr", "betas", "weight_decay", "eps")] for group in optimizer.param_groups]
    assert found == [[rate, (0.5, 0.6), 0.1, 0.5] for rate in (1.0, own)]  # of the student and of the projection
    assert all(state["step"] == 4 for state in optimizer.state.values())


def test_a_changed_learning_rate_of_a_run_with_a_schedule_is_warned_of(tmp_path):
    schedule = {"scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_args": {"step_size": 2, "gamma": 0.5}}
    with pytest.raises(Killed):
        resumed(tmp_path, adam(lr=0.01), killed_at=4, **schedule)
    says = r"optimizer\.groups\.0\.lr: 0\.01 -> 1\.0.*: the learning-rate scheduler resumes with the settings that the checkpoint holds.* The learning rate is 0\.005, 0\.025\."
    with pytest.warns(UserWarning, match=says):
        _, optimizer = resumed(tmp_path, adam(lr=1.0, eps=0.25), resume="auto", resume_changed=True, **schedule)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025, 0.0125]
    assert [group["eps"] for group in optimizer.param_groups] == [0.25] * 2


def test_changed_settings_of_a_schedule_are_warned_of(tmp_path):
    schedule = {"scheduler_class": torch.optim.lr_scheduler.StepLR}
    with pytest.raises(Killed):
        resumed(tmp_path, adam(lr=0.01), killed_at=4, scheduler_args={"step_size": 2, "gamma": 0.5}, **schedule)
    changed = {"resume": "auto", "resume_changed": True, "scheduler_args": {"step_size": 2, "gamma": 0.1}}
    with pytest.warns(UserWarning, match=r"optimizer\.scheduler_args\.gamma: 0\.5 -> 0\.1"):
        resumed(tmp_path, adam(lr=0.01), **changed, **schedule)


def test_a_folder_without_a_checkpoint_is_an_error_and_auto_starts_afresh(tmp_path):
    with pytest.raises(RunError, match=r"is not a checkpoint to resume from\. Resume from a folder step-N"):
        run(tmp_path, LOADERS["in order"](), resume=tmp_path)
    run(tmp_path, LOADERS["in order"](), resume="auto")


def test_a_missing_folder_is_an_error_that_names_the_checkpoints_next_to_it(tmp_path):
    run(tmp_path, LOADERS["in order"]())
    says = r"there is no folder .*step-1000 to resume from\. Checkpoints in .*: .*step-9.*resume=\"auto\""
    with pytest.raises(RunError, match=says):
        run(tmp_path, LOADERS["in order"](), resume=tmp_path / "step-1000")
    elsewhere = rf"^resume: there is no folder nosuch to resume from\. Checkpoints in {tmp_path}: .*step-9"
    with pytest.raises(RunError, match=elsewhere):
        run(tmp_path, LOADERS["in order"](), resume="nosuch")


def test_a_changed_config_is_refused_and_named(tmp_path):
    run(tmp_path, LOADERS["in order"](), temperature=4)
    with pytest.raises(RunError, match=r"distillation\.temperature: 4\.0 -> 2\.0"):
        run(tmp_path, LOADERS["in order"](), temperature=2, resume="auto")


def shuffled(workers, **options):
    generator = torch.Generator().manual_seed(5)
    return DataLoader(plain(), batch_size=4, shuffle=True, generator=generator, num_workers=workers, **options)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"workers": 0}, {"workers": 1}, r"data\.num_workers: 0 -> 1"),
        ({"workers": 1}, {"workers": 0}, r"data\.num_workers: 1 -> 0"),
        ({"workers": 1}, {"workers": 1, "prefetch_factor": 3}, r"data\.prefetch_factor: 2 -> 3"),
        ({"workers": 1}, {"workers": 1, "persistent_workers": True}, r"data\.persistent_workers: False -> True"),
        ({"workers": 1}, {"workers": 1, "in_order": False}, r"data\.in_order: True -> False"),
    ],
)
def test_workers_that_change_when_a_loader_draws_are_refused_and_named(tmp_path, before, after, says):
    with pytest.raises(Killed):
        run(tmp_path, shuffled(**before), killed_at=4)
    with pytest.raises(RunError, match=says):
        run(tmp_path, shuffled(**after), resume="auto")


@pytest.mark.parametrize("match", [PROJECTED, AUTO])
def test_a_killed_run_with_persistent_workers_ends_in_the_same_bits(tmp_path, match):
    def loader():
        return shuffled(1, persistent_workers=True)

    whole = run(tmp_path / "whole", loader(), match=match)
    for killed_at in (4, 10):  # in the pass that starts the workers, and in a later one
        folder = tmp_path / f"killed-{killed_at}"
        with pytest.raises(Killed):
            run(folder, loader(), killed_at=killed_at, match=match)
        assert is_bit_identical(run(folder, loader(), resume="auto", match=match), whole)


def test_data_that_shrank_is_an_error(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, LOADERS["in order"](), killed_at=4)
    fewer = DataLoader(TensorDataset(torch.randn(8, 4, dtype=torch.float64)), batch_size=4)
    with pytest.raises(RunError, match=r"total_steps: 18 -> 6"):
        run(tmp_path, fewer, resume="auto")


def test_a_resumed_run_says_from_which_step_and_a_finished_one_does_not(tmp_path, capsys):
    def resumed(steps):
        student = make_student()
        made = make_distiller(tmp_path, student, training={"ckpt_steps": 2}, options={"show_progress": True})
        made.train(torch.optim.SGD(student.parameters()), LOADERS["in order"](), num_steps=6, resume=steps)
        return capsys.readouterr().err

    assert "Resuming" not in resumed(None)
    assert f"Resuming from step 4 of 6 ({tmp_path / 'step-4'})\n" in resumed(tmp_path / "step-4")
    assert "Resuming" not in resumed("auto")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_checkpoint_of_a_compiled_student_has_the_students_own_names(tmp_path):
    student = make_student()
    compiled = torch.compile(student, backend="eager")
    make_distiller(tmp_path, compiled).train(sgd(compiled), make_batches(2), num_epochs=1)
    other = make_student()
    other.load_state_dict(load_file(tmp_path / "step-2" / "student.safetensors"))
    assert torch.equal(weights(other), weights(student))
    resumed = torch.compile(make_student(), backend="eager")
    make_distiller(tmp_path, resumed).train(sgd(resumed), make_batches(2), num_epochs=1, resume="auto")
    assert torch.equal(weights(resumed), weights(student))
