"""Every way in which a user trains a student under a teacher, or asks the teacher: each with models that fit it."""

from __future__ import annotations

from functools import partial

import torch
from bert_run import bert, config, examples, make_trainer
from loop_run import adaptor, lightning_trainer
from multi_task_scene import Examples
from small_run import Net, make_batches, make_distiller, sgd
from torch.utils.data import DataLoader

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.integrations.lightning import DistillationModule
from kdplug.objective.objective import Objective

BY_PATH = {"layer_T": "inner", "layer_S": "inner", "loss": "hidden_mse"}


def small():
    """A student and a teacher of one shape, with their last layers."""
    student, teacher = Net(3, seed=1), Net(3, seed=2)
    return student, teacher, student.head, teacher.head


def transformers():
    """The same of BERT."""
    student, teacher = bert(4, 1, seed=1), bert(4, 1, seed=2)
    return student, teacher, student.classifier, teacher.classifier


def general(folder, student, teacher, **options):
    make_distiller(folder, student, teacher).train(sgd(student), make_batches(3), num_epochs=1, **options)


def basic(folder, student, teacher):
    training = TrainingConfig(output_dir=str(folder), device="cpu")
    BasicDistiller(training, DistillationConfig(), teacher, student, show_progress=False).train(
        sgd(student), make_batches(3), num_epochs=1
    )


def auto_widths(folder, student, teacher):
    match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", "auto", "auto"]}
    distiller = make_distiller(folder, student, teacher, matches=[match])
    materialize = distiller.objective.materialize
    distiller.objective.materialize = lambda **sides: materialize(**sides) or distiller.objective.double()
    distiller.train(sgd(student), make_batches(3), num_epochs=1)


def by_path(folder, student, teacher):
    make_distiller(folder, student, teacher, matches=[BY_PATH]).train(sgd(student), make_batches(3), num_epochs=1)


def cached(folder, student, teacher):
    loader = DataLoader(Examples(8), 4)
    make_distiller(folder, student, teacher, is_caching_logits=True).train(sgd(student), loader, num_epochs=1)


def filled_cache(folder, student, teacher):
    distiller = make_distiller(folder, student, teacher, is_caching_logits=True)
    distiller.fill_teacher_cache(DataLoader(Examples(8), 4))


def multi_teacher(folder, student, teacher):
    training, other = TrainingConfig(output_dir=str(folder), device="cpu"), Net(3, seed=5)
    distiller = MultiTeacherDistiller(training, DistillationConfig(), [other, teacher], student, show_progress=False)
    distiller.train(sgd(student), make_batches(3), num_epochs=1)


def multi_task(folder, student, teacher):
    training = TrainingConfig(output_dir=str(folder), device="cpu")
    distiller = MultiTaskDistiller(training, DistillationConfig(), {"a": teacher}, student, show_progress=False)
    distiller.train(sgd(student), {"a": DataLoader(Examples(8), 4)}, 3)


def trainer(folder, student, teacher):
    make_trainer(folder, student, teacher=teacher, distill_config=config(None)).train()


def lightning(folder, student, teacher):
    sgd = partial(torch.optim.SGD, lr=0.1)
    module = DistillationModule(student, teacher, config(None), sgd, adaptor_T=adaptor, adaptor_S=adaptor)
    lightning_trainer(folder, max_epochs=1).fit(module, DataLoader(examples(12), batch_size=4))


def own_loop(folder, student, teacher):
    objective = Objective(DistillationConfig(intermediate_matches=[BY_PATH]))
    optimizer = sgd(student)
    teacher.eval()
    with objective.capture(student, teacher) as capture:
        for batch in make_batches(3):
            with torch.no_grad(), capture.teacher.reading():
                given = teacher(batch)
            with capture.student.reading():
                made = student(batch)
            objective(capture.student.join(made), capture.teacher.join(given)).total.backward()
            optimizer.step()


ENGINE = {one.__name__: one for one in (general, basic, auto_widths, by_path, cached, multi_teacher, multi_task)}
INTEGRATIONS = {one.__name__: one for one in (trainer, lightning)}
TRAINS = {**ENGINE, **INTEGRATIONS}
ASKS = {**TRAINS, "filled_cache": filled_cache, "own_loop": own_loop}


def models(entrance):
    """Fresh models for an entrance, with their last layers."""
    return (transformers if entrance in INTEGRATIONS else small)()
