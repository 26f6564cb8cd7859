"""Losses that contain a small network as a projector: SimKD and SemCKD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdplug import LossSum
from kdplug_vision.maps import check_batch, check_equal, check_maps, check_setting, listed, to_smaller, widths


class SimKD(nn.Module):
    """Squared error of the last map, after a projector of three convolutions, for a student that reuses the teacher's classifier.

    ``mean((T(F_s) - F_t)²)``: ``T`` is 1 × 1, 3 × 3 and 1 × 1 convolutions with batch norm and ReLU after each; between them the
    map has ``1 / factor`` of the teacher's channels. The larger map is pooled to the smaller one before. Train with this
    loss alone: ``hard_label_weight: 0`` and no other term. The trained student is its backbone, ``projector`` of this loss,
    global pooling and the teacher's classifier. Usual weight: 1, on the map before pooling.

    Settings: ``factor``, the teacher's channels over those between the convolutions.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a scalar, since batch norm compares the examples of a
    batch.
    Raises: ``SettingError`` if ``factor < 1``; ``ShapeError`` for other shapes.
    Source: Chen et al. 2022, CVPR, arXiv:2203.14001; DefangChen/SimKD, models/util.py.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int, *, factor: int = 2) -> None:
        super().__init__()
        check_setting("factor", factor, least=1)
        self.projector = _projector(in_dim, max(1, out_dim // factor), out_dim)
        self.projector.extend([nn.BatchNorm2d(out_dim), nn.ReLU()])

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the mean squared error."""
        check_maps("simkd", student_features, teacher_features)
        student, teacher = to_smaller(student_features, teacher_features.detach())
        projected: Tensor = self.projector(student)
        check_equal("simkd", projected, teacher)
        return (projected - teacher).square().mean()


def _projector(in_dim: int, middle: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, out_dim, 1, bias=False),
    )


class SemCKD(nn.Module):
    """Squared errors of every student map and every teacher map, weighted for each example by attention between the layers.

    ``Σ_b Σ_ij α_bij mean((P_ij(F_s,i) - F_t,j)²) / (B L_s)``: ``α`` is the softmax over teacher layers of ``q_i · k_j / tau``. The
    query of an example is a small network of its row of the student's similarities to the batch, ``F Fᵀ``; the key is the
    same of the teacher's. ``P_ij`` is a projector of three convolutions. The larger map is pooled to the smaller one.

    The networks of queries and keys take ``batch_size`` similarities, so batches of another size, such as the last one of an
    epoch, count nothing. With accumulation it is the size of a micro-batch. Usual weight: 400, on all stages.

    Settings: ``batch_size``, number of examples in a batch; ``tau``, temperature of the attention.

    Shapes: lists of maps that may differ in length; returns a sum over examples.
    Raises: ``SettingError`` for a setting out of range; ``ShapeError`` for other shapes.
    Source: Chen et al. 2021, AAAI, arXiv:2012.03236; DefangChen/SimKD, models/util.py and distiller_zoo/SemCKD.py.
    """

    axis = 1
    any_layers = True
    compares_items = own_parameters = True

    def __init__(
        self, in_dim: int | Sequence[int], out_dim: int | Sequence[int], *, batch_size: int, tau: float = 1.0
    ) -> None:
        super().__init__()
        check_setting("batch_size", batch_size, least=8)
        check_setting("tau", tau, above=0)
        self.batch_size, self.tau = batch_size, tau
        students, teachers = widths(in_dim), widths(out_dim)
        self.queries = nn.ModuleList(_embedding(batch_size) for _ in students)
        self.keys = nn.ModuleList(_embedding(batch_size) for _ in teachers)
        self.projectors = nn.ModuleList(
            nn.ModuleList(_projector(student, 2 * teacher, teacher) for teacher in teachers) for student in students
        )

    def forward(
        self, student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]
    ) -> LossSum:
        """Return the weighted errors, and the number of examples, 0 for a batch of another size."""
        students, teachers = listed(student_features), [one.detach() for one in listed(teacher_features)]
        check_maps("semckd", *students, *teachers)
        if students[0].shape[0] != self.batch_size:
            return LossSum(students[0].sum() * 0, 0)
        queries, keys = _embedded(self.queries, students), _embedded(self.keys, teachers)
        attention = (queries @ keys.mT / self.tau).softmax(2)
        errors = [
            [self._error(i, j, *pair) for j, pair in enumerate(_paired(one, teachers))]
            for i, one in enumerate(students)
        ]
        table = torch.stack([torch.stack(row, dim=1) for row in errors], dim=1)
        return LossSum((attention * table).sum() / len(students), self.batch_size)

    def _error(self, i: int, j: int, student: Tensor, teacher: Tensor) -> Tensor:
        projected: Tensor = self.projectors[i][j](student)  # type: ignore[index]
        return (projected - teacher).square().flatten(1).mean(1)


def _paired(student: Tensor, teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [to_smaller(student, teacher) for teacher in teachers]


def _embedding(width: int) -> nn.Sequential:
    middle = width // 4
    return nn.Sequential(nn.Linear(width, 2 * middle), nn.ReLU(), nn.Linear(2 * middle, middle))


def _embedded(networks: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """Return the embedding of each example for each layer, ``[B, layers, width]``, with length 1."""
    check_batch("semckd", *maps)
    rows = [one.flatten(1) for one in maps]
    found = [network(row @ row.T) for network, row in zip(networks, rows, strict=True)]
    return normalize(torch.stack(found, dim=1), dim=2)
