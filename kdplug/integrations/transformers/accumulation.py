"""Normalize each term over the micro-batches of an optimizer step, and warn about steps that train nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from kdplug.contracts.loss import LossSum
from kdplug.engine.forward_state import ForwardState, preserve_forward_state
from kdplug.engine.normalization import Counts, Normalization, TermLayout, are_numbers, counts_of, same_shapes
from kdplug.engine.optimizer import GradientWatch, RateWatch, unwrap
from kdplug.errors import RunError
from kdplug.objective.numerics import full
from kdplug.objective.report import LossReport

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Loss


class StepWatch(TrainerCallback):
    """Warns about parameters of the student that get no gradient, and of a learning rate that stays 0.

    ``epoch`` counts the completed passes over the data.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._student: list[tuple[str, nn.Parameter]] = []
        self._gradients: GradientWatch | None = None
        self._rates = RateWatch()

    def begin(self, student: nn.Module, *, is_sharded: bool) -> None:
        """Start to watch a run. Gradients are not checked under FSDP and DeepSpeed, which hold them elsewhere."""
        self._student = [] if is_sharded else list(student.named_parameters())
        self._gradients, self._rates = None, RateWatch()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Find the student's parameters that the optimizer holds."""
        self.epoch = int(state.epoch or 0) - 1  # a resumed run begins in the epoch of its checkpoint
        if state.is_world_process_zero:
            self._gradients = GradientWatch(unwrap(given["optimizer"]), self._student)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Count the epochs. ``state.epoch`` is updated only after the first step of an epoch."""
        self.epoch += 1

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Check the gradients and the learning rate of a step."""
        if self._gradients is None:
            return
        step, scheduler = state.global_step + 1, given["lr_scheduler"]
        if scheduler is not None:
            self._rates.see(unwrap(given["optimizer"]), scheduler, step, state.max_steps)
        self._gradients.see(ends=step == state.max_steps)


class TermLog:
    """Sums and counts of terms; they stay on the device until ``means`` is called."""

    def __init__(self) -> None:
        self._sums: defaultdict[tuple[str, int], list[tuple[Tensor, Tensor | float]]] = defaultdict(list)

    def add(self, report: LossReport) -> None:
        """Add the terms of a single batch."""
        for name, term in report.terms.items():
            for place, part in enumerate(term.parts if term.weight else ()):
                self._sums[name, place].append((part.total.detach(), part.count))

    def add_share(self, report: LossReport, normalization: Normalization | None, micro_batches: int) -> None:
        """Add the terms of one micro-batch, each as its share of the step's mean."""
        for name, term in report.terms.items():
            if not term.weight:
                continue
            if normalization is None:
                share = term.value.detach() / micro_batches
            else:
                factors = normalization.factors[name]
                parts = [part.total.detach() * factor for part, factor in zip(term.parts, factors, strict=True)]
                share = torch.stack(parts).sum()
            self._sums[name, 0].append((share, 1 / micro_batches))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the unweighted mean of each term over all processes, and reset. Collective."""
        sums, self._sums = self._sums, defaultdict(list)
        if not sums:
            return {}
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        rows = [_added(pairs, accelerator.device, dtype) for pairs in sums.values()]
        table = torch.stack(rows)
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        found: defaultdict[str, float] = defaultdict(float)
        for (name, _), (total, count) in zip(sums, table.tolist(), strict=True):
            found[name] += total / count if count > 0 else 0.0
        return dict(found)


def _added(pairs: list[tuple[Tensor, Tensor | float]], device: torch.device, dtype: torch.dtype) -> Tensor:
    columns = zip(*pairs, strict=True)
    return torch.stack(
        [torch.stack([torch.as_tensor(one, dtype=dtype, device=device) for one in column]).sum() for column in columns]
    )


IGNORED = -100
"""The label that transformers' losses ignore."""


class Forward(Protocol):
    """``forward(batch, place, teacher)`` returns the student's outputs, the loss report and the teachers' outputs.

    ``place`` is the micro-batch's index in its step. The teachers run if ``teacher`` is ``None``.
    """

    def __call__(self, batch: Any, place: int, teacher: Any) -> tuple[Any, LossReport, Any]: ...


