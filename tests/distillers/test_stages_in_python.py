"""Distillers that run one after another, killed and started again: the way to stages without a recipe."""

from __future__ import annotations

import pytest
import torch
from killer import Killed, Killer
from small_run import make_student, make_teacher
from torch.utils.data import DataLoader, TensorDataset

import kdplug

STEPS = 6
ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def stages(folder, killed=None):
    """Train two stages with a folder each; ``killed`` is the stage and the step after which the process ends."""
    student, teacher = make_student(), make_teacher()
    for name, temperature, lr in (("warm", 8.0, 0.1), ("sharp", 1.0, 0.02)):
        distiller = kdplug.GeneralDistiller(
            kdplug.TrainingConfig(output_dir=str(folder / name), device="cpu", seed=0, ckpt_steps=2),
            kdplug.DistillationConfig(temperature=temperature),
            teacher,
            student,
            observers=[Killer(killed[1])] if killed is not None and killed[0] == name else [],
            show_progress=False,
        )
        loader = DataLoader(TensorDataset(ROWS), batch_size=4, shuffle=True)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
        distiller.train(optimizer, loader, num_steps=STEPS, resume="auto")
    return student.state_dict()


@pytest.mark.parametrize("killed", [(name, step) for name in ("warm", "sharp") for step in (1, 3, 6)])
def test_a_killed_script_that_is_run_again_ends_with_the_same_bits(tmp_path, killed):
    whole = stages(tmp_path / "whole")
    with pytest.raises(Killed):
        stages(tmp_path / "killed", killed)
    again = stages(tmp_path / "killed")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
