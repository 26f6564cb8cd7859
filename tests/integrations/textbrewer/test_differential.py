"""The drop-in against TextBrewer from PyPI: the same losses at every batch, the same weights at the end.

50 optimizer steps from the same seeds, for each distiller and each option. Equal too: the tags, the steps of callbacks
and checkpoints, the modes that callbacks find, and what every random generator gives next.

The release divides masked ``nst`` and ``mmd`` by the length where the repository's head, which the drop-in follows,
divides by the width; the one masked case of theirs has a length equal to both widths. ``masked_divisor`` gives the
release's divisor.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from textbrewer_case import CASES
from textbrewer_twin import loss_gap, run, weight_gap

import kdplug.integrations.textbrewer as dropin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    textbrewer = pytest.importorskip("textbrewer")

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_textbrewer(name: str, tmp_path: Path) -> None:
    ours, theirs = (run(library, CASES[name], tmp_path / library.__name__) for library in (dropin, textbrewer))
    assert len({step for _, _, step in theirs.scalars}) >= 50 // CASES[name].rounds
    assert [(tag, step) for tag, _, step in ours.scalars] == [(tag, step) for tag, _, step in theirs.scalars]
    assert loss_gap(ours, theirs) <= TOLERANCE
    assert weight_gap(ours, theirs) <= TOLERANCE
    assert (ours.callbacks, ours.checkpoints) == (theirs.callbacks, theirs.checkpoints)
    assert ours.draws == theirs.draws


@pytest.mark.parametrize("name", ["nst", "mmd"])
def test_a_setting_gives_the_divisor_of_the_release(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = ([torch.randn(3, 5, width, generator=draw) for _ in range(2)] for width in (6, 8))
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    expected = textbrewer.losses.mmd_loss(student, teacher, mask)
    found = dropin.presets.MATCH_LOSS_MAP[[name, {"masked_divisor": "length"}]](student, teacher, mask=mask)
    torch.testing.assert_close(found, expected)
    usual = dropin.presets.MATCH_LOSS_MAP[name](student, teacher, mask=mask)
    assert abs(usual - expected) > 0.1 * expected


@pytest.mark.parametrize("name", ["kd_ce_loss", "kd_mse_loss"])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_the_gradient_of_a_temperature_is_that_of_textbrewer(name: str, shape: tuple[int, ...]) -> None:
    import textbrewer.losses

    student, teacher = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    temperature = (1 + torch.rand(shape, dtype=torch.float64)).requires_grad_()
    values = [getattr(library, name)(student, teacher, temperature) for library in (dropin.losses, textbrewer.losses)]
    gradients = [torch.autograd.grad(value, temperature)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
