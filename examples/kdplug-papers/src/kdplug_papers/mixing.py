"""Mixed batches that both models see alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class Mixup:
    """Mixes each image with another one of the batch, for student and teacher alike: pass it as ``batch_postprocessor``.

    ``images ← λ · images + (1 - λ) · images[order]`` with ``λ`` from a Beta distribution, one for the batch. Labels become
    probabilities of the ``classes``, mixed in the same way. It draws from torch's global generator, which checkpoints hold.

    Source: Beyer et al. 2021, arXiv:2106.05237 ("function matching": both models get the same views and the same mix); Zhang
    et al. 2017, arXiv:1710.09412.
    """

    def __init__(self, classes: int, alpha: float = 1.0) -> None:
        self.classes = classes
        self.alpha = alpha

    def __call__(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the mixed images and probabilities."""
        images, labels = batch
        share = torch.distributions.Beta(self.alpha, self.alpha).sample().to(images)
        order = torch.randperm(len(images))
        wanted = one_hot(labels, self.classes).to(images)
        return [share * one + (1 - share) * one[order] for one in (images, wanted)]
