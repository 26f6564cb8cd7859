"""``LossLaws``: all tests for losses."""

from __future__ import annotations

from kdplug.testing.loss.batch import BatchLaws
from kdplug.testing.loss.closed_form import ClosedFormLaws
from kdplug.testing.loss.fact import FactLaws
from kdplug.testing.loss.gradient import GradientLaws
from kdplug.testing.loss.logit import LogitLaws
from kdplug.testing.loss.mask import MaskLaws
from kdplug.testing.loss.module import ModuleLaws
from kdplug.testing.loss.oracle import OracleLaws
from kdplug.testing.loss.precision import PrecisionLaws
from kdplug.testing.loss.sequences import SequenceLaws
from kdplug.testing.loss.topk_tail import CoarseLaws
from kdplug.testing.loss.value import ValueLaws


class LossLaws(
    SequenceLaws,
    ValueLaws,
    OracleLaws,
    GradientLaws,
    MaskLaws,
    BatchLaws,
    LogitLaws,
    ClosedFormLaws,
    CoarseLaws,
    PrecisionLaws,
    ModuleLaws,
    FactLaws,
):
    """Tests that every loss must pass, for pytest.

    ::

        class TestMyLoss(LossLaws):
            entry = "myloss"              # or "kdplug-mypackage:myloss", or the callable itself
            settings = {"alpha": 0.3}
            non_negative = True
            zero_at_equality = True

    Laws that do not apply (on masks, if it requests no mask) are not collected. Those that a fact excludes which the loss
    states (``kdplug.facts``) are skipped with the reason. Name other laws that cannot hold by definition in
    ``except_for``, with the reason. A loss that declares ``whole_sequences`` gets logits of sequences with a mask, as in
    a run, and laws on sequences replace those on a list of items.
    """
