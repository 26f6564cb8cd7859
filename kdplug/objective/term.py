"""A term of the objective: a loss and its weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kdplug.contracts.loss import LossSum
from kdplug.contracts.outputs import is_valid_count
from kdplug.errors import OutputsError, SignatureError
from kdplug.objective.batch import Batch
from kdplug.objective.numerics import connected_zero, full
from kdplug.objective.report import TermValue, over_heads
from kdplug.objective.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.contracts.outputs import Loss
    from kdplug.objective.loss_term import LossTerm


_PATIENCE = 3
"""Number of consecutive batches that may count no items. With gradient accumulation the first may be computed twice."""


class Term(Protocol):
    """One summand of the objective.

    Each term is also an ``nn.Module``, so that its parameters are trained and saved.
    """

    name: str
    schedule: Schedule

    @property
    def mask_key(self) -> str:
        """The adaptor key of the mask that selects items, empty if none does."""

    @property
    def weight(self) -> float:
        """The weight before any scheduler."""

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Compute the term for one batch, with its current weight."""

    def student_tensors(self, batch: Batch) -> Iterable[Tensor]:
        """Return the student tensors that the term reads."""

    def skipped(self, batch: Batch) -> Tensor:
        """Return a 0 that is connected to the student tensors and the parameters that ``value`` would use.

        It replaces a term whose weight is currently 0, so that all parameters stay in the graph, as DDP requires.
        Nothing is computed, and the teacher is not read.
        """


_COUNTS = 100
"""Maximum number of counts that are stored for a term before they are added up."""


class LaterBatches:
    """The counts of the ``terms`` since they were last cleared, for a training loop that reads them occasionally.

    With ``withholds``, ``withheld`` gets the warnings about terms without items in their first batches: in a run with
    several processes, another process may have counted some.
    """

    def __init__(self, *, withholds: bool) -> None:
        self.withholds = withholds
        self.terms: list[str] = []
        self.withheld: dict[str, str] = {}
        self.batches: dict[str, int] = {}
        self._counts: dict[str, list[Tensor | float]] = {}

    def add(self, name: str, value: TermValue) -> None:
        """Record the counts of one batch."""
        self.batches[name] = self.batches.get(name, 0) + 1
        counts = self._counts.setdefault(name, [])
        counts += [part.count for part in value.parts]
        if len(counts) >= _COUNTS:
            counts[:] = [self.total(name)]

    def total(self, name: str) -> Tensor | float:
        """Return the number of items since the last ``clear``."""
        counts = self._counts.get(name, [])
        number = sum(count for count in counts if not isinstance(count, Tensor))
        tensors = [count.detach().float() for count in counts if isinstance(count, Tensor)]
        return torch.stack(tensors).sum() + number if tensors else number

    def clear(self, name: str) -> None:
        """Forget the counts of a term."""
        self.batches[name] = 0
        self._counts[name] = []


