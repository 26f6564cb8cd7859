"""The total against TextBrewer's, written out anew with loops over single rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Case:
    """One configuration and one batch."""

    config: dict
    student: dict
    teacher: dict
    heads: int
    masks: list
    labels: list = field(default_factory=list)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def masks(draw, batch, length):
    bits = draw(st.lists(st.sampled_from([0, 1, 1]), min_size=batch * length, max_size=batch * length))
    bits[0] = 1
    return torch.tensor(bits).view(batch, length).to(draw(st.sampled_from([torch.int64, torch.bool, torch.float32])))


@st.composite
def matches(draw, layers):
    index = st.integers(-layers, layers - 1)
    listed = draw(st.booleans())
    pick = st.lists(index, min_size=2, max_size=2) if listed else index
    return {
        "layer_T": draw(pick),
        "layer_S": draw(pick),
        "feature": "hidden",
        "loss": "pair_mse" if listed else "masked_mse",
        "weight": draw(st.sampled_from([0, 0.5, 2])),
    } | draw(st.sampled_from([{}, {"proj": ["linear", 3, 3]}]))


@st.composite
def cases(draw):
    batch, length, heads, layers = (draw(st.integers(1, high)) for high in (3, 4, 2, 3))
    classes = draw(st.integers(2, 5))  # a softmax over one class is refused
    make, shift = tensors(draw(st.integers(0, 2**16))), draw(st.booleans())
    mask = st.none() | masks(batch, length)
    one_mask = draw(mask)
    student, teacher = (
        {
            "logits": [make(batch, length, classes) for _ in range(heads)],
            "hidden": [make(batch, length, 3) for _ in range(layers)],
        }
        for _ in range(2)
    )
    labels = [
        torch.tensor(draw(st.lists(st.integers(-2, classes - 1), min_size=batch * length, max_size=batch * length)))
        for _ in range(heads)
    ]
    student |= {
        "losses": [make(draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 2)))],
        "labels": [one.view(batch, length) for one in labels],
        "inputs_mask": draw(mask),
        "logits_mask": one_mask,
    }
    config = {
        "temperature": draw(st.sampled_from([1, 2.5])),
        "kd_loss_weight": draw(st.sampled_from([0, 1, 0.3])),
        "hard_label_weight": draw(st.sampled_from([0.5, 1])),
        "probability_shift": shift,
        "intermediate_matches": draw(st.lists(matches(layers), max_size=3)),
    }
    return Case(config, student, teacher, heads, [one_mask] * heads)


def rows(tensor: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The last axis of every position that counts, one by one."""
    batch, length = tensor.shape[:2]
    return [tensor[b, i] for b in range(batch) for i in range(length) if mask is None or mask[b, i] != 0]


def shifted(row: Tensor, label: int) -> list[float]:
    values = row.tolist()
    if label >= 0:
        top = max(range(len(values)), key=values.__getitem__)
        values[top], values[label] = values[label], values[top]
    return values


def cross_entropy(student: list[float], teacher: list[float], temperature: float) -> float:
    def softmax(values):
        largest = max(values)
        powers = [math.exp((value - largest) / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    return -sum(p * math.log(q) for p, q in zip(softmax(teacher), softmax(student), strict=True))


def kd(case: Case) -> float:
    total = 0.0
    for head in range(case.heads):
        mask = case.masks[head]
        labels = [row.item() for row in rows(case.student["labels"][head].unsqueeze(-1), mask)]
        teacher = [row.tolist() for row in rows(case.teacher["logits"][head], mask)]
        if case.config["probability_shift"]:
            kept = rows(case.teacher["logits"][head], mask)
            teacher = [shifted(row, label) for row, label in zip(kept, labels, strict=True)]
        student = [row.tolist() for row in rows(case.student["logits"][head], mask)]
        items = [cross_entropy(s, t, case.config["temperature"]) for s, t in zip(student, teacher, strict=True)]
        total += sum(items) / len(items)
    return total


def squared(student: Tensor, teacher: Tensor, mask: Tensor | None) -> float:
    items = [
        sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True)) / len(s)
        for s, t in zip(rows(student, mask), rows(teacher, mask), strict=True)
    ]
    return sum(items) / len(items)


def total(case: Case, objective) -> float:
    value = case.config["kd_loss_weight"] * kd(case)
    projections = iter([read.projection for _, read in objective.configured.on_features()])
    for match in case.config["intermediate_matches"]:
        if match["weight"] == 0:
            continue
        project = next(projections) or (lambda feature: feature)
        student, teacher = case.student["hidden"], case.teacher["hidden"]
        if match["loss"] == "pair_mse":
            pairs = zip(match["layer_S"], match["layer_T"], strict=True)
            found = sum(squared(project(student[s]), teacher[t], None) for s, t in pairs)
        else:
            mask = case.student["inputs_mask"]
            found = squared(project(student[match["layer_S"]]), teacher[match["layer_T"]], mask)
        value += match["weight"] * found
    return value + case.config["hard_label_weight"] * sum(loss.mean().item() for loss in case.student["losses"])


@given(case=cases())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_total_is_textbrewers(build, case):
    objective = build(**case.config).double()
    found = objective(case.student, case.teacher).total.item()
    assert math.isclose(found, total(case, objective), rel_tol=1e-10)
