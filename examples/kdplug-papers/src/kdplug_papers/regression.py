"""Regress the teacher's features from the student's: FitNets."""

from __future__ import annotations

from torch import Tensor, nn

from kdplug_papers.maps import check_equal, check_maps


class FitNet(nn.Module):
    """Squared error of the teacher's map and a regressor of the student's: a convolution, batch norm and ReLU.

    ``mean((r(F_s) - F_t)²)``, over all elements. The convolution has a 3 × 3 kernel; the student's map may be twice as
    large as the teacher's, which takes a stride of 2. Usual weight: 100, on the second stage.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']`` with ``H`` equal to ``H'`` or ``2 H'``; returns a
    scalar, since batch norm compares the examples of a batch.
    Source: Romero et al. 2015, arXiv:1412.6550; constants of RepDistiller.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU()
        )

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the mean squared error."""
        check_maps("fitnet", student_features, teacher_features)
        regressed: Tensor = self.regressor(student_features)
        check_equal("fitnet", regressed, teacher_features, "height and width")
        return (regressed - teacher_features.detach()).square().mean()
