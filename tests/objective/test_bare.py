"""A term's short way, for bare tensors, gives what its long way gives, and says what that says."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kdplug import DistillationConfig, KdplugError, Objective, ShapeError
from kdplug.objective import kd_term, match_term


def masked(student_features, teacher_features, mask):
    """A loss that must be given a mask, or ``None``."""
    error = (student_features - teacher_features).square().mean(-1)
    return error.mean() if mask is None else error[mask].mean()


def refusing(student_features, teacher_features):
    raise ShapeError("not these")


def refusing_logits(student_logits, teacher_logits):
    raise ShapeError("not these")


def listing(student_features, teacher_features):
    return [1, 2]


@pytest.fixture(autouse=True)
def losses(offer):
    for one in (masked, refusing, refusing_logits, listing):
        offer(one, name=one.__name__)


MATCH = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "plain_mse", "weight": 0.5}
CONFIGS = {
    "kd": {},
    "kd of a count": {"kd_loss_type": "ce_sum", "kd_loss_weight": 3},
    "kd at a temperature": {"temperature": 4},
    "kd refuses": {"kd_loss_type": "refusing_logits"},
    "hidden": {"intermediate_matches": [MATCH]},
    "from the end": {"intermediate_matches": [{**MATCH, "layer_S": -1, "layer_T": -2}]},
    "out of range": {"intermediate_matches": [{**MATCH, "layer_S": 3}]},
    "out of range from the end": {"intermediate_matches": [{**MATCH, "layer_T": -5}]},
    "wider": {"intermediate_matches": [{**MATCH, "layer_T": 3}]},
    "attention": {"intermediate_matches": [{**MATCH, "feature": "attention", "layer_T": 1}]},
    "with a mask or none": {"intermediate_matches": [{**MATCH, "loss": "masked"}, {**MATCH, "loss": "masked_mse"}]},
    "refuses": {"intermediate_matches": [{**MATCH, "loss": "refusing"}]},
    "no scalar": {"intermediate_matches": [{**MATCH, "loss": "listing"}]},
    "projected": {"intermediate_matches": [{**MATCH, "layer_T": 3, "proj": ["linear", 6, 8]}]},
    "with state": {"intermediate_matches": [{**MATCH, "loss": "scaled"}]},
    "shifted": {"probability_shift": True},
    "several": {"intermediate_matches": [{**MATCH, "layer_S": n, "layer_T": n} for n in range(3)]},
}


def as_they_are(student, teacher, mask):
    pass


def with_a_mask(student, teacher, mask):
    student["inputs_mask"] = mask


def with_the_teachers_mask(student, teacher, mask):
    teacher["inputs_mask"] = mask


def with_a_logits_mask(student, teacher, mask):
    student["logits_mask"] = mask


def with_the_teachers_logits_mask(student, teacher, mask):
    teacher["logits_mask"] = mask


def with_a_teacher_that_learns(student, teacher, mask):
    teacher["logits"].requires_grad_()
    teacher["hidden"][0].requires_grad_()


def with_a_teacher_of_inference(student, teacher, mask):
    with torch.inference_mode():
        teacher["logits"] = teacher["logits"] * 1
        teacher["hidden"] = [one * 1 for one in teacher["hidden"]]


def with_a_half_teacher(student, teacher, mask):
    teacher["logits"] = teacher["logits"].bfloat16()
    teacher["hidden"] = [one.bfloat16() for one in teacher["hidden"]]


def with_a_half_student(student, teacher, mask):
    student["logits"] = student["logits"].detach().bfloat16().requires_grad_()
    student["hidden"] = [one.detach().bfloat16().requires_grad_() for one in student["hidden"]]


def with_labels(student, teacher, mask):
    student["labels"] = torch.arange(12).view(3, 4) % 5


def with_two_heads(student, teacher, mask):
    student["logits"] = [student["logits"], student["logits"]]
    teacher["logits"] = [teacher["logits"], teacher["logits"]]


def with_other_shapes(student, teacher, mask):
    student["logits"] = student["logits"][:2]
    student["hidden"] = [one[:2] for one in student["hidden"]]


def with_one_class(student, teacher, mask):
    student["logits"], teacher["logits"] = student["logits"][..., :1], teacher["logits"][..., :1]


def with_nothing_in_it(student, teacher, mask):
    student["logits"], teacher["logits"] = student["logits"][:0], teacher["logits"][:0]


def without_features(student, teacher, mask):
    del student["hidden"], teacher["attention"]


def without_logits(student, teacher, mask):
    del teacher["logits"]


BATCHES = [
    as_they_are,
    with_a_mask,
    with_the_teachers_mask,
    with_a_logits_mask,
    with_the_teachers_logits_mask,
    with_a_teacher_that_learns,
    with_a_teacher_of_inference,
    with_a_half_teacher,
    with_a_half_student,
    with_labels,
    with_two_heads,
    with_other_shapes,
    with_one_class,
    with_nothing_in_it,
    without_features,
    without_logits,
]


def leaves(side):
    for values in side.values():
        for one in values if isinstance(values, list) else [values]:
            one.grad = None
            yield one


def in_float32(side):
    def cast(tensor):
        return tensor.detach().float().requires_grad_(tensor.requires_grad)

    return {key: list(map(cast, value)) if isinstance(value, list) else cast(value) for key, value in side.items()}


def outcome(objective, student, teacher, autocast):
    """The total, the values of the terms, and the gradient of all that has one; or what the error says."""
    tensors = [*leaves(student), *leaves(teacher)]
    for parameter in objective.parameters():
        parameter.grad = None
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            report = objective(student, teacher)
    except (KdplugError, RuntimeError) as error:
        return str(error)
    report.total.backward()
    found = [report.total.detach(), *(term.value.detach() for term in report.terms.values())]
    grads = [one.grad for one in [*tensors, *objective.parameters()] if one.is_leaf]
    return [[type(one) if one is None else (one.dtype, one.tolist()) for one in [*found, *grads]]]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("change", BATCHES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_short_way_and_the_long_way_are_one(build, student, teacher, mask, monkeypatch, name, change, autocast):
    objective = build(**CONFIGS[name])
    student, teacher = in_float32(student), in_float32(teacher)
    change(student, teacher, mask)
    short = outcome(objective, student, teacher, autocast)
    for module in (kd_term, match_term):
        monkeypatch.setattr(module, "is_bare", lambda *_: False)
    assert short == outcome(objective, student, teacher, autocast)


@pytest.mark.parametrize("name", ["kd", "hidden", "attention", "with a mask or none", "several"])
def test_the_commonest_batch_takes_the_short_way(build, student, teacher, monkeypatch, name):
    objective = build(**CONFIGS[name])
    for module in (kd_term, match_term):
        monkeypatch.setattr(module, "full", lambda _: pytest.fail("this is the long way"))
    objective(in_float32(student), in_float32(teacher))


def test_the_logits_of_several_teachers_are_combined_first(build, offer, student, teacher):
    offer(lambda teacher_logits_list: sum(teacher_logits_list) / 2, "teacher_combiners", "mean_logits")
    student, teacher = in_float32(student), in_float32(teacher)
    other = {**teacher, "logits": teacher["logits"] * 2}
    objective = Objective(DistillationConfig(), teachers=2)
    both = objective(student, [teacher, other]).total
    mean = (teacher["logits"] + other["logits"]) / 2
    torch.testing.assert_close(both, build()(student, {**teacher, "logits": mean}).total)


def test_terms_in_two_precisions_add_up(build, student, teacher):
    student, teacher = in_float32(student), in_float32(teacher)
    for side in (student, teacher):
        side["hidden"][1] = side["hidden"][1].detach().double().requires_grad_(side is student)
    report = build(**CONFIGS["several"])(student, teacher)
    assert report.total.dtype == torch.float64
    torch.testing.assert_close(report.total, sum(term.weighted for term in report.terms.values()).double())
