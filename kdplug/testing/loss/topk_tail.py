"""Tests of a loss that declares ``coarsens`` and is therefore also used on SparseLogits with a tail."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdplug.contracts.loss import COARSENS, declares
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.objective.chunked.topk_tail import topk_tail_student, topk_tail_teacher
from kdplug.testing.law import advise, are_finite, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase, gradients_of
from kdplug.testing.sample import draw

_ITEMS, _CLASSES, _KNOWN, _TEMPERATURE = 16, 20, 5, 2.0
"""A cache of 5 of 20 classes, which hold three quarters of the teacher's probability."""

_SEQUENCES = 4
"""Number of sequences in which a loss on whole sequences gets these items."""

_ALIGNED = 0.85
"""Minimum cosine between the gradients on categories and on classes. Divergences reach 0.93; rank comparisons 0.75."""


def _declares(laws: type[LossCase]) -> bool:
    declared = declares(laws._found.load(), COARSENS)  # noqa: SLF001  own attribute
    return declared and laws.on_logits() and not laws.asks_for("teacher_sparse")


class CoarseLaws(LossCase):
    """Compares the loss on all classes with the loss on the cached classes and one category for the rest."""

    @advise(
        "Do not divide by the number of classes, and use logits only through their softmax; or remove the declaration"
    )
    @where(_declares)
    def test_with_every_class_known_it_is_the_loss_itself(self) -> None:
        """Catches a loss that reads more of the logits than their softmax, or divides by the number of classes."""
        student, teacher = _sides()
        dense, coarse = self._on(student, teacher), self._on(student, SparseLogits.top(teacher, _CLASSES, _TEMPERATURE))
        if not are_finite([coarse[0]]) or not is_close(coarse[0], dense[0], 1e-6):
            broken(
                "declares coarsens, but with every class known and an empty tail it is "
                f"{number(coarse[0]):.6g} instead of {number(dense[0]):.6g}"
            )
        if not is_close(coarse[1], dense[1], 1e-6):
            broken(
                f"declares coarsens, but with every class known its gradient has an error of {_off(coarse, dense):.3g}"
            )

    @advise("Treat all classes in the same way, or remove the declaration")
    @where(_declares)
    def test_the_order_of_an_items_categories_does_not_matter(self) -> None:
        """Catches a comparison of items class by class. The categories at one index are different classes in each item."""
        student, teacher = _sides()
        sparse = SparseLogits.top(teacher, _KNOWN, _TEMPERATURE)
        order = draw((_ITEMS, _KNOWN), 4).argsort(-1)
        assert sparse.log_probs is not None
        turned = replace(sparse, ids=sparse.ids.gather(-1, order), log_probs=sparse.log_probs.gather(-1, order))
        found, expected = self._on(student, turned), self._on(student, sparse)
        if not is_close(found[0], expected[0]) or not is_close(found[1], expected[1]):
            broken(
                "declares coarsens, but changes when the known classes of each item are reordered: "
                f"{number(found[0]):.6g} instead of {number(expected[0]):.6g}"
            )

    @where(_declares)
    def test_on_categories_its_gradient_points_where_that_on_classes_does(self) -> None:
        """Catches ranks, deviations and correlations. The rest is the largest category of many items, and the other
        classes differ between items.
        """
        student, teacher = _sides()
        (_, dense), (_, coarse) = (
            self._on(student, teacher),
            self._on(student, SparseLogits.top(teacher, _KNOWN, _TEMPERATURE)),
        )
        cosine = float((dense * coarse).sum() / (dense.norm() * coarse.norm()).clamp_min(1e-30))
        counts = dense.abs() > 0.01 * dense.abs().max()
        known = counts & torch.zeros_like(counts).scatter(-1, teacher.topk(_KNOWN).indices, True)
        agree = float((dense.sign() == coarse.sign())[known].double().mean())
        if not cosine >= _ALIGNED or not agree >= _ALIGNED:
            broken(
                "declares coarsens, but its gradients on categories and on classes differ in direction: cosine "
                f"{cosine:.2f}, {agree:.0%} of the known classes with the same sign. Remove the declaration"
            )

    def _on(self, student: Tensor, teacher: Tensor | SparseLogits) -> tuple[Tensor, Tensor]:
        """Return the value, and the gradient for the student's logits over all classes."""
        leaf = student.clone().requires_grad_()
        if isinstance(teacher, SparseLogits):
            own, theirs = topk_tail_student(leaf, teacher), topk_tail_teacher(teacher)
        else:
            own, theirs = leaf, teacher
        if self.takes_sequences():
            own, theirs = (side.reshape(_SEQUENCES, -1, side.shape[-1]) for side in (own, theirs))
        labels = torch.zeros(own.shape[:-1], dtype=torch.int64)
        sample = self.sample(masked=False).but(
            student=(own,), teacher=(theirs,), labels=labels, temperature=_TEMPERATURE, mask=None
        )
        value = self.evaluate(sample).value
        (gradient,) = gradients_of(value, (leaf,))
        return value.detach(), gradient


def _sides() -> tuple[Tensor, Tensor]:
    """Return logits of a fairly confident teacher, and of a student approaching it."""
    teacher = 3 * draw((_ITEMS, _CLASSES), 1)
    return teacher + 1.5 * draw((_ITEMS, _CLASSES), 2), teacher


def _off(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    return float((one[1] - two[1]).abs().max())
