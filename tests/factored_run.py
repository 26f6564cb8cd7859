"""A student and a teacher that return factors, and a run of them that processes may share."""

from __future__ import annotations

import torch
from small_run import make_batches, sgd
from torch import nn

from kdplug import DistillationConfig, FactoredLogits, GeneralDistiller, LossSum, TrainingConfig, losses

CLASSES = 7


class Headed(nn.Module):
    """Four features in, hidden states and the head's factors out; its head is never called."""

    def __init__(self, width, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, width).double()
            self.lm_head = nn.Linear(width, CLASSES).double()

    def forward(self, x):
        return torch.tanh(self.inner(x))


def adaptor(model):
    """What a causal language model's adaptor does: the last hidden state beside the head's parameters."""
    return lambda batch, hidden: {
        "logits": FactoredLogits(hidden, model.lm_head.weight, model.lm_head.bias, softcap=3.0)
    }


def dense_adaptor(model):
    return lambda batch, hidden: {"logits": adaptor(model)(batch, hidden)["logits"].dense()}


@losses.register("factored_kl")
def factored_kl(student_logits, teacher_logits, temperature) -> LossSum:
    q, p = ((logits / temperature).log_softmax(-1) for logits in (student_logits, teacher_logits))
    return LossSum((p.exp() * (p - q)).sum() * temperature**2, q[..., 0].numel())


def distill(folder, loader, make=adaptor, *, loss="factored_kl", **training):
    """Two epochs; the student's weights at the end."""
    torch.manual_seed(0)
    student, teacher = Headed(3, seed=1), Headed(5, seed=2)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **training),
        DistillationConfig(kd_loss_type=loss, logit_chunk=3),
        teacher,
        student,
        make(teacher),
        make(student),
        show_progress=False,
    )
    distiller.train(sgd(student, momentum=0.9), loader, num_epochs=2, max_grad_norm=0.5, overwrite=True)
    return student


def data():
    return torch.cat(make_batches(10, size=4))
