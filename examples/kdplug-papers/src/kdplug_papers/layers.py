"""Every student layer against every teacher layer: ALP-KD and BERT-EMD, for lists of different lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdplug import LossSum, OutputsError, any_layers
from kdplug_papers.checks import check_equal, check_setting, listed
from kdplug_papers.tinybert import scores, shared_width
from kdplug_papers.tokens import check_tokens, counted
from kdplug_papers.transport import cheapest_plan


@any_layers
def alp_kd(student_features: Tensor | tuple[Tensor, ...], teacher_features: Tensor | tuple[Tensor, ...]) -> LossSum:
    """ALP-KD: squared error to a mixture of all teacher layers, which the student's layer chooses by attention.

    For each student layer s and the teacher layers t_j, all at the first token: ``ε = softmax_j(s · t_j)``, then the
    squared error of s and ``Σ_j ε_j t_j``, mean over the width and examples, sum over student layers. Gradients also pass
    through ε. If the widths differ, project the student's layers: ``proj: [linear, auto, auto]``.

    Shapes: features ``[batch, length, width]``; the lists may differ in length.
    Raises: ``ShapeError``.
    Source: Passban et al. 2021, arXiv:2012.14022, equations 7 and 8. The authors add it to cross-entropy and KD.
    """
    student, teacher = listed(student_features), listed(teacher_features)
    check_tokens("alp_kd", *student, *teacher)
    for feature in (*student, *teacher):
        check_equal("alp_kd", student[0], feature)
    theirs = torch.stack([feature[:, 0].detach() for feature in teacher], dim=1)
    total = student[0].new_zeros(())
    for feature in student:
        own = feature[:, 0]
        attention = (theirs * own.unsqueeze(1)).sum(-1, keepdim=True).softmax(1)
        total = total + (own - (attention * theirs).sum(1)).square().sum()
    return LossSum(total, student[0][:, 0].numel())


_ATTENTION, _HIDDEN = 0, 1


class BertEmd(nn.Module):
    """BERT-EMD: the earth mover's distance between all student layers and all teacher layers, with learned layer weights.

    The list holds a query, a key and a hidden state for each layer, so that it works with every attention kernel:
    ``layer_S: [encoder.layer.0.attention.self.query, encoder.layer.0.attention.self.key, encoder.layer.0, …]``. Two cost
    matrices of squared errors, of the attention scores ``q kᵀ / √d`` and of the hidden states after one linear layer,
    each give an exact minimal transport plan F between layer weights: the loss is ``Σ F · cost`` of both. F has no
    gradient. Costs are means over positions that count; the authors also count padding.

    In training each call then updates the layer weights (cost attention): with ``c_i = Σ_j F_ij cost_ij / w_i``, the new
    weights are ``softmax(Σ c / c_i / weight_temperature)``, for the teacher likewise; unless ``separate``, those of
    attention and hidden states are averaged; with ``smooth``, a second softmax follows. Each process has its own weights.
    The plan is computed on the CPU, which waits for the device once in a call.

    Settings: ``heads``, the number of attention heads of both models; ``weight_temperature``, ``separate`` and
    ``smooth`` (T_emd, seperate and add_softmax), with the authors' defaults. They multiply the loss by 0.01.
    Shapes: features ``[batch, length, width]``; the lists may differ in length; mask ``[batch, length]``.
    Raises: ``ShapeError``; ``OutputsError`` for a list that is no multiple of three; ``SettingError``.
    Source: Li et al. 2020, arXiv:2010.06133; lxk00/BERT-EMD, bert-emd/emd_task_distill.py. The embeddings' error is a
    separate term, ``tinybert_hidden`` on layer 0.
    """

    any_layers = True

    def __init__(
        self,
        in_dim: list[int],
        out_dim: list[int],
        *,
        heads: int = 12,
        weight_temperature: float = 1.0,
        separate: bool = False,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        check_setting("heads", heads, least=1)
        check_setting("weight_temperature", weight_temperature, above=0)
        student, teacher = _layers("student", in_dim), _layers("teacher", out_dim)
        self.heads, self.weight_temperature, self.separate, self.smooth = heads, weight_temperature, separate, smooth
        self.fit = nn.Linear(shared_width("student", in_dim[2::3]), shared_width("teacher", out_dim[2::3]))
        self.student_weights: Tensor
        self.teacher_weights: Tensor
        self.register_buffer("student_weights", torch.full((2, student), 1 / student))
        self.register_buffer("teacher_weights", torch.full((2, teacher), 1 / teacher))

    def forward(
        self, student_features: tuple[Tensor, ...], teacher_features: tuple[Tensor, ...], mask: Tensor | None = None
    ) -> Tensor:
        """Return the sum of both distances, and update the layer weights in training."""
        theirs = [feature.detach() for feature in teacher_features]
        check_tokens("bert_emd", *student_features, *theirs)
        counts = counted("bert_emd", mask, student_features[0])
        costs = torch.stack(
            [self._attention(student_features, theirs, counts), self._hidden(student_features, theirs, counts)]
        )
        plans = self._plans(costs.detach())
        if self.training:
            self._update(plans * costs.detach())
        return (plans * costs).sum()

    def _attention(self, student: tuple[Tensor, ...], teacher: list[Tensor], counts: Tensor) -> Tensor:
        own, other = (
            scores("bert_emd", [one for place, one in enumerate(side) if place % 3 < 2], counts, self.heads)
            for side in (student, teacher)
        )
        pairs = counts.sum(dim=1).square().sum() * self.heads
        return _errors(own, other) / pairs.clamp(min=1)

    def _hidden(self, student: tuple[Tensor, ...], teacher: list[Tensor], counts: Tensor) -> Tensor:
        outside = ~counts.unsqueeze(-1)
        own = [self.fit(one.masked_fill(outside, 0.0)).masked_fill(outside, 0.0) for one in student[2::3]]
        other = [one.masked_fill(outside, 0.0) for one in teacher[2::3]]
        return _errors(own, other) / (counts.sum() * other[0].shape[-1]).clamp(min=1)

    def _plans(self, costs: Tensor) -> Tensor:
        """Return the plan of each cost matrix, ``[2, student layers, teacher layers]``."""
        sides = [
            side.double() / side.double().sum(1, keepdim=True) for side in (self.student_weights, self.teacher_weights)
        ]
        numbers: list[list[float]] = torch.cat([*sides, costs.double().flatten(1)], dim=1).tolist()
        supplies, demands = costs.shape[1:]
        plans = []
        for row in numbers:
            supply, demand, cost = row[:supplies], row[supplies : supplies + demands], row[supplies + demands :]
            starts = range(0, len(cost), demands)
            plans.append(cheapest_plan(supply, demand, [cost[start : start + demands] for start in starts]))
        return costs.new_tensor(plans)

    @torch.no_grad()
    def _update(self, spent: Tensor) -> None:
        """Update the weights from ``plan · cost``; a batch in which nothing counts leaves them as they are."""
        counts = spent.sum() > 0
        for weights, part in ((self.student_weights, spent.sum(2)), (self.teacher_weights, spent.sum(1))):
            cost = part.to(weights.dtype) / weights
            share = torch.where(cost > 0, cost.sum(1, keepdim=True) / cost.masked_fill(cost == 0, 1.0), 0.0)
            new = (share / self.weight_temperature).softmax(1)
            if not self.separate:
                new = new.mean(0, keepdim=True).expand_as(new)
            weights.copy_(torch.where(counts, new.softmax(1) if self.smooth else new, weights))


def _layers(side: str, widths: list[int]) -> int:
    """Return the number of layers of a list with a query, a key and a hidden state for each."""
    if isinstance(widths, int) or len(widths) % 3:
        number = 1 if isinstance(widths, int) else len(widths)
        raise OutputsError(f"bert_emd reads a query, a key and a hidden state per layer, got {number} {side} features")
    return len(widths) // 3


def _errors(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return the sum of squared errors of each pair of layers, ``[student layers, teacher layers]``."""
    for one in (*student, *teacher):
        check_equal("bert_emd", student[0], one)
    return torch.stack([torch.stack([(own - other).square().sum() for other in teacher]) for own in student])
