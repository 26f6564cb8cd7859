"""The laws that a method of this package is held to."""

from __future__ import annotations

from kdplug.testing import LossLaws

DRAWN = "each example has its own draws, which follow its place in the batch"
COMPILED_DRAWS = "torch.compile cannot trace a torch.Generator"


class PaperLaws(LossLaws):
    """``LossLaws``, which all methods of this package keep."""
