"""The losses of one accumulation window as one report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdplug.objective.report import LossReport, TermValue


def merge(reports: Sequence[LossReport]) -> LossReport:
    """The mean of the micro-batches' reports, without gradient: the loss that the optimizer step was taken on.

    A term that a micro-batch has nothing for counts as 0 there.
    """
    if len(reports) == 1:
        return reports[0]
    with torch.no_grad():
        found: dict[str, list[TermValue]] = {}
        for report in reports:
            for name, term in report.terms.items():
                found.setdefault(name, []).append(term)
        terms = {
            name: TermValue(torch.stack([term.value for term in values]).sum() / len(reports), 1, values[-1].weight)
            for name, values in found.items()
        }
        return LossReport(torch.stack([report.total for report in reports]).mean(), terms)
