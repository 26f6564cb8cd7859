from __future__ import annotations

from kdplug_myloss import confident_kl

from kdplug.testing import LossLaws


class TestConfidentKl(LossLaws):
    entry = confident_kl
    non_negative = True
    zero_at_equality = True
    reaches_teacher = True


class TestPlainKl(TestConfidentKl):
    settings = {"power": 0.0}  # noqa: RUF012
    t2 = True
    ignores_impossible_classes = True
    corrects_confident_mistakes = True
