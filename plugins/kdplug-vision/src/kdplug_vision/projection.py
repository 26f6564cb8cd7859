"""Projections of feature maps to the teacher's channels."""

from __future__ import annotations

from torch import Tensor, nn

from kdplug_vision.maps import check_setting


class Conv(nn.Module):
    """A convolution that keeps the size of the map, with batch norm and ReLU if wanted.

    Settings: ``kernel_size``, odd; ``batch_norm``, add batch norm after the convolution; ``relu``, add ReLU at the end.

    Shapes: ``[B, in_dim, H, W]`` (student) to ``[B, out_dim, H, W]`` (teacher).
    Raises: ``SettingError`` for a kernel size that is even or below 1.
    Source: the 1 × 1 connectors of Heo et al. 2019, arXiv:1904.01866, and of many methods after it.
    """

    axis = 1

    def __init__(
        self, in_dim: int, out_dim: int, *, kernel_size: int = 1, batch_norm: bool = False, relu: bool = False
    ) -> None:
        super().__init__()
        check_setting("kernel_size", kernel_size, least=1)
        if kernel_size % 2 == 0:
            check_setting("kernel_size", kernel_size, least=kernel_size + 1)
        parts: list[nn.Module] = [
            nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=not batch_norm)
        ]
        if batch_norm:
            parts.append(nn.BatchNorm2d(out_dim))
        if relu:
            parts.append(nn.ReLU())
        self.layers = nn.Sequential(*parts)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps with the teacher's number of channels."""
        projected: Tensor = self.layers(maps)
        return projected
