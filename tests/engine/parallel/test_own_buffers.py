"""Two processes with memory banks of their own: ids, gradients and resumed runs are exact, and DDP leaves the banks alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from two_processes import run_in_two_processes

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from leave_group import leave_group
from killer import Killed, Killer
from test_own_buffers import *
from torch.utils.data import DataLoader

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
found = {}
for workers in (0, 2):
    found["ids", workers] = distil(folder / f"ids{workers}", batch_size=2, num_epochs=3, shuffle=True, num_workers=workers)["ids"]
found["uneven"] = distil(folder / "uneven", rows=10, batch_size=4, num_epochs=2, shuffle=True)["ids"]
sampler = torch.utils.data.DistributedSampler(Rows(8), num_replicas=2, rank=rank)
found["sampler"] = distil(folder / "sampler", batch_size=2, num_epochs=2, sampler=sampler)["ids"]
found["plain"] = distil(folder / "plain", batch_size=2, num_epochs=3)
found["logits"] = distil(folder / "logits", batch_size=2, num_epochs=3, term={"loss": "identified"})
found["windows"] = distil(folder / "windows", batch_size=2, num_epochs=3, accumulation=2, term={"loss": "identified"})
found["whole"] = distil(folder / "whole", batch_size=2, num_steps=7, shuffle=True)
for step in (2, 4):
    place = folder / f"killed{step}"
    try:
        distil(place, batch_size=2, num_steps=7, shuffle=True, observers=[Killer(step)])
    except Killed:
        pass
    found["resumed", step] = distil(place, batch_size=2, num_steps=7, shuffle=True, resume="auto")
torch.save(found, folder / f"{rank}.pt")
leave_group()
"""


class Rows(torch.utils.data.Dataset):
    """Rows whose first number is their place."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.rows = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        self.rows[:, 0] = torch.arange(count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


class Net(nn.Module):
    """Its first feature is the place of the row; the norm's buffers are those that DDP broadcasts."""

    def __init__(self, seed, *, normed=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner, self.head = nn.Linear(3, 2).double(), nn.Linear(3, 3).double()
        self.norm = nn.BatchNorm1d(2, momentum=0.5).double() if normed else nn.Identity()
        self.means = []

    def forward(self, x):
        if isinstance(self.norm, nn.BatchNorm1d):
            self.means.append(self.norm.running_mean.clone())
        hidden = torch.cat([x[:, :1], torch.tanh(self.norm(self.inner(x[:, 1:])))], dim=1)
        return {"logits": self.head(hidden), "hidden": [hidden]}


SEEN = []


class Bank(nn.Module):
    """Keeps the teacher's features of each example that this process has seen, from a random start."""

    def __init__(self, num_examples, out_dim):
        super().__init__()
        self.register_buffer("bank", torch.randn(num_examples, out_dim))
        self.register_buffer("seen", torch.zeros(num_examples, dtype=torch.long))
        self.register_buffer("first", torch.zeros(num_examples, out_dim), persistent=False)

    def forward(self, student_features, teacher_features, example_ids):
        assert student_features[:, 0].tolist() == example_ids.tolist()
        if not SEEN:
            self.first.copy_(self.bank)
        SEEN.append(example_ids.tolist())
        kept = self.bank[example_ids]
        with torch.no_grad():
            self.bank[example_ids] = 0.5 * kept + 0.5 * teacher_features.to(kept.dtype)
            self.seen[example_ids] += 1
        error = student_features[:, 1:] - kept[:, 1:] - teacher_features[:, 1:]
        return error.square().mean()


def identified(student_logits, teacher_logits, example_ids):
    SEEN.append(example_ids.tolist())
    return ((student_logits - teacher_logits).square().mean(-1) * (1 + example_ids % 3)).mean()


def distil(
    folder,
    *,
    batch_size,
    rows=8,
    term=None,
    accumulation=1,
    observers=(),
    resume=None,
    num_epochs=None,
    num_steps=None,
    **data,
):
    """What a run saw, and how it ended in this process."""
    from kdplug import DistillationConfig, GeneralDistiller, TrainingConfig, losses

    losses.register("bank")(Bank)
    losses.register("identified")(identified)
    SEEN.clear()
    torch.manual_seed(0)
    student = Net(1, normed=num_steps is not None)
    training = {
        "seed": 7,
        "gradient_accumulation_steps": accumulation,
        **({} if num_steps is None else {"ckpt_steps": 1}),
    }
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **training),
        DistillationConfig(terms=[term or {"loss": "bank", "feature": "hidden", "layer_S": 0, "layer_T": 0}]),
        Net(2),
        student,
        show_progress=False,
        observers=observers,
    )
    loader = torch.utils.data.DataLoader(Rows(rows), batch_size=batch_size, **data)
    length = {"num_epochs": num_epochs} if num_steps is None else {"num_steps": num_steps}
    distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), loader, resume=resume, **length)
    buffers = {name: buffer.clone() for name, buffer in distiller.objective.named_buffers()}
    state = {name: value.clone() for name, value in student.state_dict().items()}
    return {"ids": list(SEEN), "student": state, "buffers": buffers, "means": student.means}


