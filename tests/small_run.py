"""The smallest teacher, student and data that a run needs, in float64, and the loop that a person would write."""

from __future__ import annotations

import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.objective.objective import Objective

MATCH = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5}
PROJECTED = {**MATCH, "proj": ["linear", 3, 5, {"lr": 0.05}]}
AUTO = {**MATCH, "proj": ["linear", "auto", "auto"]}


class Net(nn.Module):
    """Four features in, three classes out, one hidden layer; its outputs need no adaptor."""

    def __init__(self, width: int, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, width).double()
            self.head = nn.Linear(width, 3).double()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, scale=1.0):
        hidden = self.dropout(torch.tanh(self.inner(x * scale)))
        logits = self.head(hidden)
        return {"logits": logits, "hidden": [hidden], "losses": logits.square().mean()}


def make_student(**options):
    return Net(3, seed=1, **options)


def make_teacher(**options):
    return Net(5, seed=2, **options)


def make_batches(count, size=4):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def make_distiller(folder, student, teacher=None, *, matches=(), training=None, adaptors=(None, None), **distillation):
    """A quiet distiller on the CPU that writes into ``folder``."""
    options = {"show_progress": False, **distillation.pop("options", {})}
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **(training or {})),
        DistillationConfig(intermediate_matches=list(matches), **distillation),
        make_teacher() if teacher is None else teacher,
        student,
        *adaptors,
        **options,
    )
    distiller.objective.double()
    return distiller


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def by_hand(student, windows, total, *, matches=(), clip=None, schedule=None, **distillation):
    """Train ``student`` on windows of batches, as one writes it for a single process; gives the losses."""
    torch.manual_seed(0)
    objective = Objective(DistillationConfig(intermediate_matches=list(matches), **distillation)).double()
    optimizer, teacher, totals = sgd(student), make_teacher().eval(), []
    for group in objective.param_groups():
        optimizer.add_param_group(group)
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step, window in enumerate(windows):
        optimizer.zero_grad()
        for batch in window:
            with torch.no_grad():
                read = teacher(batch)
            report = objective(
                student=student(batch), teacher=read, progress=step / total, step=step, total_steps=total
            )
            (report.total / len(window)).backward()
        totals.append(report.total.item())
        if clip:
            nn.utils.clip_grad_norm_([*student.parameters(), *objective.parameters()], clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return totals


def trained(folder, student, teacher=None, batches=None, **options):
    """The weights of a student, and of its objective, after two epochs."""
    distiller = make_distiller(folder, student, teacher, **options)
    torch.manual_seed(0)
    distiller.train(sgd(student), batches or make_batches(3), num_epochs=2, overwrite=True)
    return torch.cat([weights(student), *(value.flatten() for value in distiller.objective.state_dict().values())])
