"""A token model with ragged masks, in float64: the data on which means of means go wrong."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller

LENGTH, CLASSES, HEADS = 5, 4, 2


class TokenNet(nn.Module):
    """Logits, one hidden layer, and attention scores for each token."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(3, width).double()
            self.heads = nn.Linear(3, HEADS * 2).double()
            self.out = nn.Linear(width, CLASSES).double()

    def forward(self, x, mask):
        hidden = torch.tanh(self.inner(x))
        query, key = self.heads(x).unflatten(-1, (HEADS, 2)).transpose(1, 2).chunk(2, dim=-1)
        logits = self.out(hidden)
        losses = logits.square().mean()
        return {
            "logits": logits,
            "logits_mask": mask,
            "inputs_mask": mask,
            "hidden": [hidden, hidden.square()],
            "attention": [query @ key.transpose(-1, -2)],
            "losses": losses,
        }


def make_data(count=12):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(count, LENGTH, 3, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, LENGTH + 1, (count,), generator=generator)
    return TensorDataset(x, torch.arange(LENGTH) < lengths[:, None])


def match(loss, **more):
    feature = "attention" if loss.startswith("attention") else "hidden"
    pair = loss in ("fsp", "gram", "nst", "mmd")
    layer = [0, 1] if pair else 0
    return {"layer_T": layer, "layer_S": layer, "feature": feature, "loss": loss, **more}


def train(folder, batch_sampler, *, accumulation, lr=0.5, epochs=1, **distillation):
    """Train on batches of these indices; the student, the objective and the result."""
    student = TokenNet(4, seed=1)
    torch.manual_seed(0)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", gradient_accumulation_steps=accumulation, logging_steps=1),
        DistillationConfig(**distillation),
        TokenNet(4, seed=2),
        student,
        show_progress=False,
    )
    distiller.objective.double()
    loader = DataLoader(make_data(), batch_sampler=batch_sampler)
    result = distiller.train(torch.optim.SGD(student.parameters(), lr=lr), loader, num_epochs=epochs, overwrite=True)
    return student, distiller.objective, result
