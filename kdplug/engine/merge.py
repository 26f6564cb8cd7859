"""The losses of one accumulation window as one report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdplug.objective.report import LossReport, TermValue


def merge(reports: Sequence[LossReport]) -> LossReport:
    """The mean of the micro-batches' reports, without gradient: the loss that the optimizer step was taken on.

    A term is the mean over the micro-batches that have it, and its weight is scaled by their share, so that the weighted
    terms add up to the total: with several tasks each micro-batch has the terms of one.
    """
    if len(reports) == 1:
        return reports[0]
    with torch.no_grad():
        found: dict[str, list[TermValue]] = {}
        for report in reports:
            for name, term in report.terms.items():
                found.setdefault(name, []).append(term)
        terms = {
            name: TermValue(
                torch.stack([term.value for term in values]).sum() / len(values),
                1,
                values[-1].weight * (len(values) / len(reports)),
            )
            for name, values in found.items()
        }
        return LossReport(torch.stack([report.total for report in reports]).mean(), terms)