pytestmark = pytest.mark.filterwarnings("ignore:. of the student's . trained parameters got no gradient")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two gloo processes had at the end."""
    folder = tmp_path_factory.mktemp("banks")
    run_in_two_processes(folder, SCRIPT, Path(__file__), timeout=240)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def passes(ranks, key, steps):
    """The ids of each pass, over both processes."""
    per = [rank[key] for rank in ranks]
    return [
        sorted(one for ids in per for batch in ids[at : at + steps] for one in batch)
        for at in range(0, len(per[0]), steps)
    ]


@pytest.mark.parametrize("key", [("ids", 0), ("ids", 2), "sampler"])
def test_both_processes_together_see_each_example_once_in_each_pass(found, key):
    """Each row is that of its id: the loss checks it."""
    assert passes(found, key, 2) == [list(range(8))] * (2 if key == "sampler" else 3)
    if key != "sampler":
        assert found[0][key][:2] != found[0][key][2:4]


def test_examples_that_fill_up_the_last_step_keep_their_ids(found):
    for ids in passes(found, "uneven", 2):
        assert set(ids) == set(range(10))
        assert len(ids) > 10


@pytest.mark.parametrize("kind", ["logits", "windows"])
def test_two_processes_train_what_one_trains_on_whole_batches(found, tmp_path, kind):
    alone = distil(tmp_path, batch_size=4 if kind == "logits" else 8, num_epochs=3, term={"loss": "identified"})
    for rank in found:
        for name, value in alone["student"].items():
            torch.testing.assert_close(rank[kind]["student"][name], value, rtol=0, atol=1e-12)


def test_each_process_has_its_own_bank_from_a_common_start(found):
    first, second = (rank["plain"]["buffers"] for rank in found)
    name = "configured.0.loss."
    assert torch.equal(first[f"{name}first"], second[f"{name}first"])
    assert first[f"{name}first"].any()
    for rank, one in zip(found, (first, second), strict=True):
        seen = {place for ids in rank["plain"]["ids"] for place in ids}
        assert one[f"{name}seen"].tolist() == [3 if place in seen else 0 for place in range(8)]
    assert (first[f"{name}seen"] + second[f"{name}seen"]).tolist() == [3] * 8
    assert not torch.equal(first[f"{name}bank"], second[f"{name}bank"])


def test_the_buffers_of_the_student_are_still_those_of_the_main_process(found):
    means = [torch.stack(rank["whole"]["means"][1:]) for rank in found]
    assert torch.equal(*means)


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_has_the_same_bits_on_each_process(found, step):
    for rank in found:
        whole, resumed = rank["whole"], rank["resumed", step]
        assert resumed["ids"] == whole["ids"][step - 1 :]
        for part in ("student", "buffers"):
            for name, value in whole[part].items():
                assert name.endswith("first") or torch.equal(resumed[part][name], value)
