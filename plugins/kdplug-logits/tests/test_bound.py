"""Upper bounds that the catalogue states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits_strategies import Case, case, rule_out, seeds

examples = settings(max_examples=15, deadline=None)


def _item(drawn: Case) -> Case:
    """Without items but one, at a number as temperature, since the bounds are those of an item."""
    return Case(drawn.student, drawn.teacher, drawn.labels, 3.0)


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.9])
@given(size=st.integers(2, 9), seed=seeds, t2=st.booleans(), ruled_out=st.booleans())
@examples
def test_bounds_hold_with_the_squared_temperature(
    share: float, size: int, seed: int, t2: bool, ruled_out: bool
) -> None:
    drawn = _item(case(1, size, seed=seed, scale=30.0))
    if ruled_out:
        drawn.student, drawn.teacher = rule_out(drawn.student, seed), rule_out(drawn.teacher, seed + 1)
    factor = drawn.temperature**2 if t2 else 1.0
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for name in ("skew_kl", "skew_reverse_kl"):
        assert drawn.loss(name, skew=share, t2=t2).value <= -factor * math.log(share) * (1 + 1e-9)
    for normalize in (False, True):
        scale = min(share, 1 - share) if normalize else 1.0
        value = drawn.loss("jsd", beta=share, normalize=normalize, t2=t2).value
        assert value <= factor * entropy / scale * (1 + 1e-9)
        assert value >= 0


@pytest.mark.parametrize("t2", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bounds_are_reached_by_sides_that_share_no_class(t2: bool, temperature: float) -> None:
    apart = Case(torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]]), torch.zeros(1), temperature)
    factor = temperature**2 if t2 else 1.0
    assert apart.loss("jsd", t2=t2).value.item() == pytest.approx(factor * math.log(2))
    assert apart.loss("jsd", normalize=True, t2=t2).value.item() == pytest.approx(2 * factor * math.log(2))
    assert apart.loss("skew_kl", skew=0.1, t2=t2).value.item() == pytest.approx(-factor * math.log(0.1))
    assert apart.loss("skew_reverse_kl", skew=0.1, t2=t2).value.item() == pytest.approx(-factor * math.log(0.1))
