"""Which losses may be computed on the categories of a sparse teacher: the kit's laws say, not taste."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from logits_strategies import LOSSES

import kdplug
from kdplug import OutputsError, SparseLogits
from kdplug.testing import LossLaws, broken_laws, law_names

COARSENS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "adaptive_kl", "alpha_beta")
SPARSE = ("topk", "sampled")
"""They take a sparse teacher as it is."""
LABELLED = ("dkd", "nkd", "wsld")
DENSE = tuple(name for name in LOSSES if name not in (*COARSENS, *SPARSE, *LABELLED))
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "jsd": [{"beta": 0.05}, {"beta": 0.95}, {"normalize": True}, {"beta": 0}, {"beta": 1}],
    "skew_kl": [{"skew": 0}, {"skew": 0.5}],
    "skew_reverse_kl": [{"skew": 0}, {"skew": 0.5}],
    "adaptive_kl": [{"mass": 0}, {"mass": 0.9}, {"mass": 1}],
    "alpha_beta": [{"alpha": 1, "beta": 0}, {"alpha": 0, "beta": 1}, {"alpha": 1, "beta": 1}],
    "dist": [{"gamma": 0}, {"beta": 0}],
    "ranking": [{"form": "hinge"}],
}


def broken(name: str, settings: dict[str, Any]) -> dict[str, str]:
    """The laws on categories that the loss breaks, declared or not."""

    def declared(*inputs: Any, **more: Any) -> Any:
        return LOSSES[name](*inputs, **more)

    declared.__signature__ = inspect.signature(LOSSES[name])  # type: ignore[attr-defined]
    declared.__annotations__ = dict(LOSSES[name].__annotations__)
    kdplug.coarsens(declared)
    laws = type("Laws", (LossLaws,), {"entry": staticmethod(declared), "settings": settings})
    names = [law for law in law_names(laws) if "categories" in law or "every_class_known" in law]
    assert len(names) == 3
    return broken_laws(laws, only=names)


def test_the_losses_for_which_it_is_true_declare_it() -> None:
    assert {name for name, loss in LOSSES.items() if getattr(loss, "coarsens", False)} == set(COARSENS)


@pytest.mark.parametrize(
    ("name", "settings"), [(name, one) for name in COARSENS for one in ({}, *SETTINGS.get(name, []))], ids=str
)
def test_they_keep_the_laws_with_every_setting(name: str, settings: dict[str, Any]) -> None:
    assert broken(name, settings) == {}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, one) for name in DENSE for one in ({}, *SETTINGS.get(name, []))], ids=str
)
def test_the_others_break_them(name: str, settings: dict[str, Any]) -> None:
    assert broken(name, settings)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *(
            (name, r"does not declare coarsens. .*@kdplug\.coarsens above the function, coarsens = True")
            for name in DENSE
        ),
        *((name, "requests labels") for name in LABELLED),
    ],
)
@pytest.mark.parametrize("factored", [False, True])
def test_a_sparse_teacher_is_refused_for_the_others(name: str, why: str, factored: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = SparseLogits.top(torch.randn(6, 9, generator=generator), 3, 2.0)
    student: Any = torch.randn(6, 9, generator=generator)
    if factored:
        student = kdplug.FactoredLogits(torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator))
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type=name, temperature=2.0))
    with pytest.raises(OutputsError, match=rf"^teacher\.logits: kdplug-logits:{name} {why}"):
        objective({"logits": student, "labels": torch.zeros(6, dtype=torch.long)}, teacher)