@dataclass(slots=True, eq=False)
class Window:
    """The micro-batches of one optimizer step. ``items`` holds the number of counted labels of each, or ``None``.

    Each term is divided by the number of its items in the whole window, on all processes, so the split into
    micro-batches does not change the loss. If counts depend on data, as with masks, an extra pass without gradient computes them first.
    Without masks they follow from the shapes. ``counts_are_data`` skips the attempt to use shapes if an earlier window
    needed the extra pass. With ``over="micro_batch"``, each micro-batch divides by its own counts, and the means are
    averaged. ``agreed`` is shared by the windows of a run; see ``Normalization.pooled``.
    """

    batches: Sequence[Any]
    items: Sequence[int | None]
    accelerator: Accelerator
    over: Literal["global", "micro_batch"] = "global"
    counts_are_data: bool = False
    agreed: set[TermLayout] = field(default_factory=set)
    _normalization: Normalization | None = None
    _counts: Counts | None = None
    _teachers: dict[int, Any] = field(default_factory=dict)
    _place: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def next(
        self, model: nn.Module, batch: Any, forward: Forward, prepare: Callable[[Any], Any]
    ) -> tuple[Any, LossReport, Normalization | None]:
        """Run the next prepared micro-batch; return the student's outputs, the report and the normalization, if any.

        Raises: ``RunError`` if counts that are numbers differ between batches of equal shapes.
        """
        place, self._place = self._place, self._place + 1
        if self.over == "micro_batch":
            outputs, report, _ = forward(batch, place, None)
            return outputs, report, None
        if place == 0 and len(self) > 1:
            found = self._by_shape(model, batch, forward)
            if found is not None:
                return found
            self._count(model, forward, prepare)
        outputs, report, _ = forward(batch, place, self._teachers.pop(place, None))
        if self._normalization is None:
            self._normalization = Normalization.pooled([counts_of(report)], self.accelerator, self.agreed)
        elif self._counts is not None and counts_of(report) != self._counts:
            raise RunError(
                "the micro-batches of a step have equal shapes, but a loss averages over different numbers of "
                "items in them. If that number depends on the values of tensors, return it as a tensor: LossSum(total, "
                "count)"
            )
        return outputs, report, self._normalization

    def loss(self, report: LossReport, normalization: Normalization | None) -> Tensor:
        """Return the share of a micro-batch in the step's loss, scaled for DDP, which averages over processes."""
        if normalization is None:
            return report.total / len(self)
        whole = len(self) == 1 and self.accelerator.num_processes == 1
        return report.total if whole else normalization.loss(report)

    def _by_shape(
        self, model: nn.Module, batch: Any, forward: Forward
    ) -> tuple[Any, LossReport, Normalization | None] | None:
        """Run the first micro-batch if counts follow from shapes; otherwise return ``None`` and restore the state."""
        alone = self.accelerator.num_processes == 1
        if self.counts_are_data or not alone or len({*self.items}) > 1 or not same_shapes(self.batches):
            return None
        before = ForwardState(model)
        outputs, report, teacher = forward(batch, 0, None)
        counts = counts_of(report)
        if are_numbers(counts):
            self._counts, self._normalization = counts, Normalization.uniform(counts, len(self))
            return outputs, report, self._normalization
        before.restore()
        self._teachers[0], self.counts_are_data = teacher, True
        return None

    def _count(self, model: nn.Module, forward: Forward, prepare: Callable[[Any], Any]) -> None:
        """Compute the counts of all micro-batches without gradient; keep the teachers' outputs for the real pass."""
        counted = []
        with preserve_forward_state(model), torch.no_grad():
            for place, batch in enumerate(self.batches):
                teacher = self._teachers.get(place)
                _, report, self._teachers[place] = forward(prepare(batch), place, teacher)
                counted.append(counts_of(report))
        self._normalization = Normalization.pooled(counted, self.accelerator, self.agreed)


def count_items(batches: Sequence[Any], *, shifted: bool) -> list[int | None]:
    """Return the number of labels other than -100 in each batch; a ``shifted`` causal loss omits the first token.

    Synchronizes with the device once.
    """
    found = [_counted(batch, shifted=shifted) for batch in batches]
    numbers = [one for one in found if one is not None]
    values = iter(torch.stack(numbers).tolist() if numbers else [])
    return [None if one is None else int(next(values)) for one in found]


def as_sums(losses: Sequence[Loss], items: int | None) -> tuple[Loss, ...]:
    """Return the losses with their counts. ``items`` is the number of items in a scalar mean; ``None`` if unknown.

    The count of per-item losses depends on data, because an adaptor may have selected the items by their labels.
    """
    return tuple(_as_sum(loss, items) for loss in losses)


def _as_sum(loss: Loss, items: int | None) -> Loss:
    if isinstance(loss, LossSum):
        return loss
    if loss.dim():
        return LossSum(full(loss).sum(), torch.tensor(loss.numel()))
    if items is None:
        return loss
    total = full(loss) * items
    if items == 0:  # transformers' mean over no labels is nan
        total = total.masked_fill(torch.ones_like(total, dtype=torch.bool), 0)
    return LossSum(total, items)


def _counted(batch: Any, *, shifted: bool) -> Tensor | None:
    if not isinstance(batch, Mapping):
        return None
    ready = batch.get("shift_labels")
    labels = batch.get("labels") if ready is None else ready
    if not isinstance(labels, Tensor):
        return None
    return (labels[..., 1:] if shifted and ready is None else labels).ne(IGNORED).sum()
