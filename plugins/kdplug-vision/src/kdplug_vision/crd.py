"""Contrastive representation distillation, with a memory bank of every example or with those of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from kdplug import LossSum, all_gather
from kdplug_vision.maps import check_batch, check_setting

_EPSILON = 1e-7


class CRD(nn.Module):
    """Negative log-likelihood that a pair of embeddings, one of each side, is of one example and not of two classes.

    Both sides are mapped to ``width`` numbers of length 1; banks hold an embedding of each example of the data for each
    side, ``momentum · old + (1 - momentum) · new``, normalised. Each embedding is compared with the other side's bank at its
    own example and at ``negatives`` examples of other classes: ``p = exp(cos / tau) / Z``, and
    ``-[ln p_0 / (p_0 + K/N) + Σ_k ln (K/N) / (p_k + K/N)]`` with ``K`` negatives and ``N`` examples, summed over both sides.
    ``Z`` is fixed by the first batch: the mean of ``exp(cos / tau)`` times ``N``. Several processes have equal banks. Usual weight: 0.8, on the pooled feature.

    Negatives are drawn with replacement. The class of an example is that of its label, from its first batch on; an example
    not seen yet, or without a label, is a class by itself.

    Settings: ``width`` of the embeddings; ``negatives``, number for each example; ``tau``, temperature;
    ``momentum`` of the banks.

    Shapes: ``[B, D]`` or ``[B, C, 1, 1]``; ids and labels ``[B]``; returns a sum over examples. Memory:
    ``B (negatives + 1) width`` elements for each side.
    Raises: ``SettingError`` for a setting out of range; ``ShapeError`` if the batches differ.
    Source: Tian et al. 2020, arXiv:1910.10699; constants of RepDistiller.
    """

    axis = 1  # of [B, D] and of [B, C, 1, 1]
    random = True

    bank_student: Tensor
    bank_teacher: Tensor
    normalizers: Tensor
    classes: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_examples: int,
        *,
        width: int = 128,
        negatives: int = 16_384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        check_setting("width", width, least=1)
        check_setting("negatives", negatives, least=1)
        check_setting("tau", tau, above=0)
        check_setting("momentum", momentum, least=0, below=1)
        self.negatives, self.tau, self.momentum = negatives, tau, momentum
        self.embed_student, self.embed_teacher = nn.Linear(in_dim, width), nn.Linear(out_dim, width)
        bound = 1 / math.sqrt(width / 3)
        self.register_buffer("bank_student", torch.empty(num_examples, width).uniform_(-bound, bound))
        self.register_buffer("bank_teacher", torch.empty(num_examples, width).uniform_(-bound, bound))
        self.register_buffer("normalizers", torch.full((2,), -1.0))
        self.register_buffer("classes", -1 - torch.arange(num_examples))

    def forward(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        example_ids: Tensor,
        labels: Tensor | None,
        draw_seed: int,
    ) -> LossSum:
        """Return the sum over the examples of the batch; in training, update the banks with their embeddings."""
        check_batch("crd", student_features, teacher_features, example_ids)
        student = normalize(self.embed_student(student_features.flatten(1)))
        teacher = normalize(self.embed_teacher(teacher_features.detach().flatten(1)))
        seen = self._everyones(torch.stack([example_ids, self._classes_of(example_ids, labels)], dim=1))
        classes = self.classes.index_copy(0, *seen.unbind(1))
        places = torch.cat([example_ids[:, None], self._others(classes, example_ids, draw_seed)], dim=1)
        scores = [self._scores(self.bank_teacher[places], student), self._scores(self.bank_student[places], teacher)]
        means = torch.stack([one.mean(1) for one in scores], dim=1)
        new = self._everyones(torch.cat([student, teacher, means], dim=1).detach())
        normalizers = torch.where(self.normalizers < 0, new[:, -2:].mean(0) * len(classes), self.normalizers)
        total = torch.stack([self._unlikelihood(*each) for each in zip(scores, normalizers, strict=True)]).sum()
        if self.training:
            width = student.shape[1]
            self._remember(seen[:, 0], new[:, :width], new[:, width:-2], classes, normalizers)
        return LossSum(total, len(example_ids))

    def _everyones(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in training, so that their banks stay equal. One process may evaluate alone."""
        return all_gather(rows) if self.training else rows

    def _classes_of(self, ids: Tensor, labels: Tensor | None) -> Tensor:
        known = self.classes[ids]
        return known if labels is None else torch.where(labels >= 0, labels, known)

    def _others(self, classes: Tensor, ids: Tensor, draw_seed: int) -> Tensor:
        """Draw examples of other classes for each id: places in the order of classes, which skip the own class."""
        ordered, order = classes.sort()
        own = classes[ids].unsqueeze(1)
        start, end = torch.searchsorted(ordered, own), torch.searchsorted(ordered, own, right=True)
        generator = torch.Generator(device=ids.device).manual_seed(draw_seed)
        drawn = torch.randint(2**62, (len(ids), self.negatives), generator=generator, device=ids.device)
        drawn = drawn % (len(classes) - end + start).clamp(min=1)
        drawn = torch.where(drawn < start, drawn, drawn + end - start).clamp(max=len(classes) - 1)
        return order[drawn]

    def _scores(self, bank: Tensor, anchors: Tensor) -> Tensor:
        return ((bank @ anchors.unsqueeze(2)).squeeze(2) / self.tau).exp()

    def _unlikelihood(self, scores: Tensor, normalizer: Tensor) -> Tensor:
        noise = self.negatives / len(self.classes)
        chances = scores / normalizer
        denominators = chances + noise + _EPSILON
        own = (chances[:, 0] / denominators[:, 0]).log()
        return -(own.sum() + (noise / denominators[:, 1:]).log().sum())

    @torch.no_grad()
    def _remember(self, ids: Tensor, student: Tensor, teacher: Tensor, classes: Tensor, normalizers: Tensor) -> None:
        for bank, new in ((self.bank_student, student), (self.bank_teacher, teacher)):
            bank[ids] = normalize(self.momentum * bank[ids] + (1 - self.momentum) * new)
        self.classes.copy_(classes)
        self.normalizers.copy_(normalizers)


