"""A small convolutional classifier that shows its feature maps."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class ConvNet(nn.Module):
    """Blocks of convolution, batch norm, ReLU and 2x2 max pooling, then a linear layer on the mean over positions.

    ``widths`` are the channels of the blocks and ``convolutions`` how many of them a block holds. The last block does not
    pool, so that its feature map keeps positions to compare.
    """

    def __init__(self, widths: tuple[int, ...], *, classes: int, convolutions: int = 1) -> None:
        super().__init__()
        steps = list(pairwise((1, *widths)))
        self.blocks = nn.ModuleList(
            _block(inner, outer, convolutions, pool=place < len(steps) - 1) for place, (inner, outer) in enumerate(steps)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Logits, feature maps as sequences of positions and, where ``labels`` are given, the cross-entropy in nats.

        The cross-entropy is the mean over the images that have a label (``-100`` = none), and 0 where no image has one.

        Shapes: ``images [B, 1, H, W]``, ``labels [B]``; ``logits [B, classes]``, each of ``hidden`` ``[B, H' * W', width]``,
        ``loss`` a scalar.
        """
        hidden = []
        state = images
        for block in self.blocks:
            state = block(state)
            hidden.append(state.flatten(2).transpose(1, 2))
        logits = self.head(hidden[-1].mean(dim=1))
        outputs: dict[str, Tensor | tuple[Tensor, ...]] = {"logits": logits, "hidden": tuple(hidden)}
        if labels is not None:
            total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            outputs["loss"] = total / (labels != -100).sum().clamp(min=1)
        return outputs


def _block(inner: int, outer: int, convolutions: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(convolutions):
        width = inner if place == 0 else outer
        layers += [nn.Conv2d(width, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
