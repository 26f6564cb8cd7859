"""Losses with inputs to try them on. Hypothesis draws sizes and a seed; tensors come from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import presets_oracle as oracle
import torch
from hypothesis import strategies as st
from torch import Tensor

from kdplug_presets import attention, gram, hidden, kd

ATTENTION = {
    "attention_mse": attention.attention_mse,
    "attention_mse_sum": attention.attention_mse_sum,
    "attention_ce": attention.attention_ce,
    "attention_ce_mean": attention.attention_ce_mean,
}
HIDDEN = {"hidden_mse": hidden.hidden_mse, "cos": hidden.cos, "pkd": hidden.pkd}
PAIR = {"fsp": gram.fsp, "nst": gram.nst}
MATCH: dict[str, Callable[..., Any]] = {**ATTENTION, **HIDDEN, **PAIR}
KD: dict[str, Callable[..., Any]] = {"ce": kd.ce, "mse": kd.mse}
BOTH_ROUTES = {"fsp": [5, 40], "nst": [5, 1]}
"""Widths at which a Gram loss over 4 tokens goes directly, and by expansion."""
ZERO_AT_EQUALITY = ("attention_mse", "attention_mse_sum", "hidden_mse", "cos", "pkd", "fsp", "nst")


def oracle_of(name: str) -> Callable[..., Tensor]:
    """The plain formula of a loss."""
    return getattr(oracle, name)


@dataclass
class Features:
    """Both sides of a match; ``student`` and ``teacher`` are lists of one tensor or of two."""

    name: str
    student: list[Tensor]
    teacher: list[Tensor]
    mask: Tensor | None

    def arguments(self) -> tuple[Any, Any, Tensor | None]:
        """What the loss is called with."""
        if self.name in PAIR:
            return self.student, self.teacher, self.mask
        return self.student[0], self.teacher[0], self.mask

    def loss(self) -> Any:
        """The ``LossSum``."""
        return MATCH[self.name](*self.arguments())

    def has_directions(self) -> bool:
        """Whether no vector is so short that what is added to lengths against a division by 0 shows."""
        tensors = [*self.student, *self.teacher]
        return all(bool((tensor.detach().float().norm(dim=-1) > 1e-2).all()) for tensor in tensors)

    def gradients(self, value: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of the mean (or of ``value``), with respect to the student's tensors."""
        return torch.autograd.grad(self.loss().value if value is None else value, self.student)


def ragged(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """A mask with holes in which position 0 of every example counts."""
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[:, 0] = True
    return mask


def features(
    name: str,
    *,
    batch: int = 3,
    length: int = 4,
    width: int = 5,
    heads: int = 2,
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Features:
    """Random inputs for the match loss ``name``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, length, length) if name in ATTENTION else (batch, length, width)
    sides = [
        [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for _ in range(2 if name in PAIR else 1)
        ]
        for _ in range(2)
    ]
    student = [tensor.requires_grad_() for tensor in sides[0]]
    return Features(name, student, sides[1], ragged(batch, length, generator) if masked else None)


seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
mask_dtypes = st.sampled_from([torch.bool, torch.int64, torch.uint8, torch.float32, torch.float16])


@st.composite
def drawn_features(draw: st.DrawFn, name: str, **fixed: Any) -> Features:
    """Inputs of random sizes; widths reach far enough past lengths for both Gram routes."""
    sizes = {
        "batch": draw(st.integers(1, 4)),
        "length": draw(st.integers(1, 9)),
        "width": draw(st.integers(1, 24)),
        "heads": draw(st.integers(1, 3)),
        "masked": draw(st.booleans()),
        "dtype": draw(dtypes),
        "seed": draw(seeds),
    }
    return features(name, **{**sizes, **fixed})


def finite(*tensors: Tensor) -> bool:
    """Whether no entry is nan or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def padded_entries(name: str, mask: Tensor) -> Tensor:
    """The entries that belong to padded tokens; broadcasts to the features of the loss."""
    return ~(mask.unsqueeze(-1) & mask.unsqueeze(-2)).unsqueeze(1) if name in ATTENTION else ~mask.unsqueeze(-1)


def spoil(case: Features, bad: float, sides: tuple[str, ...]) -> None:
    """Put ``bad`` into every padded entry of the named sides."""
    where = padded_entries(case.name, case.mask)
    for side in sides:
        setattr(case, side, [tensor.detach().masked_fill(where, bad) for tensor in getattr(case, side)])
    case.student = [tensor.detach().requires_grad_() for tensor in case.student]
