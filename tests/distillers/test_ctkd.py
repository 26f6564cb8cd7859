"""A run whose temperature is trained by a scheduler, as in CTKD: against the student, or with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killer import Killed, Killer
from small_run import make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

import kdplug
from kdplug import ConfigError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


class Reversed(torch.autograd.Function):
    """The identity, whose gradient has the opposite sign."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -slope


class Ctkd(nn.Module):
    """A temperature that starts at the configured one T and stays between 1 and 2T − 1."""

    def __init__(self, *, reverse: bool = True) -> None:
        super().__init__()
        self.reverse = reverse
        self.position = nn.Parameter(torch.zeros(()))

    def forward(self, temperature: float) -> Tensor:
        position = Reversed.apply(self.position) if self.reverse else self.position
        return 1 + 2 * (temperature - 1) * position.sigmoid()


TERMS = [{"loss": "ce", "temperature": 3}, {"loss": "kl", "weight": 0.5}]


@pytest.fixture(autouse=True)
def registered():
    with isolated(scan()):
        kdplug.temperature_schedulers.register("ctkd")(Ctkd)
        yield


def distilled(folder, student, *, reverse=True, training=None, terms=TERMS, options=None, **keys):
    scheduler = {"name": "ctkd", "reverse": reverse}
    torch.manual_seed(0)
    return make_distiller(
        folder,
        student,
        training=training,
        terms=terms,
        temperature=2,
        temperature_scheduler=scheduler,
        options=options or {},
        **keys,
    )


def positions(distiller):
    return [parameter for name, parameter in distiller.objective.named_parameters() if name.endswith("position")]


def loss_at(position, batch):
    """The loss of the untrained student, with every scheduler at ``position``."""
    objective = kdplug.Objective(
        kdplug.DistillationConfig(terms=TERMS[:1], temperature_scheduler={"name": "ctkd"})
    ).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(position)
        return objective(student=make_student()(batch), teacher=make_teacher()(batch)).total.item()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_temperature_moves_with_or_against_the_loss(tmp_path, reverse):
    (batch,) = make_batches(1, size=16)
    slope = (loss_at(1e-5, batch) - loss_at(-1e-5, batch)) / 2e-5
    assert abs(slope) > 1e-3
    student = make_student()
    distiller = distilled(tmp_path, student, reverse=reverse, terms=TERMS[:1])
    optimizer = sgd(student, lr=0.1)
    distiller.train(optimizer, [batch], num_epochs=1)
    (position,) = positions(distiller)
    assert position.item() == pytest.approx(0.1 * slope if reverse else -0.1 * slope, rel=1e-6)
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert held.count(id(position)) == 1


def test_each_term_trains_a_temperature_and_a_fixed_one_gives_another_student(tmp_path):
    student = make_student()
    distiller = distilled(tmp_path / "a", student)
    distiller.train(sgd(student), make_batches(3), num_epochs=4)
    first, second = positions(distiller)
    assert len({0.0, first.item(), second.item()}) == 3
    fixed = make_student()
    make_distiller(tmp_path / "b", fixed, terms=TERMS, temperature=2).train(sgd(fixed), make_batches(3), num_epochs=4)
    assert not torch.equal(weights(student), weights(fixed))


def run(folder, *, accumulation=1, killed_at=None, resume=None):
    torch.manual_seed(0)
    student = make_student(dropout=0.3)
    observers = [] if killed_at is None else [Killer(killed_at)]
    training = {"gradient_accumulation_steps": accumulation, "ckpt_frequency": 2, "seed": 7}
    distiller = distilled(folder, student, training=training, options={"observers": observers})
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    loader = DataLoader(torch.cat(make_batches(6)), batch_size=4, shuffle=True)
    result = distiller.train(optimizer, loader, num_epochs=3, max_grad_norm=1.0, resume=resume)
    return torch.cat([weights(student), weights(distiller.objective)]), result


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, accumulation):
    whole, _ = run(tmp_path / "whole", accumulation=accumulation)
    assert whole[-2:].abs().min() > 0.01  # both temperatures have moved
    with pytest.raises(Killed):
        run(tmp_path / "killed", accumulation=accumulation, killed_at=5)
    resumed, _ = run(tmp_path / "killed", accumulation=accumulation, resume="auto")
    assert torch.equal(resumed, whole)


def test_a_sparse_cache_refuses_it(tmp_path):
    student = make_student()
    training = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_codec": {"name": "topk_tail"}}
    words = (
        r"^teacher_cache_codec: .* stores teacher outputs at one temperature, and temperature_scheduler gives each item"
    )
    with pytest.raises(ConfigError, match=words):
        distilled(tmp_path, student, training=training, terms=TERMS[1:], is_caching_logits=True)


TWO_PROCESSES = """
import sys
import torch
import kdplug
from small_run import *
from test_ctkd import Ctkd, distilled, positions
from torch.utils.data import DataLoader

folder, data = sys.argv[1], torch.cat(make_batches(10, size=4))
kdplug.temperature_schedulers.register("ctkd")(Ctkd)
for accumulation in (1, 2):
    student = make_student()
    distiller = distilled(f"{folder}/{accumulation}", student, training={"gradient_accumulation_steps": accumulation})
    distiller.train(sgd(student, lr=1.0), DataLoader(data, batch_size=4), num_epochs=2)
    rank = torch.distributed.get_rank()
    torch.save([weights(student), *[one.detach() for one in positions(distiller)]], f"{folder}/{accumulation}-{rank}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder with the weights that each of two gloo processes had at the end of its runs."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py", str(folder)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        timeout=150,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_the_temperatures_of_one(tmp_path, two_processes, accumulation):
    mine, theirs = (torch.load(two_processes / f"{accumulation}-{rank}.pt") for rank in (0, 1))
    assert all(map(torch.equal, mine, theirs))
    student = make_student()
    distiller = distilled(tmp_path, student, training={"gradient_accumulation_steps": accumulation})
    loader = DataLoader(torch.cat(make_batches(10, size=4)), batch_size=8)
    distiller.train(sgd(student, lr=1.0), loader, num_epochs=2)
    expected = [weights(student), *[one.detach() for one in positions(distiller)]]
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-13)
    assert all(one.abs() > 1e-5 for one in expected[1:])
