"""Laws on splitting, ordering and grouping the items of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug.contracts.loss import reduction_of
from kdplug.testing.law import apart, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample


def _on_sequences(laws: type[LossCase]) -> bool:
    return bool(laws.layout_of().token_axes)


def _declares_reduction(laws: type[LossCase]) -> bool:
    return laws.on_logits() and reduction_of(laws._found.load()) in {"mean", "sum"}  # noqa: SLF001  the laws' own


class BatchLaws(LossCase):
    """Pieces, order and grouping of items."""

    @where(lambda laws: laws.returns_sum())
    def test_any_split_of_the_batch_gives_the_whole(self) -> None:
        """For: a mean of means. Gradient accumulation and several processes then train on another loss."""
        for sample in self.samples():
            rows = list(range(sample.layout.student[0]))
            whole, expected = self._summed([sample])
            for pieces in ([[row] for row in rows], [rows[:2], rows[2:]], [rows[:1], rows[1:]]):
                found, gradients = self._summed([sample.rows(piece) for piece in pieces if piece])
                if not is_close(found, whole):
                    broken(f"sums over pieces give {number(found):.9g}, the whole batch gives {number(whole):.9g}")
                if not is_close(torch.cat(gradients), torch.cat(expected)):
                    broken(f"gradients over pieces differ from the whole's by {apart(gradients, expected):.3g}")

    @where(lambda laws: laws.on_logits() and laws.returns_sum())
    def test_a_sum_over_items_may_be_cut_between_any_two(self) -> None:
        """For: items that are compared with each other (a correlation over the batch, a maximum, a deviation).

        ``FactoredLogits`` are multiplied out some items at a time and the sums added up, which gives such a loss another value
        and says nothing. Return a scalar there.
        """
        flat = _in_a_row(self.sample(masked=False))
        items = list(range(flat.student[0].shape[0]))
        whole, expected = self._summed([flat])
        for size in (1, 2, len(items) - 1):
            pieces = [flat.rows(items[start : start + size]) for start in range(0, len(items), size)]
            found, gradients = self._summed(pieces)
            if not is_close(found, whole) or not is_close(torch.cat(gradients), torch.cat(expected)):
                broken(
                    f"returns a LossSum, and over pieces of {size} of the {len(items)} items it gives {number(found):.9g} (its "
                    f"gradients are off by {apart(gradients, expected):.3g}), all at once {number(whole):.9g}. It compares items "
                    "with each other, or its count is not theirs: return a scalar"
                )

    @where(_declares_reduction)
    def test_a_declared_mean_or_sum_is_one(self) -> None:
        """For: ``mean_over_items`` on a loss that compares items, divides by examples or ignores some labels.

        Large vocabularies are computed in chunks of items, which are put together as the declaration says.
        """
        reduction = reduction_of(self._found.load())
        flat = _in_a_row(self.sample(masked=False))
        items = list(range(flat.student[0].shape[0]))
        whole, (expected,) = self.gradients(flat)
        if whole.is_sum:
            broken(f"declares {reduction}_over_items, and returns a LossSum, which needs no declaration")
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
                    f"declares {reduction}_over_items, and chunks of {size} of the {len(items)} items give {number(value):.9g} "
                    f"instead of {number(whole.value.detach()):.9g}. Remove the declaration"
                )

    def _summed(self, pieces: list[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Sum of totals over sum of counts, and its gradient for each student layer, over all rows."""
        leaves = [tuple(tensor.clone().requires_grad_() for tensor in piece.student) for piece in pieces]
        outcomes = [self.evaluate(piece.but(student=own)) for piece, own in zip(pieces, leaves, strict=True)]
        count = sum(number(outcome.count) for outcome in outcomes)
        total = torch.stack([outcome.total for outcome in outcomes]).sum() / count
        found = torch.autograd.grad(total, [leaf for own in leaves for leaf in own], materialize_grads=True)
        layers = len(leaves[0])
        return total.detach(), [torch.cat(found[layer::layers]) for layer in range(layers)]

    def test_the_order_of_examples_does_not_matter(self) -> None:
        """For: positions shifted by one along the batch; an example that is compared with another one's teacher."""
        for sample in self.samples():
            for order in _orders(sample.layout.student[0]):
                self._expect_same(sample, sample.rows(order), "examples")

    @where(_on_sequences)
    def test_the_order_of_tokens_does_not_matter(self) -> None:
        """For: a shift of labels or logits by one inside the loss (the adaptor's business), a dropped first or last token."""
        for sample in self.samples():
            for order in _orders(sample.layout.student[sample.layout.token_axes[0]]):
                self._expect_same(sample, sample.tokens(order), "tokens")

    def _expect_same(self, sample: Sample, other: Sample, what: str) -> None:
        before, after = self.evaluate(sample).value, self.evaluate(other).value
        if not is_close(after, before):
            broken(
                f"the value changed by {number((after - before).abs()):.3g} when the {what} of student and teacher were "
                "put in another order, alike on both sides. Does it shift or drop a position?"
            )

    @where(lambda laws: laws.on_logits())
    def test_the_grouping_of_items_does_not_matter(self) -> None:
        """For: a sum over tokens that is divided by the number of sequences (``batchmean``)."""
        for sample in self.samples():
            flat = _in_a_row(sample)
            grouped, single = self.evaluate(sample).value, self.evaluate(flat).value
            if not is_close(single, grouped):
                shape, items = list(sample.layout.student), flat.student[0].shape[0]
                broken(
                    f"is {number(grouped):.6g} for logits {shape} and {number(single):.6g} for the same {items} items in a row"
                )


def _in_a_row(sample: Sample) -> Sample:
    """The items of logits, on one axis."""
    flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1]))
    mask = None if sample.mask is None else sample.mask.reshape(-1)
    return flat.but(mask=mask, labels=sample.labels.reshape(-1))


def _orders(size: int) -> list[list[int]]:
    """Two other orders, neither of them cyclic: a cyclic one would not show a cyclic shift."""
    order = list(range(size))
    return [order[::-1], [*order[1::-1], *order[2:]]]
