"""The package as the host sees it: entry points that resolve, documented, with settings pydantic can read."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest
from logits_strategies import LABELLED, LOSSES, UNTEMPERED
from pydantic import create_model

import kdplug

every = pytest.mark.parametrize("name", LOSSES)
ORDER = ("student_logits", "teacher_logits", "temperature", "teacher_sparse", "labels", "step", "draw_seed")


@every
def test_an_entry_asks_for_inputs_by_position_and_settings_by_keyword(name: str) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert inputs == [known for known in ORDER if known in inputs]
    assert ("labels" in inputs) == (name in LABELLED)
    assert ("temperature" in inputs) == ("t2" in inspect.signature(LOSSES[name]).parameters) == (name not in UNTEMPERED)


@every
def test_settings_become_a_pydantic_model_whose_defaults_are_valid(name: str) -> None:
    hints = get_type_hints(LOSSES[name], include_extras=True)
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    fields: Any = {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
    model = create_model("Settings", **fields)
    assert model.model_json_schema()
    assert model.model_validate(model().model_dump()) == model()


@every
def test_an_entry_says_what_it_is_where_it_comes_from_and_what_each_setting_means(name: str) -> None:
    text = inspect.getdoc(LOSSES[name]) or ""
    assert text.splitlines()[0].endswith(".")
    assert all(f"\n{label}: " in text for label in ("Relations", "Shapes", "Raises", "Source"))
    for parameter in inspect.signature(LOSSES[name]).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"``{parameter.name}``" in text.split("\nSettings: ")[1].split("\n\n")[0]


@pytest.mark.parametrize(
    ("spec", "field", "says"),
    [
        ({"name": "jsd", "beta": 1.5}, "beta", "<= 1"),
        ({"name": "skew_kl", "skew": 1}, "skew", "< 1"),
        ({"name": "alpha_beta", "alpha": 0.001}, "alpha", "must be 0 or at least 0.01"),
        ({"name": "topk", "k": 0}, "k", ">= 1"),
        ({"name": "topk", "rest": "both"}, "rest", "tail"),
        ({"name": "sampled", "draws": 0}, "draws", ">= 1"),
        ({"name": "nkd", "gamma": -1}, "gamma", ">= 0"),
        ({"name": "ranking", "margin": -1}, "margin", ">= 0"),
    ],
)
def test_a_setting_out_of_bounds_is_an_error_that_names_it(spec: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(kdplug.SettingError, match=rf"{field}.*{says}"):
        kdplug.losses.build(spec)


def test_a_config_names_a_loss_and_its_settings_and_the_objective_computes_it() -> None:
    import torch

    config = kdplug.DistillationConfig(temperature=2, kd_loss_type={"name": "jsd", "beta": 0.1, "normalize": True})
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    report = kdplug.Objective(config)(student={"logits": student}, teacher={"logits": teacher})
    expected = LOSSES["jsd"](student, teacher, 2.0, beta=0.1, normalize=True).value
    assert torch.equal(report.terms["kd_loss"].value, expected)


def test_a_loss_that_needs_labels_gets_them_from_the_student_and_says_so_where_there_are_none() -> None:
    import torch

    objective = kdplug.Objective(kdplug.DistillationConfig(temperature=4, kd_loss_type="dkd"))
    student, teacher, labels = torch.randn(4, 7), torch.randn(4, 7), torch.tensor([0, 3, -100, 6])
    report = objective(student={"logits": student, "labels": labels}, teacher={"logits": teacher})
    assert torch.allclose(report.terms["kd_loss"].value, LOSSES["dkd"](student, teacher, 4.0, labels).value)
    with pytest.raises(kdplug.OutputsError, match=r"^kd_loss_type: dkd: needs labels, but the student returned none"):
        objective(student={"logits": student}, teacher={"logits": teacher})