class FirstBatches:
    """Checks the first batches of each term, and warns once about a term that trains nothing.

    Such a term counts no item in ``_PATIENCE`` batches, or reads student tensors without gradient while the student is
    trained. After its first batch with items a term is not checked again; until then its item count is read, which waits
    for the device. A training loop may set ``later`` to handle terms without items itself.
    """

    def __init__(self, terms: Iterable[Term], prefix: str = "") -> None:
        self._prefix = prefix
        self._uncounted = {term.name: 0 for term in terms}
        self.ungraded = set(self._uncounted)
        self.untempered: set[str] = set()
        """Names of terms whose trained temperature scheduler is not checked yet."""
        self.later: LaterBatches | None = None

    def look_at_count(self, term: Term, value: TermValue, batch: Batch) -> None:
        """Check the count of a term that has not counted an item yet.

        Raises: ``OutputsError`` for a count that is negative or not finite.
        """
        if self.later is not None and value.weight and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.later.add(f"{self._prefix}{term.name}", value)
        if term.name not in self._uncounted or not value.weight or value.total.is_meta or torch.compiler.is_compiling():
            return
        if not all(is_valid_count(part.count, waits=True) for part in value.parts):
            shown = ", ".join(f"{float(part.count):g}" for part in value.parts)
            raise OutputsError(f"the count of {term.name} must be finite and >= 0, got {shown}")
        has_items = any(part.count > 0 for part in value.parts)
        side = "" if has_items and value.total != 0 else _empty_mask(term.mask_key, batch)
        if has_items and not side:  # a scalar over no items also has count 1
            del self._uncounted[term.name]
            return
        self._uncounted[term.name] += 1
        if self._uncounted[term.name] < _PATIENCE:
            return
        del self._uncounted[term.name]
        message = (
            f"{self._prefix}{term.name} has counted no items in its first {_PATIENCE} batches, so it trained nothing. "
            + _why_nothing_counts(side, term.mask_key)
        )
        if self.later is None or not self.later.withholds:
            warnings.warn(message, stacklevel=3)
        else:
            self.later.withheld[f"{self._prefix}{term.name}"] = message

    def look_at_gradients(self, live: Iterable[tuple[Term, Batch]], *, is_expected: bool) -> None:
        """Check that each term of a differentiable total has a gradient in the student.

        If no term has one and none ``is_expected``, the student may have been run under ``no_grad`` intentionally.
        """
        found = [
            (term, any(one.requires_grad for one in term.student_tensors(batch)))
            for term, batch in live
            if term.name in self.ungraded
        ]
        if torch.compiler.is_compiling() or not (is_expected or any(has_gradient for _, has_gradient in found)):
            return
        for term, has_gradient in found:
            self.ungraded.discard(term.name)
            if not has_gradient:
                warnings.warn(
                    f"{self._prefix}{term.name} does not train the student: the student tensors that it reads have "
                    "no gradient. Look for detach() or torch.no_grad() in the student's adaptor and forward, and for "
                    "frozen layers below the tensors that the term reads. If intended, set the weight of the term to 0",
                    stacklevel=3,
                )

    def look_at_temperatures(self, terms: Iterable[LossTerm], values: Mapping[str, TermValue]) -> None:
        """Check that each trained temperature scheduler gets a gradient from its term, once the term counted an item."""
        if torch.compiler.is_compiling():
            return
        for term in terms:
            value = values[term.name]
            if term.name not in self.untempered or not value.weight or value.total.is_meta:
                continue
            if not any(part.count > 0 for part in value.parts):
                continue
            self.untempered.discard(term.name)
            if names := term.temperature.unreached(value.total):
                why = (
                    f"Look for detach(), item() and torch.no_grad() in the scheduler and in {term.owner}. The tests of "
                    "kdplug.testing detect a loss that drops the gradient"
                    if "temperature" in term.inputs
                    else f"{term.owner} does not request temperature. Set temperature_scheduler: none for this term"
                )
                warnings.warn(
                    f"{self._prefix}{term.name}: its temperature scheduler {term.temperature.owner} has trainable parameters "
                    f"without a gradient, so nothing trains them: {', '.join(names)}. {why}",
                    stacklevel=3,
                )


def _empty_mask(key: str, batch: Batch) -> str:
    """Return the side whose masks are given and all 0, or an empty string."""
    for side, outputs in (("student", batch.student), *(("teacher", one) for one in batch.teachers)):
        given = getattr(outputs, key) if key else None
        masks = [given] if isinstance(given, Tensor) else given or ()
        if masks and not any(mask.any() for mask in masks):
            return side
    return ""


def _why_nothing_counts(side: str, key: str) -> str:
    if not side:
        return "Check whether all labels are -100, which means ignored, or the masks of the two sides have no item in common"
    return (
        f"The {side}'s {key} is 0 everywhere, but 1 or True marks an item to use. An additive attention mask, in "
        "which 0 means keep, is 0 everywhere in a batch without padding: convert it with (mask == 0), or return the "
        "tokenizer's attention_mask"
    )


