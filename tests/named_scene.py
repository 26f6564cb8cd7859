"""Losses on extras and parameters, and runs with them, for the smallest models."""

from __future__ import annotations

import torch
from cache_scene import Rowwise, loader
from small_run import make_distiller, make_student, sgd, weights

import kdplug
from kdplug import LossSum

__all__ = ["PENALTY", "RELATION", "SRRL", "Rowwise", "adapt", "distil", "go"]


@kdplug.losses.register("relation")
def relation(student_extras, teacher_extras) -> LossSum:
    """Compare the products of the values of each example, whose widths may differ."""
    ours, theirs = (one["values"].unsqueeze(1) for one in (student_extras, teacher_extras))
    error = (ours * ours).sum((-1, -2)) - (theirs * theirs).sum((-1, -2))
    return LossSum(error.square().sum(), len(error))


@kdplug.losses.register("masked_relation")
def masked_relation(student_extras, teacher_extras, mask) -> LossSum:
    """Compare the squared values of each token."""
    ours, theirs = (one["values"].square().sum(-1) for one in (student_extras, teacher_extras))
    error = torch.where(mask, ours - theirs, 0)
    return LossSum(error.square().sum() * 1e-6, mask.sum())


@kdplug.losses.register("regressed")
def srrl(student_features, teacher_logits, teacher_parameters) -> LossSum:
    """Compare the teacher's logits with what its own classifier makes of the student's features."""
    (head,) = teacher_parameters.values()
    found = (student_features.unsqueeze(-2) * head).sum(-1)
    return LossSum((found - teacher_logits).square().mean(-1).sum(), len(found))


@kdplug.losses.register("penalty")
def penalty(student_logits, student_parameters, student_extras):
    """Penalize the weights that the term names."""
    total = sum(one.square().sum() for one in student_parameters.values())
    return total + 0 * (student_logits.mean() + student_extras["values"].mean())


RELATION = {"loss": "relation", "extras": ["values"], "weight": 0.1}
SRRL = {
    "loss": "regressed",
    "layer_S": "inner",
    "layer_T": "act",
    "proj": ["linear", 3, 5],
    "reads_T": [":parameter.head"],
    "weight": 0.2,
}
PENALTY = {"loss": "penalty", "extras": ["values"], "reads_S": ["inner:parameter.weight"], "weight": 0.01}


def adapt(batch, outputs):
    """What the models return, and their hidden state as values."""
    return {**outputs, "extras": {"values": outputs["hidden"][0] * 2, "unread": torch.zeros(1)}}


def distil(folder, teacher, terms, student, adaptors, *, caching=False, training=None, options=None):
    """Return a distiller with these terms."""
    if teacher is not None:
        return make_distiller(
            folder,
            student,
            teacher,
            training={"seed": 7, **(training or {})},
            adaptors=adaptors,
            terms=terms,
            is_caching_logits=caching,
            options=options or {},
        )
    found = kdplug.GeneralDistiller(
        kdplug.TrainingConfig(output_dir=str(folder), device="cpu", seed=7, **(training or {})),
        kdplug.DistillationConfig(terms=terms, is_caching_logits=caching),
        None,
        student,
        *adaptors,
        show_progress=False,
    )
    found.objective.double()
    return found


def go(folder, teacher, terms, *, adaptor_T=None, batches=None, train=None, **more):
    """Train a student for three epochs, in place of an earlier one unless it is resumed; return all that was trained."""
    torch.manual_seed(0)
    student = make_student(dropout=0.3)
    distiller = distil(folder, teacher, terms, student, (adaptor_T or adapt, adapt), **more)
    train = train or {"overwrite": True}
    distiller.train(sgd(student, momentum=0.9, lr=0.01), batches or loader(), num_epochs=3, **train)
    return torch.cat([weights(student), *(one.flatten() for one in distiller.objective.state_dict().values())])
