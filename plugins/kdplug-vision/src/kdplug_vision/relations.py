"""Relations between the examples of a batch: RKD, similarity-preserving distillation, PKT, correlation congruence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize, smooth_l1_loss

from kdplug_vision.maps import check_batch, check_equal, check_setting


def rkd(student_features: Tensor, teacher_features: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Smooth L1 distance of the pairwise distances and of the angles between three examples of both sides.

    ``distance · huber(d_s / μ_s, d_t / μ_t) + angle · huber(cos_s, cos_t)``: ``d`` are Euclidean distances between
    examples, ``μ`` the mean of the positive ones, ``cos`` the cosine at example ``i`` of the angle between ``j`` and ``k``.
    Both are means over all pairs or triples, including equal examples. The defaults are those for classification; metric
    learning takes 1 and 2. Usual weight: 1, on the pooled feature.

    Settings: ``distance`` and ``angle``, factors of the two parts.

    Shapes: ``[B, ...]`` and ``[B, ...]``, flattened; returns a scalar. Memory: ``B³ + B² D`` elements.
    Raises: ``SettingError`` for a negative factor; ``ShapeError`` if the batches differ.
    Source: Park et al. 2019, arXiv:1904.05068; constants of RepDistiller and lenscloth/RKD.
    """
    check_setting("distance", distance, least=0)
    check_setting("angle", angle, least=0)
    check_batch("rkd", student_features, teacher_features)
    student, teacher = (one.flatten(1) for one in (student_features, teacher_features.detach()))
    between_s, between_t = (one.unsqueeze(0) - one.unsqueeze(1) for one in (student, teacher))
    lengths = smooth_l1_loss(_relative(between_s.norm(dim=2)), _relative(between_t.norm(dim=2)))
    cosines_s, cosines_t = (one @ one.mT for one in (normalize(between_s, dim=2), normalize(between_t, dim=2)))
    return distance * lengths + angle * smooth_l1_loss(cosines_s, cosines_t)


def _relative(distances: Tensor) -> Tensor:
    """Divide distances by the mean of the positive ones."""
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=1e-12)


def sp(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared error of the similarities between examples, each row of which has length 1.

    ``Σ (Ĝ_s - Ĝ_t)² / B²``: ``G = F Fᵀ`` of the flattened features, ``Ĝ`` its rows divided by their L2 norm. Usual weight:
    3000, on the last map.

    Shapes: ``[B, ...]`` and ``[B, ...]``, flattened; returns a scalar.
    Raises: ``ShapeError`` if the batches differ.
    Source: Tung and Mori 2019, arXiv:1907.09682; constants of RepDistiller.
    """
    check_batch("sp", student_features, teacher_features)
    student, teacher = (one.flatten(1) for one in (student_features, teacher_features.detach()))
    return (normalize(student @ student.T) - normalize(teacher @ teacher.T)).square().mean()


def pkt(student_features: Tensor, teacher_features: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """KL divergence of the probabilities that examples have each other as neighbours, in nats.

    ``mean_{ij} P_t ln((P_t + ε) / (P_s + ε))``: ``P`` is ``(cos + 1) / 2`` of two examples, each row divided by its sum.
    The mean is over ``B²`` entries, not over ``B`` rows. Usual weight: 30,000, on the pooled feature.

    Settings: ``epsilon``, added to probabilities and norms.

    Shapes: ``[B, ...]`` and ``[B, ...]``, flattened; returns a scalar.
    Raises: ``SettingError`` if ``epsilon <= 0``; ``ShapeError`` if the batches differ.
    Source: Passalis and Tefas 2018, arXiv:1803.10837; constants of RepDistiller.
    """
    check_setting("epsilon", epsilon, above=0)
    check_batch("pkt", student_features, teacher_features)
    student, teacher = (_neighbours(one, epsilon) for one in (student_features, teacher_features.detach()))
    return (teacher * ((teacher + epsilon) / (student + epsilon)).log()).mean()


def _neighbours(features: Tensor, epsilon: float) -> Tensor:
    """Return the probability of example ``j`` as a neighbour of ``i``, from their cosine."""
    features = features.flatten(1)
    features = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + epsilon)
    similarity = (features @ features.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


class CC(nn.Module):
    """Correlation congruence as the authors' code has it: products of the errors of neighbours in the batch.

    ``mean_i Σ_d δ_{i,d} δ_{i+1,d}``: ``δ = |W_s f_s + b_s - W_t f_t - b_t|``, both of ``width`` numbers; ``i`` and ``i + 1`` are
    consecutive examples of the batch, so the value depends on their order. A batch of one example gives 0. Usual weight:
    0.02, on the pooled feature. The formula of the paper is ``cc_paper``.

    Settings: ``width`` of both embeddings.

    Shapes: ``[B, ...]`` and ``[B, ...]``, flattened, so that maps must keep their size; returns a scalar.
    Raises: ``SettingError`` if ``width < 1``; ``ShapeError`` if the batches differ.
    Source: Peng et al. 2019, ICCV, arXiv:1904.01802; RepDistiller, distiller_zoo/CC.py, from the authors.
    """

    axis = 1  # of [B, D] and of [B, C, 1, 1]
    compares_items = own_parameters = True

    def __init__(self, in_dim: int, out_dim: int, *, width: int = 128) -> None:
        super().__init__()
        check_setting("width", width, least=1)
        self.embed_student, self.embed_teacher = nn.Linear(in_dim, width), nn.Linear(out_dim, width)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the mean over neighbours."""
        check_batch("cc", student_features, teacher_features)
        own = self.embed_student(student_features.flatten(1))
        error: Tensor = (own - self.embed_teacher(teacher_features.detach().flatten(1))).abs()
        return (error[:-1] * error[1:]).sum() / max(len(error) - 1, 1)


def cc_paper(student_features: Tensor, teacher_features: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence as in the paper: squared error of the kernel matrices of the batch.

    ``Σ (K_s - K_t)² / B²``: ``K_ij = Σ_{p ≤ order} e^{-2γ} (2γ)^p / p! (f_iᵀ f_j)^p`` is the Taylor series of the Gaussian kernel
    of features of length 1. Usual weight: 0.02, on the pooled feature. The formula of the authors' code is ``cc``.

    Settings: ``gamma`` of the kernel; ``order`` of its Taylor series.

    Shapes: ``[B, ...]`` and ``[B, ...]``, flattened; returns a scalar.
    Raises: ``SettingError`` if ``gamma <= 0`` or ``order < 1``; ``ShapeError`` if the batches differ.
    Source: Peng et al. 2019, ICCV, arXiv:1904.01802, equations 5 to 8.
    """
    check_setting("gamma", gamma, above=0)
    check_setting("order", order, least=1)
    check_batch("cc_paper", student_features, teacher_features)
    own, other = (_kernel(one.flatten(1), gamma, order) for one in (student_features, teacher_features.detach()))
    check_equal("cc_paper", own, other, "batch")
    return mse_loss(own, other)


def _kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    rows = normalize(features)
    cosines = rows @ rows.T
    return sum(
        (math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(1, order + 1)),
        torch.full_like(cosines, math.exp(-2 * gamma)),
    )
