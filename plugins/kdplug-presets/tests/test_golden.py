"""Values and gradient norms recorded from TextBrewer, on inputs from a closed formula."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from presets_strategies import KD, MATCH, PAIR
from torch import Tensor

from kdplug_presets.scheduler import cwsm, flsw

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "textbrewer.json").read_text())
NAMES = {"gram": "fsp", "mmd": "nst"}
B, H, L, D, DT, C = 3, 2, 4, 5, 6, 7


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    """2·sin(0.7·i + phase) + 0.3·cos((1.9·i²) mod 7 + phase) over the flat index i."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (2 * torch.sin(0.7 * i + phase) + 0.3 * torch.cos((1.9 * i * i) % 7 + phase)).float().view(shape)


def match_inputs(name: str, parts: list[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Student and teacher tensors of a golden key."""
    if name.startswith("attention"):
        sides = [[wave((B, H, L, L), phase)] for phase in (0.2, 1.2)]
    elif name in PAIR:
        width = DT if "DT" in parts else D
        return [wave((B, L, D), p) for p in (0.1, 0.4)], [wave((B, L, width), p) for p in (1.1, 1.4)]
    else:
        sides = [[wave((B, L, D), phase)] for phase in (0.1, 1.1)]
    if "3d" in parts or "2d" in parts:
        sides = [[tensor[:, 0].clone() for tensor in side] for side in sides]
    return sides[0], sides[1]


@pytest.mark.parametrize("key", GOLDEN["match"])
def test_match_losses_have_textbrewers_value_and_gradient_norm(key: str) -> None:
    name, *parts = key.split("/")
    name = NAMES.get(name, name)
    student, teacher = match_inputs(name, parts)
    leaves = [tensor.requires_grad_() for tensor in student]
    mask = GOLDEN["masks"][parts[-1]]
    mask = None if mask is None else torch.tensor(mask)
    value = MATCH[name](*((student, teacher) if name in PAIR else (student[0], teacher[0])), mask).value
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)]).norm()
    assert value.item() == pytest.approx(GOLDEN["match"][key], rel=1e-5)
    assert norm.item() == pytest.approx(GOLDEN["match_grad_norm"][key], rel=1e-5)


def kd_logits(rank: str) -> tuple[Tensor, Tensor]:
    """Student and teacher logits of a golden key."""
    return (wave((B, C), 0.0), wave((B, C), 1.0)) if rank == "2d" else (wave((B, L, C), 0.5), wave((B, L, C), 1.5))


@pytest.mark.parametrize("key", GOLDEN["kd"])
def test_kd_losses_have_textbrewers_value(key: str) -> None:
    name, rank, written = key.split("/")
    tensors = {"[1,2,3]": torch.tensor([1.0, 2.0, 3.0]), "1+arange(B*L).view(B,L)": 1 + torch.arange(12.0).view(B, L)}
    temperature = tensors.get(written.removeprefix("T="))
    if temperature is None:
        temperature = float(written.removeprefix("T="))
    assert KD[name](*kd_logits(rank), temperature).value.item() == pytest.approx(GOLDEN["kd"][key], rel=1e-5)


@pytest.mark.parametrize("key", GOLDEN["temp"])
def test_temperature_schedulers_have_textbrewers_values(key: str) -> None:
    name, *arguments, rank = key.split()
    settings = dict(argument.split("=") for argument in arguments)
    known = {"b": "beta", "g": "gamma"}
    keywords = {known[word]: float(value) for word, value in settings.items() if word in known}
    scheduler = {"flsw": flsw, "cwsm": cwsm}[name]
    result = scheduler(*kd_logits(rank), float(settings["T"]), **keywords)
    assert torch.allclose(result, torch.tensor(GOLDEN["temp"][key]), rtol=1e-5)
