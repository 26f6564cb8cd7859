"""The laws of a loss."""

from __future__ import annotations

from kdplug.testing.batch_laws import BatchLaws
from kdplug.testing.closed_form_laws import ClosedFormLaws
from kdplug.testing.coarse_laws import CoarseLaws
from kdplug.testing.gradient_laws import GradientLaws
from kdplug.testing.logit_laws import LogitLaws
from kdplug.testing.mask_laws import MaskLaws
from kdplug.testing.module_laws import ModuleLaws
from kdplug.testing.precision_laws import PrecisionLaws
from kdplug.testing.value_laws import ValueLaws


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
