"""Compare which neurons are active: distillation of activation boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdplug_vision.maps import check_equal, check_maps, check_setting, listed, to_smaller, widths
from kdplug_vision.teacher_weights import connector


class AB(nn.Module):
    """Squared hinge of each response to the teacher's side of the activation boundary, with a margin.

    ``Σ_i 2^{i-n+1} Σ (s + m)² [s > -m, t ≤ 0] + (s - m)² [s ≤ m, t > 0] / B`` for layers ``i`` from 0 to ``n - 1``: ``t`` are the
    teacher's responses before its activation, ``s`` the student's after a 1 × 1 convolution with batch norm. A layer whose
    channels agree needs none and is used as it is. The larger map is pooled to the smaller one. Usual weight: 3e-3, alone in
    the first 30 of 270 epochs.

    Settings: ``margin`` of the hinge.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``, or equal lists of them, of the modules before the activations;
    returns a scalar, since batch norm compares the examples of a batch.
    Raises: ``SettingError`` if ``margin < 0``; ``ShapeError`` for other shapes.
    Source: Heo et al. 2019, AAAI, arXiv:1811.03233; RepDistiller, distiller_zoo/AB.py, which also divides by 1000 and
    multiplies by 3.
    """

    axis = 1

    def __init__(self, in_dim: int | Sequence[int], out_dim: int | Sequence[int], *, margin: float = 1.0) -> None:
        super().__init__()
        check_setting("margin", margin, least=0)
        self.margin = margin
        self.connectors = nn.ModuleList(
            nn.Identity() if student == teacher else nn.Sequential(*connector(student, teacher))
            for student, teacher in zip(widths(in_dim), widths(out_dim), strict=True)
        )

    def forward(
        self, student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]
    ) -> Tensor:
        """Return the sum over layers, divided by the number of examples."""
        students, teachers = listed(student_features), listed(teacher_features)
        check_maps("ab", *students, *teachers)
        layers = []
        for place, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
            own, other = to_smaller(self.connectors[place](student), teacher.detach())
            check_equal("ab", own, other)
            hinge = torch.where(other > 0, self.margin - own, self.margin + own).clamp(min=0)
            layers.append(hinge.square().sum() * 2.0 ** (place - len(students) + 1))
        return torch.stack(layers).sum() / students[0].shape[0]
