"""The same student trained by each of the four loops; each gives the loss of every step and the trained weights."""

from __future__ import annotations

from functools import partial

import pytorch_lightning
import torch
from bert_run import arguments, config, examples, make_student, make_teacher, unlabelled, weights
from torch.nn import functional
from torch.utils.data import DataLoader

from kdplug import LossSum
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.integrations.lightning import DistillationModule
from kdplug.integrations.transformers import DistillationTrainer
from kdplug.objective.objective import Objective

STEPS, BATCH, RATE = 20, 4, 0.1


def adaptor(batch, outputs):
    mask, labels = batch["attention_mask"], batch["labels"]
    losses = LossSum(functional.cross_entropy(outputs.logits, labels, reduction="sum"), (labels != -100).sum())
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": mask, "losses": losses}


def started(objective):
    """The objective in float64, with the first weights that every loop begins with."""
    objective.double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return objective


def models():
    """Student and teacher that give hidden states unasked."""
    student, teacher = make_student(), make_teacher()
    student.config.output_hidden_states = teacher.config.output_hidden_states = True
    return student, teacher


def data(cut=1):
    """What ``STEPS`` steps take, in batches that are ``cut`` into so many micro-batches."""
    return unlabelled(examples(STEPS * BATCH), 1), BATCH // cut


def raw_loop(folder, cut=1):
    """Each batch whole, whatever the ``cut``: what the others have to agree with."""
    student, teacher = models()
    objective = started(Objective(config()))
    objective.connect(student, teacher)
    optimizer = torch.optim.SGD([{"params": student.parameters()}, *objective.param_groups()], lr=RATE)
    losses = []
    for step, batch in enumerate(DataLoader(data()[0], batch_size=BATCH)):
        with torch.no_grad():
            given = adaptor(batch, teacher.eval()(**batch))
        made = adaptor(batch, student(**batch))
        report = objective(student=made, teacher=given, progress=step / STEPS, step=step, total_steps=STEPS)
        optimizer.zero_grad()
        report.total.backward()
        optimizer.step()
        losses.append(report.total.item())
    return losses, weights(student), weights(objective)


class Losses:
    """An observer that keeps the loss of each step."""

    def __init__(self):
        self.found = []

    def run_start(self, run): ...

    def step_end(self, run, step, report):
        self.found.append(report.total.item())

    def run_end(self, run, error): ...


def engine(folder, cut=1):
    student, teacher = models()
    training = TrainingConfig(output_dir=str(folder), device="cpu", gradient_accumulation_steps=cut, logging_steps=1)
    seen = Losses()
    options = {"observers": [seen], "strict": True, "show_progress": False}
    distiller = GeneralDistiller(training, config(), teacher, student, adaptor, adaptor, **options)
    started(distiller.objective)
    rows, size = data(cut)
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    distiller.train(optimizer, DataLoader(rows, batch_size=size), num_epochs=1)
    return seen.found, weights(student), weights(distiller.objective)


class Recording(DistillationTrainer):
    """Keeps the loss that each micro-batch adds, in float64, which the Trainer's own log is not."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


def trainer(folder, cut=1):
    student, teacher = make_student(), make_teacher()
    rows, size = data(cut)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": cut, "num_train_epochs": 1}
    found = Recording(
        student, arguments(folder, **options), train_dataset=rows, teacher=teacher, distill_config=config()
    )
    started(found.objective)
    found.train()
    losses = [sum(found.losses[start : start + cut]) for start in range(0, len(found.losses), cut)]
    return losses, weights(student), weights(found.objective)


class RecordingModule(DistillationModule):
    def training_step(self, *args):
        loss = super().training_step(*args)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


def make_module(cls=DistillationModule, optimizer=None, distill_config=None, start=True, **options):
    student, teacher = models()
    optimizer = optimizer or partial(torch.optim.SGD, lr=RATE)
    chosen = distill_config or config()
    module = cls(student, teacher, chosen, optimizer, adaptor_T=adaptor, adaptor_S=adaptor, **options)
    if start:
        started(module.objective)
    return module


def lightning_trainer(folder, **options):
    """A quiet Lightning trainer on the CPU."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pytorch_lightning.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **options})


def lightning(folder, cut=1):
    module = make_module(RecordingModule)
    rows, size = data(cut)
    run = lightning_trainer(folder, max_epochs=1, accumulate_grad_batches=cut)
    run.fit(module, DataLoader(rows, batch_size=size))
    return module.losses, weights(module.student), weights(module.objective)
