"""Warn about terms that count no items in a run, according to the counts of all processes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from kdplug.objective.term import LaterBatches

_FIRST = 3
"""Steps before the first check, at which withheld warnings are logged."""

_BATCHES = 50
"""Steps between two checks, and consecutive batches of a term that may count no item."""


@dataclass(slots=True, eq=False)
class CountWatch:
    """Reads the counts of a run's terms after some of the steps that are logged, when the device is idle.

    Every process reads them after the same steps. The main process logs one warning per term.
    """

    later: LaterBatches
    due: int = _FIRST
    warned: set[str] = field(default_factory=set)

    def after_log(self, step: int, accelerator: Accelerator, *, is_last: bool) -> None:
        """Check the counts after logged step ``step``, if a check is due."""
        if step < self.due and not is_last:
            return
        self.due = step + _BATCHES
        for name in self._withheld_by_all(accelerator):
            self._warn(name, self.later.withheld[name], accelerator)
        self.later.withheld.clear()
        numbers = [self.later.batches.get(name, 0) for name in self.later.terms]
        counts = self._shared([self.later.total(name) for name in self.later.terms], accelerator)
        for name, batches, count in zip(self.later.terms, numbers, counts, strict=True):
            if batches >= _BATCHES and not count:
                self._warn(
                    name,
                    f"{name} had no items in its last {batches} batches before step {step} (all were masked or had an "
                    "ignored label), so it trained nothing in these batches. Check the masks and labels of the data",
                    accelerator,
                )
            if count or batches >= _BATCHES:
                self.later.clear(name)

    def _withheld_by_all(self, accelerator: Accelerator) -> list[str]:
        """Return the terms for which every process withholds a warning."""
        flags = [float(name in self.later.withheld) for name in self.later.terms]
        shared = self._shared(flags, accelerator)
        return [
            name for name, number in zip(self.later.terms, shared, strict=True) if number == accelerator.num_processes
        ]

    @staticmethod
    def _shared(values: Sequence[torch.Tensor | float], accelerator: Accelerator) -> list[float]:
        """Return the sums of ``values`` over the processes."""
        table = torch.stack(
            [torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in values]
        )
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        found: list[float] = table.tolist()
        return found

    def _warn(self, name: str, message: str, accelerator: Accelerator) -> None:
        if name not in self.warned and accelerator.is_main_process:
            warnings.warn(message, stacklevel=2)
        self.warned.add(name)
