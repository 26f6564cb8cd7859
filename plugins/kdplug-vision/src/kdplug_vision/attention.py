"""Compare where feature maps are active: attention transfer, channel-wise distillation, class activation maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from kdplug import LossSum, ShapeError
from kdplug_vision.maps import check_batch, check_equal, check_maps, check_setting, listed, to_smaller


def at(student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]) -> LossSum:
    """Attention transfer as in the authors' code: squared error of the attention maps, summed over the layers.

    ``Σ mean((Q_s - Q_t)²)``: ``Q`` is the mean over channels of ``F²``, flattened, divided by its L2 norm. The larger map is
    pooled to the smaller one before it is squared. Usual weight: 1000, on every stage.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``, or lists of them; returns a sum over examples.
    Raises: ``ShapeError`` for other shapes.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; szagoruyko/attention-transfer, utils.py; weight of RepDistiller.
    """
    layers = [
        own.sub(other).square().mean(1).sum()
        for own, other in _attention_maps("at", student_features, teacher_features)
    ]
    return LossSum(sum(layers[1:], layers[0]), listed(student_features)[0].shape[0])


def at_paper(student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]) -> LossSum:
    """Attention transfer as in the paper: L2 distance of the attention maps, summed over the layers.

    ``Σ ‖Q_s - Q_t‖₂``, mean over examples, with ``Q`` as in ``at``. The distance is neither squared nor divided by the
    number of positions. The paper multiplies it by ``β / 2`` with ``β`` of 1000 divided by the number of positions and the
    batch size. The gradient is 0 where both maps agree.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``, or lists of them; returns a sum over examples.
    Raises: ``ShapeError`` for other shapes.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2.
    """
    layers = [
        own.sub(other).norm(dim=1).sum()
        for own, other in _attention_maps("at_paper", student_features, teacher_features)
    ]
    return LossSum(sum(layers[1:], layers[0]), listed(student_features)[0].shape[0])


def _attention_maps(
    owner: str, student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the attention maps of each pair of layers, ``[B, H W]`` with rows of length 1."""
    found = []
    for student, teacher in zip(listed(student_features), listed(teacher_features), strict=True):
        check_maps(owner, student, teacher)
        own, other = (normalize(one.square().mean(1).flatten(1)) for one in to_smaller(student, teacher.detach()))
        found.append((own, other))
    return found


def cwd(student_features: Tensor, teacher_features: Tensor, *, tau: float = 1.0) -> LossSum:
    """Channel-wise distillation: KL divergence of the distributions of each channel over the positions, in nats.

    ``τ² / C Σ_c KL(softmax(F_t,c / τ) ‖ softmax(F_s,c / τ))``: each channel's softmax is over height and width. The larger
    map is pooled to the smaller one; for channels that differ in number, project the student's: ``proj: [conv, auto,
    auto]``. On the logits of a segmentation model name the layer that returns them. Usual weight and ``tau``: 3 and 5 on logits
    (MMRazor: 5 and 1), 35 and 5 on features.

    Settings: ``tau``, temperature.

    Shapes: maps ``[B, C, H, W]`` and ``[B, C, H', W']``; returns a sum over examples.
    Raises: ``SettingError`` if ``tau <= 0``; ``ShapeError`` for other shapes.
    Source: Shu et al. 2021, arXiv:2011.13256; irfanICMLL/TorchDistiller, SemSeg-distill/utils/criterion.py.
    """
    check_setting("tau", tau, above=0)
    check_maps("cwd", student_features, teacher_features)
    student, teacher = to_smaller(student_features, teacher_features.detach())
    check_equal("cwd", student, teacher)
    log_q, log_p = ((one.flatten(2) / tau).log_softmax(2) for one in (student, teacher))
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    return LossSum(divergence * tau**2 / student.shape[1], student.shape[0])


def cat_kd(
    student_features: Tensor,
    teacher_features: Tensor,
    student_parameters: Mapping[str, Tensor],
    teacher_parameters: Mapping[str, Tensor],
    *,
    size: int = 2,
    normalized: bool = False,
) -> LossSum:
    """Squared error of the class activation maps, pooled to ``size × size``.

    ``mean((p(W_s F_s) - p(W_t F_t))²)``: ``W`` is the classifier's weight, applied at each position of the last map, and
    ``p`` pools the map of each class; with ``normalized`` each class's map is then divided by its L2 norm. Name the
    classifiers' weights: ``reads_S: [fc:parameter.weight]``, ``reads_T: [fc:parameter.weight]``; the gradient also reaches
    the student's. A bias shifts a map by a constant, which the authors also leave out. Usual weight: 15 (CIFAR-100,
    resnet8x4), 0.5 with ``size: 4`` (ImageNet, ResNet-18), 10 with ``normalized`` (MobileNetV2).

    Settings: ``size`` of the pooled maps; ``normalized``, divide each class's map by its L2 norm.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; weights ``[classes, C]``; returns a sum over examples.
    Raises: ``SettingError`` if ``size < 1``; ``ShapeError`` for other shapes.
    Source: Guo et al. 2023, CVPR, arXiv:2303.13005; GzyAftermath/CAT-KD, mdistiller/distillers/CAT_KD.py.
    """
    check_setting("size", size, least=1)
    check_maps("cat_kd", student_features, teacher_features)
    sides = (
        ("student", student_features, student_parameters),
        ("teacher", teacher_features.detach(), teacher_parameters),
    )
    own, other = (
        adaptive_avg_pool2d(_class_maps(side, maps, parameters), size).flatten(2) for side, maps, parameters in sides
    )
    check_batch("cat_kd", own, other)
    check_equal("cat_kd", own, other, "number of classes")
    if normalized:
        own, other = normalize(own, dim=2), normalize(other, dim=2)
    return LossSum((own - other).square().mean((1, 2)).sum(), own.shape[0])


def _class_maps(side: str, maps: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the map of each class, ``[B, classes, H, W]``."""
    weights = list(parameters.values())
    if len(weights) != 1 or weights[0].dim() not in (2, 4) or weights[0].flatten(1).shape[1] != maps.shape[1]:
        found = ", ".join(f"{path} {list(one.shape)}" for path, one in parameters.items()) or "none"
        raise ShapeError(
            f"cat_kd needs the weight [classes, {maps.shape[1]}] of the {side}'s classifier as reads_{side[0].upper()}; "
            f"got {found}"
        )
    activation = weights[0].flatten(1) @ maps.flatten(2)
    return activation.reshape(*activation.shape[:2], *maps.shape[2:])
