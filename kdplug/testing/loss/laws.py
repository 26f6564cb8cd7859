"""The laws of a loss."""

from __future__ import annotations

from kdplug.testing.loss.batch import BatchLaws
from kdplug.testing.loss.closed_form import ClosedFormLaws
from kdplug.testing.loss.gradient import GradientLaws
from kdplug.testing.loss.logit import LogitLaws
from kdplug.testing.loss.mask import MaskLaws
from kdplug.testing.loss.module import ModuleLaws
from kdplug.testing.loss.precision import PrecisionLaws
from kdplug.testing.loss.topk_tail import CoarseLaws
from kdplug.testing.loss.value import ValueLaws


class LossLaws(
    ValueLaws, GradientLaws, MaskLaws, BatchLaws, LogitLaws, ClosedFormLaws, CoarseLaws, PrecisionLaws, ModuleLaws
):
    """Laws that a loss keeps, as pytest tests.

    ::

        class TestMyLoss(LossLaws):
            entry = "myloss"              # or "kdplug-mypackage:myloss", or the callable itself
            settings = {"alpha": 0.3}
            non_negative = True
            zero_at_equality = True

    Laws that cannot apply (on masks, where it asks for no mask) are not there. One that does not hold by definition is
    named in ``except_for`` with the reason.
    """