def term_value(result: Any, weight: float, owner: str) -> TermValue:
    """Convert a loss's return value, with a weight. A scalar has count 1.

    Raises: ``SignatureError`` naming ``owner`` for anything but a scalar tensor or a ``LossSum``.
    """
    if isinstance(result, Tensor) and not result.dim():
        return TermValue(result, 1, weight)
    if not isinstance(result, LossSum):
        raise SignatureError(f"{owner} must return a scalar tensor or a LossSum, got {_shown(result)}")
    total: Any = result.total
    count: Any = result.count
    if not isinstance(total, Tensor) or total.dim():
        raise SignatureError(f"{owner} returned a LossSum whose total is not a scalar tensor: {_shown(total)}")
    if not isinstance(count, (int, float)) and not (isinstance(count, Tensor) and not count.dim()):
        raise SignatureError(
            f"{owner} returned a LossSum whose count is neither a number nor a scalar tensor: {_shown(count)}"
        )
    if not is_valid_count(count):
        raise SignatureError(f"{owner} returned a LossSum whose count must be finite and >= 0, got {float(count):g}")
    return TermValue(total, count, weight)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str)) else type(value).__name__


class HardLabelTerm(nn.Module):
    """The sum of the losses that the student's adaptor returned, each a mean over its items.

    A ``LossSum`` is divided by its count and a tensor by its number of elements, so an empty one is 0. A scalar has no
    count and counts as one item. A loop sets ``pools`` if it divides a term by the number of its items in several
    micro-batches or processes, which gives a different result; a scalar then causes one warning.
    """

    name = "hard_label_loss"
    mask_key = ""

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.schedule: Schedule = build_schedule(
            config.hard_label_weight, config.hard_label_weight_scheduler, "hard_label_weight_scheduler"
        )
        self.pools = False

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Return the sum of the means, with the count of each.

        Raises: ``OutputsError`` if the student returned no losses, or integers.
        """
        losses = self._losses(batch)
        if len(losses) == 1:
            return self._counted(losses[0], weight)
        return over_heads([self._counted(loss, weight) for loss in losses])

    def _counted(self, loss: Loss, weight: float) -> TermValue:
        total = loss.total if isinstance(loss, LossSum) else loss
        if not total.is_floating_point():
            raise OutputsError(
                f"must be floating-point, got {total.dtype}. If it is the count of a sum, return both in one loss: "
                "kdplug.LossSum(total, count)",
                field="student.losses",
            )
        if isinstance(loss, LossSum):
            return TermValue(full(total), loss.count, weight)
        if total.dim():
            return TermValue(full(total).sum(), total.numel(), weight)
        if self.pools and self.training:
            self.pools = False
            warnings.warn(
                "hard_label_loss: the adaptor returned a scalar under losses, which has no count of the labels it "
                "averages over. All micro-batches and processes of a step then get equal weight, which gives the "
                "mean over all labels only if each has the same number of labels. Return kdplug.LossSum(total, "
                "count), or one loss per item, for the exact mean, or set normalization to 'micro_batch' to average the means",
                stacklevel=2,
            )
        return TermValue(full(total), 1, weight)

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        return [loss.total if isinstance(loss, LossSum) else loss for loss in self._losses(batch)]

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero(self.student_tensors(batch))

    def _losses(self, batch: Batch) -> tuple[Loss, ...]:
        if batch.student.losses is not None:
            return batch.student.losses
        given = ", ".join(batch.student.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the student returned no losses, only {given}. Return the student's own loss "
            "from its adaptor, or set hard_label_weight: 0 to train without it",
            field="hard_label_weight",
        )


def mark_pooled(objective: nn.Module, *, is_pooled: bool) -> None:
    """Set whether the hard label terms of ``objective`` are divided over several micro-batches or processes."""
    for module in objective.modules():
        if isinstance(module, HardLabelTerm):
            module.pools = is_pooled
