"""The laws that a method of this package is held to."""

from __future__ import annotations

from kdplug.testing import LossLaws


class PaperLaws(LossLaws):
    """``LossLaws``, which all methods of this package keep."""
