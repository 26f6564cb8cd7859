"""The mean of each term since it was last asked for."""

from __future__ import annotations

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor

from kdplug.engine.normalization import Normalization
from kdplug.objective.report import LossReport


class TermLog:
    """Sums and counts of terms, on the device until ``means`` asks."""

    def __init__(self) -> None:
        self._sums: defaultdict[tuple[str, int], list[tuple[Tensor, Tensor | float]]] = defaultdict(list)

    def add(self, report: LossReport) -> None:
        """The terms of a batch by itself."""
        for name, term in report.terms.items():
            for place, part in enumerate(term.parts if term.weight else ()):
                self._sums[name, place].append((part.total.detach(), part.count))

    def add_share(self, report: LossReport, normalization: Normalization | None, micro_batches: int) -> None:
        """The terms of one of a step's micro-batches, each as a share of its mean over the step."""
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
        """The unweighted mean of each term over all processes, which call it together; afterwards there is nothing."""
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
