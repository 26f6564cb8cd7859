"""Against ``textbrewer`` from PyPI, over random shapes, masks and types.

Its masked ``nst``/``mmd`` is compared at ``masked_divisor="length"``: the release divides by the length where the
repository's head and kdplug divide by the width. Left out: half precision, in which it loses the counts. There the oracle stands in.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from presets_strategies import KD, MATCH, drawn_features, features, mask_dtypes, oracle_of, seeds

from kdplug_presets import projection
from kdplug_presets.gram import nst
from kdplug_presets.scheduler import cwsm, flsw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    textbrewer = pytest.importorskip("textbrewer")
    from textbrewer import presets

examples = settings(max_examples=25, deadline=None)
PRECISIONS = st.sampled_from([torch.float32, torch.float64])


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-4) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=2e-5)


@pytest.mark.parametrize("name", MATCH)
@given(data=st.data())
@examples
def test_match_losses_agree_with_textbrewer_in_value_and_gradient(name: str, data: st.DataObject) -> None:
    masked = False if name == "nst" else data.draw(st.booleans())
    case = data.draw(drawn_features(name, dtype=data.draw(PRECISIONS), masked=masked))
    if case.mask is not None and name != "fsp":
        case.mask = case.mask.to(data.draw(mask_dtypes))
    assume(case.has_directions())
    theirs = presets.MATCH_LOSS_MAP[name](*case.arguments())
    for ours, expected in zip(case.gradients(), case.gradients(theirs), strict=True):
        assert close(ours, expected)
    assert close(case.loss().value, theirs)


@given(data=st.data())
@examples
def test_masked_nst_agrees_with_the_release_if_it_divides_by_the_length(data: st.DataObject) -> None:
    case = data.draw(drawn_features("nst", dtype=data.draw(PRECISIONS), masked=True))
    ours, theirs = (
        nst(*case.arguments(), masked_divisor="length").value,
        presets.MATCH_LOSS_MAP["nst"](*case.arguments()),
    )
    assert close(ours, theirs)
    for own, expected in zip(case.gradients(ours), case.gradients(theirs), strict=True):
        assert close(own, expected)


@pytest.mark.parametrize("name", MATCH)
@given(data=st.data())
@examples
def test_match_losses_agree_with_the_plain_formula_in_every_type(name: str, data: st.DataObject) -> None:
    case = data.draw(drawn_features(name))
    assume(case.has_directions())
    expected = oracle_of(name)(*case.arguments())
    tolerance = 1e-9 if case.student[0].dtype == torch.float64 else 2e-4
    assert torch.allclose(case.loss().value.double(), expected, rtol=tolerance, atol=tolerance / 10)
    rounding = 1e-2 if case.student[0].dtype in (torch.float16, torch.bfloat16) else 1e-4
    for ours, plain in zip(case.gradients(), case.gradients(expected), strict=True):
        assert torch.allclose(ours, plain, rtol=rounding, atol=rounding / 10)


@pytest.mark.parametrize("name", KD)
@given(rank=st.integers(1, 4), size=st.integers(1, 4), classes=st.integers(1, 9), dtype=PRECISIONS, seed=seeds)
@examples
def test_kd_losses_agree_with_textbrewer(name: str, rank: int, size: int, classes: int, dtype: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (size,) * (rank - 1) + (classes,)
    student, teacher = (torch.randn(shape, generator=generator, dtype=dtype) * 3 for _ in range(2))
    temperature = torch.rand(shape[:-1], generator=generator, dtype=dtype) * 5 + 0.5
    for value in (temperature, 2.5):
        ours, theirs = KD[name](student, teacher, value).value, presets.KD_LOSS_MAP[name](student, teacher, value)
        assert close(ours, theirs)
        assert close(ours, oracle_of(name)(student, teacher, value))


@given(rows=st.integers(1, 6), classes=st.integers(2, 9), gamma=st.sampled_from([1.0, 2.0]), seed=seeds)
@examples
def test_temperature_schedulers_agree_with_textbrewer(rows: int, classes: int, gamma: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, classes, generator=generator) for _ in range(2))
    focal = presets.TEMPERATURE_SCHEDULER[["flsw", 0.5, gamma]](student, teacher, 8.0)
    confident = presets.TEMPERATURE_SCHEDULER[["cwsm", 0.5]](student, teacher, 8.0)
    assert torch.allclose(flsw(student, teacher, 8.0, beta=0.5, gamma=gamma), focal, rtol=1e-5)
    assert torch.allclose(cwsm(student, teacher, 8.0, beta=0.5), confident, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "relu", "tanh"])
def test_projections_draw_textbrewers_weights_from_the_same_seed(name: str) -> None:
    torch.manual_seed(3)
    theirs = presets.PROJ_MAP[name](4, 6)
    torch.manual_seed(3)
    ours = getattr(projection, name)(4, 6)
    x = torch.randn(2, 4)
    assert torch.equal(ours(x), theirs(x))


def test_masked_nst_differs_from_the_release_by_the_divisor_alone() -> None:
    case = features("nst", length=4, width=6)
    release = presets.MATCH_LOSS_MAP["nst"](*case.arguments())
    length, width = case.student[0].shape[1:]
    assert torch.allclose(case.loss().value, release * (length / width) ** 2)
