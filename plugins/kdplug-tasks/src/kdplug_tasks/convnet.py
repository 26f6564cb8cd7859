"""A small convolutional classifier that shows its feature maps."""

from __future__ import annotations

from itertools import pairwise
from typing import NotRequired, TypedDict

from torch import Tensor, nn
from torch.nn import functional

from kdplug import LossSum


class ConvNetOutputs(TypedDict):
    """``logits [B, classes]``, one ``hidden [B, positions, width]`` per block, and ``losses`` where labels were given."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    losses: NotRequired[LossSum]


class ConvNet(nn.Module):
    """Blocks of convolution, batch norm and ReLU, 2x2 max pooling between them, a linear layer on the mean over positions.

    ``widths`` are the channels of the blocks. The last block is not pooled, so that its feature map keeps positions that a
    hidden match can compare.
    """

    def __init__(self, widths: tuple[int, ...], *, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Identity() if place == 0 else nn.MaxPool2d(2),
                nn.Conv2d(inner, outer, 3, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            )
            for place, (inner, outer) in enumerate(pairwise((1, *widths)))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> ConvNetOutputs:
        """Logits, feature maps as sequences of positions and, where ``labels`` are given, the cross-entropy in nats.

        The cross-entropy runs over the images that have a label (``-100`` = none).

        Shapes: ``images [B, 1, H, W]``, ``labels [B]``.
        """
        hidden = []
        state = images
        for block in self.blocks:
            state = block(state)
            hidden.append(state.flatten(2).transpose(1, 2))
        logits = self.head(hidden[-1].mean(dim=1))
        outputs = ConvNetOutputs(logits=logits, hidden=tuple(hidden))
        if labels is not None:
            total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            outputs["losses"] = LossSum(total, (labels != -100).sum())
        return outputs
