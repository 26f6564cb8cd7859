"""What a term does to the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdplug.objective.report import TermValue


@dataclass(frozen=True, slots=True)
class Pull:
    """A term's mean before weighting, and the L2 norm of the gradient of weight times that mean over the student.

    ``is_counted`` is false where there was nothing to take a mean over.
    """

    value: float
    norm: float
    is_counted: bool

    @property
    def is_alive(self) -> bool:
        """Whether the term changes the student; for better or, where it is not finite, for worse."""
        return self.norm != 0


def gradients(terms: Mapping[str, TermValue], student: nn.Module) -> dict[str, Pull]:
    """One backward pass for each term. The graph stays, and no ``grad`` is written."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return {
        name: Pull(float(term.value.detach()), _norm(term.weighted, parameters), _is_counted(term))
        for name, term in terms.items()
    }


def _norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """The norm, 0 where nothing of the loss comes from the parameters."""
    if not loss.requires_grad or not parameters:
        return 0.0
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [
        torch.linalg.vector_norm(one.double() if one.device.type == "cpu" else one.float())
        for one in found
        if one is not None
    ]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _is_counted(term: TermValue) -> bool:
    return any(float(part.count) > 0 for part in term.parts)