class CRDInBatch(nn.Module):
    """Contrastive distillation without a bank: the other examples of the batch are the negatives.

    ``[CE(S T^ᵀ / tau) + CE(T Sᵀ / tau)] / 2`` in nats: each embedding of length 1 must find, among the embeddings of the other
    side, that of the same example (InfoNCE, both directions). Both sides are mapped to ``width`` numbers by a linear layer.
    Several processes contrast the examples of all. Needs batches of at least a few dozen examples. Usual weight: 0.8, on
    the pooled feature.

    Settings: ``width`` of the embeddings; ``tau``, temperature.

    Shapes: ``[B, D]`` or ``[B, C, 1, 1]``; returns a sum over examples.
    Raises: ``SettingError`` for a setting out of range; ``ShapeError`` if the batches differ.
    Source: van den Oord et al. 2018, arXiv:1807.03748, on the embeddings of Tian et al. 2020, arXiv:1910.10699.
    """

    axis = 1  # of [B, D] and of [B, C, 1, 1]
    compares_items = own_parameters = True

    def __init__(self, in_dim: int, out_dim: int, *, width: int = 128, tau: float = 0.07) -> None:
        super().__init__()
        check_setting("width", width, least=1)
        check_setting("tau", tau, above=0)
        self.tau = tau
        self.embed_student, self.embed_teacher = nn.Linear(in_dim, width), nn.Linear(out_dim, width)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Return the sum over the examples of the batch."""
        check_batch("crd_in_batch", student_features, teacher_features)
        student = normalize(self.embed_student(student_features.flatten(1)))
        teacher = normalize(self.embed_teacher(teacher_features.detach().flatten(1)))
        if self.training:
            student, teacher = all_gather(student), all_gather(teacher)
        own = torch.arange(len(student), device=student.device)
        scores = student @ teacher.T / self.tau
        total = cross_entropy(scores, own, reduction="sum") + cross_entropy(scores.T, own, reduction="sum")
        return LossSum(total / 2, len(student))
