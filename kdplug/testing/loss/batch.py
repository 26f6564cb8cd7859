"""Tests that a loss does not depend on how the items of a batch are split, ordered and grouped."""

from __future__ import annotations

import torch

from kdplug.contracts.loss import COMPARES_ITEMS, RANDOM, reduction_of
from kdplug.testing.law import advise, apart, broken, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample


def _on_sequences(laws: type[LossCase]) -> bool:
    return bool(laws.layout_of().token_axes)


def _declares_reduction(laws: type[LossCase]) -> bool:
    return laws.on_logits() and laws.declares_reduction()


_SUM_ALONE = "Return LossSum(total, count) with the undivided sum over items and the number of items"


class BatchLaws(LossCase):
    """Laws on splitting, order and grouping of items."""

    @unless(COMPARES_ITEMS, RANDOM)
    @where(lambda laws: laws.returns_sum())
    def test_any_split_of_the_batch_gives_the_whole(self) -> None:
        """Catches a mean of means, which changes the loss under gradient accumulation and with several processes."""
        for sample in self.samples():
            rows = list(range(sample.layout.student[0]))
            whole, expected = self.summed([sample])
            for pieces in ([[row] for row in rows], [rows[:2], rows[2:]], [rows[:1], rows[1:]]):
                found, gradients = self.summed([sample.rows(piece) for piece in pieces if piece])
                if not is_close(found, whole):
                    broken(
                        f"the sums over parts of the batch give {number(found):.9g}, but the whole batch gives {number(whole):.9g}. {_SUM_ALONE}"
                    )
                if not all(map(is_close, gradients, expected)):
                    broken(
                        f"the gradients over parts of the batch differ from those over the whole by {apart(gradients, expected):.3g}. "
                        f"{_SUM_ALONE}"
                    )

    @unless(RANDOM)
    @where(lambda laws: laws.on_logits() and laws.returns_sum())
    def test_a_sum_over_items_may_be_cut_between_any_two(self) -> None:
        """Catches items compared with each other (a correlation over the batch, a maximum, a deviation).

        ``FactoredLogits`` are multiplied out in chunks and the sums added, which silently changes such a loss. Return a
        scalar instead.
        """
        flat = _in_a_row(self.sample(masked=False))
        items = list(range(flat.student[0].shape[0]))
        whole, expected = self.summed([flat])
        for size in (1, 2, len(items) - 1):
            pieces = [flat.rows(items[start : start + size]) for start in range(0, len(items), size)]
            found, gradients = self.summed(pieces)
            if not is_close(found, whole) or not is_close(torch.cat(gradients), torch.cat(expected)):
                broken(
                    f"returns a LossSum, but in chunks of {size} of the {len(items)} items it gives "
                    f"{number(found):.9g} (its gradients are off by {apart(gradients, expected):.3g}) instead of "
                    f"{number(whole):.9g}. Correct the count, or return a scalar if the loss compares items"
                )

    @unless(RANDOM)
    @where(_declares_reduction)
    def test_a_declared_mean_or_sum_is_one(self) -> None:
        """Catches ``mean_over_items`` on a loss that compares items, divides by examples or ignores some labels.

        Large vocabularies are computed in chunks of items, which are combined as declared.
        """
        reduction = reduction_of(self._found.load())
        flat = _in_a_row(self.sample(masked=False))
        items = list(range(flat.student[0].shape[0]))
        if self.asks_for("labels"):  # a mean over the labelled items is not a mean over items
            flat = flat.but(labels=flat.labels.masked_fill(torch.tensor(items) % 3 == 1, -100))
        whole, (expected,) = self.gradients(flat)
        if whole.is_sum:
            broken(
                f"declares {reduction}_over_items, but returns a LossSum, which needs no declaration. Remove the declaration"
            )
        for size in (1, 2, len(items) - 1):
            pieces = [flat.rows(items[start : start + size]) for start in range(0, len(items), size)]
            value, gradient = torch.zeros_like(whole.total), []
            for piece in pieces:
                share = len(piece.student[0]) / len(items) if reduction == "mean" else 1.0
                found, (of_piece,) = self.gradients(piece)
                value += share * found.value.detach()
                gradient.append(share * of_piece)
            if not is_close(value, whole.value.detach()) or not is_close(torch.cat(gradient), expected):
                broken(
                    f"declares {reduction}_over_items, but chunks of {size} of the {len(items)} items give "
                    f"{number(value):.9g} instead of {number(whole.value.detach()):.9g}. Remove the declaration"
                )

    @advise("Compare each example with the teacher's output for the same example")
    @unless(RANDOM)
    def test_the_order_of_examples_does_not_matter(self) -> None:
        """Catches positions shifted by one along the batch; an example compared with another one's teacher."""
        for sample in self.samples():
            for order in _orders(sample.layout.student[0]):
                self._expect_same(sample, sample.rows(order), "examples")

    @advise("Compare each token with the teacher's output for the same token, and shift labels in the adaptor")
    @unless(RANDOM)
    @where(_on_sequences)
    def test_the_order_of_tokens_does_not_matter(self) -> None:
        """Catches a shift by one inside the loss instead of the adaptor, a dropped first or last token."""
        for sample in self.samples():
            for order in _orders(sample.layout.student[sample.layout.token_axes[0]]):
                self._expect_same(sample, sample.tokens(order), "tokens")

    def _expect_same(self, sample: Sample, other: Sample, what: str) -> None:
        before, after = self.evaluate(sample).value, self.evaluate(other).value
        if not is_close(after, before):
            broken(
                f"the value changed by {number((after - before).abs()):.3g} when the {what} of student and teacher "
                "were reordered in the same way. Does the loss shift or drop a position?"
            )

    @advise("Divide by the number of items, values.numel(), instead of the batch size")
    @where(lambda laws: laws.on_logits())
    def test_the_grouping_of_items_does_not_matter(self) -> None:
        """Catches a sum over tokens divided by the number of sequences (``batchmean``)."""
        for sample in self.samples():
            flat = _in_a_row(sample)
            grouped, single = self.evaluate(sample).value, self.evaluate(flat).value
            if not is_close(single, grouped):
                shape, items = list(sample.layout.student), flat.student[0].shape[0]
                broken(
                    f"is {number(grouped):.6g} for logits {shape} and {number(single):.6g} for the same {items} "
                    "flattened items"
                )


def _in_a_row(sample: Sample) -> Sample:
    """Flatten the items of logits to one axis."""
    flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1]))
    mask = None if sample.mask is None else sample.mask.reshape(-1)
    places = tuple(sample.example_ids.reshape(-1).tolist())
    return flat.but(mask=mask, labels=sample.labels.reshape(-1), places=places)


def _orders(size: int) -> list[list[int]]:
    """Return two non-cyclic reorderings: a cyclic one would not reveal a cyclic shift."""
    order = list(range(size))
    return [order[::-1], [*order[1::-1], *order[2:]]]
